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

from nnunet_ssl.commands.cli import main
from nnunet_ssl.evaluation.previews import chosen_cases
from nnunet_ssl.evaluation.report import Table, latex
from nnunet_ssl.evaluation.runs import find_runs

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


def test_numbers_of_the_page_are_those_of_the_csv(place):
    page = report(place)
    rows = rows_of_csv(place)
    assert len(rows) == 2 * 6 * 2
    assert {row["case"] for row in rows} == {f"{case} (fold {i // 3})" for i, case in enumerate(CASES)}  # nothing stale
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
            [[float(r["dice"]) for r in rows if r["trainer"] == trainer and r["case"].startswith(c)] for c in CASES]
        )
        for trainer in ("nnUNetTrainer", OURS)
    }
    difference = (dice[OURS] - dice["nnUNetTrainer"]).mean()
    assert table_of(page, "differences")[1][:3] == [OURS, "6", f"{difference:+.4f}"]
    assert table_of(page, "differences")[1][4] == "0.0312"  # six gains: 2 / 2^6


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
    assert runs[3][6:] == ["2", "2.0", "seed=3"]
    assert "worst case, case" in page


def test_warnings(place, capsys):
    results = place / "results" / DATASET
    shutil.rmtree(results / f"{OURS}__nnUNetPlans__3d_fullres" / "fold_1" / "validation")
    splits = json.loads((place / "preprocessed" / DATASET / "splits_final.json").read_text())
    splits[0]["unlabeled"] = ["case1", "u2"]
    (place / "preprocessed" / DATASET / "splits_final.json").write_text(json.dumps(splits))
    page = report(place)
    for warning in (
        f"{OURS}, fold 1: the training is not finished, left out",
        "nnUNetTrainer, fold 0: validation cases were unlabeled cases: case1",
        "nnUNetTrainer, fold 1: left out, not every trainer has finished it",
    ):
        assert warning in page
        assert f"warning: {warning}" in capsys.readouterr().out or warning in page
    assert table_of(page, "differences")[1][1] == "3"
    shutil.rmtree(results / "nnUNetTrainer__nnUNetPlans__3d_fullres")
    assert "there is no finished nnUNetTrainer" in report(place)


def test_cases_that_two_folds_validate_on_stay_apart(place):
    """Fold 1 validates on the cases of fold 0, perfectly: each of its cases counts beside the other's, not instead."""
    splits = json.loads((place / "preprocessed" / DATASET / "splits_final.json").read_text())
    splits[1]["val"] = CASES[:3]
    (place / "preprocessed" / DATASET / "splits_final.json").write_text(json.dumps(splits))
    for trainer in ("nnUNetTrainer", OURS):
        folder = place / "results" / DATASET / f"{trainer}__nnUNetPlans__3d_fullres" / "fold_1" / "validation"
        for index, case in enumerate(CASES[:3]):
            write(folder / f"{case}.nii.gz", labels_of(index))
    page = report(place)
    assert table_of(page, "differences")[1][1] == "6"
    perfect = [row for row in rows_of_csv(place) if row["case"].endswith("(fold 1)")]
    assert len(perfect) == 12
    assert {row["dice"] for row in perfect} == {"1.0"}


def test_predictions_of_a_test_set(place):
    for index, case in enumerate(("t1", "t2", "t3")):
        write(place / "raw" / DATASET / "imagesTs" / f"{case}_0000.nii.gz", np.zeros((6, 24, 24)))
        write(place / "raw" / DATASET / "labelsTs" / f"{case}.nii.gz", labels_of(index))
        for name, shift in (("plain", 2), ("ours", 0)):
            write(place / name / f"{case}.nii.gz", labels_of(index, shift))
    page = report(place, "--predictions", f"plain={place / 'plain'}", f"ours={place / 'ours'}")
    assert "Difference to plain" in page
    assert [line[3] for line in table_of(page, "metrics") if line[0] == "ours"] == ["1.000 ± 0.000"] * 2


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


def test_missing_prediction_is_named(place, capsys):
    folder = place / "results" / DATASET / f"{OURS}__nnUNetPlans__3d_fullres" / "fold_1" / "validation"
    (folder / "case4.nii.gz").unlink()
    assert main(["report", "-d", "777", "-np", "1", "-o", str(place / "report")]) == 2
    assert "lacks case4: nnUNetv2_train ... 1 --val" in capsys.readouterr().err


def test_baseline_comes_first_and_may_be_a_length_variant(place):
    results = place / "results" / DATASET
    (results / "nnUNetTrainer__nnUNetPlans__3d_fullres").rename(
        results / "nnUNetTrainer_250epochs__nnUNetPlans__3d_fullres"
    )
    (results / f"{OURS}__nnUNetPlans__3d_fullres").rename(results / "nnUNetTrainerA__nnUNetPlans__3d_fullres")
    found = find_runs(results, place / "preprocessed" / DATASET, "3d_fullres", "nnUNetPlans")
    assert [run.trainer for run in found.runs] == ["nnUNetTrainer_250epochs"] * 2 + ["nnUNetTrainerA"] * 2
    assert found.warnings == []


def test_student_stands_beside_teacher(place):
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


def test_seeds_are_compared_training_by_training(place):
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
    assert {row["case"].partition(" ")[2] for row in rows} == {
        f"(fold {fold}, {name})" for fold in (0, 1) for name in ("results", "seed2")
    }
    means = {
        (trainer, training): np.mean(
            [float(r["dice"]) for r in rows if r["trainer"] == trainer and r["case"].endswith(f"({training})")]
        )
        for trainer in lines
        for training in ("fold 0, results", "fold 1, results", "fold 0, seed2", "fold 1, seed2")
    }
    own = np.array([value for (trainer, _), value in means.items() if trainer == OURS])
    plain = np.array([value for (trainer, _), value in means.items() if trainer == "nnUNetTrainer"])
    assert lines[OURS][3] == f"{own.mean():.3f} ± {own.std(ddof=1):.3f}"
    assert lines[OURS][4] == f"{(own - plain).mean():+.4f}"
    assert [line[1] for line in table_of(page, "runs")[1:3]] == ["0, results", "1, results"]


def test_several_data_sets_on_one_page(place):
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
