from dataclasses import replace

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
    """Teach the image itself: where labels and images are mixed alike, they stay equal."""
    trainer, labeled, unlabeled = start("UniMatch", progress=0.9, mixing_probability=1.0)
    unlabeled = replace(unlabeled, second_strong=unlabeled.strong)
    space = type(trainer.label_space)
    monkeypatch.setattr(space, "class_thresholds", lambda self, probs, threshold: torch.tensor(threshold))
    monkeypatch.setattr(space, "pseudo_label", lambda self, probs: unlabeled.strong)
    taught = []
    monkeypatch.setattr(trainer, "student_outputs", lambda image, network=None: image)
    monkeypatch.setattr(trainer, "supervised_loss", lambda labeled: torch.zeros(()))
    monkeypatch.setattr(trainer, "observe_teaching", lambda *_: None)
    monkeypatch.setattr(
        trainer, "masked_loss", lambda image, labels, weight: taught.append((image, labels)) or torch.zeros(())
    )
    list(trainer.training_losses(labeled, unlabeled))
    for image, labels in taught[:2]:
        assert torch.equal(image, labels)
        assert not torch.equal(image, unlabeled.strong)
