from types import SimpleNamespace

import pytest
import torch

from nnunet_ssl.building_blocks import mixing
from nnunet_ssl.building_blocks.mixing import partner
from nnunet_ssl.discovery.variants import find_trainer

NAME = "nnUNetTrainerSSL"


def mixed_losses(trainer, labeled, unlabeled):
    """Return the losses of the mixed images, as plain numbers."""
    return {name: loss.item() for name, loss in list(trainer.training_losses(labeled, unlabeled))[1].items()}


def module_of(name):
    """Return the names that a trainer's file sees."""
    return find_trainer(name).training_losses.__globals__


@pytest.fixture
def same_box(monkeypatch):
    """Let each box lie at the same place, whoever draws it."""
    box = mixing.random_box((16, 16, 16), 2 / 3, torch.device("cpu"))
    for name in ("nnUNetTrainerBCP", NAME):
        monkeypatch.setitem(module_of(name), "random_box", lambda *_: box)
    return box


def test_without_unlabeled_pairs_and_threshold_it_is_bcp(start, same_box, monkeypatch):
    """Two samples, of which one is labeled outside of the box: BCP's alternating roles, drawn."""
    settings = {"unlabeled_pair_fraction": 0.0, "confidence_threshold": 0.0, "pseudo_label_weight": 0.5}
    trainer, labeled, unlabeled = start("SSL", progress=0.9, **settings)
    other, *_ = start("BCP", progress=0.9, pseudo_label_weight=0.5)
    other.networks.load_state_dict(trainer.networks.state_dict())
    first_is_labeled = mixing.alternating(2, 3, torch.device("cpu"))
    monkeypatch.setitem(module_of("nnUNetTrainerBCP"), "alternating", lambda *_: first_is_labeled)
    draws = torch.where(first_is_labeled.flatten(), 0.1, 0.9)
    monkeypatch.setattr(torch, "rand", lambda *_, **__: draws)
    assert mixed_losses(trainer, labeled, unlabeled) == pytest.approx(mixed_losses(other, labeled, unlabeled))


def test_with_unlabeled_pairs_alone_it_is_fixmatch(start, same_box, monkeypatch):
    trainer, labeled, unlabeled = start("SSL", progress=0.5, unlabeled_pair_fraction=1.0, confidence_threshold=0.3)
    weights = {"pseudo_label_weight": 1.0, "confidence_threshold": 0.3}
    other, *_ = start("FixMatch", progress=0.5, **weights)
    other.networks.load_state_dict(trainer.networks.state_dict())
    monkeypatch.setattr(mixing, "random_boxes", lambda *_: same_box)
    found = mixed_losses(trainer, labeled, unlabeled)
    assert found["pseudo_label"] == pytest.approx(mixed_losses(other, labeled, unlabeled)["pseudo_label"])
    assert found["labeled_part"] == pytest.approx(-sum(trainer.loss.weight_factors)), "no voxel is labeled"


def test_each_voxel_is_taught_by_the_label_of_the_image_it_is_from(start, monkeypatch):
    """Teach the images themselves, and accept pseudo-labels where they are bright."""
    trainer, labeled, unlabeled = start("SSL", progress=0.9, unlabeled_pair_fraction=0.5)
    space, taught = type(trainer.label_space), []
    monkeypatch.setattr(space, "labels", lambda self, target: labeled.image)
    monkeypatch.setattr(space, "pseudo_label", lambda self, probs: unlabeled.strong)
    monkeypatch.setattr(space, "is_accepted", lambda self, probs, threshold: unlabeled.strong > 0)
    monkeypatch.setattr(trainer, "supervised_loss", lambda labeled: torch.zeros(()))
    monkeypatch.setattr(trainer, "observe_pseudo_labels", lambda *_: None)
    monkeypatch.setattr(trainer, "forward_pass", lambda image: SimpleNamespace(outputs=image))
    monkeypatch.setattr(trainer, "masked_losses", lambda *given: taught.append(given) or (1.0, 1.0))
    for first, second in ((0.1, 0.3), (0.3, 0.7), (0.7, 0.1)):
        monkeypatch.setattr(torch, "rand", lambda *_, pair=(first, second), **__: torch.tensor(pair))
        list(trainer.training_losses(labeled, unlabeled))
    sources = []
    for image, labels, (known, pasted) in taught:
        assert torch.equal(labels, image)
        assert torch.equal(known & (image == labeled.image), known)
        assert not (known & pasted).any()
        is_unlabeled = (image == unlabeled.strong) | (image == partner(unlabeled.strong))
        assert torch.equal(pasted, ~known & (image > 0))
        assert (known | is_unlabeled).all()
        sources.append([known[sample].float().mean().item() for sample in range(2)])
    inside = round(2 / 3 * 16) ** 3 / 16**3
    assert torch.tensor(sources).tolist() == torch.tensor([[1 - inside, inside], [inside, 0], [0, 1 - inside]]).tolist()


def test_warmup_is_nnunets_own(start):
    trainer, labeled, unlabeled = start("SSL", progress=0.0)
    assert [list(losses) for losses in trainer._losses(labeled, unlabeled)] == [["supervised"]]
