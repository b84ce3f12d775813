"""Trainings that are told to stop: what is saved, and that they go on as if nothing had happened."""

import os
import signal
import threading
from pathlib import Path

import pytest
import torch
from nnunetv2.run.run_training import maybe_load_checkpoint

from nnunet_ssl.trainers.nnUNetTrainerMeanTeacher import nnUNetTrainerMeanTeacher
from nnunet_ssl.training import interruption
from nnunet_ssl.training.interruption import Interrupted, signals_interrupt
from tests.conftest import assert_equal_weights, make_trainer, state_of

STEPS = 2  # of an epoch


def handlers() -> list:
    return [signal.getsignal(number) for number in interruption.SIGNALS]


@pytest.mark.parametrize("number", interruption.SIGNALS)
def test_first_signal_raises_128_and_its_number(number):
    before = handlers()
    with pytest.raises(Interrupted) as raised, signals_interrupt(is_first_process=True):
        signal.raise_signal(number)
        pytest.fail("went on")
    assert raised.value.code == 128 + number
    assert raised.value.name == signal.Signals(number).name
    assert handlers() == before


def test_processes_beside_the_first_leave_it_to_that():
    before = handlers()
    with signals_interrupt(is_first_process=False):
        signal.raise_signal(signal.SIGTERM)
        assert handlers() != before
    assert handlers() == before


@pytest.mark.parametrize("is_first_process", [True, False])
def test_second_signal_ends_at_once_but_not_an_echo_of_the_first(is_first_process, monkeypatch):
    now, killed = [100.0], []
    monkeypatch.setattr(interruption.time, "monotonic", lambda: now[0])
    monkeypatch.setattr(interruption.os, "kill", lambda *call: killed.append((*call, signal.getsignal(call[1]))))
    with signals_interrupt(is_first_process):
        if is_first_process:
            with pytest.raises(Interrupted):
                signal.raise_signal(signal.SIGTERM)
        else:
            signal.raise_signal(signal.SIGTERM)
        now[0] += interruption.ECHO_SECONDS / 2
        signal.raise_signal(signal.SIGINT)
        assert not killed
        now[0] += interruption.ECHO_SECONDS
        signal.raise_signal(signal.SIGINT)
    assert killed == [(os.getpid(), signal.SIGINT, signal.SIG_DFL)]


def test_forked_process_ignores_it():
    with signals_interrupt(is_first_process=True):
        child = os.fork()
        if child == 0:
            code = 1
            try:
                signal.raise_signal(signal.SIGTERM)
                code = 0
            finally:
                os._exit(code)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0


def test_ignored_signal_stays_ignored():
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        with signals_interrupt(is_first_process=True):
            signal.raise_signal(signal.SIGINT)
        assert signal.getsignal(signal.SIGINT) == signal.SIG_IGN
    finally:
        signal.signal(signal.SIGINT, before)


def test_outside_of_the_main_thread_nothing_changes():
    errors = []

    def run() -> None:
        try:
            with signals_interrupt(is_first_process=True):
                pass
        except ValueError as error:
            errors.append(error)

    thread = threading.Thread(target=run)
    thread.start()
    thread.join()
    assert not errors


def stopped_at(dataset, epoch: int, step: int, number: int = signal.SIGTERM, best: bool = True):
    """Return a trainer that got a signal before a step; without a best one, nnU-Net has saved nothing until then."""
    trainer = make_trainer(dataset, nnUNetTrainerMeanTeacher, seed=1, num_epochs=4)
    if not best:
        trainer.save_checkpoint = lambda _file: None

    def train_step(batch: dict) -> dict:
        if trainer.current_epoch == epoch and trainer.step_of_epoch == step:
            signal.raise_signal(number)
        return type(trainer).train_step(trainer, batch)

    trainer.train_step = train_step
    with pytest.raises(Interrupted) as raised:
        trainer.run_training()
    assert raised.value.code == 128 + number
    return trainer


def gone_on(dataset):
    """Return a trainer that went on with `--c` and finished."""
    trainer = make_trainer(dataset, nnUNetTrainerMeanTeacher, resume=True)
    maybe_load_checkpoint(trainer, continue_training=True, validation_only=False)
    trainer.run_training()
    return trainer


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    """Return a function that gives the state of an undisturbed run, trained once."""
    made = {}

    def of(dataset):
        if not made:
            trainer = make_trainer(dataset, nnUNetTrainerMeanTeacher, seed=1, num_epochs=4)
            trainer.run_training()
            made.update(state_of(trainer))
        return made

    return of


@pytest.mark.parametrize(
    ("epoch", "step", "number", "best"),
    [(1, 0, signal.SIGTERM, False), (2, 1, signal.SIGINT, False), (3, 1, signal.SIGTERM, True)],
)
def test_stopped_in_an_epoch_it_goes_on_from_its_beginning(tiny_dataset, undisturbed, epoch, step, number, best):
    """Bit for bit, whether nnU-Net has saved that epoch or not."""
    dataset = tiny_dataset()
    expected = undisturbed(dataset)
    trainer = stopped_at(dataset, epoch, step, number, best)
    file = Path(trainer.output_folder, "checkpoint_best.pth" if best else "checkpoint_latest.pth")
    assert torch.load(file, weights_only=False)["current_epoch"] == epoch
    name = signal.Signals(number).name
    words = f"The training is ended by {name}; it is saved after {epoch} epochs: the same command with --c"
    assert words in Path(trainer.log_file).read_text()
    resumed = gone_on(dataset)
    assert f"Going on from {file.name}, after epoch {epoch - 1}" in Path(resumed.log_file).read_text()
    assert_equal_weights(expected, state_of(resumed))


def test_stopped_in_the_first_epoch_it_begins_again_with_its_options(tiny_dataset, undisturbed):
    dataset = tiny_dataset()
    expected = undisturbed(dataset)
    trainer = stopped_at(dataset, 0, 1)
    assert "no epoch is over: the same command with --c begins again" in Path(trainer.log_file).read_text()
    assert not list(Path(trainer.output_folder).glob("*.pth*"))
    assert_equal_weights(expected, state_of(gone_on(dataset)))


def test_an_error_saves_too_and_stays_an_error(tiny_dataset, undisturbed):
    dataset = tiny_dataset()
    expected = undisturbed(dataset)
    trainer = make_trainer(dataset, nnUNetTrainerMeanTeacher, seed=1, num_epochs=4)

    def train_step(batch: dict) -> dict:
        if trainer.current_epoch == 3:
            raise MemoryError
        return type(trainer).train_step(trainer, batch)

    trainer.train_step = train_step
    with pytest.raises(MemoryError):
        trainer.run_training()
    assert "ended by an error (MemoryError); it is saved after 3 epochs" in Path(trainer.log_file).read_text()
    assert_equal_weights(expected, state_of(gone_on(dataset)))


def test_full_disk_is_said_and_the_signal_still_ends_it(tiny_dataset, monkeypatch):
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    dataset = tiny_dataset()
    trainer = make_trainer(dataset, nnUNetTrainerMeanTeacher, seed=1, num_epochs=4)
    monkeypatch.setattr("nnunet_ssl.training.last_epoch.save_atomically", full)
    trainer.save_checkpoint = lambda _file: None  # as if no epoch was the best
    trainer.train_step = lambda batch: (
        signal.raise_signal(signal.SIGTERM) if trainer.current_epoch else None,
        type(trainer).train_step(trainer, batch),
    )[1]
    with pytest.raises(Interrupted):
        trainer.run_training()
    assert (
        "its last epoch cannot be saved: a file cannot be written: the disk is full"
        in Path(trainer.log_file).read_text()
    )


def test_validation_is_ended_by_a_signal_too_and_handlers_are_put_back(tiny_dataset, monkeypatch):
    before = handlers()
    trainer = make_trainer(tiny_dataset(), nnUNetTrainerMeanTeacher, seed=1)
    trainer.run_training()
    assert handlers() == before
    monkeypatch.setattr(trainer, "set_deep_supervision_enabled", lambda _: signal.raise_signal(signal.SIGTERM))
    with pytest.raises(Interrupted):
        trainer.perform_actual_validation()
    assert handlers() == before


def test_with_checkpointing_disabled_nothing_is_kept(tiny_dataset):
    trainer = make_trainer(tiny_dataset(), nnUNetTrainerMeanTeacher, seed=1)
    trainer.disable_checkpointing = True
    trainer.initialize()
    trainer.last_epoch.keep = lambda _: pytest.fail("kept")
    trainer.run_training()
    assert not list(Path(trainer.output_folder).glob("*.pth*"))
