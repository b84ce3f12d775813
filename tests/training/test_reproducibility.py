"""Which random numbers a run draws: in its steps, and in the workers that load its batches."""

import itertools

import numpy as np
import pytest
import torch

from nnunet_ssl.discovery.variants import find_trainer
from nnunet_ssl.training import two_stream_trainer
from tests.conftest import make_trainer

MEAN_TEACHER = find_trainer("nnUNetTrainerMeanTeacher")


def of_process(dataset, rank: int, seed: int | None):
    """Return the trainer of one of several processes, as far as they differ in what they draw."""
    trainer = make_trainer(dataset, MEAN_TEACHER, **({} if seed is None else {"seed": seed}))
    trainer.initialize()
    trainer.local_rank = rank
    return trainer


def drawn_in_steps(trainer) -> list[tuple[float, float]]:
    """Return a number of torch and one of numpy from the start of each of three epochs."""
    drawn = []
    for trainer.current_epoch in range(3):
        trainer.on_epoch_start()
        drawn.append((float(torch.rand(1)), float(np.random.rand())))
    return drawn


def test_each_process_and_epoch_draws_its_own_numbers_in_its_steps(tiny_dataset):
    dataset = tiny_dataset(dim=2)
    first, again = ([drawn_in_steps(of_process(dataset, rank, seed=1)) for rank in range(3)] for _ in range(2))
    for numbers in zip(*itertools.chain(*first), strict=True):
        assert len(set(numbers)) == len(numbers) == 3 * 3
    assert first == again


@pytest.mark.parametrize("seed", [0, 1, None])
def test_each_process_gives_its_workers_seeds_of_their_own(tiny_dataset, monkeypatch, seed):
    """Also in each stream, and at each epoch in which workers may be started; without a seed, also in each run."""
    monkeypatch.setattr(two_stream_trainer, "start_loader", lambda _loader, seeds, *_: seeds)
    dataset, seeds = tiny_dataset(dim=2), []
    ranks = [0, 1, 2] if seed is not None else [0, 1, 2, 0]
    for rank in ranks:
        trainer = of_process(dataset, rank, seed)
        for epoch, stream in itertools.product(range(2), ("labeled", "unlabeled", "validation")):
            trainer.current_epoch = epoch
            seeds += trainer._start_loader(None, stream, num_workers=2)
    assert len(set(seeds)) == len(seeds) == len(ranks) * 2 * 3 * 2


@pytest.mark.parametrize("seed", [1, None])
def test_run_with_a_seed_makes_no_choice_by_timing(tiny_dataset, monkeypatch, seed):
    """Neither does cuDNN nor a transform of either stream, which both do for nnU-Net."""
    monkeypatch.setattr(torch.backends.cudnn, "benchmark", True)
    monkeypatch.setattr(torch.backends.cudnn, "deterministic", False)
    trainer = of_process(tiny_dataset(dim=2), 0, seed)
    seen = []
    trainer.on_train_end = lambda: seen.append((torch.backends.cudnn.benchmark, torch.backends.cudnn.deterministic))
    trainer.run_training()
    labeled, unlabeled = (stream.transforms for stream in trainer.streams)
    inner = [getattr(one, "transform", one) for one in (*labeled.transforms, *unlabeled.intensity.transforms)]
    chooses = [one.benchmark for one in inner if hasattr(one, "benchmark")]
    assert chooses == [seed is None] * 2
    assert seen == [(seed is None, seed is not None)]
    assert (torch.backends.cudnn.benchmark, torch.backends.cudnn.deterministic) == (True, False), "as it was before"
