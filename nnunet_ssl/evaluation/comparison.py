"""What is compared on a data set: who predicted what, of which patient, and what all trainers have predicted."""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import NamedTuple

from nnunet_ssl.data.patients import groups_where_they_occur
from nnunet_ssl.data.raw_files import read_json_file, some
from nnunet_ssl.evaluation.folders import Row


class Prediction(NamedTuple):
    """A case as one training predicts it; predictions of a test set have no training."""

    training: str
    case: str

    def __str__(self) -> str:
        return f"{self.case} ({self.training})" if self.training else self.case


@dataclass(frozen=True)
class Comparison:
    """The predictions of several trainers on one data set.

    Attributes:
        dataset: its name.
        results: the rows of each prediction, one for each structure, by trainer, the baseline first.
        patients: whose each case is.
    """

    dataset: str
    results: Mapping[str, Mapping[Prediction, Sequence[Row]]]
    patients: Mapping[str, str]

    @property
    def baseline(self) -> str:
        """The trainer that the others are compared with."""
        return next(iter(self.results))

    @cached_property
    def apart(self) -> tuple[str, ...]:
        """The trainers that stand in no table with the others, see `trainers_apart`."""
        return trainers_apart({trainer: set(predictions) for trainer, predictions in self.results.items()})

    @cached_property
    def listed(self) -> tuple[str, ...]:
        """The trainers that are not apart."""
        return tuple(trainer for trainer in self.results if trainer not in self.apart)

    @cached_property
    def common(self) -> tuple[Prediction, ...]:
        """The predictions that all listed trainers have."""
        return tuple(sorted(set.intersection(*(set(self.results[trainer]) for trainer in self.listed))))

    def shown(self, trainer: str) -> tuple[Prediction, ...]:
        """Return the predictions that a trainer's means are over: the common ones; its own for one that is apart."""
        return tuple(sorted(self.results[trainer])) if trainer in self.apart else self.common

    def rows(self, trainer: str) -> list[Row]:
        """Return the rows that a trainer's means are over."""
        return [row for prediction in self.shown(trainer) for row in self.results[trainer][prediction]]

    def dice(self, trainer: str) -> dict[Prediction, float]:
        """Return the mean Dice over the structures of all that a trainer has predicted."""
        return {
            prediction: sum(row.metrics.dice for row in rows) / len(rows)
            for prediction, rows in self.results[trainer].items()
        }

    def warnings(self) -> list[str]:
        """Return who is apart, and what is left out of the table of means because of whom."""
        shared = {trainer: len(self.results[trainer].keys() & set(self.common)) for trainer in self.apart}
        found = [
            f"{trainer} stands in a table apart, because it would cost more than half of the cases: it has "
            f"{number} of the {len(self.common)} predictions of the table of means"
            for trainer, number in shared.items()
        ]
        every = set().union(*(self.results[trainer] for trainer in self.listed))
        lacking = {trainer: sorted(every - self.results[trainer].keys()) for trainer in self.listed}
        whose = [f"{trainer} lacks {counted(missing)}" for trainer, missing in lacking.items() if missing]
        if whose:
            number = len(every) - len(self.common)
            found.append(f"the table of means leaves out {number} of {len(every)} predictions: {'; '.join(whose)}")
        return found


def counted(predictions: Iterable[Prediction]) -> str:
    """Return how many predictions of each training there are: "3 of fold 1, 1 of fold 2"."""
    numbers = Counter(prediction.training for prediction in predictions)
    return ", ".join(f"{number} of {training}" if training else str(number) for training, number in numbers.items())


def trainers_apart(predictions: Mapping[str, set[Prediction]]) -> tuple[str, ...]:
    """Return the trainers with which more than half of the cases would be missing in a table over what all have.

    Of the trainers that lack more than half of what at least half of the trainers have, the one that has least of it
    goes first; where there is none, the one without which the others have most in common, if that is more than twice
    as much as with it, or if there is nothing that all have. Ties go to the last one. Then the same for the others.
    """
    listed, apart = list(predictions), []

    def in_common(trainers: Iterable[str]) -> set[Prediction]:
        return set.intersection(*(predictions[trainer] for trainer in trainers))

    while len(listed) > 1:
        owners = Counter(prediction for trainer in listed for prediction in predictions[trainer])
        usual = {prediction for prediction, number in owners.items() if 2 * number >= len(listed)}
        own = {trainer: len(predictions[trainer] & usual) for trainer in listed}
        left = {trainer: len(in_common(other for other in listed if other != trainer)) for trainer in listed}
        common = len(in_common(listed))
        worst = min(reversed(listed), key=own.__getitem__)
        if 2 * own[worst] >= len(usual):
            worst = max(reversed(listed), key=left.__getitem__)
            if common and 2 * common >= left[worst]:
                break
        listed.remove(worst)
        apart.append(worst)
    return tuple(trainer for trainer in predictions if trainer in apart)


def patients_of(cases: Sequence[str], pattern: str | None) -> tuple[dict[str, str], list[str]]:
    """Return the patient of each case, and a warning where a pattern does not find one.

    The patient is the pattern's first group, or its match without a group; a case without one is its own patient.

    Raises:
        ValueError: the pattern is no regular expression.
    """
    if pattern is None:
        return {case: case for case in cases}, []
    try:
        found = groups_where_they_occur(cases, pattern)
    except ValueError as error:
        raise ValueError(f"patient_pattern in dataset.json is no regular expression: {error}") from error
    alone = [case for case in cases if not found[case]]
    which = f"{len(alone)} of {len(cases)} case ids, each of which counts as a patient: {some(alone)}"
    warnings = [f"patient_pattern {pattern!r} of dataset.json finds no patient in {which}"] if alone else []
    return {case: found[case] or case for case in cases}, warnings


def patient_pattern(*datasets: Path) -> str | None:
    """Return the `patient_pattern` of the first dataset.json that has one; a damaged file is passed over."""
    for file in datasets:
        with suppress(ValueError):
            if "patient_pattern" in (content := read_json_file(file)):
                return content["patient_pattern"]
    return None
