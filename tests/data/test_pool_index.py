"""A pool of symbolic cases, as benchmarks/pool_scale.py lays it out: what a start opens, and what it notices."""

import builtins
import io
import json
import os
import shutil
import sys
from dataclasses import replace
from multiprocessing.pool import ThreadPool
from pathlib import Path

import blosc2
import pytest

import pool_scale
from nnunet_ssl.data import pool_index, stamps
from nnunet_ssl.data.pool_index import INDEX, read_stamps
from nnunet_ssl.data.stamps import read_stamp, stamp_file, state_folder
from nnunet_ssl.trainers.nnUNetTrainerMeanTeacher import nnUNetTrainerMeanTeacher
from tests.conftest import make_trainer

MANY, CASES = 300, 30
CHANGED = "scan000023"


@pytest.fixture(scope="module")
def laid_out(tmp_path_factory):
    root = tmp_path_factory.mktemp("pool")
    pool_scale.lay_out(root, CASES)
    return root


@pytest.fixture
def job(laid_out, tmp_path):
    shutil.copytree(laid_out, tmp_path / "data")
    job = pool_scale.job_of(pool_scale.dataset_of(tmp_path / "data"))
    assert job.outdated() == []
    return job


@pytest.fixture
def opened(monkeypatch) -> list[str]:
    """The files of cases that are opened from now on."""
    found = []

    def noting(opens):
        def noted(file="", *positional, **named):
            found.append(str(named.get("urlpath", file)))
            return opens(*([file] if file else []), *positional, **named)

        return noted

    for module in (io, builtins, blosc2):
        monkeypatch.setattr(module, "open", noting(module.open))
    return found


def of_cases(opened: list[str]) -> list[str]:
    return [file for file in opened if "scan" in Path(file).name]


def test_a_later_start_opens_no_file_of_a_case(tmp_path, monkeypatch, opened):
    pool_scale.lay_out(tmp_path, MANY)
    for name in ("raw", "preprocessed", "results"):
        monkeypatch.setenv(f"nnUNet_{name}", str(tmp_path / name))
    dataset = pool_scale.dataset_of(tmp_path)
    opened.clear()
    make_trainer(dataset, nnUNetTrainerMeanTeacher).on_train_start()
    assert {Path(file).suffix for file in of_cases(opened)} == {".json"}  # the stamps, of which nobody has an index yet
    assert len(of_cases(opened)) == MANY - 1
    opened.clear()
    trainer = make_trainer(dataset, nnUNetTrainerMeanTeacher)
    trainer.on_train_start()
    assert len(trainer.streams[1].images.folders) == MANY
    assert of_cases(opened) == []
    batch = next(trainer.dataloader_train)
    assert {Path(file).name.partition(".")[0].removesuffix("_seg") for file in of_cases(opened)} == {
        *batch["unlabeled"]["keys"]
    }


@pytest.mark.parametrize(
    "change",
    [
        lambda job: pool_scale.write_image(job.images / f"{CHANGED}_0000.nii", "another"),
        lambda job: (job.preprocessed / f"{CHANGED}_seg.b2nd").unlink(),
        lambda job: cut_off(job.preprocessed / f"{CHANGED}.b2nd"),
        lambda job: stamp_file(job.preprocessed, CHANGED).unlink(),
        lambda job: stamp_file(job.preprocessed, CHANGED).write_text(""),
        lambda job: write_stamp(job, settings={}),
    ],
    ids=["image", "preprocessed is gone", "preprocessed is cut off", "stamp is gone", "stamp is empty", "settings"],
)
def test_exactly_what_changed_is_outdated_and_done_again(job, change):
    change(job)
    assert job.outdated() == [CHANGED]
    before = marks_of(job.preprocessed)
    assert job.run(1) == {}
    changed = {name.partition(".")[0].removesuffix("_seg") for name, mark in marks_of(job.preprocessed) - before}
    assert changed == {CHANGED}
    assert job.outdated() == []
    assert indexed(job) == {f"scan{i:06d}" for i in range(CASES)}


def test_one_case_more_and_one_less(job):
    pool_scale.write_image(job.images / "more_0000.nii", "more")
    (job.images / "scan000007_0000.nii").unlink()
    assert job.outdated() == ["more"]
    assert job.run(1) == {}
    assert job.outdated() == []
    assert job.image_files().keys() == {"more", *(f"scan{i:06d}" for i in range(CASES))} - {"scan000007"}


@pytest.mark.parametrize("content", [None, "", "{}", '{"settings": [], "stamps": {"scan000001": [1]}}', "dangling"])
def test_an_index_that_is_missing_or_damaged_is_made_again(job, content):
    file = state_folder(job.preprocessed) / INDEX
    before, expected = file.read_bytes(), read_stamps(job.preprocessed)
    if content == "dangling":
        content = json.dumps(json.loads(before) | {"settings": []})
    file.unlink()
    if content is not None:
        file.write_text(content)
    assert read_stamps(job.preprocessed) == expected
    assert json.loads(file.read_bytes()).keys() == {"settings", "stamps"}
    assert indexed(job) == expected.keys()


def test_the_index_says_what_the_stamps_say_and_settings_once(job):
    found = read_stamps(job.preprocessed)
    for case in job.image_files():
        stamp = read_stamp(job.preprocessed, case)
        assert found[case] == replace(stamp, files=[(*mark[:3], "") for mark in stamp.files], checksums={})
    assert len(json.loads((state_folder(job.preprocessed) / INDEX).read_text())["settings"]) == 1


def test_a_stamp_that_nobody_can_read_is_none_and_costs_no_new_index(job, monkeypatch):
    stamp_file(job.preprocessed, CHANGED).write_text("{}")
    monkeypatch.setattr(pool_index, "write_json_atomically", None)
    assert read_stamps(job.preprocessed).keys() == {f"scan{i:06d}" for i in range(CASES)} - {CHANGED}


def test_a_folder_that_is_only_read_is_no_obstacle(job, monkeypatch):
    def refuse(*_, **__):
        raise PermissionError("only read")

    (state_folder(job.preprocessed) / INDEX).unlink()
    monkeypatch.setattr(pool_index, "write_json_atomically", refuse)
    assert len(read_stamps(job.preprocessed)) == CASES
    assert not (state_folder(job.preprocessed) / INDEX).exists()


def test_five_folds_that_start_at_once_read_each_stamp_once(job, monkeypatch):
    (state_folder(job.preprocessed) / INDEX).unlink()
    read = []
    monkeypatch.setattr(pool_index, "read_stamp", lambda *of: read.append(of[1]) or stamps.read_stamp(*of))
    with ThreadPool(5) as pool:
        found = pool.map(read_stamps, [job.preprocessed] * 5)
    assert all(one == found[0] for one in found)
    assert sorted(read) == sorted(found[0])


def marks_of(folder: Path) -> set[tuple[str, int]]:
    return {(file.name, file.stat().st_mtime_ns) for file in folder.iterdir()}


def indexed(job) -> set[str]:
    return set(json.loads((state_folder(job.preprocessed) / INDEX).read_text())["stamps"])


def cut_off(file: Path) -> None:
    content = file.read_bytes()
    file.unlink()
    file.write_bytes(content[:-10])


def write_stamp(job, **changes) -> None:
    file = stamp_file(job.preprocessed, CHANGED)
    file.write_text(json.dumps(json.loads(file.read_text()) | changes))


def test_sizes_and_times_are_of_whole_names(tmp_path):
    (tmp_path / "a.json").write_text("12")
    (tmp_path / "a.json.1.tmp").write_text("12")
    os.utime(tmp_path / "a.json", ns=(7, 8))
    assert pool_index.sizes_and_times(tmp_path, ".json") == {"a": (2, 8)}
    assert pool_index.sizes_and_times(tmp_path / "nowhere") == {}


@pytest.mark.skipif(sys.platform != "linux", reason="reads Linux's account of a process")
def test_the_benchmark_measures(tmp_path):
    """In this process: one of its own is slow to start."""
    pool_scale.lay_out(tmp_path, 5)
    assert pool_scale.look(tmp_path, 0.0)["seconds"] > 0
