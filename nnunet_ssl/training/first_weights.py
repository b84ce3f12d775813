"""The checkpoints whose weights a run starts from, and what these have seen."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer

from nnunet_ssl.data.trained_cases import (
    FIRST_WEIGHTS,
    TrainedCases,
    cases_of,
    cases_of_weights,
    refuse_learned_validation,
)
from nnunet_ssl.training.checkpoints import load_facts
from nnunet_ssl.training.options import allowed_options


@dataclass(frozen=True)
class FirstWeights:
    """The checkpoints that a run's options name to start from: `init_checkpoint`, or of other networks than its own.

    Attributes:
        cases: that each was trained on, by option and file; None where nothing tells them.
    """

    cases: Mapping[str, TrainedCases | None]

    @classmethod
    def of(cls, trainer: nnUNetTrainer, splits_file: Path) -> "FirstWeights":
        """Return those of a trainer; of each checkpoint only what it says of its run is read.

        Args:
            trainer: one of ours, with the options of its run.
            splits_file: of its data set.

        Raises:
            ValueError: a file is not there, or no checkpoint.
        """
        names = [name for name in allowed_options(type(trainer), nnUNetTrainer) if name.startswith(FIRST_WEIGHTS)]
        files = {name: file for name in names if (file := getattr(trainer, name)) is not None}
        return cls({f"{name}: {file}": cases_of_weights(load_facts(file), splits_file) for name, file in files.items()})

    @property
    def learned(self) -> set[str]:
        """The cases with whose labels the weights were trained."""
        return {case for one in self.cases.values() if one for case in (*one.train, *one.before)}

    def warnings(self, now: TrainedCases) -> Iterator[str]:
        """Give what to say of each; refuse one that has learned the labels of cases that validate the run, `now`."""
        for source, cases in self.cases.items():
            if warning := refuse_learned_validation(cases, now, source):
                yield warning


def cases_before(split_digests: Mapping) -> set[str]:
    """Return with whose labels the weights were trained that a run started from which goes on."""
    cases = cases_of({"nnunet_ssl": split_digests})
    return {*cases.before} if cases else set()
