"""What a run was started with: kept while it has no checkpoint; and runs that would be written over."""

import json
from pathlib import Path

import pytest
from nnunetv2.run.run_training import maybe_load_checkpoint

from nnunet_ssl.trainers.nnUNetTrainerMeanTeacher import nnUNetTrainerMeanTeacher
from nnunet_ssl.training import resumable_trainer
from nnunet_ssl.training.run_start import NAME, RunStart
from tests.conftest import make_trainer

LENGTH = "num_epochs=2 num_iterations_per_epoch=2 num_val_iterations_per_epoch=1"


def trainer_of(dataset, resume: bool = False):
    """Return a trainer as nnUNetv2_train makes it, with the options of the environment."""
    trainer = make_trainer(dataset, nnUNetTrainerMeanTeacher, resume=resume)
    if hasattr(trainer, "options"):
        del trainer.options
    if resume:
        maybe_load_checkpoint(trainer, continue_training=True, validation_only=False)
    return trainer


@pytest.fixture
def dataset(tiny_dataset, monkeypatch):
    dataset = tiny_dataset(dim=2)
    monkeypatch.setenv("nnUNet_ssl_options", f"{LENGTH} seed=1 consistency_weight=5")
    return dataset


class Killed(BaseException):
    pass


def killed(*_: object) -> None:
    raise Killed


def kill_while(monkeypatch, trainer, name: str) -> None:
    """Let a training die like a process that is killed: nothing is saved."""
    with monkeypatch.context() as patched:
        patched.setattr(trainer, name, killed)
        patched.setattr(trainer, "_end_early", lambda _: None)
        with pytest.raises(Killed):
            trainer.run_training()


@pytest.mark.parametrize("moment", ["get_dataloaders", "train_step"])
def test_a_run_without_checkpoint_begins_again_with_its_options(dataset, monkeypatch, moment):
    first = trainer_of(dataset)
    kill_while(monkeypatch, first, moment)
    monkeypatch.delenv("nnUNet_ssl_options")
    again = trainer_of(dataset, resume=True)
    again.run_training()
    assert (again.consistency_weight, again.seed, again.num_epochs) == (5.0, 1, 2)
    assert json.loads(Path(again.output_folder, NAME).read_text()) == {"options": again.options, "replaces": False}


def test_other_options_are_refused_as_for_a_checkpoint(dataset, monkeypatch):
    kill_while(monkeypatch, trainer_of(dataset), "train_step")
    monkeypatch.setenv("nnUNet_ssl_options", "consistency_weight=7")
    with pytest.raises(ValueError, match=r"started with consistency_weight=5.0, now .* says consistency_weight=7"):
        trainer_of(dataset, resume=True).run_training()
    monkeypatch.setenv("nnUNet_ssl_options", "checkpoint_minutes=3 worker_seconds=90 replace=true num_epochs=3")
    again = trainer_of(dataset, resume=True)
    again.run_training()
    assert (again.checkpoint_minutes, again.worker_seconds, again.num_epochs, again.seed) == (3.0, 90.0, 3, 1)


def test_a_damaged_start_is_said(dataset, monkeypatch):
    kill_while(monkeypatch, trainer_of(dataset), "train_step")
    for content in ("{", "[]", '{"options": {}}', '{"options": 3, "replaces": false}'):
        Path(trainer_of(dataset).output_folder, NAME).write_text(content)
        with pytest.raises(ValueError, match=f"{NAME} is damaged: delete it, and give the options of the run again"):
            trainer_of(dataset, resume=True).run_training()


def content_of(folder: str) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in Path(folder).glob("checkpoint_*")}


@pytest.mark.parametrize("is_finished", [True, False])
def test_a_run_is_not_written_over_unless_that_is_said(dataset, monkeypatch, is_finished):
    first = trainer_of(dataset)
    if is_finished:
        first.run_training()
    else:
        first.save_every = 1
        monkeypatch.setattr(first, "on_train_end", killed)
        with pytest.raises(Killed):
            first.run_training()
    before = content_of(first.output_folder)
    name = "checkpoint_final.pth" if is_finished else "checkpoint_latest.pth"
    with pytest.raises(ValueError, match=rf'holds a run already \({name}.*by --c, or give .*="replace=true"'):
        trainer_of(dataset).run_training()
    assert content_of(first.output_folder) == before
    monkeypatch.setenv("nnUNet_ssl_options", f"{LENGTH} seed=2 replace=true")
    second = trainer_of(dataset)
    second.run_training()
    after = content_of(first.output_folder)
    assert after.keys() >= {"checkpoint_final.pth"}
    assert not [name for name in before if after.get(name) == before[name]]
    monkeypatch.delenv("nnUNet_ssl_options")
    resumed = trainer_of(dataset, resume=True)
    assert resumed.seed == 2
    assert "replace" not in resumed.options


@pytest.mark.parametrize("moment", ["get_dataloaders", "delete", "train_step"])
def test_killed_while_it_replaces_a_run_that_one_is_not_presented_as_its_result(dataset, monkeypatch, moment):
    first = trainer_of(dataset)
    first.run_training()
    summary = Path(first.output_folder, "validation", "summary.json")
    summary.parent.mkdir()
    summary.touch()
    monkeypatch.setenv("nnUNet_ssl_options", f"{LENGTH} seed=2 replace=true")
    second = trainer_of(dataset)
    if moment == "delete":
        with monkeypatch.context() as patched:
            patched.setattr(resumable_trainer, "delete_replaced", killed)
            patched.setattr(second, "_end_early", lambda _: None)
            with pytest.raises(Killed):
                second.run_training()
    else:
        kill_while(monkeypatch, second, moment)
    monkeypatch.delenv("nnUNet_ssl_options")
    again = trainer_of(dataset, resume=True)
    assert again.current_epoch == 0
    again.run_training()
    assert again.seed == 2
    assert not summary.exists()
    assert RunStart.read(again.output_folder) == RunStart(again.options, replaces=False)


def test_a_start_that_fails_loses_nothing_of_the_run_that_it_was_to_replace(dataset, monkeypatch):
    first = trainer_of(dataset)
    first.run_training()
    before = content_of(first.output_folder)
    monkeypatch.setenv("nnUNet_ssl_options", f"{LENGTH} replace=true")
    dataset.write_splits([{"train": ["labeled0"], "val": ["labeled9"]}])
    with pytest.raises(ValueError, match="labeled9"):
        trainer_of(dataset).run_training()
    assert content_of(first.output_folder) == before
