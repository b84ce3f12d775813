import sys

import torch


def test_uncertainty_is_of_the_mean_over_perturbed_and_mirrored_passes(start, seen):
    trainer, _, unlabeled = start("UAMT", num_passes=4)
    images = seen(trainer.networks["teacher"])
    uncertainty = trainer.uncertainty(unlabeled.weak)
    assert uncertainty.shape == (2, 1, 16, 16, 16)
    assert 0.0 <= uncertainty.min() <= uncertainty.max() <= 1.0 + 1e-6
    assert len(images) == 4
    for image, axes in zip(images, ((), (2,), (3,), (4,)), strict=True):
        noise = image.flip(axes) - unlabeled.weak
        assert 0.0 < noise.abs().max() <= 0.2 + 1e-6


def test_mirroring_is_undone_before_predictions_are_averaged(start, monkeypatch):
    """A teacher that returns what it sees: its mean over mirrored passes is the image again."""
    trainer, _, unlabeled = start("UAMT", num_passes=8)
    monkeypatch.setattr(sys.modules["nnunet_ssl.trainers.nnUNetTrainerUAMT"], "with_noise", lambda image, _: image)
    scaled = torch.cat([unlabeled.weak * k for k in range(4)], 1).softmax(1)
    monkeypatch.setattr(
        trainer, "teacher_probabilities", lambda image: torch.cat([image * k for k in range(4)], 1).softmax(1)
    )
    torch.testing.assert_close(trainer.uncertainty(unlabeled.weak), trainer.label_space.entropy(scaled))


def test_only_certain_voxels_teach(start, monkeypatch):
    """At the start the threshold is ¾ ln C, or a little more, however fast the weight grows."""
    trainer, labeled, unlabeled = start("UAMT", progress=0.0, rampup_duration=0.0)
    uncertainty = torch.full((2, 1, 16, 16, 16), 0.9)
    monkeypatch.setattr(trainer, "uncertainty", lambda image: uncertainty)
    assert list(trainer.training_losses(labeled, unlabeled))[1]["consistency"] == 0.0
    uncertainty.fill_(0.7)
    assert list(trainer.training_losses(labeled, unlabeled))[1]["consistency"] > 0.0


def test_without_mirroring_there_is_noise_alone(start, seen):
    trainer, _, unlabeled = start("UAMT", num_passes=2)
    trainer.inference_allowed_mirroring_axes = None
    images = seen(trainer.networks["teacher"])
    trainer.uncertainty(unlabeled.weak)
    assert all((image - unlabeled.weak).abs().max() <= 0.2 + 1e-6 for image in images)
