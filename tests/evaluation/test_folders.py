import csv
import json

import numpy as np
import pytest
import SimpleITK

from nnunet_ssl.commands.cli import main
from nnunet_ssl.evaluation.folders import Structures, evaluate_folders

SPACING = (1.0, 1.0, 2.0)


def write(file, voxels, spacing=SPACING):
    file.parent.mkdir(parents=True, exist_ok=True)
    image = SimpleITK.GetImageFromArray(voxels.astype(np.uint8))
    image.SetSpacing(spacing)
    SimpleITK.WriteImage(image, str(file))


def cube(start: int, value: int = 1) -> np.ndarray:
    voxels = np.zeros((8, 12, 12))
    voxels[2:6, start : start + 4, 4:8] = value
    return voxels


@pytest.fixture
def folders(tmp_path):
    """Two cases: moved by one voxel of 1 mm along y, and a second structure that the prediction lacks."""
    for case, reference, prediction in (
        ("a", cube(2) + cube(7, 2), cube(3) + cube(8, 2)),
        ("b", cube(2) + cube(7, 2), cube(2)),
    ):
        write(tmp_path / "gt" / f"{case}.nii.gz", reference)
        write(tmp_path / "pred" / f"{case}.nii.gz", prediction)
    return tmp_path


def rows_of(file):
    with file.open(newline="") as opened:
        return {(row["case"], row["label"]): row for row in csv.DictReader(opened)}


@pytest.mark.parametrize("processes", ["1", "2"])
def test_csv_and_summary(folders, processes, capsys):
    """By hand: 4x4x4 voxels of 2 mm³, moved by one: 48 common, Dice 0.75, Jaccard 0.6."""
    out = folders / "results" / "summary.csv"
    arguments = ["-gt", str(folders / "gt"), "-pred", str(folders / "pred"), "-o", str(out), "-np", processes]
    assert main(["evaluate", *arguments]) == 0
    rows = rows_of(out)
    assert list(rows) == [("a", "1"), ("a", "2"), ("b", "1"), ("b", "2")]
    assert list(rows["a", "1"]) == [
        "case", "label", "dice", "jaccard", "hd95", "asd", "assd", "nsd", "volume_gt_ml", "volume_pred_ml"
    ]  # fmt: skip
    assert [float(rows["a", "1"][name]) for name in ("dice", "jaccard", "hd95", "nsd")] == [0.75, 0.6, 1, 1]
    assert float(rows["a", "1"]["volume_gt_ml"]) == 0.128
    assert [rows["b", "2"][name] for name in ("dice", "hd95", "nsd", "volume_pred_ml")] == ["0", "nan", "0", "0"]
    lines = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert lines[0][-3:] == ["empty_gt", "empty_pred", "distances_undefined"]
    assert lines[2][:5] == ["2", "2", "0.375", "±", "0.530"]
    assert lines[2][-3:] == ["0", "1", "1"]


def test_regions_and_ignore_label(folders):
    """With voxels of the ignore label left out of both, the whole of case b differs by its second structure."""
    reference = cube(2) + cube(7, 2)
    reference[:, 7:, 4:6] = 3
    write(folders / "gt" / "b.nii.gz", reference)
    content = {"labels": {"background": 0, "whole": [1, 2], "core": 2, "ignore": 3}, "file_ending": ".nii.gz"}
    (folders / "dataset.json").write_text(json.dumps(content))
    structures = Structures.of_dataset(folders / "dataset.json")
    assert structures.values == {"whole": (1, 2), "core": (2,)}
    rows = {(r.case, r.label): r.metrics for r in evaluate_folders(folders / "gt", folders / "pred", structures)}
    assert rows["b", "whole"].dice == pytest.approx(2 * 64 / (64 + 32 + 64))
    assert rows["b", "core"].volume_gt_ml == pytest.approx(0.064)


def without_prediction(folders):
    (folders / "pred" / "b.nii.gz").unlink()


def other_shape(folders):
    write(folders / "pred" / "b.nii.gz", cube(2)[1:])


def cut_off(folders):
    file = folders / "pred" / "b.nii.gz"
    file.write_bytes(file.read_bytes()[:-20])


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (without_prediction, "1 of 2 references have no prediction in"),
        (other_shape, "b.nii.gz has the shape (7, 12, 12), its reference (8, 12, 12)"),
        (cut_off, "b.nii.gz is damaged"),
    ],
)
def test_faults_are_named_and_nothing_is_written(folders, damage, message, capsys):
    damage(folders)
    out = folders / "summary.csv"
    assert main(["evaluate", "-gt", str(folders / "gt"), "-pred", str(folders / "pred"), "-o", str(out)]) == 2
    assert message in capsys.readouterr().err
    assert not out.exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["-gt", "none"], "none is no folder"),
        (["-np", "0"], "-np is a number of processes, at least 1, got 0"),
        (["--tolerance", "-1"], "--tolerance is a distance in mm, at least 0, got -1.0"),
        (["-gt", "."], "there is no reference CASE.nii.gz in ."),
    ],
)
def test_wrong_use_is_one_sentence(folders, arguments, message, capsys, monkeypatch):
    (folders / "empty").mkdir()
    monkeypatch.chdir(folders / "empty")
    assert main(["evaluate", "-gt", str(folders / "gt"), "-pred", str(folders / "pred"), *arguments]) == 2
    assert f"nnunet_ssl evaluate: {message}" in capsys.readouterr().err


def test_references_without_prediction_are_left_out_when_asked(folders, capsys):
    """nnU-Net's validation folder holds a fifth of the references."""
    (folders / "pred" / "b.nii.gz").unlink()
    arguments = ["evaluate", "-gt", str(folders / "gt"), "-pred", str(folders / "pred")]
    assert main(arguments) == 2
    assert "have no prediction in" in (error := capsys.readouterr().err)
    assert "(--chill leaves them out): b" in error
    assert main([*arguments, "-o", str(folders / "s.csv"), "--chill"]) == 0
    assert "1 of " in capsys.readouterr().out
    with (folders / "s.csv").open(newline="") as opened:
        assert "b" not in {row["case"] for row in csv.DictReader(opened)}


@pytest.mark.slow
def test_twenty_large_cases_in_a_minute(tmp_path):
    """20 cases of 512 x 512 x 100 with two labels, on two processes, in under 60 s."""
    import time

    z, y, x = np.mgrid[:100, :512, :512]
    for case in range(20):
        for folder, shift in (("gt", 0), ("pred", 5)):
            voxels = np.zeros((100, 512, 512), np.uint8)
            voxels[((z - 50) / 35) ** 2 + ((y - 256 - shift) / 90) ** 2 + ((x - 200) / 80) ** 2 < 1] = 1
            voxels[((z - 50) / 20) ** 2 + ((y - 256) / 40) ** 2 + ((x - 400 - case) / 40) ** 2 < 1] = 2
            write(tmp_path / folder / f"case{case:02d}.nii.gz", voxels, (0.8, 0.8, 2.5))
    start = time.monotonic()
    rows = evaluate_folders(tmp_path / "gt", tmp_path / "pred", Structures({"1": (1,), "2": (2,)}), num_processes=2)
    assert time.monotonic() - start < 60
    assert len(rows) == 40
