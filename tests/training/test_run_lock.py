import errno
import json
import multiprocessing
import os
import re
import socket
import subprocess
import sys
import time

import pytest
from filelock import SoftFileLease

from nnunet_ssl.training import run_lock
from nnunet_ssl.training.run_lock import HOLDER, LOCK, locked, refuse_if_lost

HOLDS = """
import sys, time
from nnunet_ssl.training import run_lock
with run_lock.locked(sys.argv[1], print):
    print("has it", flush=True)
    time.sleep(60)
"""


@pytest.fixture
def other(tmp_path):
    """Another process that holds the folder."""
    process = subprocess.Popen([sys.executable, "-c", HOLDS, str(tmp_path)], stdout=subprocess.PIPE, text=True)
    assert process.stdout.readline() == "has it\n"
    yield process
    process.kill()
    process.wait()


def test_second_process_is_refused_with_who_where_and_since_when(tmp_path, other):
    with pytest.raises(ValueError, match="another process trains or validates in") as raised, locked(tmp_path, print):
        pytest.fail("both have it")
    assert f"{other.pid} on {socket.gethostname()}, since 20" in str(raised.value)
    assert re.search(r"since \d{4}-\d\d-\d\d \d\d:\d\d:\d\d: wait for its end, or end it", str(raised.value))
    assert other.poll() is None
    assert json.loads((tmp_path / HOLDER).read_text())["process"] == other.pid


def test_lock_of_a_dead_process_is_taken_at_once(tmp_path, other):
    other.kill()
    other.wait()
    began = time.monotonic()
    with locked(tmp_path, print):
        assert json.loads((tmp_path / HOLDER).read_text())["process"] == os.getpid()
    assert time.monotonic() - began < 5
    assert not list(tmp_path.iterdir())


def test_it_is_given_back_after_an_error(tmp_path):
    for _ in range(2):
        with pytest.raises(KeyError), locked(tmp_path, print):
            raise KeyError
    assert not list(tmp_path.iterdir())


def of_another_machine(folder, **of_holder) -> None:
    """Leave a lock as a machine does that crashed."""
    lease = SoftFileLease(folder / LOCK, lease_duration=run_lock.LEASE_SECONDS, thread_local=False)
    lease.acquire()
    content = (folder / LOCK).read_text()
    lease.release()
    (folder / LOCK).write_text(re.sub("host=.*", "host=node7", content))
    (folder / HOLDER).write_text(json.dumps({"host": "node7", "process": 7, "since": "yesterday"} | of_holder))


@pytest.mark.parametrize("of_holder", [{}, {"host": socket.gethostname(), "namespace": 1}])
def test_lock_of_a_machine_that_crashed_is_taken_after_a_while(tmp_path, monkeypatch, of_holder):
    """Also of a container of this host, whose processes cannot be seen from here."""
    monkeypatch.setattr(run_lock, "LEASE_SECONDS", 1.0)
    of_another_machine(tmp_path, **of_holder)
    said, began = [], time.monotonic()
    with locked(tmp_path, said.append):
        assert time.monotonic() - began >= 0.9
        assert json.loads((tmp_path / HOLDER).read_text())["process"] == os.getpid()
    assert "Looking for 1 s whether it still runs" in said[0]


def touch_for_ever(file) -> None:
    while True:
        os.utime(file)
        time.sleep(0.1)


def test_lock_that_another_machine_renews_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(run_lock, "LEASE_SECONDS", 3.0)
    of_another_machine(tmp_path)
    renewing = multiprocessing.get_context("fork").Process(target=touch_for_ever, args=(tmp_path / LOCK,))
    renewing.start()
    try:
        with pytest.raises(ValueError, match="7 on node7, since yesterday"), locked(tmp_path, lambda _: None):
            pytest.fail("both have it")
    finally:
        renewing.kill()
        renewing.join()


def test_it_is_renewed_and_a_loss_is_noticed(tmp_path, monkeypatch):
    monkeypatch.setattr(run_lock, "LEASE_SECONDS", 0.6)
    with locked(tmp_path, print) as lock:
        before = (tmp_path / LOCK).stat().st_mtime_ns
        time.sleep(1.0)
        assert (tmp_path / LOCK).stat().st_mtime_ns > before
        refuse_if_lost(lock, print)
        content = (tmp_path / LOCK).read_text()
        (tmp_path / LOCK).unlink()
        (tmp_path / LOCK).write_text(re.sub("host=.*", "host=node7", content))
        (tmp_path / HOLDER).write_text(json.dumps({"host": "node7"}))
        time.sleep(1.5)
        with pytest.raises(RuntimeError, match="was not renewed for so long that it may be another training's"):
            refuse_if_lost(lock, print)
    assert json.loads((tmp_path / HOLDER).read_text())["host"] == "node7"  # it is the other's
    refuse_if_lost(None, print)


@pytest.fixture
def faulty(tmp_path, monkeypatch):
    """Return a function that makes looking at the lock a fault of the file server, or no more."""
    look, state = os.lstat, {"fails": False}

    def lstat(file, *more, **options):
        if state["fails"] and str(file).endswith(LOCK):
            raise OSError(errno.ESTALE, "Stale file handle")
        return look(file, *more, **options)

    monkeypatch.setattr(run_lock, "LEASE_SECONDS", 0.6)
    monkeypatch.setattr(os, "lstat", lstat)
    return lambda fails: state.update(fails=fails)


def until_lost(lock, faulty) -> None:
    faulty(True)
    deadline = time.monotonic() + 20
    while lock.compromise is None and time.monotonic() < deadline:
        time.sleep(0.05)
    assert lock.compromise.reason == "refresh-failed"
    faulty(False)


def test_after_a_fault_of_the_disk_it_is_renewed_if_nobody_had_it(tmp_path, faulty):
    said = []
    with locked(tmp_path, print) as lock:
        until_lost(lock, faulty)
        refuse_if_lost(lock, said.append)
        (warning,) = said
        assert warning.startswith("WARNING: for a while ")
        refuse_if_lost(lock, said.append)
        assert len(said) == 1
        before = (tmp_path / LOCK).stat().st_mtime_ns
        time.sleep(1.0)
        assert (tmp_path / LOCK).stat().st_mtime_ns > before
    assert not list(tmp_path.iterdir())


def test_after_a_fault_of_the_disk_another_training_keeps_what_it_took(tmp_path, faulty):
    """Also one that has ended: it may have written into the folder."""
    with locked(tmp_path, print) as lock:
        until_lost(lock, faulty)
        (tmp_path / HOLDER).unlink()
        with pytest.raises(RuntimeError, match="may be another training's"):
            refuse_if_lost(lock, print)
