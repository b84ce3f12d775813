"""Hiding the labels of unlabeled cases, so that fingerprint, planning and preprocessing cannot see them.

The label goes to `labelsHidden`, the image to `imagesUn`, and `numTraining` follows. The label moves first when hiding
and last when it comes back, so that `labelsHidden` names every case on its way: interrupted, either can be run again.
Images that have no label go the same way, from `imagesTr` to `imagesUn`.
"""

import filecmp
import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from nnunet_ssl.data.preprocessed_images import write_json_atomically
from nnunet_ssl.data.raw_files import TIFF_ENDINGS, RawDataset, files_in, some, unlabeled_images
from nnunet_ssl.data.whole_files import move


@dataclass(frozen=True)
class Move:
    """A file of a case, and where it goes."""

    case: str
    source: Path
    target: Path


def moves_to_hide(raw: RawDataset, cases: Iterable[str]) -> list[Move]:
    """Return what has to move so that the labels of cases are hidden; nothing for those without a label.

    Raises:
        ValueError: another file has the place of one, or the cases lie elsewhere, by the key `dataset`.
    """
    refuse_elsewhere(raw)
    images, with_label = raw.images("imagesTr"), {*raw.labels(), *raw.labels("labelsHidden")}
    moves = []
    for case in cases:
        if case in with_label:
            moves += moves_of_case(raw, case, [f"{case}{raw.ending}"], "labelsTr", "labelsHidden")
            moves += moves_of_case(raw, case, [file.name for file in images.get(case, [])], "imagesTr", "imagesUn")
    return checked_moves(moves)


def moves_to_show(raw: RawDataset, cases: Iterable[str] | None = None) -> list[Move]:
    """Return what has to move so that the hidden labels of cases are back; None means all hidden ones.

    Raises:
        ValueError: as `moves_to_hide`.
    """
    hidden = raw.labels("labelsHidden")
    if hidden:
        refuse_elsewhere(raw)
    images, moves = raw.images("imagesUn"), []
    for case in hidden if cases is None else cases:
        moves += moves_of_case(raw, case, [file.name for file in images.get(case, [])], "imagesUn", "imagesTr")
        moves += reversed(moves_of_case(raw, case, [f"{case}{raw.ending}"], "labelsHidden", "labelsTr"))
    return checked_moves(moves)


def moves_to_pool(raw: RawDataset) -> list[Move]:
    """Return what has to move so that no image without a label, visible or hidden, lies in imagesTr.

    Raises:
        ValueError: as `moves_to_hide`; an image is not named as a channel of a case; there is no label at all, or one
            without an image, which may be that of an image to be moved under another name.
    """
    refuse_elsewhere(raw)
    images = unlabeled_images(raw.folder / "imagesTr", raw.ending)
    visible, with_label = raw.labels(), {*raw.labels(), *raw.labels("labelsHidden")}
    without_label = [case for case in images if case not in with_label]
    if without_label and not visible:
        raise ValueError(f"there is no label CASE{raw.ending} in {raw.folder / 'labelsTr'}: no image would be left")
    lost = [file.name for case, file in visible.items() if case not in images and case not in raw.images("imagesUn")]
    if without_label and lost:
        raise ValueError(
            f"labels in {raw.folder / 'labelsTr'} have no image: {some(lost)}. If one is of {without_label[0]}, name "
            f"it {without_label[0]}{raw.ending}; otherwise remove it"
        )
    moves = []
    for case in without_label:  # the channels last: they tell which cases are on their way
        names = [file.name for file in images[case]]
        moves += reversed(moves_of_case(raw, case, names, "imagesTr", "imagesUn"))
    return checked_moves(moves)


def carry_out(raw: RawDataset, moves: Sequence[Move]) -> list[str]:
    """Move the files, count the training cases anew, and return whose files they were."""
    for one in moves:
        move(one.source, one.target)
    _count_training_cases(raw)
    for folder in (raw.folder / name for name in ("labelsHidden", "labelsUn", "imagesUn")):
        if folder.is_dir() and not any(folder.iterdir()):
            folder.rmdir()
    return list(dict.fromkeys(one.case for one in moves))


def hide(raw: RawDataset, cases: Iterable[str]) -> list[str]:
    """Hide the labels of cases of a raw data set and return which were not hidden before."""
    return carry_out(raw, moves_to_hide(raw, cases))


def unhide(raw: RawDataset, cases: Iterable[str] | None = None) -> list[str]:
    """Bring hidden labels and their images back, all of them or those of some cases, and return the cases."""
    return carry_out(raw, moves_to_show(raw, cases))


def moves_of_case(raw: RawDataset, case: str, names: Sequence[str], source: str, target: str) -> list[Move]:
    """Return how files of a case, and what lies beside a TIFF, get from one folder of a data set to another."""
    beside = [f"{case}.json"] if raw.ending.lower() in TIFF_ENDINGS else []
    pairs = ((raw.folder / source / name, raw.folder / target / name) for name in (*names, *beside))
    return [Move(case, *pair) for pair in pairs if os.path.lexists(pair[0])]


def checked_moves(moves: list[Move]) -> list[Move]:
    """Return the moves; a ValueError if another file has the place of one."""
    for one in moves:
        if os.path.lexists(one.target) and not filecmp.cmp(one.source, one.target, shallow=False):
            raise ValueError(
                f"{one.source.name} lies both in {one.source.parent} and in {one.target.parent}: remove one of them"
            )
    return moves


def refuse_elsewhere(raw: RawDataset) -> None:
    """Raise a ValueError if the training cases do not lie in imagesTr and labelsTr."""
    if raw.lies_elsewhere:
        raise ValueError(
            f"the cases of {raw.folder.name} lie where the key 'dataset' of its dataset.json says, so that none can be "
            "moved: put them into imagesTr and labelsTr and remove the key, or split without --hide"
        )


def _count_training_cases(raw: RawDataset) -> None:
    """Write the number of label files into dataset.json."""
    number = len(files_in(raw.folder / "labelsTr", raw.ending))
    if not raw.lies_elsewhere and raw.dataset_json.get("numTraining") != number:
        write_json_atomically(raw.dataset_json | {"numTraining": number}, raw.folder / "dataset.json", indent=4)
