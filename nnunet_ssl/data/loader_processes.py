"""The processes that load batches: none outlives the training, and one that fails or hangs is found and named."""

import multiprocessing.queues
import os
import signal
import threading
import time
import traceback
import weakref
from collections.abc import Iterable, Iterator
from multiprocessing.sharedctypes import RawArray, RawValue
from pathlib import Path
from queue import Empty
from typing import Any

from batchgenerators.dataloading.nondet_multi_threaded_augmenter import NonDetMultiThreadedAugmenter
from nnunetv2.training.dataloading.data_loader import nnUNetDataLoader

from nnunet_ssl.data.checksums import DamagedCaseError
from nnunet_ssl.data.in_processes import end_with_parent

WORKER_SECONDS = 45.0  # without a sign of a worker's life, after which it counts as hanging
SECONDS_TO_BEGIN = 300.0  # that a worker may take at least: where it is no fork it imports all, perhaps over a network
SECONDS_BETWEEN_SIGNS = 1.0
SECONDS_BETWEEN_LOOKS = 5.0
SECONDS_AFTER_TERM = 5  # that a worker goes on after SIGTERM, so that the training can save before it is missed
SECONDS_AFTER_KILL = 10.0  # that are waited for: a process that waits for a disk which is gone does not end
BYTES_OF_REASON = 1000
BATCHES_WAITING, BATCHES_WAITING_FOR_VALIDATION = 6, 3  # as nnU-Net
FEWER = "fewer processes (nnUNet_n_proc_DA; 0 loads in the training itself)"


class WorkerFailure(RuntimeError):
    """A process that loads batches has died or hangs; the message says what helps."""


class Signs:
    """What the workers of a loader tell the training, in memory that all share: no file, no lock, no wait.

    Attributes:
        has_begun: whether each worker has given a sign at all.
        alive: when each one last ran, by the monotonic clock of the machine.
        busy: when each one last worked on a batch or waited for a disk with it.
        has_batch: whether each one has a batch that it cannot hand over yet.
        says_all: whether the reason of each worker is all that there is to say.
    """

    def __init__(self, workers: int) -> None:
        now = [time.monotonic()] * workers
        self.alive, self.busy = RawArray("d", now), RawArray("d", now)
        self.has_begun, self.has_batch, self.says_all = (RawArray("b", workers) for _ in range(3))
        self._reasons = RawArray("c", workers * BYTES_OF_REASON)

    def give_reason(self, worker: int, reason: str) -> None:
        """Leave a reason for the end of a worker."""
        text = reason.encode(errors="replace")[:BYTES_OF_REASON].ljust(BYTES_OF_REASON, b"\0")
        self._reasons[worker * BYTES_OF_REASON : (worker + 1) * BYTES_OF_REASON] = text

    def reason(self, worker: int) -> str:
        """Return the reason that a worker has left for its end; none is empty."""
        text = self._reasons[worker * BYTES_OF_REASON : (worker + 1) * BYTES_OF_REASON]
        return text.rstrip(b"\0").decode(errors="replace")


class Flag:
    """An event that is shared without a lock: a worker that is killed while it looks would keep a lock for ever."""

    def __init__(self) -> None:
        self._value = RawValue("b", False)

    def is_set(self) -> bool:
        """Return whether it was set, here or in another process."""
        return bool(self._value.value)

    def set(self) -> None:
        """Set it for all processes."""
        self._value.value = True


class _FlagForEvent:
    """An attribute that is a `Flag` where an event is assigned."""

    def __set_name__(self, _owner: type, name: str) -> None:
        self.name = f"_{name}"

    def __get__(self, augmenter: "WatchedAugmenter", _owner: type) -> Flag | None:
        return getattr(augmenter, self.name)

    def __set__(self, augmenter: "WatchedAugmenter", event: object) -> None:
        setattr(augmenter, self.name, None if event is None else Flag())


class LoaderOfWorker:
    """A loader as a worker process has it."""

    def __init__(self, loader: nnUNetDataLoader, signs: Signs) -> None:
        self.loader, self.signs, self.worker = loader, signs, 0

    def set_thread_id(self, worker: int) -> None:
        """Begin, in the worker: give signs of life, and leave signals to the training."""
        self.loader.set_thread_id(worker)
        self.worker = worker
        end_with_parent()
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        if hasattr(signal, "alarm"):
            signal.signal(signal.SIGALRM, signal.SIG_DFL)
            signal.signal(signal.SIGTERM, lambda *_: signal.alarm(SECONDS_AFTER_TERM))
        multiprocessing.queues.Queue._on_queue_feeder_error = staticmethod(self._cannot_send)
        threading.Thread(target=self._give_signs, daemon=True).start()

    def __iter__(self) -> Iterator[dict[str, Any]]:
        return self

    def __next__(self) -> dict[str, Any]:
        self.signs.has_batch[self.worker] = False
        try:
            batch = next(self.loader)
        except DamagedCaseError as error:  # no fault of the program: no traceback
            self.signs.says_all[self.worker] = True
            self.signs.give_reason(self.worker, str(error))
            os._exit(1)
        except Exception as error:
            try:
                traceback.print_exc()  # before the reason: whoever reads that ends this process
            finally:
                self.signs.give_reason(self.worker, f"{type(error).__name__}: {error}")
                os._exit(1)
        self.signs.has_batch[self.worker] = True
        return batch

    def _cannot_send(self, error: Exception, _item: object) -> None:
        """End at the first batch that cannot be sent; Python would print the error of each one and go on."""
        self.signs.give_reason(self.worker, f"cannot send a batch: {error}")
        os._exit(1)

    def _give_signs(self) -> None:
        clock, used = _clock_of_main_thread(), None
        while True:
            now = time.monotonic()
            self.signs.alive[self.worker], self.signs.has_begun[self.worker] = now, True
            before, used = used, None if clock is None else time.clock_gettime(clock)
            works = used is None or used != before or _waits_for_disk()
            if works and not self.signs.has_batch[self.worker]:
                self.signs.busy[self.worker] = now
            time.sleep(SECONDS_BETWEEN_SIGNS)


def _clock_of_main_thread() -> int | None:
    """Return the clock of the processor time that the main thread has used, where there is one."""
    clock_of = getattr(time, "pthread_getcpuclockid", None)
    return None if clock_of is None else clock_of(threading.main_thread().ident)


def _waits_for_disk() -> bool:
    """Return whether the main thread waits for a disk, or a network that stands for one; only Linux says so."""
    try:
        return Path(f"/proc/self/task/{os.getpid()}/stat").read_text().rpartition(")")[2].split()[0] == "D"
    except OSError:
        return False


class _KeepError:
    """What Python does with an error that ends a thread, but for those that receive batches: their loader has it."""

    otherwise = staticmethod(threading.excepthook)

    def __call__(self, of_thread: threading.ExceptHookArgs) -> None:
        if (augmenter := _RECEIVES.get(of_thread.thread)) is None:
            self.otherwise(of_thread)
        else:
            augmenter.error = of_thread.exc_value


_RECEIVES: "weakref.WeakKeyDictionary[threading.Thread, WatchedAugmenter]" = weakref.WeakKeyDictionary()
_keep_error = _KeepError()


class WatchedAugmenter(NonDetMultiThreadedAugmenter):
    """nnU-Net's worker processes, looked at now and then: whoever waits for a batch hears what keeps it away.

    A worker that is slow is let alone: it uses the processor, or waits for a disk. It hangs when it does not run at
    all, or when it does neither while a batch is waited for, or has one that nobody receives.
    """

    abort_event, pause_event = _FlagForEvent(), _FlagForEvent()  # of the class above, which has them with a lock

    def __init__(
        self,
        loader: nnUNetDataLoader,
        seeds: list[int],
        pin_memory: bool,
        worker_seconds: float,
        num_waiting: int = BATCHES_WAITING,
    ) -> None:
        """Start nothing yet; there is one worker for each seed, and room for so many batches that wait."""
        self.signs, self.worker_seconds = Signs(len(seeds)), worker_seconds
        self.error: BaseException | None = None  # of the thread that receives the batches
        self._looked_at = time.monotonic()
        super().__init__(
            LoaderOfWorker(loader, self.signs),
            transform=None,
            num_processes=len(seeds),
            num_cached=num_waiting,
            seeds=seeds,
            pin_memory=pin_memory,
            wait_time=0.002,  # as nnU-Net
        )

    def _start(self) -> None:
        super()._start()
        _RECEIVES[self.results_loop_thread] = self
        if threading.excepthook is not _keep_error:
            _keep_error.otherwise, threading.excepthook = threading.excepthook, _keep_error

    def __next__(self) -> dict[str, Any]:
        """Return the next batch.

        Raises:
            WorkerFailure: there will be none, or a worker hangs.
        """
        if not self.initialized:
            self._start()
        asked = time.monotonic()
        if asked - self._looked_at >= SECONDS_BETWEEN_LOOKS:
            self._look(waited=0.0)
        while True:
            try:
                return self.results_loop_queue.get(timeout=SECONDS_BETWEEN_SIGNS)
            except Empty:
                self._look(waited=time.monotonic() - asked)

    def _look(self, waited: float) -> None:
        """Raise a WorkerFailure if a worker has ended or hangs; all of them are killed then.

        A second look has to say so too: a training that was stopped as a whole goes on before its workers do.
        """
        self._looked_at = time.monotonic()
        if self._problem(self._looked_at, waited) is None:
            return
        time.sleep(2 * SECONDS_BETWEEN_SIGNS)
        if (problem := self._problem(time.monotonic(), waited)) is not None:
            self.close(at_once=True)
            raise WorkerFailure(problem)

    def _problem(self, now: float, waited: float) -> str | None:
        nobody_receives = self.abort_event.is_set()
        for worker, process in enumerate(self._processes):
            limit = self.worker_seconds if self.signs.has_begun[worker] else max(self.worker_seconds, SECONDS_TO_BEGIN)
            name = f"process {process.pid}, which loads images,"
            reason = self.signs.reason(worker)
            if reason and self.signs.says_all[worker]:
                return reason
            if reason:
                return f"{name} has failed ({reason}): {_remedy(reason) or 'its error stands above'}"
            if process.exitcode or (process.exitcode == 0 and not nobody_receives):
                return f"{name} {_how_it_ended(process.exitcode)}"
            if now - self.signs.alive[worker] > limit:
                return f"{name} has not run for {limit:.0f} s, as if it was stopped: end what stops it, or try {FEWER}"
            if waited > limit and now - self.signs.busy[worker] > limit:
                if self.signs.has_batch[worker]:
                    return f"{name} has a batch that is not received for {limit:.0f} s: try {FEWER}"
                return f"{name} has done nothing for {limit:.0f} s while a batch is waited for: try {FEWER}"
        if nobody_receives:
            return f"batches cannot be received ({self.error}): {_remedy(str(self.error)) or f'try {FEWER}'}"
        return None

    def close(self, at_once: bool = False) -> None:
        """End the workers; `at_once` without waiting for them. One that does not end is killed."""
        self._processes = processes = [process for process in self._processes if process.pid is not None]
        if at_once:
            _kill(processes)
        self._finish()
        _kill(process for process in processes if process.is_alive())


def _kill(processes: Iterable[multiprocessing.Process]) -> None:
    killed = list(processes)
    for process in killed:
        process.kill()
    deadline = time.monotonic() + SECONDS_AFTER_KILL
    for process in killed:
        process.join(max(0.0, deadline - time.monotonic()))


def _remedy(reason: str) -> str:
    if "shared memory" in reason or "shm" in reason or "No space left" in reason:
        return f"/dev/shm is full: make it larger (docker: --shm-size=8g), or try {FEWER}"
    if "Too many open files" in reason or "ancdata" in reason:
        return f"raise the limit of open files (ulimit -n), or try {FEWER}"
    return ""


def _how_it_ended(exit_code: int | None) -> str:
    if exit_code == -signal.SIGKILL:
        return f"was killed, most often because the memory was full: try {FEWER}"
    if hasattr(signal, "SIGBUS") and exit_code == -signal.SIGBUS:
        return f"was ended by SIGBUS, most often because {_remedy('shm')}"
    if exit_code is not None and exit_code < 0:
        return f"was ended by {signal.Signals(-exit_code).name}: try {FEWER}"
    return f"has ended with exit code {exit_code}: look for its error above, or try {FEWER}"
