"""nnU-Net's splits_final.json, and its key `unlabeled` that nnU-Net does not read."""

import difflib
import hashlib
import json
import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from shlex import quote

from nnunetv2.utilities.crossval_split import generate_crossval_split

from nnunet_ssl.data.json_schemas import Fold, parsed, refuse_unfit
from nnunet_ssl.data.patients import patients_of
from nnunet_ssl.data.preprocessed_images import write_json_atomically

KEY = "unlabeled"  # of a fold
FOLDS = 5  # of nnU-Net's own split, which needs as many cases
NO_ESTIMATE = "the validation cases are the training cases, so that their scores are no estimate for other cases"
NEAR_KEY = 0.8  # how like it, by difflib's ratio, an unknown key is taken for a misspelling


def read_splits(file: Path) -> list[dict[str, list[str]]]:
    """Return the folds of a splits_final.json.

    Raises:
        ValueError: it cannot be read, is no list of folds, a fold lacks `train` or `val`, a value is no list of case
            names, has one twice or a path among them, or a key is nearly `unlabeled`, which would be overlooked.
    """
    try:
        folds = parsed(file.read_text())
    except OSError as error:
        raise ValueError(f"{file} cannot be read: {error.strerror}") from None
    except ValueError as error:
        again = f"nnunet_ssl split {quote(file.parent.name)} --overwrite with --labeled or --protocol"
        raise ValueError(f"{file} is no JSON ({error}): write it again, {again}") from None
    if not isinstance(folds, list) or not all(isinstance(fold, dict) for fold in folds):
        raise ValueError(f'{file} is no list of folds such as [{{"train": [...], "val": [...]}}]')
    for number, fold in enumerate(folds):
        refuse_unfit(fold, Fold, f"fold {number} of {file}")
        for key in fold.keys() - {"train", "val", KEY}:
            if is_near_key(key):
                raise ValueError(f"fold {number} of {file} has the key {key!r}, which nobody reads: write {KEY!r}")
    return folds


def is_near_key(key: str) -> bool:
    """Return whether an unknown key of a fold is likely to mean the unlabeled cases."""
    letters = re.sub(r"[^a-z]", "", key.lower())
    means_it = any(part in letters for part in ("unlab", "unannotated", "withoutlabel", "nolabel"))
    return means_it or (letters != "labeled" and difflib.SequenceMatcher(None, letters, KEY).ratio() >= NEAR_KEY)


def unlabeled_cases_of_fold(splits_file: Path, fold: int | str) -> list[str] | None:
    """Return the cases under `unlabeled` of a fold in splits_final.json; None when the fold names none.

    Raises:
        ValueError: there is no such fold, or as `read_splits`.
    """
    if fold == "all" or not splits_file.exists():
        return None
    folds = read_splits(splits_file)
    if not 0 <= fold < len(folds):
        raise ValueError(f"there is no fold {fold}: {splits_file} has {len(folds)} fold(s), the first is 0")
    return folds[fold].get(KEY)


def write_small_split(file: Path, cases: Sequence[str], patient_pattern: str | None) -> str:
    """Write a splits_final.json where nnU-Net's five folds do not fit, and return a sentence about it.

    Each patient validates once (leave one out); a single one validates itself. Where there is a file, or there are five
    patients or more, nothing is written and the sentence is empty.

    Args:
        file: splits_final.json.
        cases: the labeled ones.
        patient_pattern: of dataset.json; None means that every case is a patient.
    """
    folds = [] if file.exists() else folds_of_few_patients(cases, patient_pattern)
    if not folds:
        return ""
    write_json_atomically(folds, file)
    if len(folds) == 1:
        return f"{file}: one fold, because there is one labeled patient; {NO_ESTIMATE}"
    return f"{file}: {len(folds)} folds, because there are {len(folds)} labeled patients; one validates in each"


def write_first_split(file: Path, cases: Sequence[str], patient_pattern: str | None) -> str:
    """Write a splits_final.json where there is none: nnU-Net's five folds, or what `write_small_split` writes.

    nnU-Net writes its own in place, and other folds that start at the same time may be reading.

    Args:
        file: splits_final.json.
        cases: the labeled ones.
        patient_pattern: of dataset.json; None means that every case is a patient.
    """
    written = write_small_split(file, cases, patient_pattern)
    if not file.exists():
        write_json_atomically(generate_crossval_split(sorted(cases)), file)
    return written


def folds_of_few_patients(cases: Sequence[str], patient_pattern: str | None) -> list[dict[str, list[str]]]:
    """Return the folds of fewer than five patients, see `write_small_split`; none for more."""
    patient_of = patients_of(sorted(cases), patient_pattern)
    patients = sorted(set(patient_of.values()))
    folds = []
    for patient in patients if len(patients) < FOLDS else ():
        validation = [case for case in patient_of if patient_of[case] == patient]
        others = [case for case in patient_of if patient_of[case] != patient]
        folds.append({"train": others or validation, "val": validation})
    return folds


def split_digest(train: Iterable[str], validation: Iterable[str], unlabeled: Iterable[str]) -> str:
    """Return the first 12 hexadecimal digits of the SHA-256 of a fold's three lists of cases, whatever their order."""
    lists = json.dumps([sorted(cases) for cases in (train, validation, unlabeled)])
    return hashlib.sha256(lists.encode()).hexdigest()[:12]
