"""Locks between processes, of which several nodes may take part: who preprocesses, and who writes an index."""

import hashlib
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from filelock import FileLock, Timeout

SECONDS_UNTIL_SAID = 5.0  # that one waits for a short work of another process


@dataclass(frozen=True)
class Part:
    """A share of the cases, by their names alone: other cases may come and go.

    Attributes:
        number: of the part, from 0.
        parts: how many there are; they have no case in common, and together all.
    """

    number: int = 0
    parts: int = 1

    def __post_init__(self) -> None:
        if not 0 <= self.number < self.parts:
            raise ValueError(
                f"there is no part {self.number} of {self.parts}: parts are numbered from 0, with --part-id K of "
                "--num-parts N"
            )

    def has(self, case: str) -> bool:
        """Return whether a case is of the part."""
        return int.from_bytes(hashlib.sha256(case.encode()).digest()) % self.parts == self.number

    def of(self, cases: Iterable[str]) -> list[str]:
        """Return the cases that are of the part."""
        return [case for case in cases if self.has(case)]


WHOLE = Part()


@contextmanager
def preprocessing_alone(state: Path, part: Part = WHOLE) -> Iterator[None]:
    """Wait until nobody preprocesses the same cases, and keep others from them.

    All cases are kept by one file. Parts have a file each, so that they can be worked on at once.

    Args:
        state: folder of the lock files.
        part: of the cases.

    Raises:
        RuntimeError: another process works on that part, or on one of another number of parts.
    """
    state.mkdir(parents=True, exist_ok=True)
    with ExitStack() as held:
        with _waiting_for(state / "lock"):
            if part == WHOLE:
                for other in _locks_of_parts(state):
                    held.enter_context(_waiting_for(other))
                yield
                return
            for other in _locks_of_parts(state, part.parts):
                with _at_once(other):
                    pass
            held.enter_context(_at_once(state / f"part_{part.number}_of_{part.parts}.lock"))
        yield


@contextmanager
def one_after_the_other(file: Path, what: str) -> Iterator[None]:
    """Wait until no other process does the same; not where there can be no lock: the folder is only read, or not there.

    Args:
        file: of the lock.
        what: the other one does, in a message if that takes long.
    """
    lock = FileLock(file)
    if file.parent.is_dir():
        with suppress(OSError, NotImplementedError):
            _acquire(lock, what, SECONDS_UNTIL_SAID)
    try:
        yield
    finally:
        lock.release()


def _locks_of_parts(state: Path, but_of: int | None = None) -> list[Path]:
    return [file for file in sorted(state.glob("part_*_of_*.lock")) if not file.stem.endswith(f"_of_{but_of}")]


@contextmanager
def _waiting_for(file: Path) -> Iterator[None]:
    lock = FileLock(file)
    _acquire(lock, "preprocesses the unlabeled images", 0)
    try:
        yield
    finally:
        lock.release()


def _acquire(lock: FileLock, what: str, silent_seconds: float) -> None:
    try:
        lock.acquire(timeout=silent_seconds)
    except Timeout:
        print(f"Another process {what} (lock: {lock.lock_file}): waiting for it.")
        lock.acquire()


@contextmanager
def _at_once(file: Path) -> Iterator[None]:
    lock = FileLock(file)
    try:
        lock.acquire(timeout=0)
    except Timeout:
        raise RuntimeError(
            f"another process preprocesses the same unlabeled images, in parts ({file}): wait for it"
        ) from None
    try:
        yield
    finally:
        lock.release()
