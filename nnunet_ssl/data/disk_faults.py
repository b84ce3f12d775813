"""What a disk that is full or can only be read has to say: which file it was about, and how much is free."""

import errno
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

FULL = (errno.ENOSPC, errno.EDQUOT)
FAULTS = (*FULL, errno.EROFS, errno.EIO)
PROBE_BYTES = 1 << 20


def is_fault_of_disk(error: BaseException) -> bool:
    """Return whether an error says that a disk is full, broken, or can only be read."""
    return isinstance(error, OSError) and error.errno in FAULTS


def words_of(error: OSError) -> str:
    """Return what an error of a disk says, with its file, on one line."""
    file = "a file" if error.filename is None else str(error.filename)
    if error.errno in FULL:
        return f"{file} cannot be written: the disk is full{_free_beside(file)}; make room, and do it again"
    if error.errno == errno.EROFS:
        return f"{file} cannot be written: its disk can only be read; choose another place, or mount it for writing"
    return f"{file}: {error.strerror}"


@contextmanager
def naming(file: Path, instead_of: Path | None = None) -> Iterator[None]:
    """Let an error of a disk name the file that is being written, where it names none, or a temporary one.

    Args:
        file: its final name.
        instead_of: the temporary folder.
    """
    try:
        yield
    except OSError as error:
        named = [Path(str(name)) for name in (error.filename, error.filename2) if name is not None]
        is_temporary = instead_of is not None and any(one.is_relative_to(instead_of) for one in named)
        if is_fault_of_disk(error) and (is_temporary or not named):
            error.filename, error.filename2 = str(file), None
        raise


@contextmanager
def blaming_the_disk(folder: Path) -> Iterator[None]:
    """Let an error of a library that writes into a folder, and does not say why, be that of a full disk where it is."""
    try:
        yield
    except (RuntimeError, ValueError):
        refuse_full(folder)
        raise


def refuse_full(folder: Path) -> None:
    """Look whether a disk takes some more bytes, where a library has failed to write to it and does not say why.

    Raises:
        OSError: it does not.
    """
    probe = folder / f".probe.{os.getpid()}.tmp"
    try:
        with naming(folder), probe.open("wb") as opened:
            opened.write(bytes(PROBE_BYTES))
            opened.flush()
            os.fsync(opened.fileno())
    finally:
        with suppress(OSError):
            probe.unlink(missing_ok=True)


def _free_beside(file: str) -> str:
    there = next(place for place in (Path(file).absolute(), *Path(file).absolute().parents) if place.exists())
    return f" ({shutil.disk_usage(there).free / 2**20:.1f} MiB free in {there if there.is_dir() else there.parent})"
