import math

import pytest
import torch


def test_consistency_is_the_squared_difference_of_strong_student_and_weak_teacher(start, seen):
    trainer, labeled, unlabeled = start("MeanTeacher", progress=0.5, consistency_weight=3.0)
    for parameter in trainer.networks["teacher"].parameters():
        parameter.mul_(0.5)
    student, teacher = seen(trainer.network), seen(trainer.networks["teacher"])
    losses = list(trainer.training_losses(labeled, unlabeled))
    assert torch.equal(student[1], unlabeled.strong)
    assert torch.equal(teacher[0], unlabeled.weak)
    probs = trainer.network(unlabeled.strong)[0].double().softmax(1)
    target = trainer.networks["teacher"](unlabeled.weak).double().softmax(1)
    expected = 3.0 * math.exp(-5 * 0.25) * (probs - target).square().mean()
    assert losses[1]["consistency"].item() == pytest.approx(expected.item(), rel=1e-5)
    assert expected > 0
