import base64
import csv
import json
import re
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest
import SimpleITK
import torch
from matplotlib.figure import Figure

from nnunet_ssl.building_blocks.label_space import SoftmaxLabels
from nnunet_ssl.commands.cli import main
from nnunet_ssl.data.split_file import split_digest
from nnunet_ssl.evaluation.previews import chosen_cases
from nnunet_ssl.evaluation.report_tables import Table, latex
from nnunet_ssl.evaluation.runs import find_runs, warnings_about
from nnunet_ssl.trainers.nnUNetTrainerMeanTeacher import nnUNetTrainerMeanTeacher
from nnunet_ssl.training.observer import Observer
from tests.conftest import make_trainer

DATASET = "Dataset777_Report"
CASES = [f"case{i}" for i in range(6)]
OURS = "nnUNetTrainerMeanTeacher"


def write(file: Path, voxels: np.ndarray) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    image = SimpleITK.GetImageFromArray(voxels)
    image.SetSpacing((1.0, 1.0, 3.0))
    SimpleITK.WriteImage(image, str(file))


def labels_of(index: int, shift: int = 0) -> np.ndarray:
    voxels = np.zeros((6, 24, 24), np.uint8)
    voxels[1:5, 4 + shift : 14 + shift, 5 : 12 + index] = 1
    voxels[2:4, 15:20, 4 + shift : 9 + shift] = 2
    return voxels


@pytest.fixture
def place(tmp_path, monkeypatch):
    """Return a data set with six validation cases in two folds, and two trainers that have finished both."""
    for name in ("raw", "preprocessed", "results"):
        monkeypatch.setenv(f"nnUNet_{name}", str(tmp_path / name))
    rng = np.random.default_rng(0)
    labels = {"background": 0, "organ": 1, "lesion": 2}
    content = {"channel_names": {"0": "MRI"}, "labels": labels, "numTraining": 6, "file_ending": ".nii.gz"}
    for index, case in enumerate(CASES):
        write(tmp_path / "raw" / DATASET / "imagesTr" / f"{case}_0000.nii.gz", rng.normal(size=(6, 24, 24)))
        write(tmp_path / "preprocessed" / DATASET / "gt_segmentations" / f"{case}.nii.gz", labels_of(index))
    splits = [
        {"train": CASES[3:5], "val": CASES[:3], "unlabeled": ["u1", "u2"]},
        {"train": CASES[:2], "val": CASES[3:]},
    ]
    (tmp_path / "preprocessed" / DATASET / "splits_final.json").write_text(json.dumps(splits))
    for folder in ("raw", "preprocessed"):
        (tmp_path / folder / DATASET / "dataset.json").write_text(json.dumps(content))
    for trainer, shift in (("nnUNetTrainer", 2), (OURS, 1)):
        for fold, split in enumerate(splits):
            folder = tmp_path / "results" / DATASET / f"{trainer}__nnUNetPlans__3d_fullres" / f"fold_{fold}"
            for case in split["val"]:
                write(folder / "validation" / f"{case}.nii.gz", labels_of(CASES.index(case), shift))
            write(folder / "validation" / "stale.nii.gz", labels_of(0))
            times = {"epoch_start_timestamps": [0.0, 60.0], "epoch_end_timestamps": [60.0, 120.0]}
            checkpoint = {"network_weights": {}, "logging": {"mean_fg_dice": [0.2, 0.5 + 0.1 * fold], **times}}
            if trainer == OURS:
                checkpoint["nnunet_ssl"] = {"options": {"seed": 3}}
            torch.save(checkpoint, folder / "checkpoint_final.pth")
    return tmp_path


@pytest.fixture
def no_previews(monkeypatch):
    """Draw no cases, which takes most of a report's time and has tests of its own."""
    monkeypatch.setattr("nnunet_ssl.evaluation.case_pictures.previews", lambda *_: {})


def fold_of(place, trainer: str, fold: int | str, results: str = "results") -> Path:
    return place / results / DATASET / f"{trainer}__nnUNetPlans__3d_fullres" / f"fold_{fold}"


def splits_of(place) -> list[dict]:
    return json.loads((place / "preprocessed" / DATASET / "splits_final.json").read_text())


def write_splits(place, splits: list[dict]) -> None:
    (place / "preprocessed" / DATASET / "splits_final.json").write_text(json.dumps(splits))


def report(place, *more: str) -> str:
    assert main(["report", "-d", "777", "-np", "1", "-o", str(place / "report"), *more]) == 0
    return (place / "report" / "report.html").read_text(encoding="utf-8")


def table_of(page: str, name: str) -> list[list[str]]:
    body = re.search(rf'<table id="{name}">(.*?)</table>', page, re.DOTALL)[1]
    rows = re.findall(r"<tr>(.*?)</tr>", body, re.DOTALL)
    return [re.findall(r"<t[hd]>(.*?)</t[hd]>", row) for row in rows]


def rows_of_csv(place) -> list[dict[str, str]]:
    with (place / "report" / "report.csv").open(newline="") as opened:
        return list(csv.DictReader(opened))


def test_numbers_of_the_page_are_those_of_the_csv(place, no_previews):
    page = report(place)
    rows = rows_of_csv(place)
    assert len(rows) == 2 * 6 * 2
    assert {(row["training"], row["patient"], row["case"]) for row in rows} == {
        (f"fold {i // 3}", case, case)
        for i, case in enumerate(CASES)  # nothing stale
    }
    table = table_of(page, "metrics")
    assert [line[:3] for line in table[1:]] == [
        ["nnUNetTrainer", "organ", "6"],
        ["nnUNetTrainer", "lesion", "6"],
        [OURS, "organ", "6"],
        [OURS, "lesion", "6"],
    ]
    for trainer, label, _, *cells in table[1:]:
        for column, cell in zip(("dice", "jaccard", "hd95", "asd", "assd", "nsd"), cells, strict=False):
            values = [float(r[column]) for r in rows if (r["trainer"], r["label"]) == (trainer, label)]
            assert cell == f"{np.mean(values):.3f} ± {np.std(values, ddof=1):.3f}"
    dice = {
        trainer: np.array(
            [[float(r["dice"]) for r in rows if r["trainer"] == trainer and r["case"] == c] for c in CASES]
        )
        for trainer in ("nnUNetTrainer", OURS)
    }
    difference = (dice[OURS] - dice["nnUNetTrainer"]).mean()
    assert table_of(page, "differences")[1][:5] == [OURS, "6", "6", "2", f"{difference:+.4f}"]
    assert table_of(page, "differences")[1][6] == "0.0312"  # six gains: 2 / 2^6
    of_fold = (dice[OURS] - dice["nnUNetTrainer"]).mean(axis=1).reshape(2, 3).mean(axis=1)
    spread = f"{of_fold.min():+.4f} to {of_fold.max():+.4f}, SD {of_fold.std(ddof=1):.4f}"
    assert table_of(page, "differences")[1][8] == spread
    assert "p and the interval do not cover the spread between trainings" in page


def test_page_stands_alone_and_says_what_was_trained(place):
    page = report(place)
    assert not re.findall(r'(?:src|href)="(?!data:)', page)
    pictures = re.findall(r'src="data:image/png;base64,([^"]+)"', page)
    assert len(pictures) == 2 + 2 * 3
    assert all(base64.b64decode(picture).startswith(b"\x89PNG") for picture in pictures)
    runs = table_of(page, "runs")
    assert [row[:5] for row in runs[1:]] == [
        ["nnUNetTrainer", "0", "2", "–", "3"],
        ["nnUNetTrainer", "1", "2", "–", "3"],
        [OURS, "0", "2", "2", "3"],
        [OURS, "1", "2", "imagesUn", "3"],
    ]
    assert runs[1][5] == runs[3][5] != runs[2][5]
    assert runs[3][6:] == ["–", "2", "2.0", "seed=3"]
    assert "worst case, case" in page


def test_warnings(place, no_previews, capsys):
    shutil.rmtree(fold_of(place, OURS, 1) / "validation")
    splits = splits_of(place)
    splits[0]["unlabeled"] = ["case1", "u2"]
    write_splits(place, splits)
    page = report(place)
    terminal = capsys.readouterr().out
    for warning in (
        f"{OURS}, fold 1: the training is not finished, left out",
        "nnUNetTrainer, fold 0: validation cases were unlabeled cases: case1",
        f"the table of means leaves out 3 of 6 predictions: {OURS} lacks 3 of fold 1",
    ):
        assert f'<p class="warning">{warning}' in page
        assert f"warning: {warning}\n" in terminal
    assert [line[2] for line in table_of(page, "metrics")[1:]] == ["3"] * 4
    assert table_of(page, "differences")[1][1:4] == ["3", "3", "1"]
    shutil.rmtree(place / "results" / DATASET / "nnUNetTrainer__nnUNetPlans__3d_fullres")
    page = report(place)
    assert "there is no finished nnUNetTrainer" in page
    assert "Difference to" not in page, "there is nothing to compare with"


def test_classes_that_collapsed_by_the_log_are_named(place, no_previews):
    """In the words that the observer writes, through nnU-Net's own log."""
    lines = []
    observer = Observer(SoftmaxLabels(3), {1: "organ", 2: "lesion"}, lines.append)
    for epoch in range(3):
        observer.curves.log(epoch, {"labeled/1": 0.1, "pseudo_label/1": 0.1, "labeled/2": 0.1, "pseudo_label/2": 0.99})
    observer._warn_of_collapse(labels_are_complete=True)
    (line,) = lines
    log = fold_of(place, OURS, 1) / "training_log_2026_1_1_00_00_00.txt"
    log.write_text(f"2026-01-01 00:00:00.0: Epoch 3\n2026-01-01 00:00:00.0: {line}\n")
    log.with_name("training_log_2026_1_2_00_00_00.txt").write_text(f"x: {line.replace('99.000%', '98.000%')}\n")
    page = report(place)
    assert page.count("lesion has flooded") == 1
    said = (
        "class lesion has flooded in the pseudo-labels: it is 98.000% of their voxels, and 10.000% of the labeled ones"
    )
    assert f'<p class="warning">{OURS}, fold 1, by its log: {said}</p>' in page


def test_cases_that_two_folds_validate_on_stay_apart(place, no_previews):
    """Fold 1 validates on the cases of fold 0, perfectly: each counts beside the other's, not instead, as one case."""
    splits = splits_of(place)
    splits[1]["val"] = CASES[:3]
    write_splits(place, splits)
    for trainer in ("nnUNetTrainer", OURS):
        for index, case in enumerate(CASES[:3]):
            write(fold_of(place, trainer, 1) / "validation" / f"{case}.nii.gz", labels_of(index))
    page = report(place)
    assert [line[2] for line in table_of(page, "metrics")[1:]] == ["6"] * 4
    assert table_of(page, "differences")[1][1:4] == ["3", "3", "2"]
    perfect = [row for row in rows_of_csv(place) if row["training"] == "fold 1"]
    assert len(perfect) == 12
    assert {row["dice"] for row in perfect} == {"1.0"}


def test_predictions_of_a_test_set(place, no_previews, capsys):
    for index, case in enumerate(("t1", "t2", "t3")):
        write(place / "raw" / DATASET / "imagesTs" / f"{case}_0000.nii.gz", np.zeros((6, 24, 24)))
        write(place / "raw" / DATASET / "labelsTs" / f"{case}.nii.gz", labels_of(index))
        for name, shift in (("plain", 2), ("ours", 0)):
            write(place / name / f"{case}.nii.gz", labels_of(index, shift))
    page = report(place, "--predictions", f"plain={place / 'plain'}", f"ours={place / 'ours'}")
    assert "Difference to plain" in page
    assert [line[3] for line in table_of(page, "metrics") if line[0] == "ours"] == ["1.000 ± 0.000"] * 2
    (place / "plain" / "t2.nii.gz").unlink()
    page = report(place, "--predictions", f"plain={place / 'plain'}", f"ours={place / 'ours'}")
    assert f"plain: no prediction of t2 in {place / 'plain'}, left out" in page
    assert [line[2] for line in table_of(page, "metrics")[1:]] == ["2"] * 4
    shutil.rmtree(place / "raw" / DATASET / "labelsTs")
    assert main(["report", "-d", "777", "--predictions", f"a={place / 'ours'}", "-o", str(place / "report")]) == 2
    assert f"there is no reference CASE.nii.gz in {place / 'raw' / DATASET / 'labelsTs'}" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["-c", "2d"], "there is no finished training of 2d, nnUNetPlans in"),
        (["--predictions", "a=none"], "--predictions takes NAME=FOLDER with a folder that exists, got 'a=none'"),
        (["--results", "none"], "--results takes folders that exist, got 'none'"),
        (["--results", ".", "."], "--results names one twice: . ."),
        (["--results", ".", "--predictions", "a=."], "--predictions are of one data set, and go without --results"),
        (["-gt", "x"], "-gt goes with --predictions"),
        (["-np", "0"], "-np is a number of processes, at least 1, got 0"),
    ],
)
def test_wrong_use_is_one_sentence(place, arguments, message, capsys):
    assert main(["report", "-d", "777", "-o", str(place / "report"), *arguments]) == 2
    assert f"nnunet_ssl report: {message}" in capsys.readouterr().err
    assert not (place / "report").exists()


def damage(file: Path) -> None:
    file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])


def unlink_validation(folder: Path) -> None:
    for file in (folder / "validation").iterdir():
        file.unlink()


@pytest.mark.parametrize(
    ("break_it", "warning", "predictions"),
    [
        (lambda fold: shutil.copytree(fold, f"{fold}_backup"), "the folder fold_1_backup is no fold of nnU-Net's", 6),
        (lambda fold: fold.rename(fold.with_name("fold_x")), "the folder fold_x is no fold of nnU-Net's, left out", 3),
        (lambda fold: shutil.copytree(fold, fold.with_name("fold_7")), "the split has no such fold, left out", 6),
        (lambda fold: (fold / "checkpoint_final.pth").unlink(), "fold 1: the training is not finished, left out", 3),
        (lambda fold: damage(fold / "checkpoint_final.pth"), "checkpoint_final.pth cannot be read as a checkpoint", 3),
        (
            lambda fold: (fold / "checkpoint_final.pth").write_bytes(b"cnot_installed\nTrainer\n."),
            "checkpoint_final.pth cannot be read as a checkpoint: it is damaged, or none, left out",
            3,
        ),
        (
            lambda fold: torch.save({"network_weights": {}, "logging": {}}, fold / "checkpoint_final.pth"),
            "has no epoch_end_timestamps, epoch_start_timestamps, mean_fg_dice in its log, left out",
            3,
        ),
        (unlink_validation, "fold 1: no prediction of case3, case4, case5 in ", 3),
        (lambda fold: (fold / "validation" / "case4.nii.gz").unlink(), "fold 1: no prediction of case4 in ", 5),
        (
            lambda fold: damage(fold / "validation" / "case4.nii.gz"),
            "fold 1: case4 cannot be compared (",
            5,
        ),
        (
            lambda fold: write(fold / "validation" / "case3.nii.gz", np.zeros((6, 24, 23), np.uint8)),
            "case3.nii.gz has the shape (6, 24, 23), its reference (6, 24, 24)), left out",
            5,
        ),
    ],
)
def test_broken_piece_is_left_out_and_said(place, no_previews, capsys, break_it, warning, predictions):
    break_it(fold_of(place, OURS, 1))
    page = report(place)
    (line,) = [line for line in capsys.readouterr().out.splitlines() if warning in line]
    assert line.startswith(f"warning: {OURS}, fold ")
    assert warning in page.replace("&#39;", "'")
    lines = table_of(page, "metrics")[1:]
    assert [line[:3] for line in lines if line[1] == "organ"] == [
        [trainer, "organ", str(predictions)] for trainer in ("nnUNetTrainer", OURS)
    ]
    assert len(rows_of_csv(place)) == 2 * (6 + predictions)
    assert [line[:2] for line in table_of(page, "runs")[1:]] == [
        [trainer, fold]
        for trainer in ("nnUNetTrainer", OURS)
        for fold in "01"
        if trainer == "nnUNetTrainer" or fold == "0" or predictions > 3
    ]


def test_where_nothing_is_left_the_reasons_are_said(place, capsys):
    for trainer in ("nnUNetTrainer", OURS):
        fold_of(place, trainer, 0).rename(fold_of(place, trainer, "0_backup"))
        (fold_of(place, trainer, 1) / "checkpoint_final.pth").unlink()
    assert main(["report", "-d", "777", "-np", "1", "-o", str(place / "report")]) == 2
    message = capsys.readouterr().err
    assert f"there is no finished training of 3d_fullres, nnUNetPlans in {place / 'results' / DATASET}; " in message
    assert f"{OURS}, fold 1: the training is not finished" in message
    assert not (place / "report").exists()


def test_results_folder_without_finished_training_does_not_cost_the_others(place, no_previews):
    (place / "seed2" / DATASET).mkdir(parents=True)
    page = report(place, "--results", str(place / "results"), str(place / "seed2"))
    assert f"there is no finished training of 3d_fullres, nnUNetPlans in {place / 'seed2' / DATASET}" in page
    assert table_of(page, "differences")[1][1] == "6"


def test_baseline_comes_first_and_may_be_a_length_variant(place):
    results = place / "results" / DATASET
    (results / "nnUNetTrainer__nnUNetPlans__3d_fullres").rename(
        results / "nnUNetTrainer_250epochs__nnUNetPlans__3d_fullres"
    )
    (results / f"{OURS}__nnUNetPlans__3d_fullres").rename(results / "nnUNetTrainerA__nnUNetPlans__3d_fullres")
    found = find_runs(results, place / "preprocessed" / DATASET, "3d_fullres", "nnUNetPlans")
    assert [run.trainer for run in found.runs] == ["nnUNetTrainer_250epochs"] * 2 + ["nnUNetTrainerA"] * 2
    assert found.warnings == []


def test_student_stands_beside_teacher(place, no_previews):
    """A network that validated beside the one that predicts is a line of its own, and no trainer of its own."""
    for fold, cases in ((0, CASES[:3]), (1, CASES[3:])):
        folder = place / "results" / DATASET / f"{OURS}__nnUNetPlans__3d_fullres" / f"fold_{fold}" / "student"
        for case in cases:
            write(folder / "validation" / f"{case}.nii.gz", labels_of(CASES.index(case)))
        (folder / "validation" / "summary.json").write_text("{}")
    page = report(place)
    assert [line[0] for line in table_of(page, "differences")[1:]] == [OURS, f"{OURS}, student"]
    assert [line[3] for line in table_of(page, "metrics") if line[0] == f"{OURS}, student"] == ["1.000 ± 0.000"] * 2
    assert len(table_of(page, "runs")) == 1 + 4


def test_seeds_are_compared_training_by_training(place, no_previews):
    """A second folder of results, in which ours is worse than the baseline in one fold and better in the other."""
    shutil.copytree(place / "results", place / "seed2")
    folder = place / "seed2" / DATASET / f"{OURS}__nnUNetPlans__3d_fullres" / "fold_0" / "validation"
    for case in CASES[:3]:
        write(folder / f"{case}.nii.gz", labels_of(CASES.index(case), 3))
    page = report(place, "--results", str(place / "results"), str(place / "seed2"))
    lines = {line[0]: line for line in table_of(page, "trainings")[1:]}
    assert lines["nnUNetTrainer"][1:3] == [DATASET, "4"]
    assert lines[OURS][5] == "3 of 4"
    rows = rows_of_csv(place)
    assert {row["training"] for row in rows} == {
        f"fold {fold}, {name}" for fold in (0, 1) for name in ("results", "seed2")
    }
    means = {
        (trainer, training): np.mean(
            [float(r["dice"]) for r in rows if r["trainer"] == trainer and r["training"] == training]
        )
        for trainer in lines
        for training in ("fold 0, results", "fold 1, results", "fold 0, seed2", "fold 1, seed2")
    }
    own = np.array([value for (trainer, _), value in means.items() if trainer == OURS])
    plain = np.array([value for (trainer, _), value in means.items() if trainer == "nnUNetTrainer"])
    assert lines[OURS][3] == f"{own.mean():.3f} ± {own.std(ddof=1):.3f}"
    assert lines[OURS][4] == f"{(own - plain).mean():+.4f}"
    assert [line[1] for line in table_of(page, "runs")[1:3]] == ["0, results", "1, results"]


def test_identical_results_in_three_folders_are_no_evidence(place, no_previews):
    once = table_of(report(place), "differences")[1]
    for name in ("seed2", "seed3"):
        shutil.copytree(place / "results", place / name)
    folders = [str(place / name) for name in ("results", "seed2", "seed3")]
    page = report(place, "--results", *folders)
    thrice = table_of(page, "differences")[1]
    assert [once[3], thrice[3]] == ["2", "6"]
    assert thrice[:3] + thrice[4:8] == once[:3] + once[4:8]
    assert [line[2] for line in table_of(page, "metrics")[1:]] == ["18"] * 4


def test_patients_are_those_of_the_data_set(place, no_previews, capsys):
    """nnUNet_raw's dataset.json goes before: its pattern may be written after preprocessing."""
    for folder, pattern in (("raw", "^case[0-2]|case"), ("preprocessed", "^case")):
        file = place / folder / DATASET / "dataset.json"
        file.write_text(json.dumps(json.loads(file.read_text()) | {"patient_pattern": pattern}))
    page = report(place)
    line = table_of(page, "differences")[1]
    assert line[1:4] == ["4", "6", "2"]
    assert line[5:8] == ["–", "0.125", "0.125"]  # four patients, all of one sign: 2 / 2^4, and no interval
    assert {row["case"]: row["patient"] for row in rows_of_csv(place)} == {
        case: case if case < "case3" else "case" for case in CASES
    }
    file = place / "raw" / DATASET / "dataset.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"patient_pattern": "(case"}))
    assert main(["report", "-d", "777", "-np", "1", "-o", str(place / "report")]) == 2
    assert "patient_pattern in dataset.json is no regular expression: '(case'" in capsys.readouterr().err


def test_differences_are_on_what_both_have_and_means_on_what_all_have(place, no_previews):
    """A third trainer has half of the predictions, a fourth two of six, which would cost more than half of them."""
    for trainer, cases in (("nnUNetTrainerA", CASES[:3]), ("nnUNetTrainerB", CASES[1:3])):
        shutil.copytree(fold_of(place, OURS, 0), fold_of(place, trainer, 0))
        for case in set(CASES[:3]) - set(cases):
            (fold_of(place, trainer, 0) / "validation" / f"{case}.nii.gz").unlink()
    page = report(place)
    lines = {line[0]: line for line in table_of(page, "differences")[1:]}
    assert {trainer: line[1:4] for trainer, line in lines.items()} == {
        OURS: ["6", "6", "2"],
        "nnUNetTrainerA": ["3", "3", "1"],
        "nnUNetTrainerB": ["2", "2", "1"],
    }
    assert lines["nnUNetTrainerA"][8] == "–"
    listed = [line[0] for line in table_of(page, "metrics")[1:] if line[1] == "organ"]
    assert listed == ["nnUNetTrainer", "nnUNetTrainerA", OURS]
    assert {line[2] for line in table_of(page, "metrics")[1:]} == {"3"}
    assert [line[:3] for line in table_of(page, "metrics-apart")[1:]] == [
        ["nnUNetTrainerB", "organ", "2"],
        ["nnUNetTrainerB", "lesion", "2"],
    ]
    assert "nnUNetTrainerB stands in a table apart, because it would cost more than half of the cases" in page
    assert "the table of means leaves out 3 of 6 predictions: nnUNetTrainerA lacks 3 of fold 1" in page
    of_training = {line[0]: line[2:] for line in table_of(page, "trainings")[1:]}
    means = {line[0]: line[3] for line in table_of(page, "metrics")[1:]}
    assert set(means) <= set(of_training)
    assert of_training[OURS][0] == "1"  # the predictions of the table of means are of one training
    assert of_training[OURS][2] == f"{float(lines[OURS][4]):+.4f}"
    assert of_training[OURS][3] == "2 of 2"


def trained(dataset) -> Path:
    """Train for four steps and validate with the references; return the folder of the fold."""
    trainer = make_trainer(dataset, nnUNetTrainerMeanTeacher, seed=1)
    trainer.run_training()
    folder = Path(trainer.output_folder)
    shutil.copytree(dataset.folder / "gt_segmentations", folder / "validation")
    return folder


def test_digest_of_the_split_is_the_training_s_own(tiny_dataset):
    dataset = tiny_dataset()
    split = {"train": ["labeled0", "labeled1"], "val": ["labeled2", "labeled3"]}
    pool = [f"unlabeled{i}" for i in range(3)]
    folder = trained(dataset)

    def find():
        return find_runs(folder.parents[1], dataset.folder, "3d_fullres", "nnUNetPlans")

    digest = split_digest(split["train"], split["val"], pool)
    assert f"hash of the split: {digest}" in next(folder.glob("training_log*.txt")).read_text()
    (run,) = find().runs
    assert (run.split, run.train_and_val) == (digest, split_digest(split["train"], split["val"], ()))
    dataset.write_splits([split | {"unlabeled": pool}] * 2)
    assert (find().runs[0].unlabeled, find().runs[0].changed_since) == (tuple(pool), "")


def test_what_a_run_was_trained_on_is_what_its_checkpoint_says(tiny_dataset):
    dataset = tiny_dataset()
    split = {"train": ["labeled0", "labeled1"], "val": ["labeled2", "labeled3"]}
    folder = trained(dataset)
    other = {"train": ["labeled0", "labeled2"], "val": ["labeled1"]}
    for folds, changed in (
        ([split | {"unlabeled": ["unlabeled1"]}] * 2, "unlabeled cases"),
        ([other] * 2, "training or validation cases"),
        ([], "training or validation cases"),
    ):
        dataset.write_splits(folds)
        (run,) = find_runs(folder.parents[1], dataset.folder, "3d_fullres", "nnUNetPlans").runs
        assert (run.cases, run.train) == (tuple(split["val"]), tuple(split["train"]))
        assert run.unlabeled == ("unlabeled0", "unlabeled1", "unlabeled2")
        assert run.changed_since == changed
        sentence = (
            f"nnUNetTrainerMeanTeacher, fold 0: splits_final.json has other {changed} now than it was trained with"
        )
        assert any(warning.startswith(sentence) for warning in warnings_about([run]))


def test_labels_that_a_baseline_did_not_have_are_said(place, no_previews):
    """nnU-Net's checkpoints hold no cases: after `adopt` the split has more than the log tells of."""
    folder, numbers = fold_of(place, "nnUNetTrainer", 0), splits_of(place)[0]
    now = len(numbers["train"]), len(numbers["val"])
    log = folder / "training_log_2026_1_1_00_00_00.txt"
    log.write_text(f"2026: This split has {now[0]} training and {now[1]} validation cases.\n")
    assert "by its log" not in report(place)
    log.write_text(f"2026: This split has {now[0] - 1} training and {now[1]} validation cases.\n")
    page = report(place)
    assert (
        f"nnUNetTrainer, fold 0: by its log it had {now[0] - 1} training and {now[1]} validation cases, and "
        f"splits_final.json has {now[0]} and {now[1]} now: it is compared with trainings of other labels"
    ) in page
    (line,) = (line for line in table_of(page, "runs")[1:] if line[:2] == ["nnUNetTrainer", "0"])
    assert (line[2], line[5]) == (str(now[0] - 1), "?")


def store_digests(place, fold: int, **digests: str) -> None:
    """Let the checkpoint hold what a training stores of its split."""
    file = fold_of(place, OURS, fold) / "checkpoint_final.pth"
    checkpoint = torch.load(file, weights_only=False)
    checkpoint["nnunet_ssl"] |= digests
    torch.save(checkpoint, file)


def test_digests_of_the_page_are_those_of_the_checkpoints(place, no_previews):
    """Fold 0 was trained with other unlabeled cases than splits_final.json has now, fold 1 with other labeled ones."""
    first, second = splits_of(place)
    of_labeled = split_digest(first["train"], first["val"], ())
    store_digests(place, 0, split=split_digest(first["train"], first["val"], ["u1"]), train_and_val=of_labeled)
    store_digests(place, 1, split="0" * 12, train_and_val=split_digest(["case0"], second["val"], ()))
    page = report(place)
    assert [line[:7] for line in table_of(page, "runs")[1:] if line[1] == "0"] == [
        ["nnUNetTrainer", "0", "2", "–", "3", of_labeled, "–"],
        [OURS, "0", "2", "?", "3", of_labeled, split_digest(first["train"], first["val"], ["u1"])],
    ]
    assert [line[1] for line in table_of(page, "runs")[1:] if line[0] == OURS] == ["0"]
    assert f"{OURS}, fold 0: splits_final.json names other unlabeled cases now than it was trained with" in page
    changed = f"{OURS}, fold 1: splits_final.json has other cases in train or val now than it was trained with"
    assert f"{changed}, left out" in page


def test_the_page_says_what_is_known_of_leaks(place, no_previews):
    page = report(place)
    assert "Of the audit: changed copies under other names were not looked for in" in page
    cases = {case: f"{case}_0000.nii.gz" for case in splits_of(place)[0]["val"][:1] + splits_of(place)[0]["train"][:1]}
    validation, training = (place / "raw" / DATASET / "imagesTr" / file for file in cases.values())
    validation.unlink()
    validation.hardlink_to(training)
    assert "one image in training and in validation: " in report(place)


def test_picture_that_cannot_be_drawn_is_left_out_and_said(place, capsys, monkeypatch):
    """Images that are cut off or not there, and figures that fail."""
    images = place / "raw" / DATASET / "imagesTr"
    damage(images / "case0_0000.nii.gz")
    for case in CASES[1:]:
        (images / f"{case}_0000.nii.gz").unlink()

    def fail(*_):
        raise KeyError("dice")

    monkeypatch.setattr("nnunet_ssl.evaluation.report.box_plots", fail)
    monkeypatch.setattr("nnunet_ssl.evaluation.report.curves", fail)
    page = report(place)
    warnings = re.findall(r'<p class="warning">(.*?)</p>', page)
    assert capsys.readouterr().out.count("warning: cannot be drawn, left out: ") == len(warnings) == 3
    assert "box plots; curves (KeyError: &#39;dice&#39;)" in warnings[0]
    assert sum(warning.count("nnUNetTrainer: best case, case0 (fold 0)") for warning in warnings) == 1
    assert sum(len(re.findall(r"(?:worst|median|best) case, case\d \(fold \d\)", line)) for line in warnings) == 6
    assert f"(its image is not in {place / 'raw' / DATASET})" in " ".join(warnings)
    assert f"({images / 'case0_0000.nii.gz'} is damaged, or no image" in " ".join(warnings)
    assert "<img" not in page
    assert table_of(page, "differences")[1][1] == "6"


def test_case_that_cannot_be_drawn_costs_no_other(place, monkeypatch):
    def draw(image, layers, *_):
        if "Dice 0.8" in " ".join(layers):
            raise IndexError("tuple index out of range")
        return Figure()

    monkeypatch.setattr("nnunet_ssl.evaluation.case_pictures.draw_case", draw)
    page = report(place)
    (warning,) = re.findall(r'<p class="warning">cannot be drawn, left out: (.*?)</p>', page)
    titles = re.findall(r"<h2>(\S+: (?:worst|median|best) case, .*?)</h2>", page)
    assert 0 < len(titles) < 6
    assert warning.endswith(" (IndexError: tuple index out of range)")
    assert len(titles) + len(warning.split("; ")) == 6
    assert not any(title in warning for title in titles)


def test_several_data_sets_on_one_page(place, no_previews):
    """Each has its tables under its name, and every data set counts once in the line over all, whatever its size."""
    other = "Dataset778_Other"
    for folder in ("raw", "preprocessed", "results"):
        shutil.copytree(place / folder / DATASET, place / folder / other)
    results = place / "results" / other
    for trainer in ("nnUNetTrainer", OURS):
        shutil.rmtree(results / f"{trainer}__nnUNetPlans__3d_fullres" / "fold_1")
    for index, case in enumerate(CASES[:3]):
        write(
            results / f"{OURS}__nnUNetPlans__3d_fullres" / "fold_0" / "validation" / f"{case}.nii.gz", labels_of(index)
        )
    assert main(["report", "-d", "777", "778", "-np", "1", "-o", str(place / "report")]) == 0
    page = (place / "report" / "report.html").read_text(encoding="utf-8")
    lines = table_of(page, "trainings")[1:]
    gains = [float(line[4]) for line in lines if line[0] == OURS]
    assert [line[1] for line in lines if line[0] == OURS] == [DATASET, other, "all, each counted once"]
    assert gains[2] == pytest.approx((gains[0] + gains[1]) / 2, abs=1e-4)
    assert lines[-1][5] == "2 of 2"
    assert table_of(page, f"metrics-{other}")[1][2] == "3"
    assert f"{other}: Dice by structure" in page
    assert {row["dataset"] for row in rows_of_csv(place)} == {DATASET, other}
    assert "all, each counted once" in (place / "report" / "report.tex").read_text()


def test_latex_is_escaped():
    table = Table("t", "T", ["a_b", "95 %", "n"], [["x", "0.5 ± 0.1", "–"]], "")
    assert latex(table).splitlines() == [
        r"\begin{tabular}{llr}",
        r"\toprule",
        r"a\_b & 95 \% & n \\",
        r"\midrule",
        r"x & 0.5 $\pm$ 0.1 & -- \\",
        r"\bottomrule",
        r"\end{tabular}",
    ]


def test_chosen_cases_are_each_shown_once():
    assert chosen_cases({"a": 0.9, "b": 0.1, "c": 0.5, "d": 0.6}) == {"worst": "b", "median": "c", "best": "a"}
    assert chosen_cases({"a": 0.9}) == {"worst": "a"}


@pytest.mark.skipif(not shutil.which("chromium"), reason="chromium is not installed (Debian: chromium)")
def test_page_in_a_browser(place):
    """Every picture has a size, nothing is asked of the network, and the rendered table is that of the csv."""
    page = report(place)
    script = (
        "<script>addEventListener('load', () => {"
        "const sizes = [...document.images].map(i => i.complete ? i.naturalWidth : 0);"
        "const asked = performance.getEntriesByType('resource').filter(r => !r.name.startsWith('data:')).length;"
        "document.body.dataset.images = sizes.join(' '); document.body.dataset.asked = asked;"
        "document.body.dataset.wide = document.documentElement.scrollWidth > innerWidth;})</script>"
    )
    file = place / "report" / "checked.html"
    file.write_text(page.replace("</body>", f"{script}</body>"), encoding="utf-8")
    command = ["chromium", "--headless", "--no-sandbox", "--disable-gpu", "--window-size=500,900", "--dump-dom"]
    profile = f"--user-data-dir={place / 'profile'}"
    result = subprocess.run([*command, profile, file.as_uri()], capture_output=True, text=True, timeout=120)
    sizes = re.search(r'data-images="([^"]*)"', result.stdout)[1].split()
    assert len(sizes) == 8
    assert all(int(size) > 200 for size in sizes)
    assert 'data-asked="0"' in result.stdout
    assert 'data-wide="false"' in result.stdout  # a phone does not have to scroll sideways
    assert table_of(result.stdout, "metrics") == table_of(page, "metrics")


@pytest.mark.parametrize(
    "break_it", [Path.unlink, damage, lambda file: shutil.rmtree(file.parent)], ids=["missing", "damaged", "all"]
)
def test_lost_references_are_named_with_the_command_that_brings_them_back(place, no_previews, capsys, break_it):
    """Another validation, which is the remedy for predictions, would not help."""
    references = place / "preprocessed" / DATASET / "gt_segmentations"
    shutil.copytree(references, place / "raw" / DATASET / "labelsTr")
    break_it(references / "case1.nii.gz")
    code = main(["report", "-d", "777", "-np", "1", "-o", str(place / "report")])
    said = " ".join(capsys.readouterr())
    assert "--val" not in said
    assert f"{OURS}, fold 0: " in said
    if references.is_dir():
        assert code == 0
    references.mkdir(exist_ok=True)  # as nnU-Net's validation, too, needs it
    command = re.search(r"left out \((cp .*?)\)", said)[1]
    subprocess.run(command, shell=True, check=True)
    report(place)
    assert "left out" not in capsys.readouterr().out


def test_data_that_are_not_planned_yet_are_named_with_the_command(place, capsys):
    (place / "preprocessed" / DATASET / "dataset.json").unlink()
    assert main(["report", "-d", "777", "-np", "1", "-o", str(place / "report")]) == 2
    assert "dataset.json: nnUNetv2_plan_and_preprocess -d 777 --verify" in capsys.readouterr().err
