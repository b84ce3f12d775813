"""Moving, copying and linking files so that each is whole at any moment, at one place or at both."""

import errno
import os
import shutil
from pathlib import Path


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
    target.parent.mkdir(exist_ok=True)
    unfinished = target.with_name(f".{target.name}.tmp")
    unfinished.unlink(missing_ok=True)  # which may be read-only
    shutil.copyfile(source, unfinished)
    with unfinished.open("rb+") as opened:
        os.fsync(opened.fileno())
    shutil.copystat(source, unfinished)
    unfinished.replace(target)


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
