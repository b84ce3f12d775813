import math
import sys

import numpy as np
import pytest
import torch

from nnunet_ssl.building_blocks import displacement
from nnunet_ssl.discovery.variants import find_trainer
from nnunet_ssl.training.stages import WARMUP
from tests.conftest import assert_equal_weights, make_trainer, state_of

# Anything is sure enough for a source, and a third of each image unsure: networks that have learned nothing displace.
DISPLACES = {
    "first_unsure_threshold": 0.0,
    "last_unsure_threshold": 0.0,
    "first_unsure_fraction": 0.3,
    "last_unsure_fraction": 0.3,
    "first_box_side": 0.5,
}
TERMS = ("cross", "consistency", "displaced")
FROM_UNLABELED = [f"{student}_{term}" for student in ("first", "second") for term in TERMS]
ALL_TERMS = ["supervised", "second_supervised", *FROM_UNLABELED]


@pytest.fixture
def begin(start, monkeypatch):
    """Return a function that gives a trainer whose four networks differ, a batch, and the boxes that it will find."""

    def make(progress: float = 0.8, **settings):
        cell = {"dim": 2} | settings.pop("cell", {})
        trainer, labeled, unlabeled = start("CAD", progress=progress, cell=cell, **DISPLACES | settings)
        torch.manual_seed(3)
        for name in ("second", "first_teacher", "second_teacher"):
            for parameter in trainer.networks[name].parameters():
                parameter.data.add_(0.1 * torch.randn_like(parameter))
        module, found = sys.modules[type(trainer).__module__], []
        find_boxes = displacement.find_boxes

        def noted(*arguments):
            found.append(find_boxes(*arguments))
            return found[-1]

        monkeypatch.setattr(module, "find_boxes", noted)
        return trainer, labeled, unlabeled, found

    return make


def terms_of(trainer, labeled, unlabeled) -> dict[str, torch.Tensor]:
    return {name: value for losses in trainer.training_losses(labeled, unlabeled) for name, value in losses.items()}


# ---- naive references, in float64 and as loops over voxels ----


def naive_probabilities(kind: str, logits: list[float]) -> list[float]:
    if kind == "regions":
        return [1.0 / (1.0 + math.exp(-z)) for z in logits]
    top = max(logits)
    powers = [math.exp(z - top) for z in logits]
    return [power / sum(powers) for power in powers]


def naive_label(kind: str, probs: list[float]) -> list[int]:
    return [int(p > 0.5) for p in probs] if kind == "regions" else [probs.index(max(probs))]


def naive_segmentation_loss(kind: str, logits: np.ndarray, labels: np.ndarray, weight: np.ndarray) -> float:
    """Cross-entropy minus Dice of one head; all are (B, channels, *spatial)."""
    channels = logits.shape[1]
    cross_entropy = weights = 0.0
    overlap, size = [0.0] * channels, [0.0] * channels
    for at in np.ndindex(logits.shape[0], *logits.shape[2:]):
        here = (at[0], slice(None), *at[1:])
        p = naive_probabilities(kind, logits[here].tolist())
        label, w = labels[here].tolist(), weight[here].tolist()
        if kind == "regions":
            w = w * channels if len(w) == 1 else w
            for c in range(channels):
                cross_entropy -= w[c] * math.log(p[c] if label[c] else 1.0 - p[c])
                weights += w[c]
        else:
            cross_entropy -= w[0] * math.log(p[int(label[0])])
            weights += w[0]
            w, label = w * channels, [int(label[0] == c) for c in range(channels)]
        for c in range(channels):
            overlap[c] += w[c] * p[c] * label[c]
            size[c] += w[c] * (p[c] + label[c])
    foreground = range(channels) if kind == "regions" else range(1, channels)
    dice = [(2 * overlap[c] + 1e-5) / (size[c] + 1e-5) for c in foreground]
    return cross_entropy / max(weights, 1.0) - sum(dice) / len(dice)


def nearest(maps: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    for axis, length in enumerate(shape, start=2):
        places = [int((i + 0.5) * maps.shape[axis] / length) for i in range(length)]
        maps = maps.take(places, axis)
    return maps


def naive_loss_of_all_heads(trainer, kind: str, outputs, labels: np.ndarray, weight: np.ndarray) -> float:
    total = 0.0
    for head, share in zip(outputs, trainer.loss.weight_factors, strict=True):
        if share:
            logits = head.detach().double().numpy()
            small = (nearest(maps, logits.shape[2:]) for maps in (labels, weight))
            total += share * naive_segmentation_loss(kind, logits, *small)
    return total


def naive_targets(kind: str, logits: torch.Tensor) -> tuple[np.ndarray, np.ndarray]:
    """Return probabilities and labels of logits."""
    z = logits.detach().double().numpy()
    probs = np.apply_along_axis(lambda one: np.array(naive_probabilities(kind, one.tolist())), 1, z)
    return probs, np.apply_along_axis(lambda p: np.array(naive_label(kind, p.tolist())), 1, probs)


def pasted(maps: np.ndarray, boxes) -> np.ndarray:
    """Voxel by voxel: the source's in a box, its own elsewhere."""
    new = maps.copy()
    for one in boxes:
        for offset in np.ndindex(*one.size):
            there = tuple(a + b for a, b in zip(one.start, offset, strict=True))
            here = tuple(a + b for a, b in zip(one.source_start, offset, strict=True))
            new[(one.image, slice(None), *there)] = maps[(one.source, slice(None), *here)]
    return new


@pytest.mark.parametrize("kind", ["softmax", "regions"])
@pytest.mark.parametrize("batch_size", [1, 2])
def test_every_term_is_that_of_its_formula(begin, kind, batch_size):
    cell = {"regions": kind == "regions", "batch_size": batch_size}
    settings = {"confidence_threshold": 0.6, "cross_weight": 0.3, "consistency_weight": 2.0, "displaced_weight": 0.7}
    trainer, labeled, unlabeled, found = begin(progress=0.5, cell=cell, **settings)
    terms = terms_of(trainer, labeled, unlabeled)
    assert list(terms) == ALL_TERMS
    (boxes,) = found
    assert len(boxes) == batch_size
    ramp = math.exp(-5 * (1 - (0.1 / 0.6) / 0.2) ** 2)
    image, space = unlabeled.strong, trainer.label_space
    mixed = torch.from_numpy(pasted(image.numpy(), boxes))
    for student, partner in (("first", "second"), ("second", "first")):
        outputs = trainer.forward_pass(image, student).outputs
        _, labels = naive_targets(kind, trainer.forward_pass(image, partner).logits)
        cross = naive_loss_of_all_heads(trainer, kind, outputs, labels, np.ones_like(labels, float))
        assert terms[f"{student}_cross"].item() == pytest.approx(0.3 * ramp * cross, rel=1e-4)

        probs, _ = naive_targets(kind, outputs[0])
        target, _ = naive_targets(kind, trainer.teacher_pass(unlabeled.weak, f"{student}_teacher").logits)
        consistency = sum((a - b) ** 2 for a, b in zip(probs.flat, target.flat, strict=True)) / probs.size
        assert terms[f"{student}_consistency"].item() == pytest.approx(2.0 * ramp * consistency, rel=1e-4)

        logits = trainer.teacher_pass(unlabeled.weak, f"{partner}_teacher").logits
        target, labels = naive_targets(kind, logits)
        accepted = space.is_accepted(torch.from_numpy(target).float(), 0.6).numpy()
        assert 0.05 < accepted.mean() < 0.95
        outputs = trainer.forward_pass(mixed, student).outputs
        weight = pasted(accepted, boxes).astype(float)
        displaced = naive_loss_of_all_heads(trainer, kind, outputs, pasted(labels, boxes), weight)
        assert terms[f"{student}_displaced"].item() == pytest.approx(0.7 * ramp * displaced, rel=1e-4)
    assert terms["second_supervised"] == trainer.supervised_loss(labeled, "second")
    assert terms["supervised"] == trainer.supervised_loss(labeled)


def test_teachers_see_the_weak_view_and_students_the_strong_one_whole_and_displaced(begin, seen):
    trainer, labeled, unlabeled, found = begin()
    names = ("first", "second", "first_teacher", "second_teacher")
    first, second, *teachers = [seen(trainer.networks[name]) for name in names]
    terms_of(trainer, labeled, unlabeled)
    assert [len(images) for images in (first, second, *teachers)] == [3, 4, 1, 1], "the passes that the cost counts"
    for images in teachers:
        assert torch.equal(images[0], unlabeled.weak)
    mixed = torch.from_numpy(pasted(unlabeled.strong.numpy(), found[0]))
    assert not torch.equal(mixed, unlabeled.strong)
    expected = {"first": [labeled.image, unlabeled.strong, mixed]}
    expected["second"] = [labeled.image, unlabeled.strong, unlabeled.strong, mixed]
    for images, whole in zip((first, second), expected.values(), strict=True):
        assert all(torch.equal(a, b) for a, b in zip(images, whole, strict=True))


def test_each_yield_moves_one_student_and_no_teacher(begin):
    trainer, labeled, unlabeled, _ = begin(confidence_threshold=0.6)
    moved = []
    for losses in trainer.training_losses(labeled, unlabeled):
        networks = trainer.networks.predictors()
        for network in networks.values():
            network.zero_grad(set_to_none=True)
        sum(losses.values()).backward()
        gradients = {n: [p.grad for p in net.parameters() if p.grad is not None] for n, net in networks.items()}
        moved.append([name for name, found in gradients.items() if any(g.abs().sum() > 0 for g in found)])
    assert moved == [["first"], ["second"], ["first"], ["first"], ["second"], ["second"]]


def test_voxels_that_are_left_out_give_no_gradient_and_boxes_carry_their_sources_acceptance(begin, monkeypatch):
    trainer, labeled, unlabeled, found = begin(confidence_threshold=0.6)
    outputs, forward_pass = [], trainer.forward_pass

    def noted(image, network=None):
        result = forward_pass(image, network)
        for head in result.outputs:
            head.retain_grad()
        outputs.append(result.outputs[0])
        return result

    monkeypatch.setattr(trainer, "forward_pass", noted)
    monkeypatch.setattr(trainer.loss, "weight_factors", [1.0, *[0.0] * (len(trainer.loss.weight_factors) - 1)])
    for losses in trainer.training_losses(labeled, unlabeled):
        if "second_displaced" in losses:
            losses["second_displaced"].backward()
    accepted = trainer.label_space.is_accepted(trainer.teacher_probabilities(unlabeled.weak, "first_teacher"), 0.6)
    weight = torch.from_numpy(pasted(accepted.numpy(), found[0]))
    gradient = outputs[-1].grad.abs().sum(1, keepdim=True)
    assert (gradient[weight] > 0).all()
    assert (gradient[~weight] == 0).all()
    assert not torch.equal(weight, accepted)


def test_the_box_is_searched_in_both_teachers_together(begin, monkeypatch):
    trainer, labeled, unlabeled, _ = begin()
    given, original = [], displacement.maps_to_search
    module = sys.modules[type(trainer).__module__]
    monkeypatch.setattr(module, "maps_to_search", lambda *given_: given.append(given_[2]) or original(*given_))
    terms_of(trainer, labeled, unlabeled)
    expected = [trainer.teacher_probabilities(unlabeled.weak, name) for name in ("first_teacher", "second_teacher")]
    assert all(torch.equal(a, b) for a, b in zip(given[0], expected, strict=True))


def test_threshold_and_quantile_escalate_and_boxes_grow(start):
    searches = []
    for progress in (0.4, 0.7, 1.0 - 1e-9):
        trainer, *_ = start("CAD", progress=0.0)
        trainer.num_epochs, trainer.current_epoch, trainer.step_of_epoch = 1, 0, 0
        trainer.step_of_epoch = progress * trainer.num_iterations_per_epoch
        searches.append(trainer.search())
    rise = [math.exp(-5 * (1 - t) ** 2) for t in (0.0, 0.5, 1.0)]
    assert [one.threshold for one in searches] == pytest.approx([0.6 + 0.35 * r for r in rise])
    assert [one.fraction for one in searches] == pytest.approx([0.02 + 0.08 * r for r in rise])
    assert [one.largest_side for one in searches] == pytest.approx([1 / 8, 5 / 16, 1 / 2])
    assert all(one.smallest_side == 1 / 32 for one in searches)
    assert all((one.probability, one.at_random) == (1.0, False) for one in searches)


def test_equal_first_and_last_values_are_constant(start):
    constant = {f"{end}_unsure_threshold": 0.8 for end in ("first", "last")}
    constant |= {f"{end}_unsure_fraction": 0.05 for end in ("first", "last")}
    constant |= {f"{end}_box_side": 0.25 for end in ("first", "last")}
    for progress in (0.4, 0.9):
        trainer, *_ = start("CAD", progress=progress, **constant)
        assert trainer.search() == displacement.Search(0.8, 0.05, 0.25, 1 / 32, 1.0, False)


def test_without_displacement_the_students_see_whole_images_alone(begin, seen):
    trainer, labeled, unlabeled, found = begin(displacement_probability=0.0)
    first = seen(trainer.network)
    terms_of(trainer, labeled, unlabeled)
    assert found == [[]]
    assert torch.equal(first[2], unlabeled.strong)
    records = trainer.observer.step_records
    assert (records["displaced/images"], records["displaced/voxels"]) == (0.0, 0.0)


def test_random_places_are_drawn_and_have_the_same_sizes(begin):
    sizes, starts = [], []
    for random_places in (False, True):
        trainer, labeled, unlabeled, found = begin(random_places=random_places)
        for seed in range(3):
            torch.manual_seed(seed)
            terms_of(trainer, labeled, unlabeled)
        sizes.append([[one.size for one in boxes] for boxes in found])
        starts.append([[one.start for one in boxes] for boxes in found])
    assert sizes[0] == sizes[1]
    assert starts[0][0] == starts[0][1] == starts[0][2], "unsure places do not depend on chance"
    assert len({str(one) for one in starts[1]}) == 3


@pytest.mark.parametrize(
    "cell",
    [
        {"dim": 3, "batch_size": 1},
        {"dim": 3, "anisotropic": True, "regions": True},
        {"dim": 2, "batch_size": 4, "ignore": True},
        {"dim": 3, "ignore": True, "residual": True},
    ],
)
def test_images_are_displaced_in_every_setting(begin, cell):
    trainer, labeled, unlabeled, found = begin(cell=cell)
    terms = terms_of(trainer, labeled, unlabeled)
    assert all(torch.isfinite(value) for value in terms.values())
    (boxes,) = found
    batch_size, _, *spatial = unlabeled.strong.shape
    assert {one.image for one in boxes} == set(range(batch_size))
    records = trainer.observer.step_records
    assert records["displaced/images"] == 1.0
    voxels = sum(math.prod(one.size) for one in boxes)
    assert records["displaced/voxels"] == pytest.approx(voxels / batch_size / math.prod(spatial))
    assert all(0.0 <= records[f"utilization_for_{name}"] <= 1.0 for name in ("first", "second"))


def test_warmup_trains_both_students_on_labels_alone(start, seen):
    trainer, labeled, unlabeled = start("CAD", progress=0.0)
    assert trainer.stages.at(trainer.progress) == WARMUP
    teachers = [seen(trainer.networks[name]) for name in ("first_teacher", "second_teacher")]
    assert [list(losses) for losses in trainer._losses(labeled, unlabeled)] == [["supervised"], ["second_supervised"]]
    assert teachers == [[], []]


def test_each_teacher_averages_its_own_student_and_the_first_one_predicts(start):
    trainer, *_ = start("CAD", progress=0.9, ema_decay=0.0)
    trainer.train_step(next(trainer.dataloader_train))
    for student in ("first", "second"):
        weights = [dict(trainer.networks[name].named_parameters()) for name in (student, f"{student}_teacher")]
        assert_equal_weights(*weights)
    assert trainer.inference_network() == "first_teacher"


def test_a_resumed_run_that_displaces_equals_an_undisturbed_one(tiny_dataset):
    """The search runs in a thread: what it finds does not depend on when it runs. The curves show what it did."""
    dataset, settings = tiny_dataset(dim=2, num_classes=4), {"seed": 1, "num_epochs": 4, **DISPLACES}
    settings |= {"warmup_fraction": 0.25, "displacement_probability": 0.7, "random_places": True}
    undisturbed = make_trainer(dataset, find_trainer("nnUNetTrainerCAD"), **settings)
    undisturbed.run_training()
    stopped = make_trainer(dataset, find_trainer("nnUNetTrainerCAD"), save_every=1, **settings)
    stopped.on_epoch_end = lambda: stop_after(stopped, 2)
    with pytest.raises(KeyboardInterrupt):
        stopped.run_training()
    resumed = make_trainer(dataset, find_trainer("nnUNetTrainerCAD"), resume=True)
    resumed.load_checkpoint(f"{resumed.output_folder}/checkpoint_latest.pth")
    resumed.run_training()
    assert_equal_weights(state_of(undisturbed), state_of(resumed))
    curves = [one.observer.curves.values for one in (undisturbed, resumed)]
    for name in ("displaced/images", "displaced/voxels"):
        assert curves[0][name][1:] == curves[1][name][1:]
        assert max(curves[0][name][1:]) > 0.0
    assert all(value > 0.0 for value in curves[0]["host/seconds_working"][1:])


def stop_after(trainer, epochs: int) -> None:
    type(trainer).on_epoch_end(trainer)
    if trainer.current_epoch == epochs:
        raise KeyboardInterrupt


def test_an_error_of_the_search_is_raised_in_the_step(start, monkeypatch):
    trainer, labeled, unlabeled = start("CAD", progress=0.9)

    def fail(*_):
        raise ZeroDivisionError("in the search")

    monkeypatch.setattr(sys.modules[type(trainer).__module__], "find_boxes", fail)
    with pytest.raises(ZeroDivisionError, match="in the search"):
        trainer.train_step(next(trainer.dataloader_train))
    trainer.host_work.close()
