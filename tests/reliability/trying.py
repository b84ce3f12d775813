"""A process that tries what writes, each time in a process that it forks: it has imported all, and started no thread.

Libraries that have threads of their own hang in a process that is forked from one in which they were used.
"""

import multiprocessing
from collections.abc import Iterator
from contextlib import contextmanager
from multiprocessing.connection import Connection
from pathlib import Path
from typing import NamedTuple

from tests.reliability.full_disk import InjectedFault, in_a_process


class Job(NamedTuple):
    """What is to be tried, in which folder, and at which write it fails; None for never."""

    name: str
    root: Path
    fails_at: int | None = None


class Found(NamedTuple):
    """The exit code, whether the fault came, and what was printed."""

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
            code, came = in_a_process(situations.work_of(job.name, job.root), log, fault)
        connection.send(Found(code, came, log.read_text(errors="replace")))
