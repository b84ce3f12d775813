"""Writing, moving, copying and linking files so that each is whole at any moment, at one place or at both."""

import errno
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from nnunet_ssl.data.disk_faults import naming


@contextmanager
def replacing(file: Path) -> Iterator[Path]:
    """Give a path of the same name to write to; what stands there at the end takes the place of the file.

    So do files that are written beside it, and all of them before it. On any error nothing is left of them, and the
    file is as it was. What is no file, as /dev/stdout, is written to directly.

    Raises:
        OSError: the disk is full or can only be read; it names the file.
    """
    folder = file.with_name(f".{file.name}.tmp")
    with naming(file, instead_of=folder):
        if file.exists() and not file.is_file():
            yield file
            return
        shutil.rmtree(folder, ignore_errors=True)  # of a process that was killed
        folder.mkdir(parents=True)
        try:
            yield folder / file.name
            for one in sorted(folder.iterdir(), key=lambda one: one.name == file.name):
                sync(one)
                one.replace(file.with_name(one.name))
        finally:
            shutil.rmtree(folder, ignore_errors=True)


def move(source: Path, target: Path) -> None:
    """Move a file; onto another disk too."""
    target.parent.mkdir(exist_ok=True)
    if not os.path.lexists(target):
        try:
            source.rename(target)
            return
        except OSError as error:
            if error.errno != errno.EXDEV:
                raise
        copy(source, target)
    source.unlink()  # the target is whole, and the same


def copy(source: Path, target: Path) -> None:
    """Copy a file with its times and permissions over what may be there."""
    with replacing(target) as unfinished:
        shutil.copyfile(source, unfinished)
        shutil.copystat(source, unfinished)


def link_or_copy(source: Path, target: Path) -> None:
    """Give a file a second name that needs no space; where the file system cannot do that, copy it.

    The second name stays when the first is moved or deleted. A file that is changed in place is changed under both.
    """
    target.parent.mkdir(exist_ok=True)
    target.unlink(missing_ok=True)
    try:
        os.link(source.resolve(), target)
    except OSError:  # other disks, file systems without hard links, files of others
        copy(source, target)


def sync(file: Path) -> None:
    """Wait until a file is on the disk: some file systems say only then that there is no room for it."""
    if os.name == "nt":  # Windows does this only through files that are opened for writing
        return
    descriptor = os.open(file, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
