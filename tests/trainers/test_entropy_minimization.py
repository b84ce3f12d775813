import math

import pytest


def test_entropy_is_the_mean_over_all_voxels_of_the_weak_view(start):
    trainer, labeled, unlabeled = start("EntropyMinimization", progress=0.5, entropy_weight=0.3)
    p = trainer.network_probabilities(unlabeled.weak).double()
    expected = 0.3 * math.exp(-5 * 0.25) * (-(p * p.log()).sum(1) / math.log(4)).mean()
    losses = list(trainer.training_losses(labeled, unlabeled))
    assert losses[1]["entropy"].item() == pytest.approx(expected.item(), rel=1e-5)


def test_some_steps_of_entropy_alone_make_the_network_sure(start):
    trainer, labeled, unlabeled = start("EntropyMinimization", entropy_weight=1.0, rampup_duration=0.0)
    entropies = []
    for _ in range(5):
        trainer.optimizer.zero_grad()
        entropy = list(trainer.training_losses(labeled, unlabeled))[1]["entropy"]
        entropy.backward()
        trainer.optimizer.step()
        entropies.append(entropy.item())
    assert entropies == sorted(entropies, reverse=True)
