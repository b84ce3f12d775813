"""The stages of a run: pre-training, labeled-only warm-up, and the method itself."""

from dataclasses import dataclass
from typing import Protocol

PRETRAINING, WARMUP, MAIN = "pretraining", "warm-up", "main"


class Schedule(Protocol):
    """A schedule of the learning rate, as nnU-Net's is."""

    def step(self, current_step: float) -> None:
        """Set the learning rate of an epoch, or of a place between two."""


@dataclass(frozen=True)
class Stages:
    """Where each stage ends, in fractions of the run; the streams of a stage are both but for the warm-up's.

    Attributes:
        pretrain_fraction: of the run, in [0, 1]: the first stage.
        warmup_fraction: of the run, in [0, 1]: what follows, on labeled images alone.
    """

    pretrain_fraction: float = 0.0
    warmup_fraction: float = 0.0

    def __post_init__(self) -> None:
        if self.pretrain_fraction + self.warmup_fraction > 1.0:
            raise ValueError(
                f"pretrain_fraction={self.pretrain_fraction} and warmup_fraction={self.warmup_fraction} are more than "
                "the whole run"
            )

    @property
    def before_main(self) -> float:
        """Where the main stage begins, a fraction of the run."""
        return self.pretrain_fraction + self.warmup_fraction

    def at(self, progress: float) -> str:
        """Return which stage is on at some progress of the run, a fraction in [0, 1)."""
        if progress < self.pretrain_fraction:
            return PRETRAINING
        return WARMUP if progress < self.before_main else MAIN

    def share_of_schedule(self, progress: float) -> float:
        """Return how much of the learning rate's schedule is over, in [0, 1): the pre-training has one of its own.

        Args:
            progress: of the run, a fraction in [0, 1).
        """
        if progress < self.pretrain_fraction:
            return progress / self.pretrain_fraction
        return (progress - self.pretrain_fraction) / (1.0 - self.pretrain_fraction)

    def schedule(self, of_run: Schedule, num_epochs: int) -> Schedule:
        """Return a schedule of the whole run, or where there is a pre-training one that begins anew after it."""
        return ScheduleOfStages(of_run, self, num_epochs) if self.pretrain_fraction else of_run

    def is_first_after_pretraining(self, epoch: int, num_epochs: int) -> bool:
        """Return whether an epoch is the first one that begins after the pre-training."""
        return (epoch - 1) / num_epochs < self.pretrain_fraction <= epoch / num_epochs and self.pretrain_fraction > 0.0

    def is_labeled_only(self, start: float, end: float) -> bool:
        """Return whether all that lies between two fractions of the run belongs to the warm-up."""
        return self.pretrain_fraction <= start and end <= self.before_main

    def progress_of_main(self, progress: float) -> float:
        """Return how much of the main stage is over: a fraction in [0, 1), 0 before it."""
        return max(0.0, (progress - self.before_main) / (1.0 - self.before_main)) if self.before_main < 1.0 else 0.0

    def epochs_of_rounds(self, rounds: int, num_epochs: int) -> list[int]:
        """Return the epochs in which the rounds begin, of equal length, that the main stage is divided into.

        Several rounds that begin in one epoch are one; a run without a main stage has none.
        """
        starts = [self.before_main + (1.0 - self.before_main) * i / rounds for i in range(rounds)]
        epochs = {int(round(start * num_epochs, 6)) for start in starts}  # not an epoch early by a rounding error
        return sorted(epoch for epoch in epochs if epoch < num_epochs)


class ScheduleOfStages:
    """A schedule of the learning rate that begins anew after the pre-training, as in two runs.

    An epoch that has a part in both has a learning rate of the pre-training.
    """

    def __init__(self, of_run: Schedule, stages: Stages, num_epochs: int) -> None:
        """Take nnU-Net's schedule of a run of so many epochs."""
        self.of_run, self.stages, self.num_epochs = of_run, stages, num_epochs

    def step(self, epoch: int) -> None:
        """Set the learning rate of an epoch."""
        self.of_run.step(self.stages.share_of_schedule(epoch / self.num_epochs) * self.num_epochs)
