import math
from types import SimpleNamespace

import pytest
import torch

from nnunet_ssl.building_blocks.mixing import partner
from nnunet_ssl.training.stages import WARMUP


def test_unconfident_voxels_are_left_out_not_background(start, monkeypatch):
    """The loss is that of the accepted voxels, whatever the others' labels were."""
    trainer, labeled, unlabeled = start("FixMatch", progress=0.9, confidence_threshold=0.9)
    probs = torch.full((2, 4, 16, 16, 16), 0.02)
    probs[:, 1] = 0.94  # sure of class 1
    probs[:, :, :, :, 8:] = 0.1
    probs[:, 2, :, :, 8:] = 0.7  # unsure of class 2
    given = {}
    monkeypatch.setattr(trainer, "teacher_probabilities", lambda image: probs)
    monkeypatch.setattr(
        trainer,
        "masked_loss",
        lambda outputs, labels, weight: given.update(labels=labels, weight=weight) or outputs[0].sum(),
    )
    monkeypatch.setattr(
        type(trainer.label_space), "class_thresholds", lambda self, probs, threshold: torch.tensor(threshold)
    )
    list(trainer.training_losses(labeled, unlabeled))
    assert given["weight"][..., :8].all()
    assert not given["weight"][..., 8:].any()
    assert (given["labels"][..., :8] == 1).all()


def test_the_strong_view_is_taught_by_the_weak_one(start, seen):
    trainer, labeled, unlabeled = start("FixMatch", progress=0.9, mixing_probability=0.0)
    student, teacher = seen(trainer.network), seen(trainer.networks["teacher"])
    list(trainer.training_losses(labeled, unlabeled))
    assert torch.equal(student[1], unlabeled.strong)
    assert torch.equal(teacher[0], unlabeled.weak)


def test_boxes_of_the_next_image_come_with_their_labels(start, monkeypatch):
    """Teach the image itself and accept it where it is bright: mixed alike, all three stay together."""
    trainer, labeled, unlabeled = start("FixMatch", progress=0.9, mixing_probability=1.0)
    space, taught = type(trainer.label_space), []
    monkeypatch.setattr(space, "pseudo_label", lambda self, probs: unlabeled.strong)
    monkeypatch.setattr(space, "is_accepted", lambda self, probs, threshold: unlabeled.strong > 0)
    monkeypatch.setattr(trainer, "supervised_loss", lambda labeled: torch.zeros(()))
    monkeypatch.setattr(trainer, "observe_pseudo_labels", lambda *_: None)
    monkeypatch.setattr(trainer, "forward_pass", lambda image: SimpleNamespace(outputs=image))
    monkeypatch.setattr(trainer, "masked_loss", lambda *given: taught.append(given) or 0.0)
    list(trainer.training_losses(labeled, unlabeled))
    ((image, labels, accepted),) = taught
    assert torch.equal(image, labels)
    assert torch.equal(image > 0, accepted)
    own, pasted = image == unlabeled.strong, image == partner(unlabeled.strong)
    assert (own | pasted).all()
    assert 0.0 < (~own).float().mean() < 0.45


def test_warmup_is_labeled_only_and_the_ramp_begins_after_it(start):
    trainer, labeled, unlabeled = start("FixMatch", progress=0.0)
    assert [list(losses) for losses in trainer._losses(labeled, unlabeled)] == [["supervised"]]
    trainer.num_epochs, trainer.current_epoch, trainer.step_of_epoch = 10, 4, 0
    assert trainer.stages.at(trainer.progress) != WARMUP
    assert trainer.progress_of_main == pytest.approx(0.0)
    trainer.current_epoch = 7
    assert trainer.progress_of_main == pytest.approx(0.5)
    list(trainer.training_losses(labeled, unlabeled))
    assert trainer.observer.step_records["ramp/pseudo_label"] == 1.0


def test_loss_is_weighted_and_ramped_up(start, monkeypatch):
    trainer, labeled, unlabeled = start("FixMatch", progress=0.45, pseudo_label_weight=0.3)
    monkeypatch.setattr(trainer, "masked_loss", lambda *_: torch.tensor(2.0))
    ramp = math.exp(-5 * (1 - (0.05 / 0.6) / 0.2) ** 2)  # of what follows the warm-up of 0.4
    trainer.num_epochs, trainer.current_epoch, trainer.step_of_epoch = 20, 9, 0
    losses = list(trainer.training_losses(labeled, unlabeled))[1]
    assert losses["pseudo_label"].item() == pytest.approx(0.3 * ramp * 2.0)


def test_a_run_that_starts_from_a_checkpoint_has_no_warmup(start, tmp_path):
    trainer, *_ = start("FixMatch", progress=0.0)
    trainer.save_checkpoint(str(tmp_path / "labeled_only.pth"))
    trainer, *_ = start("FixMatch", progress=0.5, init_checkpoint=str(tmp_path / "labeled_only.pth"))
    assert trainer.progress_of_main == 0.5
