"""One file with what the stamps of all unlabeled cases say: a training with ten thousand of them opens none.

The stamps stay what counts. Whoever preprocesses a case writes its stamp, in several processes and on several nodes at
once, and a damaged or lost index is made of them again. The index knows the size and time of each stamp's file.
"""

import os
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

from typing_extensions import TypedDict

from nnunet_ssl.data.json_schemas import adapter_of, read_if_fit
from nnunet_ssl.data.locks import one_after_the_other
from nnunet_ssl.data.preprocessed_images import Content, write_json_atomically
from nnunet_ssl.data.stamps import Mark, Stamp, read_stamp, stamps_folder, state_folder

INDEX = "pool_index.json"

# Of a stamp: size and time of change of its file, the number of its settings, and its other attributes in their order.
Row = tuple[int, int, int, list[Mark], Content | None, dict[str, int], dict[str, int], Content | None, str, bool]


class PoolIndex(TypedDict):
    """What the file holds: settings, each of which once, and the stamps by their cases."""

    settings: list[dict[str, Any]]
    stamps: dict[str, Row]


def read_stamps(preprocessed: Path) -> dict[str, Stamp]:
    """Return the stamps of all cases, from the index where it has them; what it lacks is read and added to it.

    Without what files are compared with once they are read: SHA-256 of images, checksums. Where nothing can be written,
    what the index lacks is read again each time.
    """
    marks = sizes_and_times(stamps_folder(preprocessed), ".json")
    index = _current(preprocessed, marks)
    if len(index["stamps"]) < len(marks):
        with one_after_the_other(state_folder(preprocessed) / "pool_index.lock", "reads the stamps of unlabeled cases"):
            index = _current(preprocessed, marks)  # five folds that start at once: four find it done
            if _add_missing(index, preprocessed, marks):
                with suppress(OSError):
                    content = adapter_of(PoolIndex).dump_python(index)
                    write_json_atomically(content, state_folder(preprocessed) / INDEX, indent=None)
    return {case: Stamp(index["settings"][row[2]], *row[3:]) for case, row in index["stamps"].items()}


def sizes_and_times(folder: Path, ending: str = "") -> dict[str, tuple[int, int]]:
    """Return size in bytes and time of change in ns of the files of a folder, by their names without the ending.

    Of those that end so, by one listing; none where there is no folder.
    """
    found = {}
    with suppress(FileNotFoundError), os.scandir(folder) as files:
        for file in files:
            if file.name.endswith(ending):
                with suppress(FileNotFoundError):  # it is being replaced
                    there = file.stat()
                    found[file.name.removesuffix(ending)] = there.st_size, there.st_mtime_ns
    return found


def _current(preprocessed: Path, marks: Mapping[str, tuple[int, int]]) -> PoolIndex:
    """Return what the index says of stamps that are there and have not changed since."""
    index = read_if_fit(state_folder(preprocessed) / INDEX, PoolIndex) or PoolIndex(settings=[], stamps={})
    numbers = range(len(index["settings"]))
    rows = {case: row for case, row in index["stamps"].items() if marks.get(case) == row[:2] and row[2] in numbers}
    return PoolIndex(settings=index["settings"], stamps=rows)


def _add_missing(index: PoolIndex, preprocessed: Path, marks: Mapping[str, tuple[int, int]]) -> bool:
    """Read the stamps that an index lacks, and return whether there are any that can be read."""
    settings, rows = index["settings"], index["stamps"]
    before = len(rows)
    for case in marks.keys() - rows.keys():
        if (stamp := read_stamp(preprocessed, case)) is not None:
            if stamp.settings not in settings:
                settings.append(stamp.settings)
            kept = replace(stamp, files=[(*mark[:3], "") for mark in stamp.files], checksums={})
            its_settings, *rest = (getattr(kept, name) for name in Stamp.__dataclass_fields__)
            rows[case] = (*marks[case], settings.index(its_settings), *rest)
    return len(rows) > before
