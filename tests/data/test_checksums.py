"""Preprocessed files that are not what they were; each refusal is a sentence that says what to do."""

import multiprocessing
import os
import shutil
from functools import partial
from pathlib import Path

import numpy as np
import pytest
from nnunetv2.training.dataloading.nnunet_dataset import nnUNetDatasetBlosc2

from nnunet_ssl.data import checksums
from nnunet_ssl.data.checksums import CheckedDataset, DamagedCaseError, PreprocessedFiles, checksum_of
from nnunet_ssl.data.labeled_cases import labeled_files
from nnunet_ssl.data.pool_predictions import PoolPredictions
from nnunet_ssl.data.preprocessed_images import UnlabeledDataset
from nnunet_ssl.data.stamps import read_stamp, stamp_file, state_folder
from nnunet_ssl.data.unlabeled_preprocessing import UnlabeledPreprocessing
from nnunet_ssl.training.whole_pool import WholePool
from tests.conftest import make_trainer
from tests.data.test_unlabeled_preprocessing import write_image
from trainers.nnUNetTrainerMeanTeacher import nnUNetTrainerMeanTeacher

WORDS = r"the preprocessed case {} is damaged: {} is not what it was when {}, in {}\. Look after the disk.*: {}"


def flip(file: Path, bit: int, keep_time: bool = True) -> None:
    """Flip a bit of a file, by its number from the beginning, counted round."""
    before, content = file.stat(), bytearray(file.read_bytes())
    content[bit // 8 % len(content)] ^= 1 << bit % 8
    file.write_bytes(content)
    if keep_time:
        os.utime(file, ns=(before.st_atime_ns, before.st_mtime_ns))


def write_again(folder: Path) -> None:
    """Let all files of a folder have another time, as if they had been written again."""
    for file in folder.iterdir():
        os.utime(file, ns=(0, file.stat().st_mtime_ns + 10**9))


@pytest.fixture
def labeled(tiny_dataset):
    """Return the folder of labeled cases, and a function that makes what compares its files, as a process does."""
    folder = tiny_dataset().labeled_folder
    return folder, lambda: labeled_files(folder, "Dataset999_Tiny", "nnUNetPlans", "3d_fullres")


def check_all(files: PreprocessedFiles) -> None:
    for i in range(4):
        files.check(f"labeled{i}")


@pytest.mark.parametrize("ending", [".b2nd", "_seg.b2nd", ".pkl"])
@pytest.mark.parametrize("keep_time", [True, False])
def test_a_file_that_has_changed_since_its_first_use_is_refused(labeled, ending, keep_time):
    folder, files = labeled
    check_all(files())
    flip(folder / f"labeled1{ending}", 5003, keep_time)
    check_all_but_one = files()
    check_all_but_one.check("labeled0")
    remedy = "nnUNetv2_preprocess -d 999 -plans_name nnUNetPlans -c 3d_fullres"
    expected = WORDS.format("labeled1", f"labeled1{ending}", "a training first read it", folder, remedy)
    for _ in range(2):
        with pytest.raises(DamagedCaseError, match=expected):
            check_all_but_one.check("labeled1")


def test_the_same_bytes_are_no_damage_whenever_they_were_written(labeled):
    folder, files = labeled
    check_all(files())
    os.utime(folder / "labeled1.b2nd", (1, 1))
    check_all(files())
    flip(folder / "labeled1.b2nd", 99)
    with pytest.raises(DamagedCaseError):
        files().check("labeled1")


@pytest.mark.parametrize("first", ["labeled0", "labeled1"])
def test_a_folder_that_was_preprocessed_again_gets_new_checksums(labeled, first):
    """Most of its cases are what they were: one of them may be the first that is read."""
    folder, files = labeled
    check_all(files())
    write_again(folder)
    flip(folder / "labeled1.b2nd", 99)
    flip(folder / "labeled2.b2nd", 99)
    again, meanwhile = files(), files()
    again.check(first)
    again.check("labeled1")
    meanwhile.check("labeled2")
    check_all(files())
    flip(folder / "labeled2.b2nd", 99)
    with pytest.raises(DamagedCaseError, match="labeled2"):
        check_all(files())


def test_the_files_of_another_case_are_refused(labeled):
    folder, files = labeled
    check_all(files())
    shutil.copy2(folder / "labeled0.b2nd", folder / "labeled1.b2nd")
    with pytest.raises(DamagedCaseError, match=r"labeled1.b2nd is not what it was"):
        check_all(files())
    for ending in ("_seg.b2nd", ".pkl"):
        shutil.copy(folder / f"labeled0{ending}", folder / f"labeled1{ending}")
    with pytest.raises(DamagedCaseError, match=r"labeled1.b2nd is not what it was"):
        check_all(files())


def test_a_case_that_was_preprocessed_again_by_itself_is_forgotten(labeled):
    folder, files = labeled
    check_all(files())
    flip(folder / "labeled1_seg.b2nd", 99)
    files().forget("labeled1")
    check_all(files())


def test_each_process_reads_a_file_once(labeled, monkeypatch):
    _, files = labeled
    read = []
    monkeypatch.setattr(checksums, "checksum_of", lambda file: read.append(file.name) or 0)
    one = files()
    for _ in range(3):
        one.check("labeled0")
    assert read == ["labeled0.b2nd", "labeled0_seg.b2nd", "labeled0.pkl"]


def test_no_file_is_opened_or_looked_at_after_the_first_use(labeled, monkeypatch):
    _, files = labeled
    one = files()
    one.check("labeled0")
    for name in ("stat", "open", "exists", "read_bytes"):
        monkeypatch.setattr(Path, name, None)
    one.check("labeled0")


def test_a_hidden_label_is_not_read(labeled):
    folder, files = labeled
    for ending in ("_seg.b2nd", ".pkl"):
        (folder / f"labeled0{ending}").unlink()
        (folder / f"labeled0{ending}").mkdir()
    images = UnlabeledDataset({"labeled0": folder}, Path("elsewhere"), {folder: files()})
    images.load_case("labeled0")
    flip(folder / "labeled0.b2nd", 5003)
    images = UnlabeledDataset({"labeled0": folder}, Path("elsewhere"), {folder: files()})
    with pytest.raises(DamagedCaseError, match="labeled0"):
        images.load_case("labeled0")


def test_where_nothing_can_be_written_checksums_are_kept_in_memory(labeled, monkeypatch):
    folder, files = labeled
    index = files().index

    def refuse(*_: object, **__: object) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(checksums, "write_json_atomically", refuse)
    check_all(files())
    assert not index.exists()


def test_an_index_that_is_cut_off_is_made_again(labeled):
    folder, files = labeled
    check_all(files())
    index = files().index
    index.write_text(index.read_text()[:100])
    check_all(files())
    flip(folder / "labeled3.b2nd", 77)
    with pytest.raises(DamagedCaseError, match="labeled3"):
        check_all(files())


def test_several_processes_write_one_index(labeled):
    _, files = labeled
    with multiprocessing.get_context("fork").Pool(3) as pool:
        pool.map(check_all, [files() for _ in range(6)])
    assert len(files()._known or checksums.read_if_fit(files().index, checksums.Known)) == 12


def test_properties_that_cannot_be_unpickled_are_a_sentence(labeled):
    """They were damaged before the first use: nothing else tells."""
    folder, files = labeled
    files().check("labeled1")
    flip(folder / "labeled1.pkl", 99)
    with pytest.raises(DamagedCaseError, match=r"labeled1.pkl is not what it was"):
        CheckedDataset(nnUNetDatasetBlosc2(str(folder), ["labeled1"]), files()).load_case("labeled1")
    properties = folder / "labeled0.pkl"
    properties.write_bytes(b"\x80\x04." + properties.read_bytes())
    dataset = CheckedDataset(nnUNetDatasetBlosc2(str(folder), ["labeled0"]), files())
    with pytest.raises(
        DamagedCaseError, match=r"case labeled0 is damaged: it cannot be opened \(.*nnUNetv2_preprocess"
    ):
        dataset.load_case("labeled0")


@pytest.mark.parametrize("ending", [".npy", ".npz"])
def test_older_formats(tmp_path, ending):
    data, seg = np.zeros((1, 4, 4, 4), np.float32), np.zeros((1, 4, 4, 4), np.int8)
    if ending == ".npz":
        np.savez(tmp_path / "a.npz", data=data, seg=seg)
    else:
        np.save(tmp_path / "a.npy", data)
        np.save(tmp_path / "a_seg.npy", seg)
    (tmp_path / "a.pkl").write_bytes(b"N.")
    files = partial(PreprocessedFiles, tmp_path, tmp_path / "index.json", "command")
    files().check("a")
    flip(tmp_path / f"a{ending}", 1500)
    with pytest.raises(DamagedCaseError, match=f"a{ending} is not what it was"):
        files().check("a")
    if ending == ".npz":
        files().check("a", image_only=True)  # it holds the label too, and checksums of its own
    else:
        (tmp_path / "a_seg.npy").write_bytes((tmp_path / "a_seg.npy").read_bytes()[:-8])
        with pytest.raises(DamagedCaseError, match=r"a.npy is not what it was"):
            files().check("a")


@pytest.fixture
def job(tiny_dataset) -> UnlabeledPreprocessing:
    dataset = tiny_dataset()
    for i in range(3):
        write_image(dataset.images_un / f"scan{i}_0000.nii.gz", seed=i)
    plans, dataset_json = dataset.case.plans(), dataset.case.dataset_json()
    job = UnlabeledPreprocessing(plans, "3d_fullres", dataset_json, dataset.images_un, dataset.unlabeled_folder)
    assert job.run(1) == {}
    return job


def images_of(job: UnlabeledPreprocessing) -> UnlabeledDataset:
    folders = {f"scan{i}": job.preprocessed for i in range(3)}
    return UnlabeledDataset(folders, job.preprocessed, {job.preprocessed: job.files})


@pytest.mark.parametrize("name", ["scan1.b2nd", "scan1_seg.b2nd"])
def test_an_unlabeled_file_is_compared_with_its_stamp_and_the_remedy_helps(job, name):
    """Whatever was written since: the whole folder with new times too."""
    assert read_stamp(job.preprocessed, "scan1").checksums[name] == checksum_of(job.preprocessed / name)
    write_again(job.preprocessed)
    flip(job.preprocessed / name, 2003, keep_time=False)
    command = "nnunet_ssl preprocess -d Dataset999_Tiny -c 3d_fullres -p nnUNetPlans"
    with pytest.raises(DamagedCaseError, match=f"scan1 is damaged: {name}.* it was preprocessed.*: {command}$"):
        images_of(job).load_case("scan1")
    assert job.outdated() == []  # as a training begins: no voxel is read
    assert job.outdated(retry_problems=True) == ["scan1"]
    assert job.run(1, retry_problems=True) == {}
    images_of(job).load_case("scan1")


def test_a_missing_unlabeled_file_is_named(job):
    (job.preprocessed / "scan1_seg.b2nd").unlink()
    with pytest.raises(DamagedCaseError, match=r"scan1 is damaged: scan1_seg.b2nd cannot be read \(.*No such file"):
        images_of(job).load_case("scan1")


def test_a_stamp_without_checksums_has_them_made_at_first_use(job):
    for i in range(3):
        stamp = stamp_file(job.preprocessed, f"scan{i}")
        stamp.write_text(stamp.read_text().replace('"checksums"', '"of_another_version"'))
    assert read_stamp(job.preprocessed, "scan1").checksums == {}
    for i in range(3):
        images_of(job).load_case(f"scan{i}")
    flip(job.preprocessed / "scan1.b2nd", 2003, keep_time=False)
    with pytest.raises(DamagedCaseError, match="when a training first read it"):
        images_of(job).load_case("scan1")
    assert job.run(1, retry_problems=True) == {}
    images_of(job).load_case("scan1")


def test_whole_cases_that_are_predicted_are_compared_too(job):
    pool = WholePool.__new__(WholePool)
    pool.images = images_of(job)
    pool.folders = pool.images.folders
    flip(job.preprocessed / "scan1.b2nd", 2003)
    with pytest.raises(DamagedCaseError, match="scan1"):
        pool._predict_case("scan1", PoolPredictions(job.preprocessed), None)


@pytest.mark.parametrize("workers", ["0", "2"])
@pytest.mark.parametrize("which", ["labeled", "unlabeled"])
def test_a_training_ends_with_one_sentence(tiny_dataset, monkeypatch, capfd, workers, which):
    dataset = tiny_dataset()
    monkeypatch.setenv("nnUNet_n_proc_DA", workers)
    case, folder = f"{which}0", dataset.labeled_folder if which == "labeled" else dataset.unlabeled_folder
    index = state_folder(dataset.unlabeled_folder) / ("labeled_" * (which == "labeled") + "checksums.json")
    PreprocessedFiles(folder, index, "").check(case)
    flip(folder / f"{case}.b2nd", 5003)
    processes = set(multiprocessing.active_children())
    trainer = make_trainer(dataset, nnUNetTrainerMeanTeacher, num_epochs=50, num_iterations_per_epoch=4)
    with pytest.raises(SystemExit) as ended:
        trainer.run_training()
    assert ended.value.code == 1
    log = Path(trainer.log_file).read_text()
    assert log.count(f"the preprocessed case {case} is damaged: {case}.b2nd") == 1
    assert "the same command with --c" in log
    assert set(multiprocessing.active_children()) <= processes
    printed = capfd.readouterr()
    assert "Traceback" not in printed.out + printed.err


def test_a_validation_with_a_damaged_case_ends_with_one_sentence(tiny_dataset, capsys):
    dataset = tiny_dataset()
    trainer = make_trainer(dataset, nnUNetTrainerMeanTeacher, num_epochs=1)
    trainer.run_training()
    trainer._labeled_files._checked.clear()
    trainer._labeled_files.check("labeled3")
    trainer._labeled_files._checked.clear()
    flip(dataset.labeled_folder / "labeled3.b2nd", 5003)
    with pytest.raises(SystemExit):
        trainer.perform_actual_validation()
    assert "the preprocessed case labeled3 is damaged" in Path(trainer.log_file).read_text()
    assert not list(Path(trainer.output_folder, "validation").glob("*.nii.gz"))
