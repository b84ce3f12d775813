import pytest
import torch


def test_all_heads_are_supervised_with_one_weight(start):
    trainer, labeled, unlabeled = start("URPC")
    outputs = trainer.student_outputs(labeled.image)
    losses = [trainer.loss.loss(output, target) for output, target in zip(outputs, labeled.target, strict=True)]
    supervised = next(trainer.training_losses(labeled, unlabeled))["supervised"]
    assert supervised.item() == pytest.approx(sum(losses).item() / len(losses), rel=1e-6)


def test_pyramid_has_the_finest_heads_first(start):
    trainer, labeled, unlabeled = start("URPC", scales=1)
    outputs = trainer.pyramid(unlabeled.weak)
    assert [tuple(output.shape[2:]) for output in outputs] == [(16, 16, 16)]
    consistency = list(trainer.training_losses(labeled, unlabeled))[1]["consistency"]
    assert consistency.item() == pytest.approx(0.0, abs=1e-6)  # a single head agrees with itself
    assert torch.isfinite(consistency)
