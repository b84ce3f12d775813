"""A process that tries what writes, each time in a process that it forks: it has imported all, and started no thread.

Libraries that have threads of their own hang in a process that is forked from one in which they were used.
"""

import multiprocessing
import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from multiprocessing.connection import Connection
from pathlib import Path
from typing import NamedTuple

from tests.reliability.full_disk import InjectedFault, in_a_process


class Job(NamedTuple):
    """What is to be tried, and in which folder.

    Attributes:
        fails_at: number of the write that fails; None for none.
        signal: that it gets, after so many seconds; None for none.
    """

    name: str
    root: Path
    fails_at: int | None = None
    signal: int | None = None
    after: float = 0.0


class Found(NamedTuple):
    """The exit code, whether the fault or the signal came before the end, and what was printed."""

    code: int
    came: bool
    said: str


class Trying:
    """Hands jobs to the process."""

    def __init__(self, connection: Connection) -> None:
        self.connection = connection

    def run(self, job: Job) -> Found:
        self.connection.send(job)
        if not self.connection.poll(300):
            raise TimeoutError(f"{job} hangs")
        return self.connection.recv()


def killed(work: Callable[[], int], log: Path, job: Job) -> tuple[int, bool]:
    """Run something in a forked process that gets a signal; return its exit code, and whether it still ran then."""
    still_runs = []

    def send(child: int) -> None:
        time.sleep(job.after)
        still_runs.append(os.waitid(os.P_PID, child, os.WEXITED | os.WNOHANG | os.WNOWAIT) is None)
        os.kill(child, job.signal)

    code, _ = in_a_process(work, log, meanwhile=send)
    return code, still_runs[0]


@contextmanager
def trying() -> Iterator[Trying]:
    """Start the process, and end it."""
    here, there = multiprocessing.Pipe()
    process = multiprocessing.get_context("spawn").Process(target=serve, args=(there,))
    process.start()
    try:
        yield Trying(here)
    finally:
        process.kill()
        process.join()


def serve(connection: Connection) -> None:
    """Try one job after the other."""
    from nnunetv2.utilities.find_objects import recursive_find_trainer_class_by_name

    from tests.reliability import situations

    recursive_find_trainer_class_by_name("nnUNetTrainerMeanTeacher")  # imports all of nnU-Net's, once
    while True:
        job = connection.recv()
        log = job.root.parent / "said.txt"
        fault = None if job.fails_at is None else InjectedFault(job.root, job.fails_at)
        with situations.variables(job.root):
            work = situations.work_of(job.name, job.root)
            code, came = in_a_process(work, log, fault) if job.signal is None else killed(work, log, job)
        connection.send(Found(code, came, log.read_text(errors="replace")))
