"""Workers that fail, hang, are slow, or whose training is killed; each is a real process."""

import multiprocessing
import os
import signal
import sys
import threading
import time
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path

import pytest
import torch

from nnunet_ssl.data import in_processes, loader_processes
from nnunet_ssl.data.loader_processes import WatchedAugmenter, WorkerFailure
from nnunet_ssl.data.loaders import start_loader

SECONDS = 2.0  # of a worker without a sign, in these tests
SHM = "unable to allocate shared memory(shm) for file </torch_1>: No space left on device (28)"

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="signals of POSIX")


class Loader:
    """Gives its worker's number; worker 0 does something else once when it is time."""

    worker = 0

    def __init__(self, instead: Callable[[], object] | None = None) -> None:
        self.instead, self.is_time = instead, multiprocessing.Event()

    def set_thread_id(self, worker: int) -> None:
        self.worker = worker

    def __next__(self) -> dict:
        if self.instead is not None and self.worker == 0 and self.is_time.is_set():
            instead, self.instead = self.instead, None
            return {"data": instead()}
        time.sleep(0.005)
        return {"data": torch.tensor(self.worker)}


class Unsendable:
    def __reduce__(self) -> None:
        raise RuntimeError(SHM)


class Unreceivable:
    def __reduce__(self) -> tuple:
        return refuse, ()


class ReceivedSlowly:
    def __reduce__(self) -> tuple:
        return time.sleep, (2.5 * SECONDS,)


def refuse() -> None:
    raise OSError("Too many open files")


def fails() -> None:
    raise ValueError("labeled7 is damaged")


def waits_for_a_while() -> int:
    time.sleep(2 * SECONDS)
    return 0


def computes() -> int:
    end = time.monotonic() + 2 * SECONDS
    while time.monotonic() < end:
        sum(range(1000))
    return 0


@pytest.fixture
def start(monkeypatch):
    """Return a function that starts workers, which are gone at the end."""
    monkeypatch.setattr(loader_processes, "SECONDS_BETWEEN_SIGNS", 0.1)
    monkeypatch.setattr(loader_processes, "SECONDS_BETWEEN_LOOKS", 0.1)
    started, before = [], set(multiprocessing.active_children())

    def run(instead=None, workers: int = 1) -> WatchedAugmenter:
        loader = Loader(instead)
        started.append(WatchedAugmenter(loader, list(range(workers)), False, SECONDS))
        next(started[-1])
        loader.is_time.set()
        return started[-1]

    yield run
    for one in started:
        one.close()
    assert set(multiprocessing.active_children()) <= before


def failure_of(augmenter: WatchedAugmenter, within: float = 30.0) -> str:
    """Take batches until there is a failure, and return what it says; all workers are gone then."""
    processes, deadline = list(augmenter._processes), time.monotonic() + within
    with pytest.raises(WorkerFailure) as raised:
        while time.monotonic() < deadline:
            next(augmenter)
    assert not any(process.is_alive() for process in processes)
    return str(raised.value)


def test_error_of_a_worker_is_named(start, capfd):
    assert "which loads images, has failed (ValueError: labeled7 is damaged): its error stands above" in failure_of(
        start(fails, workers=2)
    )
    assert "Traceback" in capfd.readouterr().err  # of the worker, for who has to look into it


@pytest.mark.parametrize(
    ("number", "words"),
    [(signal.SIGKILL, "was killed, most often because the memory was full"), (signal.SIGBUS, "/dev/shm is full")],
)
def test_worker_that_dies_is_noticed_with_a_remedy(start, number, words, capfd):
    augmenter = start(workers=2)
    os.kill(augmenter._processes[1].pid, number)
    message = failure_of(augmenter)
    assert words in message
    assert "nnUNet_n_proc_DA" in message
    assert "Traceback" not in capfd.readouterr().err


def test_error_of_another_thread_is_still_reported(start, monkeypatch):
    reported = []
    monkeypatch.setattr(threading, "excepthook", reported.append)
    start()
    thread = threading.Thread(target=fails)
    thread.start()
    thread.join()
    assert [str(one.exc_value) for one in reported] == ["labeled7 is damaged"]


def test_batch_that_cannot_be_received_is_said(start):
    message = failure_of(start(Unreceivable))
    assert "batches cannot be received (Too many open files): raise the limit of open files (ulimit -n)" in message


@pytest.mark.parametrize("workers", [1, 2])
def test_stopped_worker_is_noticed_also_where_others_go_on(start, workers):
    augmenter = start(workers=workers)
    os.kill(augmenter._processes[0].pid, signal.SIGSTOP)
    assert f"has not run for {SECONDS:.0f} s, as if it was stopped" in failure_of(augmenter)


def test_worker_that_waits_for_nothing_is_noticed_when_it_is_waited_for(start):
    assert f"has done nothing for {SECONDS:.0f} s while a batch is waited for" in failure_of(start(waits_for_a_while))


def test_batches_that_nobody_receives_are_noticed_though_the_worker_runs(start):
    assert f"has a batch that is not received for {SECONDS:.0f} s" in failure_of(start(ReceivedSlowly))


def test_worker_that_is_killed_keeps_no_lock_that_the_training_waits_for():
    """Killed while it looks whether the training has ended, as it does all the time."""

    def killed_with_locks() -> None:
        for event in filter(None, (augmenter.abort_event, augmenter.pause_event)):
            for one in vars(event).values():
                getattr(one, "acquire", bool)()
        os.kill(os.getpid(), signal.SIGKILL)

    loader = Loader(killed_with_locks)
    loader.is_time.set()
    augmenter = WatchedAugmenter(loader, [0], False, SECONDS)
    assert "was killed" in failure_of(augmenter)


def test_worker_that_waits_is_let_alone_where_others_bring_batches(start):
    augmenter, deadline = start(waits_for_a_while, workers=2), time.monotonic() + 2 * SECONDS
    while time.monotonic() < deadline:
        assert next(augmenter)["data"] in (0, 1)


def test_slow_worker_is_let_alone(start):
    augmenter, asked = start(computes), time.monotonic()
    while time.monotonic() - asked < 2.5 * SECONDS:
        next(augmenter)


@pytest.mark.parametrize("seconds_to_begin", [0.0, 10 * SECONDS])
def test_worker_has_time_to_begin(monkeypatch, seconds_to_begin):
    """Where it is no fork, it imports everything before its first sign."""
    monkeypatch.setattr(loader_processes, "SECONDS_TO_BEGIN", seconds_to_begin)
    monkeypatch.setattr(loader_processes, "SECONDS_BETWEEN_SIGNS", 0.1)
    monkeypatch.setattr(Loader, "set_thread_id", lambda *_: time.sleep(3 * SECONDS))
    augmenter = WatchedAugmenter(Loader(), [0], False, SECONDS)
    try:
        with nullcontext() if seconds_to_begin else pytest.raises(WorkerFailure, match="has not run for 2 s"):
            next(augmenter)
    finally:
        augmenter.close()


def test_worker_that_waits_for_a_disk_is_let_alone(start, monkeypatch):
    monkeypatch.setattr(loader_processes, "_waits_for_disk", lambda: True)
    augmenter = start(waits_for_a_while)
    deadline = time.monotonic() + 2.5 * SECONDS
    while time.monotonic() < deadline:
        next(augmenter)


def test_training_that_was_stopped_as_a_whole_goes_on(start, monkeypatch):
    """As by Ctrl-Z and `fg`: the training looks before its workers have run again."""
    augmenter = start()
    (process,) = augmenter._processes
    os.kill(process.pid, signal.SIGSTOP)
    time.sleep(1.5 * SECONDS)
    monkeypatch.setattr(loader_processes, "SECONDS_BETWEEN_SIGNS", 1.0)  # in this process
    threading.Timer(0.1, os.kill, (process.pid, signal.SIGCONT)).start()
    assert [int(next(augmenter)["data"]) for _ in range(20)] == [0] * 20


def test_what_interrupts_a_start_is_raised_and_no_worker_is_left(monkeypatch):
    begun, start_process = [], multiprocessing.Process.start

    def start(process: multiprocessing.Process) -> None:
        if len(begun) == 2:
            raise KeyboardInterrupt
        start_process(process)
        begun.append(process)

    monkeypatch.setattr(multiprocessing.Process, "start", start)
    with pytest.raises(KeyboardInterrupt):
        start_loader(Loader(), [1, 2, 3], pin_memory=False)
    assert len(begun) == 2
    assert not any(process.is_alive() for process in begun)


def test_full_shared_memory_is_said_once(start, capfd):
    message = failure_of(start(Unsendable, workers=2))
    assert f"has failed (cannot send a batch: {SHM}): /dev/shm is full: make it larger" in message
    assert "Unsendable" not in capfd.readouterr().err


def test_worker_leaves_signals_to_the_training(start, monkeypatch):
    """A cluster sends them to all processes; a training that saves still has its workers then."""
    monkeypatch.setattr(loader_processes, "SECONDS_AFTER_TERM", 3)
    augmenter = start()
    (process,) = augmenter._processes
    os.kill(process.pid, signal.SIGINT)
    os.kill(process.pid, signal.SIGTERM)
    time.sleep(0.3)
    assert process.is_alive()
    wait_until(lambda: process.exitcode is not None)  # None for a moment, if the thread that receives asked first
    assert process.exitcode == -signal.SIGALRM


@pytest.mark.parametrize("way", ["system", "thread"])
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_workers_end_with_a_killed_training(monkeypatch, tmp_path, way, number):
    """Also stopped ones, where the system ends them."""
    monkeypatch.setattr(loader_processes, "SECONDS_BETWEEN_SIGNS", 0.1)
    monkeypatch.setattr(in_processes, "SECONDS_BETWEEN_LOOKS", 0.1)
    if way == "thread":
        monkeypatch.setattr(in_processes.sys, "platform", "another")
    elif sys.platform != "linux":
        pytest.skip("only Linux does that")
    pids = tmp_path / "pids"
    training = os.fork()
    if training == 0:
        try:
            signal.signal(signal.SIGTERM, signal.SIG_DFL)
            augmenter = WatchedAugmenter(Loader(), [0, 1, 2], False, SECONDS)
            created = list(augmenter.signs.alive)
            next(augmenter)
            wait_until(lambda: all(now > then for now, then in zip(augmenter.signs.alive, created, strict=True)))
            workers = [process.pid for process in augmenter._processes]
            if way == "system":
                os.kill(workers[0], signal.SIGSTOP)
            pids.with_suffix(".tmp").write_text(" ".join(map(str, workers)))
            pids.with_suffix(".tmp").rename(pids)
            time.sleep(60)
        finally:
            os._exit(1)
    wait_until(pids.exists)
    workers = [int(pid) for pid in pids.read_text().split()]
    os.kill(training, number)
    os.waitpid(training, 0)
    wait_until(lambda: not any(map(is_running, workers)))


def wait_until(is_so: Callable[[], bool], seconds: float = 30.0) -> None:
    deadline = time.monotonic() + seconds
    while not is_so():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def is_running(pid: int) -> bool:
    file = Path(f"/proc/{pid}/stat")
    try:
        return file.read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False
