"""Finding a source's layout, and naming the folder where it is when it is not where it was looked for."""

import shlex
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TypeVar

from nnunet_ssl.data.raw_files import some

Found = TypeVar("Found")
LEVELS = 2  # how far below a folder near the source is looked


def find_layout(source: Path, find: Callable[[Path, int | None], Found], name: str, expected: str) -> Found:
    """Return what `find` finds in the source.

    Args:
        source: the folder that was named.
        find: takes a folder and how many levels below it to look (None: all); what it returns is empty where there is
            nothing.
        name: of the data set.
        expected: its layouts.

    Raises:
        ValueError: nothing is found; it names the sub-folders, at most two levels down, or the parent that would do.
    """
    if found := find(source, None):
        return found
    near: list[Path] = []
    for path in sorted(below(source, "*", LEVELS - 1)):
        if path.is_dir() and not {*near} & {*path.parents} and find(path, LEVELS):
            near.append(path)
    if not near and find(source.absolute().parent, LEVELS):
        near.append(source.absolute().parent)
    places = some([f"{path} has: -i {shlex.quote(str(path))}" for path in near], 3)
    raise ValueError(f"{source} has no known layout of {name}, expected {expected}" + (f"; {places}" if near else ""))


def below(folder: Path, pattern: str, levels: int | None) -> Iterator[Path]:
    """Yield what matches a pattern in a folder and in those at most so many levels below it, or in all."""
    if levels is None:
        yield from folder.glob(f"**/{pattern}")
    else:
        for level in range(levels + 1):
            yield from folder.glob("*/" * level + pattern)
