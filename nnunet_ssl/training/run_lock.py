"""One process at a time in the folder of a run, on this machine and on others that share the folder."""

import os
import socket
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path
from typing import Any

from filelock import SoftFileLease, Timeout

from nnunet_ssl.data.preprocessed_images import read_json, write_json_atomically

LOCK, HOLDER = "training.lock", "training.lock.json"
LEASE_SECONDS = 60.0  # so long a lock of another machine holds that is not renewed, three times in each; ours


@contextmanager
def locked(folder: str | Path, report: Callable[[str], None]) -> Iterator[SoftFileLease]:
    """Hold the folder while what is inside runs.

    It is a file, made and renewed in a thread beside the training, so that it needs no locks of the file system. One
    that a process of this machine left behind is taken at once, one of another machine when it has not been renewed.

    Raises:
        ValueError: another process holds it.
    """
    lock = SoftFileLease(Path(folder, LOCK), lease_duration=LEASE_SECONDS, thread_local=False)
    holder = Path(folder, HOLDER)
    try:
        lock.acquire(timeout=0)
    except Timeout:
        _wait_for_other_machine(lock, holder, report)
    try:
        write_json_atomically(_this_process(), holder)
        yield lock
    finally:
        if lock.compromise is None:
            holder.unlink(missing_ok=True)
        lock.release()


def is_held(folder: Path) -> bool:
    """Return whether a process holds the folder, as far as that can be told at once."""
    if not Path(folder, LOCK).exists():
        return False
    lock = SoftFileLease(Path(folder, LOCK), lease_duration=LEASE_SECONDS, thread_local=False)
    try:
        lock.acquire(timeout=0)
    except Timeout:
        return True
    lock.release()
    return False


def refuse_if_lost(lock: SoftFileLease | None, report: Callable[[str], None]) -> None:
    """Raise a RuntimeError if another training has the folder meanwhile, as after a long sleep of this machine.

    A lock that a fault of the disk kept from being renewed, and that nobody has taken, is renewed.
    """
    if lock is None or lock.compromise is None:
        return
    if _taken_again(lock):
        report(f"WARNING: for a while {lock.lock_file} could not be renewed; it is again, and no other training had it")
    else:
        raise RuntimeError(
            f"{lock.lock_file} was not renewed for so long that it may be another training's: nothing more is written "
            "into its folder; look whether one runs there, and go on with --c if not"
        )


def _taken_again(lock: SoftFileLease) -> bool:
    """Acquire a lock anew that could not be renewed, and return whether this process was the last one to hold it."""
    holder = read_json(Path(lock.lock_file).with_name(HOLDER)) or {}
    mine = {**_machine(), "process": os.getpid()}
    if lock.compromise.reason != "refresh-failed" or not mine.items() <= holder.items():
        return False
    try:
        lock.release()
        lock.acquire(timeout=0)
    except (OSError, Timeout):
        return False
    return True


def _wait_for_other_machine(lock: SoftFileLease, holder: Path, report: Callable[[str], None]) -> None:
    """Acquire a lock that is not renewed; refuse one that is."""
    by = read_json(holder) or {}
    refusal = (
        f"another process trains or validates in {holder.parent}: {by.get('process', 'unknown')} on "
        f"{by.get('host', 'an unknown host')}, since {by.get('since', 'an unknown time')}: wait for its end, or end it"
    )
    if all(by.get(name) == value for name, value in _machine().items()):  # whose processes the lock has looked at
        raise ValueError(refusal)
    report(f"{refusal}. Looking for {LEASE_SECONDS:.0f} s whether it still runs.")
    try:
        lock.acquire(timeout=LEASE_SECONDS * 1.25)
    except Timeout:
        raise ValueError(refusal) from None


def _this_process() -> dict[str, Any]:
    return {**_machine(), "process": os.getpid(), "since": f"{datetime.now():%Y-%m-%d %H:%M:%S}"}


def _machine() -> dict[str, Any]:
    """Return what names the machine; containers of one host may count their processes for themselves."""
    namespace = Path("/proc/self/ns/pid")
    return {"host": socket.gethostname(), "namespace": namespace.stat().st_ino if namespace.exists() else None}
