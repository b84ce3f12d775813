"""What a reader of numbers should know of the data that they are of."""

from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from nnunet_ssl.data.dataset_reader import EXAMPLES
from nnunet_ssl.data.identical_images import across, twins_of_dataset
from nnunet_ssl.data.older_conversions import older_conversion
from nnunet_ssl.data.patients import PATIENTS, unit_of
from nnunet_ssl.data.raw_files import RawDataset, files_in, read_dataset_json
from nnunet_ssl.data.split_file import read_splits
from nnunet_ssl.data.unlabeled_pool import twins_warning
from nnunet_ssl.evaluation.structures import Structures
from nnunet_ssl.leaks.of_folds import Scans


def notes_about(
    raw: Path, preprocessed: Path, folders: Sequence[Path], structures: Structures, folds: Iterable[str]
) -> list[str]:
    """Return sentences about an older conversion, groups that are no patients, voxels without a size, and twins.

    What cannot be looked at is said too: no note is worth the page.

    Args:
        raw: the data set's folder in nnUNet_raw; identical images are looked for if it is there.
        preprocessed: its folder in nnUNet_preprocessed.
        folders: of the label files that were compared.
        structures: what was compared.
        folds: of the trainings; none for predictions of a test set.
    """
    looks = {
        "the conversion": lambda: [older_conversion(read_dataset_json(preprocessed / "dataset.json"))],
        "the patients": lambda: [note_about_groups(read_dataset_json(preprocessed / "dataset.json"))],
        "the size of voxels": lambda: [note_about_unit(folders, structures)],
        "identical images": lambda: twins_in_folds(raw, preprocessed, sorted(set(folds))),
    }
    found = []
    for what, look in looks.items():
        try:
            found += filter(None, look())
        except (ValueError, OSError) as error:
            found.append(f"{what} could not be looked at: {error}")
    return found


def twins_in_folds(raw: Path, preprocessed: Path, folds: Sequence[str]) -> list[str]:
    """Return a sentence about each fold in which one image is a training and a validation case."""
    if not folds or not (raw / "dataset.json").is_file():
        return []
    opened = RawDataset.open(raw)
    if not Scans.of(opened, preprocessed).unread:  # an audit has compared all scans: `leaks_in_runs` says it
        return []
    twins = twins_of_dataset(opened, preprocessed)
    splits = [read_splits(preprocessed / "splits_final.json")[int(fold)] for fold in folds]
    pairs = {fold: across(twins, split["train"], split["val"]) for fold, split in zip(folds, splits, strict=True)}
    return [f"fold {fold}: {twins_warning(both, raw.name)}" for fold, both in pairs.items() if both]


def note_about_groups(dataset_json: Mapping[str, Any]) -> str:
    """Return a sentence where the pattern of the data set finds something else than patients; empty if it does not."""
    if (unit := unit_of(dataset_json)) == PATIENTS or "patient_pattern" not in dataset_json:
        return ""
    return (
        f"what counts as a patient here is {unit} (dataset.json): several may be of one patient, and interval and p "
        "then claim more than they should"
    )


def note_about_unit(folders: Sequence[Path], structures: Structures) -> str:
    """Return one sentence where no file says how large a voxel is, so that distances are in voxels."""
    for file in (file for folder in folders for file in files_in(folder, structures.ending)[:EXAMPLES]):
        with suppress(ValueError):  # a damaged one is named by the comparison
            if structures.reader.read_labels(file).has_spacing:
                return ""
    return f"{structures.ending} files do not say how large a voxel is: distances are in voxels, and there is no volume"
