import math
from dataclasses import replace

import pytest
import torch

from nnunet_ssl.building_blocks.mixing import partner
from nnunet_ssl.training.distributed import unwrap


def test_two_strong_views_and_one_with_dropped_features(start, seen):
    trainer, labeled, unlabeled = start("UniMatch", progress=0.9, mixing_probability=1.0)
    student, switched = seen(trainer.network), []
    unwrap(trainer.network).encoder.register_forward_hook(lambda *_: switched.append(trainer.dropout.is_on))
    names = [name for losses in trainer.training_losses(labeled, unlabeled) for name in losses]
    assert names == ["supervised", "strong", "second_strong", "dropped_features"]
    weak, *mixed, dropped = student[1:]
    assert torch.equal(weak, unlabeled.weak)
    assert torch.equal(dropped, unlabeled.weak)
    for image, view in zip(mixed, (unlabeled.strong, unlabeled.second_strong), strict=True):
        own, pasted = image == view, image == partner(view)
        assert (own | pasted).all()
        assert 0.0 < (~own).float().mean() < 0.45
    assert switched == [False, False, False, False, True]
    assert not torch.equal(unlabeled.strong, unlabeled.second_strong)


def test_dropped_features_change_the_prediction_and_only_while_switched_on(start):
    trainer, _, unlabeled = start("UniMatch")
    first = trainer.student_probabilities(unlabeled.weak)
    with trainer.dropout.switched_on():
        dropped = trainer.student_probabilities(unlabeled.weak)
    assert torch.equal(first, trainer.student_probabilities(unlabeled.weak))
    assert not torch.equal(first, dropped)


def test_labels_are_mixed_as_the_images_are(start, monkeypatch):
    """Teach the image itself and accept it where it is bright: mixed alike, all three stay together."""
    trainer, labeled, unlabeled = start("UniMatch", progress=0.9, mixing_probability=1.0)
    unlabeled = replace(unlabeled, second_strong=unlabeled.strong)
    space = type(trainer.label_space)
    monkeypatch.setattr(space, "is_accepted", lambda self, probs, threshold: unlabeled.strong > 0)
    monkeypatch.setattr(space, "pseudo_label", lambda self, probs: unlabeled.strong)
    taught = []
    monkeypatch.setattr(trainer, "student_outputs", lambda image, network=None: image)
    monkeypatch.setattr(trainer, "supervised_loss", lambda labeled: torch.zeros(()))
    monkeypatch.setattr(trainer, "observe_teaching", lambda *_: None)
    monkeypatch.setattr(trainer, "masked_loss", lambda *given: taught.append(given) or torch.zeros(()))
    list(trainer.training_losses(labeled, unlabeled))
    for image, labels, accepted in taught[:2]:
        assert torch.equal(image, labels)
        assert torch.equal(image > 0, accepted)
        assert not torch.equal(image, unlabeled.strong)
    assert torch.equal(taught[2][1], unlabeled.strong)  # dropped features keep the labels of the whole image
    assert torch.equal(taught[2][2], unlabeled.strong > 0)


def test_strong_views_count_a_quarter_each_and_dropped_features_a_half(start, monkeypatch):
    trainer, labeled, unlabeled = start("UniMatch", progress=0.9, pseudo_label_weight=0.8)
    monkeypatch.setattr(trainer, "masked_loss", lambda *_: 1.0)
    losses = {name: value for terms in trainer.training_losses(labeled, unlabeled) for name, value in terms.items()}
    del losses["supervised"]
    assert losses == pytest.approx({"strong": 0.2, "second_strong": 0.2, "dropped_features": 0.4})


def test_warmup_is_labeled_only_and_the_ramp_begins_after_it(start):
    trainer, labeled, unlabeled = start("UniMatch", progress=0.0)
    assert [list(losses) for losses in trainer.training_losses(labeled, unlabeled)] == [["supervised"]]
    trainer.num_epochs, trainer.current_epoch, trainer.step_of_epoch = 10, 4, 0
    list(trainer.training_losses(labeled, unlabeled))
    assert trainer.step_records["ramp/pseudo_label"] == pytest.approx(math.exp(-5))


def test_threshold_follows_the_confidence_of_each_class(start, monkeypatch):
    trainer, labeled, unlabeled = start("UniMatch", progress=0.9, confidence_threshold=0.9, mixing_probability=0.0)
    probs = torch.full((2, 4, 16, 16, 16), 0.02)
    probs[:, 1] = 0.94  # sure of class 1
    probs[:, :, :, :, 8:] = 0.1
    probs[:, 2, :, :, 8:] = 0.7  # as sure of class 2 as ever: 0.7 is above 0.9 * 0.7 / 0.94
    weights = []
    monkeypatch.setattr(trainer, "student_probabilities", lambda image: probs)
    monkeypatch.setattr(
        trainer, "masked_loss", lambda outputs, labels, weight: weights.append(weight) or outputs[0].sum()
    )
    list(trainer.training_losses(labeled, unlabeled))
    assert all(weight.all() for weight in weights)
    assert trainer.step_records["utilization"].item() == 1.0
