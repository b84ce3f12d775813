"""nnU-Net's command as a user starts it, with processes that load images, and what a cluster may do to it."""

import os
import re
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from tests.warm_processes import start_command

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="processes are looked up in /proc")
WORDS = ["nnUNetv2_train", "999", "3d_fullres", "0", "-tr", "nnUNetTrainerMeanTeacher", "-device", "cpu"]
SECONDS = 240.0  # for whatever takes a few, on a busy machine too


class Training:
    """A training in a process of its own."""

    def __init__(self, dataset, *more: str, **options: float) -> None:
        length = {"num_epochs": 3, "num_iterations_per_epoch": 4, "num_val_iterations_per_epoch": 1}
        text = " ".join(f"{name}={value}" for name, value in (length | {"seed": 1} | options).items())
        environment = os.environ | {"nnUNet_n_proc_DA": "2"}
        environment |= {} if "--c" in more else {"nnUNet_ssl_options": text}
        self.log = dataset.root / f"log{len(list(dataset.root.glob('log*')))}.txt"
        self.process = start_command([*WORDS, *more], self.log, dataset.root, environment)
        self.folder = next(dataset.root.glob("results"))

    def said(self) -> str:
        return self.log.read_text() if self.log.exists() else ""

    def wait_for(self, text: str) -> None:
        self.wait_until(lambda: re.search(text, self.said()) is not None)

    def wait_until(self, is_so: Callable[[], bool]) -> None:
        deadline = time.monotonic() + SECONDS
        while not is_so():
            assert self.process.is_alive(), self.said()
            assert time.monotonic() < deadline, self.said()
            time.sleep(0.05)

    def workers(self) -> list[int]:
        """Return the processes that it has started, which load images."""
        return [pid for pid in map(int, filter(str.isdigit, os.listdir("/proc"))) if parent_of(pid) == self.process.pid]

    def end(self) -> int:
        """Wait for the end, and return the exit code; no process that it has started lives on."""
        self.process.join(timeout=SECONDS)
        assert self.process.exitcode is not None, self.said()
        return self.process.exitcode

    def checkpoints(self) -> dict[str, int]:
        """Return after how many epochs each checkpoint is."""
        files = self.folder.glob("*/*/fold_0/checkpoint_*.pth")
        return {file.stem: torch.load(file, weights_only=False)["current_epoch"] for file in files}


def parent_of(pid: int) -> int | None:
    """Return the parent of a process that has not ended."""
    try:
        state, parent = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[:2]
    except OSError:
        return None
    return None if state == "Z" else int(parent)


def assert_gone(pids: list[int]) -> None:
    deadline = time.monotonic() + SECONDS
    while any(parent_of(pid) is not None for pid in pids):
        assert time.monotonic() < deadline
        time.sleep(0.05)


@pytest.fixture
def dataset(tiny_dataset):
    """Return a data set; no process of a test outlives it."""
    return tiny_dataset()


@pytest.fixture
def train(dataset):
    started = []

    def start(*more: str, **options: float) -> Training:
        started.append(Training(dataset, *more, **options))
        return started[-1]

    yield start
    for one in started:
        one.process.kill()
        one.process.join()


def test_told_to_stop_it_saves_and_leaves_no_process(train):
    first = train(num_epochs=99)
    first.wait_for("Epoch 1\n")
    workers = first.workers()
    assert len(workers) >= 3
    os.kill(first.process.pid, signal.SIGTERM)
    assert first.end() == 128 + signal.SIGTERM
    epochs = max(first.checkpoints().values())
    assert f"The training is ended by SIGTERM; it is saved after {epochs} epochs: the same command" in first.said()
    assert "Traceback" not in first.said()
    assert_gone(workers)


@pytest.mark.slow
def test_no_other_one_is_let_in_meanwhile_and_it_goes_on_afterwards(train):
    first = train(num_epochs=99)
    first.wait_for("Epoch 1\n")
    second = train("--c")
    assert second.end() != 0
    assert re.search(rf"another process trains or validates in .*: {first.process.pid} on .*, since 20", second.said())
    os.kill(first.process.pid, signal.SIGTERM)
    assert first.end() == 128 + signal.SIGTERM
    epochs = max(first.checkpoints().values())
    third = train("--c")
    third.wait_for(rf"Going on from checkpoint_\w+.pth, after epoch {epochs - 1}")
    third.wait_for(rf"Epoch {epochs}\n")
    os.kill(third.process.pid, signal.SIGINT)
    assert third.end() == 128 + signal.SIGINT


@pytest.mark.slow
@pytest.mark.parametrize("moment", ["Options", "Epoch 0\n", "Epoch 1\n", "Training done"])
def test_killed_it_leaves_no_process_and_its_lock_to_nobody(train, moment):
    """Also a stopped worker ends; `--c` goes on, or begins again with the options."""
    first = train(num_iterations_per_epoch=2)
    first.wait_for(moment)
    workers = first.workers()
    if workers:
        os.kill(workers[0], signal.SIGSTOP)
    first.process.kill()
    assert first.end() == -signal.SIGKILL
    assert_gone(workers)
    second = train("--c")
    assert second.end() == 0, second.said()
    assert "seed=1" in second.said()
    assert second.checkpoints()["checkpoint_final"] == 3


@pytest.mark.slow
@pytest.mark.parametrize(
    ("number", "words"),
    [
        (signal.SIGKILL, "was killed, most often because the memory was full"),
        (signal.SIGSTOP, "has not run for 5 s, as if it was stopped"),
    ],
)
def test_worker_that_dies_or_hangs_ends_the_training_with_a_sentence(train, number, words):
    first = train(num_epochs=99, worker_seconds=5.0)
    first.wait_for("Epoch 1\n")
    workers = first.workers()
    os.kill(workers[0], number)
    assert first.end() == 1
    assert words in first.said()
    assert "goes on from there" in first.said()
    assert "Traceback" not in first.said()
    assert_gone(workers)
    (log,) = first.folder.glob("*/*/fold_0/training_log*")
    assert words in log.read_text()


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_cluster_that_signals_all_processes_ends_it_alike(train, number):
    first = train(num_epochs=99)
    first.wait_for("Epoch 1\n")
    workers = first.workers()
    for pid in [*workers, first.process.pid]:
        os.kill(pid, number)
    assert first.end() == 128 + number
    assert "Traceback" not in first.said()
    assert max(first.checkpoints().values()) >= 1
    assert_gone(workers)
