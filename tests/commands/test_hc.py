import csv
import json

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
        assert row["cut_by_border"] == "no"
    assert list(rows[0])[-3:] == ["head_circumference_mm", "cut_by_border", "parts"]
    assert rows[0]["parts"] == "1"
    assert set(rows[2].values()) == {"013_HC.png", ""}
    assert "2 of 3 masks measured\n013_HC.nii.gz: the mask is empty" in capsys.readouterr().out


def test_heads_that_the_border_cuts_are_measured_and_marked(tmp_path, capsys):
    mask = HEAD.filled((120, 140))
    for name, part in (("cut", mask[:, :95]), ("cut_off", mask[:, 85:]), ("full", np.ones((60, 60)))):
        write_mask(tmp_path / f"{name}.nii.gz", part)
    assert main(["hc", "-i", str(tmp_path), "-o", str(tmp_path / "hc.csv")]) == 1
    rows = rows_of(tmp_path / "hc.csv")
    assert [row["cut_by_border"] for row in rows] == ["yes"] * 3
    assert float(rows[0]["head_circumference_mm"]) == pytest.approx(0.2 * HEAD.circumference(), rel=0.002)
    assert [row["head_circumference_mm"] for row in rows[1:]] == ["", ""]
    output = capsys.readouterr().out
    assert "cut_off.nii.gz: more than half of its ellipse is outside of the image" in output
    assert "full.nii.gz: the mask has no border inside of the image" in output


OLD = {"name": "HC18", "converted_by": "nnunet_ssl"}


@pytest.mark.parametrize(
    ("place", "content", "is_named"),
    [
        ("masks", OLD, True),
        ("", OLD, True),  # above labelsTr
        ("masks", OLD | {"converter_version": 2}, False),
        ("masks", OLD | {"converted_by": "somebody"}, False),
    ],
)
def test_masks_of_an_older_conversion_are_named(tmp_path, place, content, is_named, capsys):
    (tmp_path / "masks").mkdir()
    write_mask(tmp_path / "masks" / "000_HC.nii.gz", HEAD.filled((120, 140)))
    (tmp_path / place / "dataset.json").write_text(json.dumps(content))
    assert main(["hc", "-i", str(tmp_path / "masks"), "-o", str(tmp_path / "hc.csv")]) == 0
    assert ("warning: HC18 was converted by an older version" in capsys.readouterr().out) == is_named


def test_damaged_dataset_json_is_named(tmp_path, capsys):
    write_mask(tmp_path / "000_HC.nii.gz", HEAD.filled((120, 140)))
    (tmp_path / "dataset.json").write_text("{")
    assert main(["hc", "-i", str(tmp_path), "-o", str(tmp_path / "hc.csv")]) == 2
    assert "dataset.json is no JSON" in capsys.readouterr().err


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


@pytest.fixture(scope="module")
def real_masks(tmp_path_factory):
    """Return HC18's training images converted: the folder of the masks."""
    from nnunet_ssl.dataset_conversion.Dataset218_HC18 import convert

    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("nnUNet_raw", str(tmp_path_factory.mktemp("raw")))
        return convert(SHARED_DATA / "HC18", num_processes=1) / "labelsTr"


def circumferences() -> dict[str, float]:
    """Return what HC18 says, in mm, by file name."""
    from nnunet_ssl.dataset_conversion.Dataset218_HC18 import TRAINING_CSV, read_csv

    return {name: line[1] for name, line in read_csv(SHARED_DATA / "HC18" / TRAINING_CSV, 2).items()}


@pytest.mark.skipif(not SHARED_DATA.is_dir(), reason="the real HC18 data are not here")
def test_perfect_masks_have_the_real_circumferences(tmp_path, real_masks):
    """Of the 74: 0.00 mm on average, at most 0.05 mm."""
    assert main(["hc", "-i", str(real_masks), "-o", str(tmp_path / "hc.csv")]) == 0
    rows, expected = rows_of(tmp_path / "hc.csv"), circumferences()
    errors = [float(row["head_circumference_mm"]) - expected[row["filename"]] for row in rows]
    assert len(errors) == 74
    assert abs(np.mean(errors)) < 0.02
    assert np.abs(errors).max() < 0.05
    cut = [row["filename"] for row in rows if row["cut_by_border"] == "yes"]
    assert cut == ["186_HC.png", "346_HC.png", "628_2HC.png", "787_HC.png"]


@pytest.mark.skipif(not SHARED_DATA.is_dir(), reason="the real HC18 data are not here")
@pytest.mark.parametrize("share", [0.05, 0.1, 0.2])
def test_real_heads_in_cropped_images_keep_their_circumference(tmp_path, real_masks, share):
    """Every tenth one, on each side: within 0.1 %."""
    from nnunet_ssl.data.image_files import read_image

    for file in sorted(real_masks.iterdir())[::10]:
        image, case = read_image(file), file.name.removesuffix(".nii.gz")
        for turns in range(4):
            mask = np.rot90(SimpleITK.GetArrayFromImage(image), turns)
            rows = np.flatnonzero(mask.any(axis=1))
            part = mask[rows[0] + round(share * len(rows)) :]
            write_mask(tmp_path / f"{case}-{turns}.nii.gz", part, image.GetSpacing())
    assert main(["hc", "-i", str(tmp_path), "-o", str(tmp_path / "hc.csv")]) == 0
    expected = circumferences()
    for row in rows_of(tmp_path / "hc.csv"):
        whole = expected[row["filename"].partition("-")[0] + ".png"]
        assert float(row["head_circumference_mm"]) == pytest.approx(whole, rel=0.001), row["filename"]
        assert row["cut_by_border"] == "yes"


@pytest.mark.parametrize(
    ("content", "reason"),
    [(b"no image", "is damaged, or no image"), (b"", "is damaged, or no image"), (None, "more than one slice")],
)
def test_one_broken_mask_costs_no_other(tmp_path, capsys, content, reason):
    for case in ("a", "c"):
        write_mask(tmp_path / f"{case}.nii.gz", HEAD.filled((120, 140)))
    if content is None:
        write_mask(tmp_path / "b.nii.gz", np.stack([HEAD.filled((120, 140))] * 2), (0.2, 0.2, 1.0))
    else:
        (tmp_path / "b.nii.gz").write_bytes(content)
    assert main(["hc", "-i", str(tmp_path), "-o", str(tmp_path / "hc.csv")]) == 1
    out = capsys.readouterr().out
    assert "2 of 3 masks measured" in out
    assert any("b.nii.gz" in line and reason in line for line in out.splitlines())


def test_of_several_parts_the_largest_is_measured_and_that_is_said(tmp_path, capsys):
    mask = np.pad(HEAD.filled((120, 140)), ((0, 40), (0, 40)))
    write_mask(tmp_path / "one.nii.gz", mask)
    mask[140:155, 150:170] = 1
    write_mask(tmp_path / "two.nii.gz", mask)
    assert main(["hc", "-i", str(tmp_path), "-o", str(tmp_path / "hc.csv")]) == 0
    one, two = rows_of(tmp_path / "hc.csv")
    assert (one["parts"], two["parts"]) == ("1", "2")
    assert one["head_circumference_mm"] == two["head_circumference_mm"]
    said = "of 1 masks with several parts the largest is measured (column parts): two.nii.gz"
    assert said in capsys.readouterr().out.splitlines()
