"""What is left of a pool of processes when its user goes away."""

import threading
import time
from concurrent.futures.process import _ExecutorManagerThread

import pytest

from nnunet_ssl.data.in_processes import in_processes


def slowly(item: int) -> int:
    time.sleep(0.01)
    return item


def test_items_come_back_in_order():
    assert list(in_processes(slowly, range(6), 2, "Working")) == list(range(6))


@pytest.mark.parametrize("ends", ["closed", "error"])
def test_no_thread_of_a_pool_that_is_left_lives_on(monkeypatch, ends):
    """At the interpreter's end it would meet a pipe that is being closed, and print a traceback."""
    close = _ExecutorManagerThread.join_executor_internals
    monkeypatch.setattr(
        _ExecutorManagerThread, "join_executor_internals", lambda thread: (time.sleep(0.5), close(thread))
    )
    list(in_processes(slowly, range(1), 1, "Working"))  # the first bar of a process starts a thread that stays
    before = set(threading.enumerate())
    results = in_processes(slowly, range(100), 2, "Working")
    next(results)
    if ends == "closed":
        results.close()
    else:
        with pytest.raises(KeyboardInterrupt):
            results.throw(KeyboardInterrupt)
    assert set(threading.enumerate()) <= before
