import csv

import numpy as np
import pytest
import SimpleITK

from nnunet_ssl.building_blocks.ellipses import Ellipse
from nnunet_ssl.dataset_conversion.Dataset218_HC18 import TEST_CSV, TRAINING_CSV, convert, fill_outline
from tests.conftest import SHARED_DATA
from tests.dataset_conversion.conftest import assert_nothing_left, check_integrity, names, read, spacing_of, write

PIXEL_MM = 0.2
HEAD = Ellipse(60.0, 45.0, 40.0, 30.0, 0.3)
SHAPE = (90, 120)


def outline_of(ellipse: Ellipse) -> np.ndarray:
    inner = Ellipse(
        ellipse.center_x, ellipse.center_y, ellipse.semi_axis_a - 1, ellipse.semi_axis_b - 1, ellipse.angle_rad
    )
    outer = Ellipse(
        ellipse.center_x, ellipse.center_y, ellipse.semi_axis_a + 1, ellipse.semi_axis_b + 1, ellipse.angle_rad
    )
    return outer.filled(SHAPE) & ~inner.filled(SHAPE)


@pytest.fixture
def challenge(source):
    image = np.random.default_rng(0).integers(0, 255, SHAPE).astype(np.uint8)
    lines = []
    for case in ("000_HC", "000_2HC", "007_HC"):
        write(image, source / "training_set" / f"{case}.png")
        write(outline_of(HEAD).astype(np.uint8) * 255, source / "training_set" / f"{case}_Annotation.png")
        lines.append([f"{case}.png", PIXEL_MM, HEAD.circumference() * PIXEL_MM])
    write(image, source / "test_set" / "000_HC.png")
    for name, header, rows in (
        (TRAINING_CSV, ["filename", "pixel size(mm)", "head circumference (mm)"], lines),
        (TEST_CSV, ["filename", "pixel size(mm)"], [["000_HC.png", 0.3]]),
    ):
        with (source / name).open("w", newline="") as opened:
            csv.writer(opened).writerows([header, *rows])
    return source


def test_outlines_are_filled_and_pixels_have_their_size(raw, challenge, capsys):
    folder = convert(challenge, num_processes=1)
    assert names(folder / "labelsTr") == ["000_2HC", "000_HC", "007_HC"]
    assert names(folder / "imagesUn") == ["000_HC_test_0000"]
    mask = read(folder / "labelsTr" / "000_HC.nii.gz") > 0
    assert mask[outline_of(HEAD)].all()
    assert mask[45, 60]
    assert mask.sum() == pytest.approx(np.pi * 41 * 31, rel=0.01)
    assert spacing_of(folder / "imagesTr" / "000_HC_0000.nii.gz") == pytest.approx((PIXEL_MM, PIXEL_MM))
    assert spacing_of(folder / "imagesUn" / "000_HC_test_0000.nii.gz") == pytest.approx((0.3, 0.3))
    assert "the CSV says" not in capsys.readouterr().out
    check_integrity(folder)


def test_test_set_as_test(raw, challenge):
    folder = convert(challenge, test_as_test=True, num_processes=1)
    assert names(folder / "imagesTs") == ["000_HC_0000"]
    assert not (folder / "imagesUn").exists()


def test_outline_that_leaves_the_image_is_closed_by_its_ellipse():
    head = Ellipse(60.0, 20.0, 40.0, 30.0, 0.0)
    outline = outline_of(head)
    assert outline[0].any()
    mask, circumference = fill_outline(outline)
    assert mask[outline].all()
    assert mask[head.filled(SHAPE)].mean() > 0.999
    assert circumference == pytest.approx(head.circumference(), rel=0.002)


def test_circumference_that_is_not_the_csvs_is_reported(raw, challenge, capsys):
    text = (challenge / TRAINING_CSV).read_text()
    (challenge / TRAINING_CSV).write_text(text.replace(str(HEAD.circumference() * PIXEL_MM), "50", 1))
    convert(challenge, num_processes=1)
    out = capsys.readouterr().out
    assert out.count("the CSV says 50.0 mm") == 1
    assert "000_HC_Annotation.png: its outline measures 44.2 mm" in out


def without_line(tree):
    text = (tree / TRAINING_CSV).read_text()
    (tree / TRAINING_CSV).write_text(text.replace("007_HC.png", "008_HC.png"))


def without_annotation(tree):
    (tree / "training_set" / "007_HC_Annotation.png").unlink()


def no_number(tree):
    (tree / TRAINING_CSV).write_text((tree / TRAINING_CSV).read_text().replace("0.2", "wide"))


def no_circumference(tree):
    lines = (tree / TRAINING_CSV).read_text().splitlines()
    (tree / TRAINING_CSV).write_text("\n".join([*lines[:-1], lines[-1].rpartition(",")[0]]))


def pixel_size_zero(tree):
    (tree / TEST_CSV).write_text((tree / TEST_CSV).read_text().replace("0.3", "0"))


def straight_outline(tree):
    line = np.zeros(SHAPE, np.uint8)
    line[20, 10:90] = 255
    write(line, tree / "training_set" / "007_HC_Annotation.png")


def colored_annotation(tree):
    image = SimpleITK.GetImageFromArray(np.zeros((*SHAPE, 3), np.uint8), isVector=True)
    SimpleITK.WriteImage(image, str(tree / "training_set" / "007_HC_Annotation.png"))


def empty_outline(tree):
    write(np.zeros(SHAPE, np.uint8), tree / "training_set" / "007_HC_Annotation.png")


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (without_line, f"{TRAINING_CSV} has no line for 007_HC.png"),
        (without_annotation, "007_HC_Annotation.png is missing, the annotation of 007_HC.png"),
        (no_number, f"{TRAINING_CSV}: the line of 000_HC.png has not 2 number"),
        (no_circumference, f"{TRAINING_CSV}: the line of 007_HC.png has not 2 number"),
        (pixel_size_zero, f"{TEST_CSV}: the line of 000_HC.png has not 1 number"),
        (empty_outline, "007_HC_Annotation.png holds no outline of a head"),
        (straight_outline, "007_HC_Annotation.png holds no outline of a head: the points lie on no ellipse"),
        (colored_annotation, "007_HC_Annotation.png is no gray image"),
    ],
)
def test_faults_are_named_and_leave_nothing(raw, challenge, damage, message):
    damage(challenge)
    with pytest.raises(ValueError, match=message):
        convert(challenge, num_processes=1)
    assert_nothing_left(raw)


@pytest.mark.skipif(not SHARED_DATA.is_dir(), reason="the real HC18 data are not here")
def test_real_masks_cover_their_outlines(raw, capfd):
    folder = convert(SHARED_DATA / "HC18")
    cases = names(folder / "labelsTr")
    assert (len(cases), len(names(folder / "imagesUn"))) == (74, 50)
    for case in cases:
        mask = read(folder / "labelsTr" / f"{case}.nii.gz") > 0
        outline = read(SHARED_DATA / "HC18" / "training_set" / f"{case}_Annotation.png") > 0
        assert mask[outline].all()
        assert mask.sum() > 10 * outline.sum()
    assert "the CSV says" not in capfd.readouterr().out
