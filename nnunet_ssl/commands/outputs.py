"""Where the verbs write what -o names: looked at before the work, which may take hours."""

import os
from pathlib import Path


def output_file(given: str) -> Path:
    """Return the file that -o names; its folder need not be there yet.

    Raises:
        ValueError: it is a folder, or nothing can be written there.
    """
    file = Path(given)
    if not given or file.is_dir():
        raise ValueError(f"-o names a file, {given!r} is a folder" if given else "-o names a file, got nothing")
    refuse_unwritable(file.parent, given)
    return file


def output_folder(given: str) -> Path:
    """Return the folder that -o names; it need not be there yet.

    Raises:
        ValueError: it is a file, or nothing can be written there.
    """
    if not given:
        raise ValueError("-o names a folder, got nothing")
    refuse_unwritable(Path(given), given)
    return Path(given)


def refuse_unwritable(folder: Path, given: str) -> None:
    """Raise a ValueError if nothing can be written into a folder, or it cannot be made where there is none."""
    there = next(place for place in (folder, *folder.absolute().parents) if os.path.lexists(place))
    if not there.is_dir():
        raise ValueError(f"-o {given}: {there} is no folder")
    if not os.access(there, os.W_OK | os.X_OK):
        raise ValueError(f"-o {given}: {there} cannot be written to: choose another place")
