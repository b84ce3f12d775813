"""Whether preprocessed files are still what they were: their checksums, and where these are kept.

A checksum finds each flipped bit and another case's file, but for one in 4 000 million; it is no protection against
somebody who means to deceive. It is CRC-32, which takes a part of the time that unpacking the voxels takes.
"""

import zlib
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
from filelock import FileLock
from nnunetv2.training.dataloading.nnunet_dataset import nnUNetBaseDataset

from nnunet_ssl.data.image_files import fault_of_the_machine
from nnunet_ssl.data.json_schemas import read_if_fit
from nnunet_ssl.data.preprocessed_images import image_file, write_json_atomically

CHUNK_BYTES = 1 << 20
LOCK_SECONDS = 10.0  # that one waits for another process to write the index

Known = dict[str, tuple[int, int, int]]  # of a file by its name: size in bytes, time of change in ns, checksum


class DamagedCaseError(RuntimeError):
    """A preprocessed case is not what it was; the message says what to do about it."""


class PreprocessedFiles:
    """The files of a preprocessed folder, compared with their checksums when a case is first read.

    Those that were not made when a case was preprocessed are made at its first use and kept in an index. A file of the
    index that has changed is damaged, unless all files of the index were written since: then the folder was
    preprocessed again.
    """

    def __init__(
        self,
        folder: Path,
        index: Path,
        remedy: str,
        stamped: Callable[[str], Mapping[str, int]] | None = None,
    ) -> None:
        """Read nothing yet.

        Args:
            folder: that holds the cases.
            index: a json file; where it cannot be written, checksums are kept in memory.
            remedy: the command that preprocesses damaged cases again.
            stamped: returns for a case the checksums of its files by name, where they were made when it was
                preprocessed.
        """
        self.folder, self.index, self.remedy, self.stamped = folder, index, remedy, stamped
        self._known: Known = {}
        self._checked: set[tuple[str, bool]] = set()

    def check(self, case: str, image_only: bool = False) -> None:
        """Compare the files of a case with their checksums, once in each process.

        Args:
            case: its name.
            image_only: read nothing of its label, nor of a file that holds image and label.

        Raises:
            DamagedCaseError: a file has changed, is missing, or cannot be read.
        """
        if (case, image_only) in self._checked:
            return
        stamped = {} if image_only or self.stamped is None else self.stamped(case)
        first_used: Known = {}
        for name in stamped or _names(self.folder, case, image_only):
            try:
                mark = _mark(self.folder / name)
            except (OSError, ValueError, EOFError) as error:
                raise self.damaged(case, f"{name} cannot be read ({error})") from None
            if name in stamped and stamped[name] != mark[-1]:
                raise self.damaged(case, f"{name} is not what it was when it was preprocessed")
            if name not in stamped and self._known.get(name) != mark:
                if not self._may_be(name, mark):
                    raise self.damaged(case, f"{name} is not what it was when a training first read it")
                first_used[name] = mark
        if first_used:
            self._update(lambda known: known | first_used)
        self._checked.add((case, image_only))

    def damaged(self, case: str, what: str) -> DamagedCaseError:
        """Return the error that says what is wrong with a case, and what to do."""
        return DamagedCaseError(
            f"the preprocessed case {case} is damaged: {what}, in {self.folder}. Look after the disk, and preprocess "
            f"the case again: {self.remedy}"
        )

    def forget(self, case: str) -> None:
        """Forget what is known of a case that was preprocessed again by itself."""
        names = {f"{case}{ending}" for ending in (".b2nd", "_seg.b2nd", ".pkl")}
        self._update(lambda known: {name: mark for name, mark in known.items() if name not in names})

    def _may_be(self, name: str, mark: tuple[int, int, int]) -> bool:
        """Return whether a file is used for the first time, was only touched, or was written anew with all others.

        Written anew most files are as before: whether all were is asked of the first one that has another time.
        """
        self._known = read_if_fit(self.index, Known) or self._known  # other processes have read cases too
        before = self._known.get(name)
        if before is None or before == mark:
            return True
        if self._unchanged(self._known):
            return before[-1] == mark[-1]
        self._update(self._unchanged)
        return True

    def _unchanged(self, known: Known) -> Known:
        """Return the files of the index whose size and time are what they were."""
        return {name: mark for name, mark in known.items() if _size_and_time(self.folder / name) == mark[:-1]}

    def _update(self, change: Callable[[Known], Known]) -> None:
        """Change the index, in memory and, where that can be, in its file: several processes may do it at once."""
        self._known = change(self._known)
        with suppress(OSError, NotImplementedError):  # a folder that is only read, a file system without locks
            self.index.parent.mkdir(parents=True, exist_ok=True)
            with FileLock(self.index.with_suffix(".lock"), timeout=LOCK_SECONDS):
                write_json_atomically(change(read_if_fit(self.index, Known) or {}), self.index)


class CheckedDataset(nnUNetBaseDataset):
    """nnU-Net's own data set of labeled cases, which reads none that is damaged."""

    def __init__(self, dataset: nnUNetBaseDataset, files: PreprocessedFiles) -> None:
        super().__init__(dataset.source_folder, dataset.identifiers, dataset.folder_with_segs_from_previous_stage)
        self.dataset, self.files = dataset, files

    def load_case(self, identifier: str) -> tuple[Any, Any, Any, dict]:
        """Return image, label, label of a previous stage and properties, as nnU-Net does.

        Raises:
            DamagedCaseError: a file of the case is damaged.
        """
        self.files.check(identifier)  # before nnU-Net unpickles the properties
        try:
            return self.dataset.load_case(identifier)
        except Exception as error:
            if fault_of_the_machine(error) or isinstance(error, OSError):
                raise
            reason = f"it cannot be opened ({type(error).__name__}: {error})"
            raise self.files.damaged(identifier, reason) from error

    def save_case(self, *_: object) -> None:
        """Not offered: labeled cases are written by nnU-Net."""
        raise NotImplementedError("a data set that is trained with is only read")

    def get_identifiers(self, *_: object) -> list[str]:
        """Not offered: the cases are given."""
        raise NotImplementedError("a data set that is trained with is given its cases")


def checksum_of(file: Path) -> int:
    """Return the CRC-32 of a file."""
    checksum, buffer = 0, memoryview(bytearray(CHUNK_BYTES))
    with file.open("rb", buffering=0) as opened:
        while size := opened.readinto(buffer):
            checksum = zlib.crc32(buffer[:size], checksum)
    return checksum


def _mark(file: Path) -> tuple[int, int, int]:
    if file.suffix == ".npy":  # one that nnU-Net is just unpacking is not whole, and cannot be opened
        np.load(file, mmap_mode="r")
    there = file.stat()
    return there.st_size, there.st_mtime_ns, checksum_of(file)


def _size_and_time(file: Path) -> tuple[int, int] | None:
    try:
        there = file.stat()
    except OSError:
        return None
    return there.st_size, there.st_mtime_ns


def _names(folder: Path, case: str, image_only: bool) -> list[str]:
    """Return the names of the files of a case that a training reads."""
    image = image_file(folder, case)
    if image is None:
        return []  # whoever opens it says so
    if image_only:
        return [image.name] if image.suffix != ".npz" else []  # which has checksums of its own
    beside = [f"{case}_seg{image.suffix}", f"{case}.pkl"]
    return [image.name, *(name for name in beside if (folder / name).exists())]
