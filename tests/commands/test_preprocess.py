import json
import shutil

import pytest

from nnunet_ssl.commands.cli import main
from tests.data.test_unlabeled_preprocessing import write_image


@pytest.fixture
def dataset(tiny_dataset):
    dataset = tiny_dataset()
    for i in range(2):
        write_image(dataset.images_un / f"scan{i}_0000.nii.gz", seed=i)
    return dataset


@pytest.mark.parametrize("arguments", [["-d", "999"], ["-d", "Dataset999_Tiny", "-c", "3d_fullres", "-np", "1"]])
def test_preprocesses_what_is_missing(dataset, arguments, capsys):
    assert main(["preprocess", *arguments]) == 0
    assert f"3d_fullres: 2 unlabeled cases in {dataset.unlabeled_folder}" in capsys.readouterr().out
    assert (dataset.unlabeled_folder / "scan1.b2nd").exists()


def test_by_default_those_of_the_labeled_cases_are_preprocessed(dataset, capsys):
    """Planning names more configurations than somebody wants."""
    file = dataset.folder / "nnUNetPlans.json"
    plans = json.loads(file.read_text())
    stage = plans["configurations"]["3d_fullres"]
    plans["configurations"]["3d_lowres"] = stage | {"data_identifier": "nnUNetPlans_3d_lowres"}
    file.write_text(json.dumps(plans))
    assert main(["preprocess", "-d", "999"]) == 0
    assert "3d_lowres" not in capsys.readouterr().out
    assert main(["preprocess", "-d", "999", "-c", "3d_lowres"]) == 0
    assert "3d_lowres: 2 unlabeled cases in" in capsys.readouterr().out
    shutil.rmtree(dataset.labeled_folder)  # of neither: then of both
    assert main(["preprocess", "-d", "999"]) == 0
    said = capsys.readouterr().out
    assert "3d_lowres: 2 unlabeled" in said
    assert "3d_fullres: 2 unlabeled" in said


def test_damaged_image_is_named_and_the_exit_code_is_1(dataset, capsys):
    (dataset.images_un / "scan0_0000.nii.gz").write_bytes(b"no image")
    assert main(["preprocess", "-d", "999"]) == 1
    output = capsys.readouterr().out
    assert "3d_fullres: 1 unlabeled cases in" in output
    assert "3d_fullres: could not preprocess scan0: scan0_0000.nii.gz is cut off or damaged" in output


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["-d", "998"], "there is no data set '998' in nnUNet_raw="),
        (
            ["-d", "Dataset999_Tiny", "-c", "4d"],
            "has no configuration 4d, it has 3d_fullres",
        ),
        (
            ["-d", "Dataset999_Tiny", "-p", "OtherPlans"],
            "OtherPlans.json: nnUNetv2_plan_and_preprocess -d 999 --verify_dataset_integrity (or -p nnUNetPlans)",
        ),
        (["-d", "999", "-np", "0"], "-np is a number of processes, at least 1, got 0"),
    ],
)
def test_wrong_use_is_one_sentence_and_exit_code_2(dataset, arguments, message, capsys):
    assert main(["preprocess", *arguments]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert len(error.strip().splitlines()) == 1


def test_no_image_says_where_they_go(tiny_dataset, capsys):
    dataset = tiny_dataset()
    assert main(["preprocess", "-d", "999"]) == 2
    assert f"no unlabeled images: put them into {dataset.images_un} as CASE_0000.nii.gz" in capsys.readouterr().err


def test_unset_variable_is_named(tiny_dataset, monkeypatch, capsys):
    tiny_dataset()
    monkeypatch.delenv("nnUNet_raw")
    assert main(["preprocess", "-d", "999"]) == 2
    assert "nnUNet_raw not set: export nnUNet_raw=/path/to/folder" in capsys.readouterr().err


def test_parts_have_nothing_in_common_and_are_all(dataset, capsys):
    for i in range(2, 9):
        write_image(dataset.images_un / f"scan{i}_0000.nii.gz", seed=i)
    done = []
    for part in range(3):
        assert main(["preprocess", "-d", "999", "-np", "1", "--part-id", str(part), "--num-parts", "3"]) == 0
        there = {file.stem for file in dataset.unlabeled_folder.glob("scan?.b2nd")}
        assert f"{len(there) - len(done)} unlabeled cases of part {part} of 3 in" in capsys.readouterr().out
        done = there
    assert done == {f"scan{i}" for i in range(9)}
    before = {file: file.stat().st_mtime_ns for file in dataset.unlabeled_folder.iterdir()}
    assert main(["preprocess", "-d", "999", "-np", "1"]) == 0
    assert before == {file: file.stat().st_mtime_ns for file in dataset.unlabeled_folder.iterdir()}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--part-id", "2", "--num-parts", "2"], "there is no part 2 of 2: parts are numbered from 0"),
        (["--part-id", "-1", "--num-parts", "2"], "there is no part -1 of 2"),
        (["--part-id", "0", "--num-parts", "0"], "there is no part 0 of 0"),
        (["--part-id", "0"], "--part-id K and --num-parts N go together"),
    ],
)
def test_a_part_that_there_is_not_is_refused(dataset, arguments, message, capsys):
    assert main(["preprocess", "-d", "999", *arguments]) == 2
    assert message in capsys.readouterr().err
    assert not list(dataset.unlabeled_folder.glob("scan*"))
