"""The lists of names that lie beside the data, against which what is there can be checked."""

import re
from collections.abc import Iterable, Mapping
from pathlib import Path

from nnunet_ssl.data.raw_files import some

ENDINGS = (".list", ".txt")


def names_in_lists(folders: Iterable[Path], pattern: re.Pattern[str]) -> dict[str, Path]:
    """Return the names in the lists of some folders, each with its list: lines of which a pattern matches the whole.

    A folder before the name and the ending .h5 after it are dropped.
    """
    files = [file for folder in folders if folder.is_dir() for file in folder.iterdir() if file.suffix in ENDINGS]
    names: dict[str, Path] = {}
    for file in sorted(files):
        for line in file.read_text(errors="replace").splitlines():
            name = line.strip().rpartition("/")[2].removesuffix(".h5")
            if pattern.fullmatch(name):
                names.setdefault(name, file)
    return names


def note_absent(lists: Mapping[str, Path], present: Iterable[str]) -> None:
    """Print which of the cases that lists name are not there: a partial copy may be meant, but should be known."""
    if absent := sorted(set(lists) - set(present)):
        files = " and ".join(sorted({lists[name].name for name in absent}))
        print(f"note: cases of {files} that are not here: {len(absent)} ({some(absent)})")
