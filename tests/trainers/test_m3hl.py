import numpy as np
import pytest
import torch

from nnunet_ssl.discovery.variants import find_trainer
from tests.conftest import assert_equal_weights, make_trainer, state_of


def differing(first: torch.Tensor, second: torch.Tensor) -> torch.Tensor:
    return (first != second).any(1, keepdim=True)


def blocks_of(mask: torch.Tensor, blocks: int = 4) -> torch.Tensor:
    """Return the mean of each block of masks (B, 1, *spatial) whose sides are multiples of the number of blocks."""
    size = tuple(length // blocks for length in mask.shape[2:])
    return torch.nn.functional.avg_pool3d(mask.float(), size) if mask.ndim == 5 else (
        torch.nn.functional.avg_pool2d(mask.float(), size))  # fmt: skip


@pytest.mark.parametrize("dim", [2, 3])
def test_two_images_are_mixed_by_one_mask_with_swapped_roles(start, seen, dim):
    trainer, labeled, unlabeled = start("M3HL", progress=0.5, cell={"dim": dim, "batch_size": 4})
    student, teacher = seen(trainer.network), seen(trainer.networks["teacher"])
    names = [list(losses) for losses in trainer.training_losses(labeled, unlabeled)]
    assert names == [["supervised"], ["labeled_part", "pseudo_label", "high_level", "low_level"]]
    assert torch.equal(student[0], labeled.image)
    assert torch.equal(teacher[0], unlabeled.weak)
    is_unlabeled = differing(student[1], labeled.image)
    assert torch.equal(student[1], torch.where(is_unlabeled, unlabeled.strong, labeled.image))
    shares = blocks_of(is_unlabeled)
    assert set(shares.unique().tolist()) == {0.0, 1.0}, "whole blocks are exchanged, in 3-D too"
    assert torch.equal(shares[0], 1.0 - shares[1])
    assert torch.equal(shares[2], 1.0 - shares[3])
    assert not torch.equal(shares[0], shares[2])
    assert not torch.equal(shares[0], shares[3])


def exchanged(trainer, labeled, number: int) -> set[int]:
    """Return how many blocks of the images the masks exchange: those of the side that has fewer."""
    counts = [blocks_of(trainer.places_of_labels(labeled.image)).flatten(1).sum(1) for _ in range(number)]
    return {int(min(count, 16 - count)) for of_batch in counts for count in of_batch}


def test_the_share_grows_evenly_from_the_end_of_the_warmup(start):
    """Of 16 blocks 2 at 0.4 of the run, 5 at 0.7, 8 in the end."""
    for progress, expected in ((0.4, 2), (0.7, 5), (0.999, 8)):
        trainer, labeled, _ = start("M3HL", progress=progress, cell={"dim": 2}, num_epochs=1000)
        assert exchanged(trainer, labeled, 3) == {expected}
        assert trainer.observer.step_records["exchanged"] == pytest.approx(expected / 16, abs=1e-3)


def test_a_constant_share_is_an_option(start):
    trainer, labeled, _ = start("M3HL", progress=0.4, cell={"dim": 2}, num_epochs=1000, first_share=0.5)
    assert exchanged(trainer, labeled, 3) == {8}


def test_a_box_as_in_bcp_is_an_option(start):
    trainer, labeled, _ = start("M3HL", progress=0.5, cell={"dim": 2}, blocks_per_axis=0)
    box = round(2 / 3 * 16) ** 2
    assert sorted(trainer.places_of_labels(labeled.image).sum((1, 2, 3)).tolist()) == [box, 256 - box]


def naive_terms(trainer, labeled, unlabeled, is_labeled):
    """Return all terms of the mixed images in float64, from nothing but the outputs of both networks."""
    with torch.no_grad():
        taught = trainer.teacher_pass(unlabeled.weak)
        found = trainer.forward_pass(torch.where(is_labeled, labeled.image, unlabeled.strong))
    pseudo_label = taught.logits.argmax(1).numpy()
    labels = np.where(is_labeled[:, 0], labeled.full_target[:, 0].numpy(), pseudo_label)
    losses = {"labeled_part": 0.0, "pseudo_label": 0.0}
    weights = trainer.loss.weight_factors
    for head, (logits, weight) in enumerate(zip(found.outputs, weights, strict=True)):
        if not weight:
            continue
        step = 2**head
        at = (slice(None), *[slice(step // 2, None, step)] * (labels.ndim - 1))
        probs = logits.double().softmax(1).numpy()
        for name, mask in (("labeled_part", is_labeled[:, 0]), ("pseudo_label", ~is_labeled[:, 0])):
            inside = mask.numpy()[at]
            truth = labels[at]
            entropy = -np.mean([np.log(probs[b][(truth[b, y, x], y, x)]) for b, y, x in np.argwhere(inside)])
            dice = []
            for channel in range(1, probs.shape[1]):
                p, y = probs[:, channel][inside], (truth == channel)[inside]
                dice.append((2 * (p * y).sum() + 1e-5) / (p.sum() + y.sum() + 1e-5))
            losses[name] += weight * (entropy - np.mean(dice))
    losses["pseudo_label"] *= 0.5
    high, low = [], []
    for i in range(len(labels)):
        for j in (i, (i + 1) % len(labels)):
            a, b = found.skips[-1][i].double().flatten(), taught.skips[-1][j].double().flatten()
            high.append(1 - float(a @ b / (a.norm() * b.norm())))
            low.append(float((found.features[i].double() - taught.features[j].double()).abs().mean()))
    return losses | {"high_level": 0.5 * np.mean(high), "low_level": 0.5 * np.mean(low)}


def test_all_terms_against_float64(start, monkeypatch):
    trainer, labeled, unlabeled = start("M3HL", progress=0.6, cell={"dim": 2})
    list(trainer.training_losses(labeled, unlabeled))
    with torch.no_grad():
        for parameter in trainer.networks["teacher"].parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
    is_labeled = trainer.places_of_labels(labeled.image)
    monkeypatch.setattr(trainer, "places_of_labels", lambda image: is_labeled)
    *_, found = trainer.training_losses(labeled, unlabeled)
    expected = naive_terms(trainer, labeled, unlabeled, is_labeled)
    assert found.keys() == expected.keys()
    for name, value in found.items():
        assert value.item() == pytest.approx(expected[name], abs=2e-5), name


def test_low_level_of_own_voxels_alone(start, monkeypatch):
    trainer, labeled, unlabeled = start("M3HL", cell={"dim": 2}, low_level_of_own_voxels=True)
    is_labeled = trainer.places_of_labels(labeled.image)
    monkeypatch.setattr(trainer, "places_of_labels", lambda image: is_labeled)
    *_, found = trainer.training_losses(labeled, unlabeled)
    with torch.no_grad():
        features = trainer.forward_pass(torch.where(is_labeled, labeled.image, unlabeled.strong)).features
        target = trainer.teacher_pass(unlabeled.weak).features
    outside = (features - target).double().abs().permute(1, 0, 2, 3)[:, ~is_labeled[:, 0]]
    assert found["low_level"].item() == pytest.approx(0.5 * outside.mean().item(), abs=1e-6)


def test_without_consistency_there_is_no_term_of_it(start):
    trainer, *batch = start("M3HL", consistency_weight=0.0)
    assert [list(losses) for losses in trainer.training_losses(*batch)][1] == ["labeled_part", "pseudo_label"]


def test_with_one_box_and_no_consistency_it_is_bcp_bit_for_bit(tiny_dataset):
    dataset, weights = tiny_dataset(dim=2), []
    runs = (("BCP", {}), ("M3HL", {"blocks_per_axis": 0, "consistency_weight": 0.0}), ("M3HL", {}))
    for name, options in runs:
        trainer = make_trainer(dataset, find_trainer(f"nnUNetTrainer{name}"), seed=1, num_epochs=5, **options)
        trainer.run_training()
        weights.append(state_of(trainer))
    assert_equal_weights(weights[0], weights[1])
    assert any(not torch.equal(value, weights[0][name]) for name, value in weights[2].items())
