import json

import numpy as np
import pytest
import SimpleITK

from nnunet_ssl.commands.cli import main
from nnunet_ssl.splits.protocols import load_benchmark

PATIENTS = [*load_benchmark("acdc").train, *load_benchmark("acdc").validation]


@pytest.fixture
def acdc(tmp_path, monkeypatch):
    """Return a raw data set with one case for each patient of the published lists; class 3 is rare."""
    for name in ("raw", "preprocessed", "results"):
        (tmp_path / name).mkdir()
        monkeypatch.setenv(f"nnUNet_{name}", str(tmp_path / name))
    folder = tmp_path / "raw" / "Dataset027_ACDC"
    for name in ("imagesTr", "labelsTr", "imagesUn"):
        (folder / name).mkdir(parents=True)
    for index, patient in enumerate(PATIENTS):
        labels = np.array([[0, 1], [2, 3 if index % 10 == 0 else 0]], np.uint8)
        SimpleITK.WriteImage(SimpleITK.GetImageFromArray(labels), str(folder / f"labelsTr/{patient}_frame01.nii.gz"))
        (folder / "imagesTr" / f"{patient}_frame01_0000.nii.gz").touch()
    for patient in ("patient099", "patient028"):  # a phase of a training and one of a validation patient
        (folder / "imagesUn" / f"{patient}_frame05_0000.nii.gz").touch()
    labels = {"background": 0, "RV": 1, "MYO": 2, "LV": 3}
    (folder / "dataset.json").write_text(
        json.dumps({"file_ending": ".nii.gz", "numTraining": 80, "labels": labels, "patient_pattern": r"^(patient\d+)"})
    )
    return folder


def splits_of(raw) -> list[dict]:
    file = raw.parent.parent / "preprocessed" / raw.name / "splits_final.json"
    return json.loads(file.read_text())


def test_published_split(acdc, capsys):
    assert main(["split", "27", "--protocol", "acdc-7"]) == 0
    (split,) = splits_of(acdc)
    assert {case[:10] for case in split["train"]} == set(PATIENTS[:7])
    assert {case[:10] for case in split["val"]} == set(PATIENTS[70:])
    assert len(split["unlabeled"]) == 63
    out = capsys.readouterr().out
    assert "train.list, val.list, test.list of SSL4MIS" in out
    assert "fold 0: 7 labeled, 10 validation, 63 unlabeled cases of 7, 10, 63 patients; hash " in out
    assert "not in this split, 2 cases: patient028_frame05, patient099_frame05" in out


def test_imagesun_is_added_without_validation_and_test_patients(acdc):
    (acdc / "imagesUn" / "patient011_frame05_0000.nii.gz").touch()
    assert main(["split", "27", "--protocol", "acdc-7", "--add-imagesUn", "--allow-missing"]) == 0
    assert [case for case in splits_of(acdc)[0]["unlabeled"] if "frame05" in case] == ["patient099_frame05"]


def test_phases_of_test_patients_are_left_out(acdc):
    (acdc / "imagesTs").mkdir()
    (acdc / "imagesTs" / "patient101_frame01_0000.nii.gz").touch()
    for patient in ("patient101", "patient102"):
        (acdc / "imagesUn" / f"{patient}_frame05_0000.nii.gz").touch()
    assert main(["split", "27", "--labeled", "5"]) == 0
    for split in splits_of(acdc):
        assert "patient102_frame05" in split["unlabeled"]
        assert "patient101_frame05" not in split["unlabeled"]


def test_seeded_split_by_patient(acdc):
    assert main(["split", "27", "--labeled", "10%", "--folds", "4", "--seed", "3"]) == 0
    splits = splits_of(acdc)
    assert len(splits) == 4
    for split in splits:
        assert (len(split["train"]), len(split["val"])) == (6, 20)
        rare = {f"{patient}_frame01" for patient in PATIENTS[::10]}
        assert set(split["train"]) & rare
        validated = {case[:10] for case in split["val"]}
        assert not validated & {case[:10] for case in split["unlabeled"]}


def test_seeded_split_of_one_fold_can_be_hidden(acdc):
    assert main(["split", "27", "--labeled", "5", "--folds", "1", "--hide"]) == 0
    (split,) = splits_of(acdc)
    assert (len(split["train"]), len(split["val"])) == (5, 16)
    hidden = {file.name.removesuffix(".nii.gz") for file in (acdc / "labelsHidden").iterdir()}
    assert hidden == {case for case in split["unlabeled"] if "frame05" not in case}


def test_ids_of_test_cases_need_not_fit_the_pattern(acdc):
    (acdc / "imagesTs").mkdir()
    (acdc / "imagesTs" / "external_1_0000.nii.gz").touch()
    assert main(["split", "27", "--labeled", "5", "--group-by", r"^(patient\d+)"]) == 0


def test_interrupted_hiding_is_noticed(acdc, capsys):
    (acdc / "labelsHidden").mkdir()
    (acdc / "labelsTr" / "patient099_frame01.nii.gz").rename(acdc / "labelsHidden" / "patient099_frame01.nii.gz")
    assert main(["split", "27", "--labeled", "5"]) == 2
    assert "patient099_frame01: --hide was interrupted: --unhide brings the labels back" in capsys.readouterr().err


def test_fold_without_unlabeled_cases_is_said(acdc, capsys):
    for file in (acdc / "imagesUn").iterdir():
        file.unlink()
    assert main(["split", "27", "--labeled", "100%"]) == 0
    assert "There is a fold without unlabeled cases: only nnUNetTrainer can train on it." in capsys.readouterr().out


def test_hidden_and_brought_back(acdc, capsys):
    assert main(["split", "27", "--protocol", "acdc-3", "--hide"]) == 0
    assert len(list((acdc / "labelsTr").iterdir())) == 13
    assert len(list((acdc / "labelsHidden").iterdir())) == 67
    assert json.loads((acdc / "dataset.json").read_text())["numTraining"] == 13
    assert "67 labels hidden in" in capsys.readouterr().out
    assert main(["split", "27", "--protocol", "acdc-3", "--hide"]) == 0  # again: nothing is left to do
    assert main(["split", "27", "--protocol", "acdc-7", "--overwrite"]) == 2
    assert "needed with a label, but there is none in labelsTr: --unhide" in capsys.readouterr().err
    assert main(["split", "27", "--unhide"]) == 0
    assert len(list((acdc / "labelsTr").iterdir())) == 80
    assert "67 labels are back" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["27", "--protocol", "acdc-5"], "no protocol 'acdc-5', there are acdc-3"),
        (["27", "--protocol", "la-4"], "80 of la-4 are not here"),
        (["27", "--labeled", "ten"], "--labeled is a number of patients or a share such as 10%, got 'ten'"),
        (["27", "--labeled", "200%"], "--labeled is a number of patients or a share such as 10%, got '200%'"),
        (["27", "--labeled", "0"], "--labeled is a number of patients or a share such as 10%, got '0'"),
        (["27", "--labeled", "5", "--folds", "0"], "--folds is from 1 to 80"),
        (["27", "--labeled", "5", "--seed", "-1"], "--seed is from 0 to 4294967295, got -1"),
        (["27", "--labeled", "5", "--group-by", "frame"], "all cases with labels are of one group (patient), frame"),
        (["27", "--labeled", "5", "--allow-missing"], "--allow-missing does not apply to --labeled"),
        (["27", "--protocol", "acdc-7", "--seed", "3"], "--seed does not apply to --protocol"),
        (["27", "--unhide", "--hide"], "--hide does not apply to --unhide"),
        (
            ["27", "--labeled", "5", "--hide"],
            "--hide needs the same unlabeled cases in every fold: take --folds 1, or a",
        ),
        (["27", "--labeled", "5", "--group-by", "("], "'(' is no regular expression"),
        (["27", "--labeled", "5", "--group-by", "sub-"], "the pattern 'sub-' does not occur in the case id patient"),
        (["26", "--labeled", "5"], "nnU-Net knows no data set '26'"),
    ],
)
def test_wrong_use_is_one_sentence_and_nothing_is_written(acdc, arguments, message, capsys):
    assert main(["split", *arguments]) == 2
    assert f"nnunet_ssl split: {message}" in capsys.readouterr().err
    assert not (acdc.parent.parent / "preprocessed" / acdc.name).exists()
    assert not (acdc / "labelsHidden").exists()


def test_one_of_the_ways_must_be_named(acdc, capsys):
    with pytest.raises(SystemExit, match="2"):
        main(["split", "27"])
    assert "one of the arguments --protocol --labeled --unhide is required" in capsys.readouterr().err
