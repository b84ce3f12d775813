"""Functions that run on the host beside a step; what a GPU does differently is tried where there is one."""

import subprocess
import sys
import threading
import time

import numpy as np
import pytest
import torch

from nnunet_ssl.data.loaders import batches_on_device
from nnunet_ssl.training.host_work import HostWork
from nnunet_ssl.training.semi_supervised_trainer import SemiSupervisedTrainer
from tests.conftest import make_trainer, started

ON_A_GPU = pytest.param("cuda", marks=pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no GPU"))
SECONDS = 20.0  # after which something hangs


of_others: set[threading.Thread] = set()


@pytest.fixture(autouse=True)
def _threads_of_other_tests():
    """Leave out those of trainers that other tests have not closed, and which nothing has collected yet."""
    of_others.clear()
    of_others.update(threads())


def threads() -> set[threading.Thread]:
    return {one for one in threading.enumerate() if one.name.startswith("host_work")} - of_others


@pytest.fixture
def recorded() -> list[dict[str, float]]:
    return []


@pytest.fixture(params=["cpu", ON_A_GPU])
def device(request) -> torch.device:
    return torch.device(request.param)


@pytest.fixture
def host(recorded, device):
    work = HostWork(device, recorded.append)
    yield work
    work.close()
    assert not threads()


def test_function_sees_the_tensors_as_they_were(host, device):
    """It is held up until they have been changed in place."""
    changed = threading.Event()

    def kept(array: np.ndarray, other: np.ndarray) -> tuple[list, list]:
        assert changed.wait(SECONDS)
        return array.tolist(), other.tolist()

    first = torch.tensor([1.0, 2.0], device=device, requires_grad=True)
    second = torch.tensor([[True], [False]])  # of the host, as random numbers are
    pending = host.start(kept, first, second)
    with torch.no_grad():
        first.zero_()
    second.fill_(True)
    changed.set()
    assert pending.result() == ([1.0, 2.0], [[True], [False]])


def test_tensors_come_as_arrays_and_arrays_as_tensors(host, device):
    given = {}

    def swap(array: np.ndarray) -> tuple:
        given.update(type=type(array), dtype=array.dtype, shape=array.shape, thread=threading.current_thread())
        return array[::-1].T, [np.int32(3), np.array(2.5)], {"left": "as it is"}

    reversed_, (scalar, zero_dimensional), other = host.start(swap, torch.arange(6, device=device).view(2, 3)).result()
    assert given["type"] is np.ndarray
    assert (given["dtype"], given["shape"]) == (np.int64, (2, 3))
    assert given["thread"] is not threading.main_thread()
    assert reversed_.device.type == device.type
    assert reversed_.tolist() == [[3, 0], [4, 1], [5, 2]]
    assert isinstance(scalar, np.int32)
    assert torch.equal(zero_dimensional, torch.tensor(2.5, dtype=torch.float64, device=device))
    assert other == {"left": "as it is"}


def test_returned_tensors_have_memory_of_their_own(host):
    buffer = np.zeros(3)
    tensor = host.start(lambda: buffer).result()
    buffer[:] = 1.0
    assert tensor.tolist() == [0.0, 0.0, 0.0]


def test_nothing_waits_until_the_result_is_asked_for(host):
    go_on = threading.Event()
    pending = [host.start(lambda i=i: (go_on.wait(SECONDS), i)) for i in range(3)]
    assert len(threads()) == 1
    go_on.set()
    assert [one.result() for one in pending] == [(True, i) for i in range(3)]


def test_functions_run_in_turn(host):
    order = []
    pending = [host.start(lambda i=i: (time.sleep(0.01 * (3 - i)), order.append(i))) for i in range(3)]
    pending[-1].result()
    assert order == [0, 1, 2]


def test_error_of_a_function_is_raised_where_its_result_is_asked_for(host, recorded):
    def fail(array: np.ndarray) -> None:
        raise ZeroDivisionError("in the thread")

    pending = host.start(fail, torch.zeros(1))
    with pytest.raises(ZeroDivisionError, match="in the thread"):
        pending.result()
    assert not recorded
    assert host.start(lambda: "and the next one runs").result() == "and the next one runs"


def test_seconds_of_work_and_of_waiting_are_recorded(host, recorded):
    go_on = threading.Event()
    threading.Timer(1.0, go_on.set).start()
    host.start(lambda: go_on.wait(SECONDS)).result()
    pending = host.start(lambda: time.sleep(0.05))
    while not pending._future.done():
        time.sleep(0.01)
    pending.result()
    waited, not_waited = recorded
    assert waited.keys() == {"host/seconds_waiting", "host/seconds_working"}
    assert 0.0 < waited["host/seconds_waiting"] <= waited["host/seconds_working"] < SECONDS
    assert not_waited["host/seconds_waiting"] == 0.0
    assert not_waited["host/seconds_working"] >= 0.05


def test_closing_ends_the_thread_and_what_has_not_begun_never_does(host):
    begun, go_on, run = threading.Event(), threading.Event(), []
    host.start(lambda: (begun.set(), go_on.wait(SECONDS), run.append("begun")))
    host.start(lambda: run.append("not begun"))
    assert begun.wait(SECONDS)
    threading.Timer(0.05, go_on.set).start()
    host.close()
    assert run == ["begun"]
    assert not threads()
    host.close()
    assert host.start(lambda: "again").result() == "again"


SCRIPT = """
import os, signal, sys, threading, time, torch
from nnunet_ssl.data.loaders import batches_on_device
from nnunet_ssl.training.host_work import HostWork
host = HostWork(torch.device("cpu"), lambda _: None)
begun = threading.Event()
pending = host.start(lambda: (begun.set(), time.sleep(3.0)))
host.start(lambda: time.sleep(1000.0))
begun.wait()
try:
    threading.Timer(0.05, lambda: os.kill(os.getpid(), signal.SIGINT)).start()
    pending.result()
except KeyboardInterrupt:
    print("interrupted")
finally:
    host.close()
print("closed")
"""


def test_ctrl_c_while_waiting_leaves_no_process_that_hangs():
    done = subprocess.run([sys.executable, "-c", SCRIPT], capture_output=True, text=True, timeout=120, check=True)
    assert done.stdout.split() == ["interrupted", "closed"]
    assert not done.stderr


# ---- in a run ----


class OnHost(SemiSupervisedTrainer):
    """Doubles the loss on the host; `stumbles` names what goes wrong in one step."""

    VIEWS = ("weak",)
    stumbles = ""  # "function" or "losses"; ours

    def training_losses(self, labeled, unlabeled):
        found = self.on_host(self.twice, unlabeled.weak.mean()), self.on_host(np.square, unlabeled.weak.mean())
        yield {"supervised": self.supervised_loss(labeled)}
        if self.stumbles == "losses":
            raise RuntimeError("between start and result")
        twice, square = (pending.result() for pending in found)
        self.record({"twice": twice, "square": float(square)})

    def twice(self, mean: np.ndarray) -> np.ndarray:
        if self.stumbles == "function":
            raise ZeroDivisionError("in the thread")
        return 2.0 * mean


def test_seconds_stand_in_the_curves_of_a_run_that_leaves_no_thread(tiny_dataset):
    trainer = make_trainer(tiny_dataset(dim=2), OnHost, seed=1)
    trainer.run_training()
    curves = trainer.observer.curves.values
    assert (np.array(curves["host/seconds_working"]) > 0).all()
    assert (np.array(curves["host/seconds_waiting"]) >= 0).all()
    assert not threads()


def test_seconds_of_a_step_are_those_of_all_its_functions_together(tiny_dataset):
    trainer = started(tiny_dataset(dim=2), OnHost)
    trainer.observer.add({"host/seconds_working": 100.0})
    list(trainer.training_losses(*batches(trainer)))
    assert 100.0 < trainer.observer.step_records["host/seconds_working"] < 200.0
    trainer.observer.start_step(1)
    list(trainer.training_losses(*batches(trainer)))
    assert 0.0 < trainer.observer.step_records["host/seconds_working"] < 100.0
    trainer.host_work.close()


def test_an_epoch_has_the_median_of_its_seconds(tiny_dataset):
    trainer = started(tiny_dataset(dim=2), OnHost)
    for seconds in (1.0, 2.0, 9.0):
        trainer.observer.start_step(0)
        trainer.observer.end_step({"host/seconds_waiting": seconds, "other": seconds}, 0.0, is_kept=True)
    values = trainer.observer.end_epoch(0, 1, {}, True)
    assert (values["host/seconds_waiting"], values["other"]) == (2.0, 4.0)


@pytest.mark.parametrize(("stumbles", "error"), [("function", ZeroDivisionError), ("losses", RuntimeError)])
def test_a_run_that_stumbles_ends_with_the_error_and_no_thread(tiny_dataset, stumbles, error):
    trainer = make_trainer(tiny_dataset(dim=2), OnHost, seed=1, stumbles=stumbles)
    with pytest.raises(error, match=r"in the thread|between start and result"):
        trainer.run_training()
    assert not threads()


def test_a_step_after_one_that_was_given_up_is_as_if_that_had_not_been(tiny_dataset):
    trainer = started(tiny_dataset(dim=2), OnHost)
    batch = next(trainer.dataloader_train)
    trainer.stumbles = "losses"
    with pytest.raises(RuntimeError, match="between start and result"):
        trainer.train_step(batch)
    trainer.stumbles = ""
    trainer.train_step(batch)
    mean = float(batch["unlabeled"]["weak"].mean())
    assert trainer.observer.epoch_records["twice"] == [pytest.approx(2.0 * mean)]
    assert trainer.observer.epoch_records["square"] == [pytest.approx(mean**2)]
    trainer.host_work.close()


def batches(trainer):
    return batches_on_device(next(trainer.dataloader_train), trainer.device)
