import sys

import torch

from nnunet_ssl.building_blocks.mixing import interpolate, partner


def test_student_sees_mixtures_and_learns_mixed_predictions(start, seen, monkeypatch):
    trainer, labeled, unlabeled = start("ICT", progress=0.9)
    share = torch.tensor([0.25, 0.6])
    monkeypatch.setattr(sys.modules["nnunet_ssl.trainers.nnUNetTrainerICT"], "random_shares", lambda *_: share)
    student = seen(trainer.network)
    loss = list(trainer.training_losses(labeled, unlabeled))[1]["consistency"]
    assert torch.equal(student[1], interpolate(unlabeled.weak, partner(unlabeled.weak), share))
    target = trainer.teacher_probabilities(unlabeled.weak)
    probs = trainer.network_probabilities(student[1])
    expected = (probs - interpolate(target, partner(target), share)).square().mean()
    weight = trainer.consistency_weight * trainer.observer.step_records["ramp/consistency"]
    torch.testing.assert_close(loss.detach(), weight * expected)


def test_at_batch_size_one_it_is_mean_teacher_on_the_weak_view(start, seen):
    trainer, labeled, unlabeled = start("ICT", cell={"batch_size": 1})
    student = seen(trainer.network)
    list(trainer.training_losses(labeled, unlabeled))
    torch.testing.assert_close(student[1], unlabeled.weak)
