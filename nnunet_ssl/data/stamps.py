"""What a preprocessed unlabeled case was made from, and what it became; a stamp for each case, beside the cases."""

import errno
import hashlib
import stat
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from nnunet_ssl.data.hashed_files import HashedFile
from nnunet_ssl.data.json_schemas import read_if_fit
from nnunet_ssl.data.names import checked_name
from nnunet_ssl.data.preprocessed_images import Content

NOWHERE = (errno.ENOENT, errno.ELOOP)  # of a link
Mark = tuple[str, int, int, str]  # of a file: name, size in bytes, time of change in ns, SHA-256


@dataclass(frozen=True)
class Stamp:
    """What a preprocessed case was made from.

    Attributes:
        settings: see `UnlabeledPreprocessing.settings`.
        files: the image files.
        content: the preprocessed image's content; None when there is a problem.
        checksums: of the preprocessed files, by their names; empty in a stamp of an earlier version.
        sizes: of the same in bytes; empty in a stamp of an earlier version.
        voxels: the image as it was read, before it was preprocessed; None in a stamp of an earlier version.
        problem: why the image could not be preprocessed; empty when it was.
        wrong_channel_count: whether that is the problem.
    """

    settings: dict[str, Any]
    files: list[Mark]
    content: Content | None = None
    checksums: dict[str, int] = field(default_factory=dict)
    sizes: dict[str, int] = field(default_factory=dict)
    voxels: Content | None = None
    problem: str = ""
    wrong_channel_count: bool = False


def folder_of(dataset_folder: Path, data_identifier: str) -> Path:
    """Return where the unlabeled cases of a data set lie, given its folder in `nnUNet_preprocessed`.

    Raises:
        ValueError: the identifier, which stands in plans, is a path.
    """
    return dataset_folder / f"{checked_name(data_identifier)}_unlabeled"


def state_folder(preprocessed: Path) -> Path:
    """Return the folder beside the preprocessed cases that holds stamps, lock and temporary files."""
    return preprocessed.with_name(f"{preprocessed.name}_state")


def read_stamp(preprocessed: Path, case: str) -> Stamp | None:
    """Return what a case was made from; None if it was never finished, or nobody can read it."""
    return read_if_fit(stamp_file(preprocessed, case), Stamp)


def stamp_file(preprocessed: Path, case: str) -> Path:
    """Return where the stamp of a case lies."""
    return stamps_folder(preprocessed) / f"{checked_name(case)}.json"


def stamps_folder(preprocessed: Path) -> Path:
    """Return where the stamps of all cases lie."""
    return state_folder(preprocessed) / "stamps"


def checksums_of(preprocessed: Path, case: str) -> dict[str, int]:
    """Return the checksums of the files of a case that were made when it was preprocessed."""
    stamp = read_stamp(preprocessed, case)
    return stamp.checksums if stamp is not None else {}


def mark_of(file: Path) -> Mark:
    """Return what tells a file from another one of its name."""
    with HashedFile(file) as content:
        return (*quick_mark(file), content.digest())


def quick_mark(file: Path) -> tuple[str, int, int]:
    """Return what tells without reading that a file is another one; the same of all that is no file."""
    try:
        there = file.stat()
    except OSError as error:
        if error.errno not in NOWHERE:
            raise
        return file.name, 0, 0
    if not stat.S_ISREG(there.st_mode):  # a folder, a pipe
        return file.name, 0, 0
    return file.name, there.st_size, there.st_mtime_ns


def file_digest(file: Path) -> str:
    """Return the SHA-256 of a file, hexadecimal."""
    with file.open("rb") as opened:
        return hashlib.file_digest(opened, "sha256").hexdigest()
