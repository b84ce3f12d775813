"""On which side of a training each case stands: trained with, validated on, unlabeled, or kept for the test."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from nnunetv2.utilities.crossval_split import generate_crossval_split

from nnunet_ssl.data.patients import patients_of
from nnunet_ssl.data.raw_files import RawDataset
from nnunet_ssl.data.split_file import FOLDS, KEY, folds_of_few_patients, read_splits

TRAINING, VALIDATION, UNLABELED, TEST = "training", "validation", "unlabeled", "test"
SEED_OF_NNUNET = 12345


@dataclass(frozen=True)
class Fold:
    """The cases of each side of one fold.

    Attributes:
        name: "0", or "all".
        sides: the cases by side.
    """

    name: str
    sides: Mapping[str, tuple[str, ...]]

    @classmethod
    def of(
        cls,
        name: int | str,
        train: Iterable[str],
        val: Iterable[str],
        named: Iterable[str] | None,
        raw: RawDataset | None,
    ) -> "Fold":
        """Return a fold; cases of imagesUn are unlabeled where `named` is None, and those of imagesTs are the test."""
        if named is None:
            named = raw.images("imagesUn") if raw else ()
        sides = {TRAINING: train, VALIDATION: val, UNLABELED: named, TEST: raw.images("imagesTs") if raw else ()}
        return cls(str(name), {side: tuple(map(str, cases)) for side, cases in sides.items()})

    @property
    def validates_itself(self) -> bool:
        """Whether the validation cases are the training cases, as where a benchmark has none of its own."""
        return set(self.sides[TRAINING]) == set(self.sides[VALIDATION])

    def sides_of_scan(self, scan: str, all_scans: Iterable[str]) -> set[str]:
        """Return on which sides a scan, FOLDER/CASE, stands; of a case in two folders each side has one of the two."""
        folder, _, case = scan.partition("/")
        if folder == "imagesTs":
            return {TEST}
        own, other = ((TRAINING, VALIDATION), "imagesUn") if folder == "imagesTr" else ((UNLABELED,), "imagesTr")
        is_only = f"{other}/{case}" not in all_scans
        sides = {
            side for side, cases in self.sides.items() if side != TEST and case in cases and (side in own or is_only)
        }
        return sides - {VALIDATION} if self.validates_itself else sides


def folds_of(raw: RawDataset | None, preprocessed: Path) -> list[Fold]:
    """Return the folds of a data set: of splits_final.json or, where it is not there yet, those that a training makes.

    Raises:
        ValueError: splits_final.json is damaged.
    """
    file = preprocessed / "splits_final.json"
    if file.exists():
        splits = read_splits(file)
    else:
        images = raw.images() if raw else {}
        cases = sorted(case for case in (raw.labels() if raw else ()) if case in images)
        pattern = raw.dataset_json.get("patient_pattern") if raw else None
        splits = folds_of_few_patients(cases, pattern)
        if not splits and len(cases) >= FOLDS:
            splits = generate_crossval_split(list(np.sort(cases)), seed=SEED_OF_NNUNET, n_splits=FOLDS)
    return [Fold.of(number, one["train"], one["val"], one.get(KEY), raw) for number, one in enumerate(splits)]


def patients_of_fold(fold: Fold, pattern: str | None) -> dict[str, str]:
    """Return whose each case of a fold is; without a pattern every case is a patient."""
    return patients_of(sorted({case for cases in fold.sides.values() for case in cases}), pattern)
