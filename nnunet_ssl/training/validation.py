"""Pseudo-Dice of the networks that do not predict, and of nnU-Net's own where an epoch has none."""

import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, Protocol

import numpy as np
import torch

from nnunet_ssl.training import distributed


class HitCounts:
    """Hits of several networks on an epoch's validation batches, as nnU-Net counts those of its one."""

    def __init__(self) -> None:
        self.counts: dict[str, np.ndarray] = {}

    def add(self, network: str, result: Mapping[str, Any]) -> None:
        """Add what nnU-Net's validation_step returned with a network in place."""
        hits = np.array([result[f"{kind}_hard"] for kind in ("tp", "fp", "fn")])
        self.counts[network] = self.counts.get(network, 0) + hits

    def dice(self) -> dict[str, float]:
        """Return each network's Dice over all processes, the mean over classes that occur; NaN without any."""
        found = {}
        for network, counts in self.counts.items():
            tp, fp, fn = distributed.sum_array(counts)
            occurs = (2 * tp + fp + fn) > 0
            dice = 2 * tp[occurs] / (2 * tp + fp + fn)[occurs]
            found[network] = float(dice.mean()) if occurs.any() else np.nan
        return found


def moving_average(dice: Sequence[float]) -> float:
    """Return nnU-Net's moving average of the epochs' Dice, without those that have none; 0 where no epoch has one."""
    average = None
    for value in map(float, dice):  # as a checkpoint keeps them: a run that goes on has the same average
        if np.isfinite(value):
            average = value if average is None else 0.9 * average + 0.1 * value  # as nnU-Net
    return 0.0 if average is None else average


def with_own_target(batch: dict[str, Any]) -> dict[str, Any]:
    """Return a batch whose target is a copy: nnU-Net writes into it where there is an ignore label."""
    target = batch["target"]
    copied = [level.clone() for level in target] if isinstance(target, Sequence) else torch.clone(target)
    return {**batch, "target": copied}


class Writes(Protocol):
    """Whatever writes into its attribute `output_folder`."""

    output_folder: str


@contextmanager
def output_in(trainer: Writes, folder: str) -> Iterator[None]:
    """Let a trainer write into a folder of its own folder meanwhile."""
    before = trainer.output_folder
    trainer.output_folder = os.path.join(before, folder)
    try:
        yield
    finally:
        trainer.output_folder = before
