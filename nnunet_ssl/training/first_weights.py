"""The checkpoints whose weights a run starts from, and what these have seen."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nnunet_ssl.data.trained_cases import (
    FIRST_WEIGHTS,
    TrainedCases,
    cases_of,
    cases_of_weights,
    refuse_learned_validation,
)
from nnunet_ssl.training.checkpoints import load_facts

PRETRAINED, SHORTEST = "-pretrained_weights", "-pr"  # of nnUNetv2_train, which has another argument that begins with -p


@dataclass(frozen=True)
class FirstWeights:
    """The checkpoints that a run starts from: by its options, `init_checkpoint` for example, or `-pretrained_weights`.

    Attributes:
        cases: that each was trained on, by option and file; None where nothing tells them.
    """

    cases: Mapping[str, TrainedCases | None]

    @classmethod
    def of(cls, options: Mapping[str, Any], command: Sequence[str], splits_file: Path) -> "FirstWeights":
        """Return those of a run; of each checkpoint only what it says of its run is read.

        Args:
            options: of the run, with their values.
            command: the words that started it, as nnU-Net tells a trainer nothing of its own `-pretrained_weights`.
            splits_file: of its data set.

        Raises:
            ValueError: a file is not there, or no checkpoint.
        """
        named = {name: file for name, file in options.items() if name.startswith(FIRST_WEIGHTS) and file is not None}
        named |= dict(given_in(command))
        return cls({f"{name}: {file}": cases_of_weights(load_facts(file), splits_file) for name, file in named.items()})

    @property
    def learned(self) -> set[str]:
        """The cases with whose labels the weights were trained."""
        return {case for one in self.cases.values() if one for case in (*one.train, *one.before)}

    def warnings(self, now: TrainedCases) -> Iterator[str]:
        """Give what to say of each; refuse one that has learned the labels of cases that validate the run, `now`."""
        for source, cases in self.cases.items():
            if warning := refuse_learned_validation(cases, now, source):
                yield warning


def given_in(command: Sequence[str]) -> Iterator[tuple[str, str]]:
    """Give nnU-Net's argument with the file that a command gives it, if it does; argparse takes its beginnings too."""
    for word, following in zip(command, [*command[1:], ""], strict=True):
        name, equals, file = word.partition("=")
        if len(name) >= len(SHORTEST) and PRETRAINED.startswith(name):
            yield PRETRAINED, file if equals else following


def cases_before(split_digests: Mapping) -> set[str]:
    """Return with whose labels the weights were trained that a run started from which goes on."""
    cases = cases_of({"nnunet_ssl": split_digests})
    return {*cases.before} if cases else set()
