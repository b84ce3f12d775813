import csv

import numpy as np
import pytest
import SimpleITK

from nnunet_ssl.building_blocks.ellipses import Ellipse
from nnunet_ssl.commands.cli import main
from tests.conftest import SHARED_DATA

HEAD = Ellipse(70.0, 60.0, 50.0, 35.0, 0.5)


def write_mask(file, mask, spacing=(0.2, 0.2)):
    image = SimpleITK.GetImageFromArray(mask.astype(np.uint8))
    image.SetSpacing(spacing)
    SimpleITK.WriteImage(image, str(file))


def rows_of(file):
    with file.open(newline="") as opened:
        return list(csv.DictReader(opened))


def test_lengths_are_in_mm(tmp_path, capsys):
    mask = HEAD.filled((120, 140))
    write_mask(tmp_path / "011_HC_test.nii.gz", mask)
    write_mask(tmp_path / "012_HC.nii.gz", mask[None], (0.2, 0.2, 999.0))
    write_mask(tmp_path / "013_HC.nii.gz", 2 * mask)
    assert main(["hc", "-i", str(tmp_path), "-o", str(tmp_path / "hc.csv")]) == 1
    rows = rows_of(tmp_path / "hc.csv")
    assert [row["filename"] for row in rows] == ["011_HC.png", "012_HC.png", "013_HC.png"]
    for row in rows[:2]:
        assert float(row["head_circumference_mm"]) == pytest.approx(0.2 * HEAD.circumference(), abs=0.1)
        assert float(row["center_x_mm"]) == pytest.approx(14.0, abs=0.02)
        assert float(row["semi_axes_b_mm"]) == pytest.approx(7.0, abs=0.02)
        assert float(row["angle_rad"]) == pytest.approx(0.5, abs=0.01)
    assert set(rows[2].values()) == {"013_HC.png", ""}
    assert "2 of 3 masks measured\n013_HC.nii.gz: the mask is empty" in capsys.readouterr().out


def test_specks_are_not_measured(tmp_path, capsys):
    for name, size in (("pixel", (1, 1)), ("line", (1, 40))):
        mask = np.zeros((60, 60))
        mask[5 : 5 + size[0], 5 : 5 + size[1]] = 1
        write_mask(tmp_path / f"{name}.nii.gz", mask)
    assert main(["hc", "-i", str(tmp_path), "-o", str(tmp_path / "hc.csv")]) == 1
    assert "0 of 2 masks measured" in capsys.readouterr().out


def test_names_stay_apart(tmp_path):
    for name in ("011_HC", "011_HC_test"):
        write_mask(tmp_path / f"{name}.nii.gz", HEAD.filled((120, 140)))
    main(["hc", "-i", str(tmp_path), "-o", str(tmp_path / "hc.csv")])
    assert [row["filename"] for row in rows_of(tmp_path / "hc.csv")] == ["011_HC.png", "011_HC_test.png"]


def test_folder_of_the_csv_must_be_there(tmp_path, capsys):
    write_mask(tmp_path / "a.nii.gz", HEAD.filled((120, 140)))
    assert main(["hc", "-i", str(tmp_path), "-o", str(tmp_path / "none" / "hc.csv")]) == 2
    assert "there is no folder" in capsys.readouterr().err


def test_label_of_the_head_can_be_named(tmp_path):
    write_mask(tmp_path / "03744.nii.gz", 2 * HEAD.filled((120, 140)))
    assert main(["hc", "-i", str(tmp_path), "-o", str(tmp_path / "hc.csv"), "-l", "2"]) == 0


@pytest.mark.parametrize(
    ("shape", "spacing", "message"),
    [
        ((120, 140), (0.2, 0.3), "its pixels are 0.2 by 0.3 mm, expected square ones"),
        ((3, 120, 140), (0.2, 0.2, 1.0), "has more than one slice"),
        (None, None, "there is no mask CASE.nii.gz in"),
    ],
)
def test_wrong_input_is_named(tmp_path, shape, spacing, message, capsys):
    if shape:
        write_mask(tmp_path / "a.nii.gz", np.broadcast_to(HEAD.filled((120, 140)), shape), spacing)
    assert main(["hc", "-i", str(tmp_path), "-o", str(tmp_path / "hc.csv")]) == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "hc.csv").exists()


@pytest.mark.skipif(not SHARED_DATA.is_dir(), reason="the real HC18 data are not here")
def test_real_circumferences(tmp_path, monkeypatch):
    """The masks of HC18's training images against the CSV: mean absolute error below 1.5 mm."""
    from nnunet_ssl.dataset_conversion.Dataset218_HC18 import TRAINING_CSV, convert, read_csv

    monkeypatch.setenv("nnUNet_raw", str(tmp_path))
    folder = convert(SHARED_DATA / "HC18")
    assert main(["hc", "-i", str(folder / "labelsTr"), "-o", str(tmp_path / "hc.csv")]) == 0
    lines = read_csv(SHARED_DATA / "HC18" / TRAINING_CSV, 2)
    errors = [
        abs(float(row["head_circumference_mm"]) - lines[row["filename"]][1]) for row in rows_of(tmp_path / "hc.csv")
    ]
    assert len(errors) == 74
    assert np.mean(errors) < 1.5
