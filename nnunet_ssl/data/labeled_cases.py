"""nnU-Net's own preprocessed cases: which of them are whole."""

import os
import zipfile
from collections.abc import Iterable
from pathlib import Path

import blosc2
import numpy as np

from nnunet_ssl.data.dataset_names import id_of
from nnunet_ssl.data.raw_files import some

PICKLE_END = b"."  # the last byte of every pickle file
DAMAGE = (FileNotFoundError, EOFError, ValueError, RuntimeError, zipfile.BadZipFile)


def unfinished_cases(folder: Path, cases: Iterable[str]) -> list[str]:
    """Return the cases whose preprocessing was interrupted: image, label or properties are missing or cut off.

    Only headers and ends of files are read.

    Args:
        folder: nnU-Net's preprocessed folder of one configuration, in any of its formats.
        cases: ids of labeled cases.
    """
    return [case for case in cases if not _is_whole(folder, case)]


def refuse_unfinished(folder: Path, cases: Iterable[str], dataset: str, plans: str, configuration: str) -> None:
    """Check that labeled cases are preprocessed.

    Args:
        folder: nnU-Net's preprocessed folder of the configuration.
        cases: that are needed.
        dataset: name of the data set, for the command that fixes it.
        plans: identifier of the plans, for the same.
        configuration: its name, for the same.

    Raises:
        ValueError: cases are missing or not whole.
    """
    if unfinished := unfinished_cases(folder, sorted(cases)):
        raise ValueError(
            f"{len(unfinished)} labeled cases are not, or not wholly, preprocessed in {folder}: {some(unfinished)}. "
            f"nnUNetv2_preprocess -d {id_of(dataset)} -plans_name {plans} -c {configuration}"
        )


def _is_whole(folder: Path, case: str) -> bool:
    try:
        return _has_properties(folder / f"{case}.pkl") and _has_image_and_label(folder, case)
    except DAMAGE:
        return False


def _has_properties(file: Path) -> bool:
    with file.open("rb") as opened:
        size = opened.seek(0, os.SEEK_END)
        opened.seek(max(0, size - len(PICKLE_END)))
        return opened.read() == PICKLE_END


def _has_image_and_label(folder: Path, case: str) -> bool:
    packed = folder / f"{case}.npz"
    if packed.exists():  # from which nnU-Net makes .npy, and makes them again where they are damaged
        with np.load(packed) as arrays:
            return {"data", "seg"} <= {*arrays.files}
    for name in (case, f"{case}_seg"):
        unpacked = folder / f"{name}.npy"
        if unpacked.exists():
            np.load(unpacked, mmap_mode="r")
        else:
            blosc2.open(urlpath=str(folder / f"{name}.b2nd"), mode="r")
    return True
