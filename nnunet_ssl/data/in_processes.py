"""Doing the same work for many items, several at once, so that an interruption ends it at once."""

import ctypes
import multiprocessing
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from typing import TypeVar

from tqdm import tqdm

SECONDS_BETWEEN_LOOKS = 1.0  # for the parent of a process
PR_SET_PDEATHSIG = 1  # of Linux

Item, Result = TypeVar("Item"), TypeVar("Result")


def in_processes(
    work: Callable[[Item], Result], items: Sequence[Item], num_processes: int, title: str
) -> Iterator[Result]:
    """Yield what `work` returns for each item, in order, with a bar; in this process if one is enough.

    Whatever ends it (an error, Ctrl-C, nobody asking for more) ends the workers too, without the items that wait.

    Raises:
        RuntimeError: a worker process was killed.
    """
    workers = min(num_processes, len(items))
    with tqdm(total=len(items), desc=title) as bar:
        for result in map(work, items) if workers <= 1 else _in_workers(work, items, workers, title):
            bar.update()
            yield result


def _in_workers(work: Callable[[Item], Result], items: Sequence[Item], workers: int, title: str) -> Iterator[Result]:
    context = multiprocessing.get_context("spawn")
    others = set(multiprocessing.active_children())
    with ProcessPoolExecutor(workers, mp_context=context, initializer=_begin_worker) as executor:
        try:
            with _interrupts_held_back():
                jobs = [executor.submit(work, item) for item in items]
            for job in jobs:
                yield job.result()
        except BrokenProcessPool as error:
            raise RuntimeError(
                f"{title}: a worker process was killed, most often for want of memory: try fewer "
                f"processes than {workers} (-np, or nnUNet_def_n_proc in a training)"
            ) from error
        except BaseException:
            workers_left = set(multiprocessing.active_children()) - others
            for worker in workers_left:
                worker.terminate()
            for worker in workers_left:
                worker.join()
            raise


@contextmanager
def _interrupts_held_back() -> Iterator[None]:
    """Let a Ctrl-C wait, and reach no process that is started meanwhile: one that still imports would print errors."""
    if not hasattr(signal, "pthread_sigmask"):  # Windows
        yield
        return
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _begin_worker() -> None:
    """Leave Ctrl-C to the parent, and end with it."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    end_with_parent()


def end_with_parent() -> None:
    """Let this process, a child by multiprocessing, end when its parent does, however that ends.

    Linux kills it, even a stopped one; elsewhere, and where the parent was gone before, a thread looks for the parent.
    """
    parent = multiprocessing.parent_process()
    if parent is None:
        return
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    threading.Thread(target=_end_after, args=(parent,), daemon=True).start()


def _end_after(parent: multiprocessing.process.BaseProcess) -> None:
    if os.getppid() == parent.pid:
        while os.getppid() == parent.pid:
            time.sleep(SECONDS_BETWEEN_LOOKS)
    else:  # a server has forked this process for its parent
        parent.join()
    os._exit(1)
