"""Hiding the labels of unlabeled cases, so that fingerprint, planning and preprocessing cannot see them.

The label goes to `labelsHidden`, the image to `imagesUn`, and `numTraining` follows. The label moves first when hiding
and last when it comes back, so that `labelsHidden` names every case on its way: interrupted, either can be run again.
"""

import glob
import json
from collections.abc import Iterable
from pathlib import Path


def hide(dataset: Path, cases: Iterable[str]) -> list[str]:
    """Hide the labels of cases of a raw data set and return which were not hidden before.

    Args:
        dataset: its folder in nnUNet_raw.
        cases: ids; those without a label (in imagesUn already) are left as they are.
    """
    ending = file_ending(dataset)
    hidden = []
    for case in cases:
        moved = move(dataset / "labelsTr" / f"{case}{ending}", dataset / "labelsHidden")
        for image in images_of(dataset / "imagesTr", case, ending):
            moved |= move(image, dataset / "imagesUn")
        if moved:
            hidden.append(case)
    count_training_cases(dataset)
    return hidden


def unhide(dataset: Path) -> list[str]:
    """Bring all hidden labels and their images back and return the cases."""
    ending = file_ending(dataset)
    labels = sorted((dataset / "labelsHidden").glob(f"*{ending}"))
    for label in labels:
        for image in images_of(dataset / "imagesUn", label.name.removesuffix(ending), ending):
            move(image, dataset / "imagesTr")
        move(label, dataset / "labelsTr")
    count_training_cases(dataset)
    for folder in (dataset / "labelsHidden", dataset / "imagesUn"):
        if folder.is_dir() and not any(folder.iterdir()):
            folder.rmdir()
    return [label.name.removesuffix(ending) for label in labels]


def file_ending(dataset: Path) -> str:
    """Return the ending of the data set's files, for example ".nii.gz"."""
    return json.loads((dataset / "dataset.json").read_text())["file_ending"]


def images_of(folder: Path, case: str, ending: str) -> list[Path]:
    """Return the images of a case, one for each channel."""
    return sorted(folder.glob(f"{glob.escape(case)}_[0-9][0-9][0-9][0-9]{ending}"))


def move(file: Path, folder: Path) -> bool:
    """Move a file into a folder, if it is there; a ValueError if the folder has one of its name."""
    if not file.exists():
        return False
    folder.mkdir(exist_ok=True)
    if (folder / file.name).exists():
        raise ValueError(f"{file.name} lies both in {file.parent} and in {folder}: remove one of them")
    file.rename(folder / file.name)
    return True


def count_training_cases(dataset: Path) -> None:
    """Write the number of label files into dataset.json."""
    file = dataset / "dataset.json"
    content = json.loads(file.read_text())
    number = len(list((dataset / "labelsTr").glob(f"*{content['file_ending']}")))
    if content["numTraining"] != number:
        temporary = file.with_suffix(".tmp")
        temporary.write_text(json.dumps(content | {"numTraining": number}, indent=4))
        temporary.replace(file)
