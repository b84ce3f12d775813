"""What a training says of leaks when it starts, refuses, keeps in its checkpoint and validates with."""

import json
import shutil
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch

from nnunet_ssl.data.dataset_reader import DatasetReader
from nnunet_ssl.data.raw_files import RawDataset
from nnunet_ssl.data.trained_cases import CASES
from nnunet_ssl.leaks.copies import compare_all
from nnunet_ssl.trainers.nnUNetTrainerMeanTeacher import nnUNetTrainerMeanTeacher
from tests.conftest import make_trainer
from tests.leaks.scans import NAME, RawScans, scan

LABELED, UNLABELED = [f"labeled{i}" for i in range(4)], [f"unlabeled{i}" for i in range(3)]
SPLIT = {"train": LABELED[:2], "val": LABELED[2:]}


@pytest.fixture
def dataset(tiny_dataset):
    """Return a preprocessed data set whose raw files are at hand and were audited."""
    dataset = tiny_dataset()
    raw = RawScans(dataset.root)
    raw.preprocessed = dataset.folder
    raw.raw.mkdir(parents=True, exist_ok=True)
    raw.describe(**dataset.case.dataset_json())
    for seed, case in enumerate(LABELED):
        raw.add("imagesTr", case, scan(seed, (14, 16, 15)))
    dataset.scans = raw
    return dataset


@pytest.fixture
def plain(tiny_dataset):
    """Return a preprocessed data set without its raw files."""
    return tiny_dataset()


def audit(dataset) -> None:
    compare_all(RawDataset.open(dataset.scans.raw), dataset.folder)


def log_of(dataset, **settings) -> str:
    """Return what a training says before its first step."""
    trainer = make_trainer(dataset, nnUNetTrainerMeanTeacher, **{"seed": 1} | settings)
    trainer.initialize()
    trainer._collect_pool()
    return Path(trainer.log_file).read_text()


def pool_from_raw(dataset) -> None:
    """Let the pool be the images of imagesUn, which are preprocessed at the start."""
    shutil.rmtree(dataset.unlabeled_folder)
    for i, case in enumerate(UNLABELED):
        dataset.scans.add("imagesUn", case, scan(10 + i, (14, 16, 15)))


def test_clean_data_are_no_warning_and_no_voxel_is_read(dataset, monkeypatch):
    pool_from_raw(dataset)
    audit(dataset)
    log_of(dataset)
    monkeypatch.setattr(DatasetReader, "read_channels", lambda *_: pytest.fail("voxels were read"))
    log = log_of(dataset)
    assert "WARNING" not in log
    assert "were not looked for" not in log


def test_what_no_audit_has_compared_is_said_in_one_line(dataset):
    line = f"changed copies under other names were not looked for in 4 of 4 scans: nnunet_ssl audit -d {NAME}"
    dataset.write_splits([SPLIT | {"unlabeled": []}])
    pool_from_raw(dataset)
    dataset.write_splits([SPLIT])
    assert line.replace("4 of 4", "7 of 7") in log_of(dataset)


def test_a_changed_copy_of_a_validation_case_in_the_pool_is_refused(dataset):
    pool_from_raw(dataset)
    dataset.scans.add("imagesUn", "unlabeled2", 2 * np.flip(scan(3, (14, 16, 15)), 1))
    audit(dataset)
    expected = (
        r"one image in unlabeled and in validation: labeled3 ~ unlabeled2 \(1.00\).* out of imagesUn, or: nnunet_ssl"
    )
    with pytest.raises(ValueError, match=expected):
        log_of(dataset)
    dataset.write_splits([SPLIT | {"unlabeled": UNLABELED[:2]}])
    assert "WARNING" not in log_of(dataset)


@pytest.mark.parametrize(("seed", "refused"), [(11, True), (0, False), (2, False)])
def test_test_images_are_refused_in_the_pool_and_warned_of_elsewhere(dataset, seed, refused):
    pool_from_raw(dataset)
    dataset.scans.add("imagesTs", "test0", scan(seed, (14, 16, 15)) + np.float32(1))
    audit(dataset)
    if refused:
        with pytest.raises(ValueError, match=r"one image in unlabeled and in test: test0 \(imagesTs\) ~ unlabeled1"):
            log_of(dataset)
    else:
        assert f"labeled{seed} ~ test0 (imagesTs) (1.00)" in log_of(dataset)


def test_patients_and_labels_beside_images_are_warned_of(dataset):
    pool_from_raw(dataset)
    (dataset.scans.raw / "imagesTr" / "labeled0_seg.nii.gz").touch()
    trainer = make_trainer(dataset, nnUNetTrainerMeanTeacher, seed=1)
    trainer.initialize()
    trainer.dataset_json["patient_pattern"] = r"(\d)$"
    trainer._collect_pool()
    log = Path(trainer.log_file).read_text()
    assert "WARNING: a patient in unlabeled and in validation: 2, by patient_pattern (\\d)$. take the unlabeled" in log
    assert "WARNING: labels in imagesTr: by their names these are labels: labeled0_seg.nii.gz" in log


def test_raw_data_that_are_damaged_or_elsewhere_cost_no_training(dataset):
    pool_from_raw(dataset)
    (dataset.scans.raw / "dataset.json").write_text("{")
    assert "WARNING" not in log_of(dataset)
    shutil.rmtree(dataset.scans.raw)
    assert "WARNING" not in log_of(dataset)


def test_the_look_at_200_scans_takes_a_moment(dataset):
    """Of 200 scans that an audit has compared; generous, because other work is on the machine."""
    from nnunet_ssl.data.trained_cases import TrainedCases
    from nnunet_ssl.leaks.index import Index, Pair, Scan, marks_of
    from nnunet_ssl.leaks.of_training import LookAtTraining

    names = [f"s{number:03d}" for number in range(200)]
    for name in names:
        (dataset.scans.raw / "imagesTr" / f"{name}_0000.nii.gz").touch()
    index = Index()
    for name in names:
        marks = marks_of([dataset.scans.raw / "imagesTr" / f"{name}_0000.nii.gz"])
        index.scans[f"imagesTr/{name}"] = Scan(marks, [10, 10, 10], [None])
    for first, second in zip(names, names[1:], strict=False):
        pair = (f"imagesTr/{first}", f"imagesTr/{second}")
        index.pairs[pair] = Pair([index.scans[name].marks for name in pair], 0.5, False)
    index.write(dataset.folder)
    started = time.process_time()
    look = LookAtTraining(dataset.scans.raw, dataset.folder, {}, "nnUNetPlans")
    assert [*look.at(0, TrainedCases.of(names[:100], names[100:], []), dataset.labeled_folder)]
    assert time.process_time() - started < 1


# ---- what a checkpoint holds ----


def trained(dataset, **settings):
    trainer = make_trainer(dataset, nnUNetTrainerMeanTeacher, **{"seed": 1} | settings)
    trainer.run_training()
    return trainer


def kept(trainer, name: str = "final") -> dict:
    return torch.load(Path(trainer.output_folder, f"checkpoint_{name}.pth"), weights_only=False)["nnunet_ssl"]


def test_a_checkpoint_holds_its_cases_as_plain_text(plain):
    ours = kept(trained(plain))
    assert ours[CASES] == {"train": LABELED[:2], "val": LABELED[2:], "unlabeled": UNLABELED, "before": []}
    assert json.loads(json.dumps(ours[CASES])) == ours[CASES]
    assert {type(case) for cases in ours[CASES].values() for case in cases} == {str}


def test_a_resumed_run_keeps_its_cases(plain):
    trainer = trained(plain)
    resumed = make_trainer(plain, nnUNetTrainerMeanTeacher, resume=True)
    resumed.load_checkpoint(f"{trainer.output_folder}/checkpoint_final.pth")
    assert resumed._split_digests[CASES] == kept(trainer)[CASES]


def validated(dataset, trainer, monkeypatch) -> list[str]:
    """Return the cases that --val validates, as nnUNetv2_train does."""
    other = make_trainer(dataset, nnUNetTrainerMeanTeacher, resume=True)
    other.load_checkpoint(f"{trainer.output_folder}/checkpoint_final.pth")
    found = []

    def note(self, *_):
        found.extend(self.do_split()[1])

    monkeypatch.setattr("nnunetv2.training.nnUNetTrainer.nnUNetTrainer.nnUNetTrainer.perform_actual_validation", note)
    other.perform_actual_validation()
    today = json.loads((dataset.folder / "splits_final.json").read_text())[0]
    assert sorted(other.do_split()[1]) == today["val"]  # again
    return sorted(found), Path(other.log_file).read_text()


def test_val_takes_the_cases_that_the_run_began_with(plain, monkeypatch):
    trainer = trained(plain)
    assert validated(plain, trainer, monkeypatch)[0] == LABELED[2:]
    plain.write_splits([{"train": LABELED[1:3], "val": [LABELED[0]]}])
    cases, log = validated(plain, trainer, monkeypatch)
    assert cases == LABELED[2:]
    assert (
        "WARNING: splits_final.json has other training or validation cases for fold 0 than this run began with" in log
    )


def test_val_of_a_checkpoint_without_cases_is_refused_with_another_split(plain, monkeypatch):
    trainer = trained(plain)
    file = Path(trainer.output_folder, "checkpoint_final.pth")
    checkpoint = torch.load(file, weights_only=False)
    del checkpoint["nnunet_ssl"][CASES]
    torch.save(checkpoint, file)
    assert validated(plain, trainer, monkeypatch)[0] == LABELED[2:]
    plain.write_splits([{"train": LABELED[1:3], "val": [LABELED[0]]}])
    with pytest.raises(ValueError, match="put that file back, or train again"):
        validated(plain, trainer, monkeypatch)


def test_a_split_that_changes_while_a_run_goes_on_does_not_cost_its_validation(plain, monkeypatch):
    trainer = make_trainer(plain, nnUNetTrainerMeanTeacher, seed=1)
    trainer.run_training()
    (plain.folder / "splits_final.json").write_text("{")
    trainer._validates = True
    assert tuple(map(sorted, trainer.do_split())) == (LABELED[:2], LABELED[2:])


# ---- init_checkpoint ----


def test_weights_that_saw_the_validation_are_refused(plain, monkeypatch):
    first = trained(plain)
    file = f"{first.output_folder}/checkpoint_final.pth"
    aside = plain.root / "first.pth"
    shutil.copy(file, aside)
    plain.write_splits([{"train": [LABELED[0], LABELED[3]], "val": [LABELED[1], LABELED[2]]}])
    trainer = make_trainer(plain, nnUNetTrainerMeanTeacher, seed=1, init_checkpoint=str(aside))
    with pytest.raises(
        ValueError, match=r"first.pth was trained with the labels of cases that validate .*: labeled1\. Take"
    ):
        trainer.on_train_start()
    trainer = make_trainer(plain, nnUNetTrainerMeanTeacher, seed=1)
    monkeypatch.setattr(sys, "argv", ["nnUNetv2_train", "999", "-pretrained_weights", str(aside)])
    with pytest.raises(ValueError, match="^-pretrained_weights: .*first.pth was trained with the labels of cases that"):
        trainer.on_train_start()


def test_weights_are_remembered_through_two_runs(plain):
    aside = plain.root / "first.pth"
    shutil.copy(f"{trained(plain).output_folder}/checkpoint_final.pth", aside)
    second = plain.root / "second.pth"
    plain.write_splits([{"train": LABELED[1:], "val": LABELED[1:]}])  # validates itself: nothing is held out
    trainer = make_trainer(plain, nnUNetTrainerMeanTeacher, seed=1, init_checkpoint=str(aside))
    trainer.on_train_start()
    trainer.save_checkpoint(str(second))
    assert torch.load(second, weights_only=False)["nnunet_ssl"][CASES]["before"] == LABELED[:2]
    trainer = make_trainer(plain, nnUNetTrainerMeanTeacher, seed=1, init_checkpoint=str(second))
    trainer.on_train_start()
    assert trainer._split_digests[CASES]["before"] == LABELED
    plain.write_splits([{"train": LABELED[1:], "val": [LABELED[0]]}])
    trainer = make_trainer(plain, nnUNetTrainerMeanTeacher, seed=1, init_checkpoint=str(second))
    with pytest.raises(ValueError, match=r"second.pth was trained with the labels .*: labeled0\. Take"):
        trainer.on_train_start()


def test_a_resumed_run_remembers_its_first_weights(plain):
    aside = plain.root / "first.pth"
    shutil.copy(f"{trained(plain).output_folder}/checkpoint_final.pth", aside)
    plain.write_splits([{"train": LABELED[1:], "val": LABELED[1:]}])
    second = trained(plain, init_checkpoint=str(aside))
    resumed = make_trainer(plain, nnUNetTrainerMeanTeacher, resume=True)
    resumed.load_checkpoint(f"{second.output_folder}/checkpoint_final.pth")
    resumed._collect_pool()
    assert resumed._split_digests[CASES]["before"] == LABELED[:2]


def test_weights_of_nnunet_are_of_the_fold_they_name(plain):
    plain.write_splits([SPLIT, {"train": LABELED[2:], "val": LABELED[:2]}])
    file = plain.root / "nnunet.pth"
    trainer = make_trainer(plain, nnUNetTrainerMeanTeacher, seed=1)
    trainer.initialize()
    weights = {"network_weights": trainer.network.state_dict()}

    def start() -> str:
        trainer = make_trainer(plain, nnUNetTrainerMeanTeacher, seed=1, init_checkpoint=str(file))
        trainer.on_train_start()
        return Path(trainer.log_file).read_text()

    torch.save(weights | {"init_args": {"plans": {"dataset_name": NAME}, "fold": 1}}, file)
    with pytest.raises(ValueError, match=r"nnunet.pth was trained with the labels .*: labeled2, labeled3\. Take"):
        start()
    torch.save(weights | {"init_args": {"plans": {"dataset_name": NAME}, "fold": 0}}, file)
    assert "WARNING" not in start()
    torch.save(weights | {"init_args": {"plans": {"dataset_name": "Dataset001_Other"}, "fold": 1}}, file)
    assert "nnunet.pth does not say on which cases it was trained" in start()
    torch.save(weights, file)
    assert "nnunet.pth does not say on which cases it was trained" in start()
