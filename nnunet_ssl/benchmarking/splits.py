"""Which cases a training of a benchmark learns from and is validated on."""

import os
from pathlib import Path
from typing import Any

import numpy as np
from nnunetv2.utilities.crossval_split import generate_crossval_split

from nnunet_ssl.data.patients import patients_of
from nnunet_ssl.data.raw_files import files_in, read_dataset_json, unlabeled_images
from nnunet_ssl.data.split_file import FOLDS, read_splits, split_digest
from nnunet_ssl.splits.make_splits import Split as Parts
from nnunet_ssl.splits.near_duplicates import without_borders

REPORT_FOLD, TUNE_FOLD = 0, 1  # of nnU-Net's own 5-fold split

Split = dict[str, list[str]]


def draw_split(source: Path, labeled: int | None, seed: int, fold: int) -> Split:
    """Return a fold with the labeled cases of a seed, nested over their number; None is all of them.

    Of a data set that knows its patients, whole patients are drawn, and counted. Where its dataset.json asks for it,
    neighbours across a border of validation and training are left out, as by `nnunet_ssl split`.
    """
    patient_of = patients_of(labeled_cases(source), pattern_of(source))
    training, validation = parts_of_fold(source, fold)
    order = [training[i] for i in np.random.default_rng(seed).permutation(len(training))]
    drawn = set(order[:labeled])
    parts = Parts(
        train=[case for case, patient in patient_of.items() if patient in set(training)],
        val=[case for case, patient in patient_of.items() if patient in set(validation)],
        unlabeled=pool_of_fold(source, fold),
    )
    if width := read_dataset_json(source / "dataset.json").get("border_images", 0):
        (parts,), _ = without_borders([parts], width, patient_of)
    split = {"train": [case for case in parts.train if patient_of[case] in drawn], "val": parts.val}
    if labeled is not None:
        split["unlabeled"] = parts.unlabeled or [case for case in parts.train if patient_of[case] not in drawn]
    return split


def pool_of_fold(source: Path, fold: int) -> list[str]:
    """Return the cases of imagesUn that are not of a patient whom the fold validates on."""
    patient_of = patients_of(images_without_label(source), pattern_of(source))
    _, validation = parts_of_fold(source, fold)
    return [case for case, patient in patient_of.items() if patient not in validation]


def parts_of_fold(source: Path, fold: int) -> tuple[list[str], list[str]]:
    """Return the training and validation patients of one of nnU-Net's five folds; without patients, the cases.

    Raises:
        ValueError: there are too few for them.
    """
    patients = sorted(set(patients_of(labeled_cases(source), pattern_of(source)).values()))
    if len(patients) < FOLDS:
        unit = "patients with labels" if pattern_of(source) else "labeled cases"
        raise ValueError(
            f"{source.name} has {len(patients)} {unit}, and nnU-Net's {FOLDS} folds need as many: divide them by "
            f"nnunet_ssl split {source.name}, and take --own-split instead of --labeled"
        )
    parts = generate_crossval_split(patients, seed=12345, n_splits=FOLDS)[fold]
    return [str(one) for one in parts["train"]], [str(one) for one in parts["val"]]


def own_split(source: Path, with_all_labels: bool, fold: int) -> Split:
    """Return a fold of the data set's own split, or with all of its labels: those of its unlabeled cases too.

    Raises:
        ValueError: there is no such fold.
    """
    folds = read_splits(source / "splits_final.json")
    if not 0 <= fold < len(folds):
        raise ValueError(f"there is no fold {fold}: {source / 'splits_final.json'} has {len(folds)}, the first is 0")
    own = folds[fold]
    if not with_all_labels:
        return own
    there = set(labeled_cases(source))
    return {"train": sorted({*own["train"], *own.get("unlabeled", [])} & there), "val": own["val"]}


def labeled_cases(source: Path) -> list[str]:
    """Return the cases with a label."""
    ending = ending_of(source)
    return sorted(file.name.removesuffix(ending) for file in files_in(source / "gt_segmentations", ending))


def images_without_label(source: Path) -> list[str]:
    """Return the cases of imagesUn."""
    images = Path(os.environ["nnUNet_raw"], source.name, "imagesUn")
    return sorted(unlabeled_images(images, ending_of(source)))


def ending_of(source: Path) -> str:
    """Return the ending of a data set's files."""
    return read_dataset_json(source / "dataset.json")["file_ending"]


def pattern_of(source: Path) -> str | None:
    """Return the regular expression by which a data set knows its patients; None if it knows none."""
    return read_dataset_json(source / "dataset.json").get("patient_pattern")


def facts_of_split(split: Split, source: Path, trains_unlabeled: bool) -> dict[str, Any]:
    """Return the numbers of cases of a split, and the digest that the log of our trainers has too."""
    unlabeled = split.get("unlabeled", images_without_label(source)) if trains_unlabeled else []
    return {
        "labeled": len(split["train"]),
        "unlabeled": len(unlabeled),
        "validation": len(split["val"]),
        "digest": split_digest(split["train"], split["val"], unlabeled),
    }
