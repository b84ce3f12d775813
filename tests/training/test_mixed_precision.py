"""Every trainer under autocast, which nnU-Net switches on for GPUs; here with the half precision that CPUs have."""

import pkgutil

import pytest
import torch

import nnunet_ssl.trainers
from nnunet_ssl.discovery.variants import find_trainer
from nnunet_ssl.training.networks import bare
from nnunet_ssl.training.step import Step
from tests.conftest import parameters_of, started

TRAINERS = sorted(module.name for module in pkgutil.iter_modules(nnunet_ssl.trainers.__path__))


def losses_of_steps(dataset, trainer_class) -> tuple[list[dict[str, float]], bool]:
    """Return the terms of two steps of the main stage, and whether the first network moved."""
    trainer = started(dataset, trainer_class)
    trainer.current_epoch = 1
    before, terms = parameters_of(bare(trainer.network)), []
    run = trainer.step.run

    def recording(*arguments):
        terms.append((outcome := run(*arguments)).losses)
        return outcome

    trainer.step.run = recording
    for _ in range(2):
        trainer.train_step(next(trainer.dataloader_train))
    after = parameters_of(bare(trainer.network))
    return terms, any(not torch.equal(before[name], after[name]) for name in before)


@pytest.mark.parametrize("name", TRAINERS)
def test_terms_under_autocast_are_finite_and_nearly_those_of_full_precision(tiny_dataset, monkeypatch, name):
    trainer_class = find_trainer(name)
    dataset = tiny_dataset(dim=max(trainer_class.DIMENSIONS))
    full, _ = losses_of_steps(dataset, trainer_class)
    half = lambda self: torch.autocast("cpu", dtype=torch.bfloat16, cache_enabled=False)  # noqa: E731
    monkeypatch.setattr(Step, "autocast", half)
    terms, moved = losses_of_steps(dataset, trainer_class)
    assert moved
    for expected, found in zip(full, terms, strict=True):
        assert found == pytest.approx(expected, rel=0.05, abs=0.05)  # finite, too; 8 bits of precision
    assert terms != full
