"""A run on a disk that is full: a sentence, and no half of a file that nnU-Net writes."""

import errno
import json
import os
from pathlib import Path

import numpy as np
import pytest
import SimpleITK

from nnunet_ssl.trainers.nnUNetTrainerMeanTeacher import nnUNetTrainerMeanTeacher
from nnunet_ssl.training import last_epoch
from nnunet_ssl.training.checkpoints import checkpoints_of, previous_checkpoint, save_atomically
from nnunet_ssl.training.disks import disk_ends_the_run, whole_predictions, written_together
from tests.conftest import make_trainer

FULL = (errno.ENOSPC, os.strerror(errno.ENOSPC))


def test_a_fault_of_the_disk_ends_the_run_with_a_sentence_and_other_errors_as_they_are():
    said = []
    with pytest.raises(SystemExit) as ended, disk_ends_the_run(said.append):
        raise OSError(*FULL, "/a")
    assert ended.value.code == 1
    assert said[0].startswith("/a cannot be written: the disk is full")
    with pytest.raises(FileNotFoundError), disk_ends_the_run(said.append):
        raise FileNotFoundError(errno.ENOENT, "no", "/a")
    assert len(said) == 1


def test_files_are_written_together_or_none_is(tmp_path):
    (tmp_path / "plans.json").write_text("before")
    with pytest.raises(OSError, match="No space"), written_together(tmp_path, "fold_0_0") as unfinished:
        (unfinished / "plans.json").write_text("ha")
        raise OSError(*FULL)
    assert [file.read_text() for file in tmp_path.iterdir()] == ["before"]
    with written_together(tmp_path, "fold_0_0") as unfinished:
        (unfinished / "plans.json").write_text("after")
    assert [file.read_text() for file in tmp_path.iterdir()] == ["after"]


def predictions(folder: Path) -> None:
    for case in "ab":
        SimpleITK.WriteImage(SimpleITK.Image(9, 9, 9, SimpleITK.sitkUInt8), str(folder / f"{case}.nii.gz"))
        np.savez_compressed(folder / f"{case}.npz", probabilities=np.zeros((2, 9, 9, 9)))
    (folder / "summary.json").write_text("{}")


def cut(file: Path) -> None:
    os.truncate(file, file.stat().st_size // 2)


@pytest.mark.parametrize("name", ["a.nii.gz", "b.npz"])
@pytest.mark.parametrize("error", [None, RuntimeError("nnU-Net could not read it")])
def test_predictions_that_are_cut_off_go_with_their_scores(tmp_path, name, error):
    with pytest.raises(OSError, match="No space") as raised, whole_predictions(tmp_path, ".nii.gz"):
        predictions(tmp_path)
        cut(tmp_path / name)
        if error is not None:
            raise error
    assert raised.value.filename == str(tmp_path / name)
    assert {file.name for file in tmp_path.iterdir()} == {"a.nii.gz", "a.npz", "b.nii.gz", "b.npz"} - {name}


def test_whole_predictions_stay_and_errors_too(tmp_path):
    with whole_predictions(tmp_path, ".nii.gz"):
        predictions(tmp_path)
    assert len(list(tmp_path.iterdir())) == 5
    with pytest.raises(RuntimeError, match="of its own"), whole_predictions(tmp_path, ".nii.gz"):
        cut(tmp_path / "summary.json")
        raise RuntimeError("of its own")
    assert not (tmp_path / "summary.json").exists(), "half of the scores are none"


def test_a_checkpoint_that_does_not_fit_leaves_what_was_there(tmp_path, monkeypatch):
    file = tmp_path / "checkpoint_latest.pth"
    save_atomically({"epoch": 1}, file)
    save_atomically({"epoch": 2}, file)
    before = {one: one.read_bytes() for one in tmp_path.iterdir()}
    assert {*before} == {file, previous_checkpoint(file)}

    def full(_):
        raise OSError(*FULL)

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space") as raised:
        save_atomically({"epoch": 3}, file)
    assert raised.value.filename == str(file)
    assert {one: one.read_bytes() for one in tmp_path.iterdir()} == before


def test_nothing_is_left_of_half_a_debug_json_and_a_whole_one_names_the_folders(tiny_dataset, monkeypatch):
    dataset = tiny_dataset()
    trainer = make_trainer(dataset, nnUNetTrainerMeanTeacher)
    file, base = Path(trainer.output_folder, "debug.json"), trainer.output_folder_base
    trainer.on_train_start()
    assert json.loads(file.read_text())["output_folder_base"] == base == trainer.output_folder_base

    def half(_, name):
        Path(name).write_text("{")
        raise OSError(*FULL)

    monkeypatch.setattr("nnunetv2.training.nnUNetTrainer.nnUNetTrainer.save_json", half)
    with pytest.raises(OSError, match="No space"):
        trainer._save_debug_information()
    assert not file.exists()


def test_a_training_whose_checkpoint_does_not_fit_ends_with_a_sentence_and_goes_on(tiny_dataset, monkeypatch):
    dataset = tiny_dataset()
    trainer = make_trainer(dataset, nnUNetTrainerMeanTeacher, seed=1, num_epochs=4, checkpoint_minutes=0)
    save = last_epoch.save_atomically

    def full_from_the_second(checkpoint, file):
        if checkpoint["current_epoch"] > 1:
            raise OSError(*FULL, str(file))
        save(checkpoint, file)

    monkeypatch.setattr(last_epoch, "save_atomically", full_from_the_second)
    trainer.save_checkpoint = lambda _file: None  # as if no epoch was the best
    with pytest.raises(SystemExit) as ended:
        trainer.run_training()
    assert ended.value.code == 1
    last = Path(trainer.log_file).read_text().splitlines()[-1]
    assert "checkpoint_latest.pth cannot be written: the disk is full (" in last
    assert [file.name for file in checkpoints_of(trainer.output_folder)] == ["checkpoint_latest.pth"]
    assert not [*Path(trainer.output_folder_base).rglob("*.tmp"), *Path(trainer.output_folder_base).glob(".*")]
    assert json.loads((Path(trainer.output_folder_base) / "plans.json").read_text())
