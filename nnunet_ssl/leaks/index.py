"""What is remembered of the scans of a data set, so that no unchanged file is read twice.

Two files beside the preprocessed data: audit_index.json with what a training looks at, and audit_small_images.npz.
"""

import hashlib
import io
import os
import zipfile
import zlib
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from nnunet_ssl.data.preprocessed_images import read_json, write_json_atomically

INDEX, SMALL_IMAGES = "audit_index.json", "audit_small_images.npz"
VERSION = 1  # of small images and of the likeness: with another one all is looked at anew
DAMAGE = (OSError, ValueError, KeyError, TypeError, AttributeError, EOFError, zipfile.BadZipFile, zlib.error)


@dataclass(frozen=True)
class Scan:
    """What a scan's files were when they were read, and what was found in them.

    Attributes:
        marks: size in bytes and time of change in ns of each file.
        size: in voxels, without axes of one voxel.
        values: of each channel the different values, where these are few; None where they are many.
        problem: why it cannot be compared; empty where it can.
    """

    marks: list[list[int]]
    size: list[int] = field(default_factory=list)
    values: list[list[float] | None] = field(default_factory=list)
    problem: str = ""


@dataclass(frozen=True)
class Pair:
    """Two scans that were compared in full.

    Attributes:
        marks: of the files of both.
        likeness: 0 to 1.
        is_equal: whether their voxels are the same.
    """

    marks: list[list[list[int]]]
    likeness: float
    is_equal: bool


@dataclass
class Index:
    """What is known of the scans of a data set, which are called FOLDER/CASE.

    Attributes:
        scans: that were read.
        pairs: that were compared in full.
        compared: digest of the scans among which the pairs were chosen; empty before.
    """

    scans: dict[str, Scan] = field(default_factory=dict)
    pairs: dict[tuple[str, str], Pair] = field(default_factory=dict)
    compared: str = ""

    @classmethod
    def read(cls, folder: Path) -> "Index":
        """Read the index in a data set's preprocessed folder; an empty one where there is none, or a damaged one."""
        with suppress(*DAMAGE):
            content = read_json(folder / INDEX)
            if content["version"] == VERSION:
                scans = {name: Scan(**scan) for name, scan in content["scans"].items()}
                pairs = {(first, second): Pair(*rest) for first, second, *rest in content["pairs"]}
                if all(map(_is_whole, scans.values())) and all(map(_is_comparison, pairs.values())):
                    return cls(scans, pairs, str(content["compared"]))
        return cls()

    def write(self, folder: Path) -> None:
        """Write the index; where nothing can be written, scans are read again each time."""
        pairs = [[*names, *asdict(pair).values()] for names, pair in self.pairs.items()]
        scans = {name: asdict(scan) for name, scan in self.scans.items()}
        with suppress(OSError):
            content = {"version": VERSION, "compared": self.compared, "scans": scans, "pairs": pairs}
            write_json_atomically(content, folder / INDEX)

    def digest(self) -> str:
        """Return the SHA-256 of the names and marks of all scans, hexadecimal."""
        contents = sorted(_content(name, scan) for name, scan in self.scans.items())
        return hashlib.sha256("\n".join(contents).encode()).hexdigest()

    def is_current(self, name: str, marks: list[list[int]]) -> bool:
        """Return whether a scan was read since its files were changed."""
        return name in self.scans and self.scans[name].marks == marks

    def pair(self, first: str, second: str) -> Pair | None:
        """Return what two scans, named in order, have in common; None where one has changed since, or none is known."""
        pair = self.pairs.get((first, second))
        return pair if pair and pair.marks == [self.scans[name].marks for name in (first, second)] else None


def marks_of(files: Sequence[Path]) -> list[list[int]]:
    """Return size and time of change of files; an OSError if one is missing."""
    return [[there.st_size, there.st_mtime_ns] for there in (file.stat() for file in files)]


def read_small_images(folder: Path, scans: Mapping[str, Scan]) -> dict[str, np.ndarray]:
    """Return the small images of scans; without those that were made of other files."""
    found = {}
    with suppress(*DAMAGE), np.load(folder / SMALL_IMAGES, allow_pickle=False) as arrays:
        for key in (key for key in arrays.files if key.startswith("small_")):
            names = arrays[key.replace("small", "names")].tolist()
            found |= dict(zip(names, arrays[key], strict=True))
    return {name: found[of] for name, scan in scans.items() if (of := _content(name, scan)) in found}


def write_small_images(folder: Path, small: Mapping[str, np.ndarray], scans: Mapping[str, Scan]) -> None:
    """Write small images in half precision, so that a reader finds the old or the new file."""
    arrays: dict[str, Any] = {}
    for number in sorted({image.ndim for image in small.values()}):
        names = [name for name, image in small.items() if image.ndim == number]
        arrays[f"names_{number}"] = np.array([_content(name, scans[name]) for name in names])
        arrays[f"small_{number}"] = np.stack([small[name].astype(np.float16) for name in names])
    packed = io.BytesIO()  # as numpy leaves its archive open where a disk is full
    np.savez(packed, **arrays)
    unfinished = folder / f"{SMALL_IMAGES}.{os.getpid()}.tmp"
    try:
        with suppress(OSError):
            unfinished.write_bytes(packed.getvalue())
            unfinished.replace(folder / SMALL_IMAGES)
    finally:
        with suppress(OSError):
            unfinished.unlink(missing_ok=True)


def _content(name: str, scan: Scan) -> str:
    return f"{name} {scan.marks}"


def _is_whole(scan: Scan) -> bool:
    sizes = all(isinstance(size, int) for size in scan.size)
    values = all(of is None or all(isinstance(one, int | float) for one in of) for of in scan.values)
    return _are_marks(scan.marks) and sizes and values and isinstance(scan.problem, str)


def _is_comparison(pair: Pair) -> bool:
    return all(map(_are_marks, pair.marks)) and isinstance(pair.likeness, int | float) and type(pair.is_equal) is bool


def _are_marks(marks: Iterable) -> bool:
    return all(isinstance(one, int) for mark in marks for one in mark)
