"""A run on a disk that is full or can only be read: it ends with a sentence, and nnU-Net leaves no half of a file."""

import errno
import json
import os
import shutil
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import numpy as np

from nnunet_ssl.data.disk_faults import is_fault_of_disk, naming, words_of
from nnunet_ssl.data.image_files import refuse_damaged
from nnunet_ssl.data.whole_files import sync

SUMMARY = "summary.json"  # nnU-Net's scores of a validation
DAMAGE = (ValueError, EOFError, zipfile.BadZipFile)


@contextmanager
def disk_ends_the_run(report: Callable[[str], None]) -> Iterator[None]:
    """Let a fault of a disk end the process with exit code 1 and a sentence: there is nothing in it to look into."""
    try:
        yield
    except OSError as error:
        if not is_fault_of_disk(error):
            raise
        report(words_of(error))
        raise SystemExit(1) from None


@contextmanager
def written_together(folder: Path, writer: str) -> Iterator[Path]:
    """Give a folder to write files into, all of which take the place of those in `folder` at the end, or none does.

    Args:
        folder: of the files.
        writer: which of several that may write at once; what an earlier one of this name has left is deleted.
    """
    unfinished = folder / f".{writer}.tmp"
    with naming(folder, instead_of=unfinished):
        shutil.rmtree(unfinished, ignore_errors=True)
        unfinished.mkdir(parents=True)
        try:
            yield unfinished
            for file in unfinished.iterdir():
                sync(file)
                file.replace(folder / file.name)
        finally:
            shutil.rmtree(unfinished, ignore_errors=True)


@contextmanager
def no_half_of(file: Path) -> Iterator[None]:
    """Delete what is left of a file that is replaced each time, where it cannot be written."""
    try:
        with naming(file):
            yield
    except OSError:
        file.unlink(missing_ok=True)
        raise


@contextmanager
def whole_predictions(folder: Path, ending: str) -> Iterator[None]:
    """Look at what nnU-Net has written in a validation and delete what is cut off, and the scores with it.

    On a full disk its writer may say nothing: such a prediction would be read as one with background where it ends.

    Raises:
        OSError: a file is cut off; it is named.
    """
    error: Exception | None = None
    try:
        yield
    except Exception as raised:  # noqa: BLE001 - raised again, unless a file that is cut off is behind it
        error = raised
    predictions = sorted(file for kind in (ending, ".npz") for file in folder.glob(f"*{kind}"))
    cut_off = [file for file in predictions if not _is_whole(file)]
    summary = folder / SUMMARY
    for file in cut_off:
        file.unlink(missing_ok=True)
    if cut_off or (summary.is_file() and not _is_whole(summary)):
        summary.unlink(missing_ok=True)
    if cut_off:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(cut_off[0])) from error
    if error is not None:
        raise error


def _is_whole(file: Path) -> bool:
    with suppress(*DAMAGE):
        if file.suffix == ".json":
            json.loads(file.read_text())
        elif file.suffix == ".npz":
            with np.load(file) as arrays:
                return arrays.zip.testzip() is None
        else:
            refuse_damaged(file)
        return True
    return False
