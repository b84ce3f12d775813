"""What a converter finds in its source: cases to be converted, and those that cannot be."""

from collections.abc import Callable
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path

import SimpleITK


class Role(StrEnum):
    """What a case is for: the ending of nnU-Net's folder names."""

    LABELED = "Tr"
    TEST = "Ts"
    UNLABELED = "Un"


@dataclass(frozen=True)
class Scan:
    """A case in memory: one image per channel, and its labels if it has any, all of one size."""

    channels: list[SimpleITK.Image]
    labels: SimpleITK.Image | None = None


@dataclass(frozen=True)
class Case:
    """A case to be converted.

    Attributes:
        name: its id, the source's own.
        role: which of nnU-Net's folders it goes to.
        source: the file or folder of the image, which errors name.
        read: returns the case; picklable, because cases are converted by several processes.
        label_source: the file of the labels, which errors about them name; None where it is the image's.
    """

    name: str
    role: Role
    source: Path
    read: Callable[[], Scan]
    label_source: Path | None = None


@dataclass(frozen=True)
class Fault:
    """A case that cannot be converted.

    Attributes:
        name: its id.
        reason: what is wrong, with the file.
    """

    name: str
    reason: str


def case_or_fault(name: str, make: Callable[[], Case]) -> Case | Fault:
    """Return the case that `make` returns, or the ValueError that it raises as a fault."""
    try:
        return make()
    except ValueError as error:
        return Fault(name, str(error))
