import math
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch

from nnunet_ssl.building_blocks.mixing import partner


def test_two_strong_views_and_one_with_dropped_features(start, seen, monkeypatch):
    trainer, labeled, unlabeled = start("UniMatch", progress=0.9, mixing_probability=1.0)
    student, decoded = seen(trainer.network), []
    decode = trainer.decode
    monkeypatch.setattr(trainer, "decode", lambda skips: decoded.append(skips) or decode(skips))
    names = [name for losses in trainer.training_losses(labeled, unlabeled) for name in losses]
    assert names == ["supervised", "strong", "second_strong", "dropped_features"]
    weak, *mixed, dropped = student[1:]
    assert torch.equal(weak, unlabeled.weak)
    assert torch.equal(dropped, unlabeled.weak)
    for image, view in zip(mixed, (unlabeled.strong, unlabeled.second_strong), strict=True):
        own, pasted = image == view, image == partner(view)
        assert (own | pasted).all()
        assert 0.0 < (~own).float().mean() < 0.45
    assert not torch.equal(unlabeled.strong, unlabeled.second_strong)
    ((*levels,),) = decoded
    for level, whole in zip(levels, trainer.encode(unlabeled.weak), strict=True):
        is_dropped = (level == 0).flatten(2).all(2)
        assert 0.0 < is_dropped.float().mean() < 1.0
        torch.testing.assert_close(level[~is_dropped], 2 * whole[~is_dropped])


def test_labels_are_mixed_as_the_images_are(start, monkeypatch):
    """Teach the image itself and accept it where it is bright: mixed alike, all three stay together."""
    trainer, labeled, unlabeled = start("UniMatch", progress=0.9, mixing_probability=1.0)
    unlabeled = replace(unlabeled, second_strong=unlabeled.strong)
    space = type(trainer.label_space)
    monkeypatch.setattr(space, "is_accepted", lambda self, probs, threshold: unlabeled.strong > 0)
    monkeypatch.setattr(space, "pseudo_label", lambda self, probs: unlabeled.strong)
    taught = []
    monkeypatch.setattr(trainer, "forward_pass", lambda image: SimpleNamespace(outputs=image))
    monkeypatch.setattr(trainer, "supervised_loss", lambda labeled: torch.zeros(()))
    monkeypatch.setattr(trainer, "observe_pseudo_labels", lambda *_: None)
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
    assert [list(losses) for losses in trainer._losses(labeled, unlabeled)] == [["supervised"]]
    trainer.num_epochs, trainer.current_epoch, trainer.step_of_epoch = 10, 4, 0
    list(trainer.training_losses(labeled, unlabeled))
    assert trainer.observer.step_records["ramp/pseudo_label"] == pytest.approx(math.exp(-5))


def test_threshold_follows_the_confidence_of_each_class(start, monkeypatch):
    trainer, labeled, unlabeled = start("UniMatch", progress=0.9, confidence_threshold=0.9, mixing_probability=0.0)
    probs = torch.full((2, 4, 16, 16, 16), 0.02)
    probs[:, 1] = 0.94  # sure of class 1
    probs[:, :, :, :, 8:] = 0.1
    probs[:, 2, :, :, 8:] = 0.7  # as sure of class 2 as ever: 0.7 is above 0.9 * 0.7 / 0.94
    weights = []
    monkeypatch.setattr(trainer, "network_probabilities", lambda image: probs)
    monkeypatch.setattr(
        trainer, "masked_loss", lambda outputs, labels, weight: weights.append(weight) or outputs[0].sum()
    )
    list(trainer.training_losses(labeled, unlabeled))
    assert all(weight.all() for weight in weights)
    assert trainer.observer.step_records["utilization"].item() == 1.0
