import csv
import json
from dataclasses import replace

import numpy as np
import pytest
import SimpleITK

from nnunet_ssl.building_blocks.ellipses import Ellipse, ellipse_of_mask
from nnunet_ssl.data.older_conversions import older_conversion
from nnunet_ssl.dataset_conversion.Dataset218_HC18 import TEST_CSV, TRAINING_CSV, convert, fill_outline
from tests.conftest import SHARED_DATA
from tests.dataset_conversion.conftest import (
    assert_left_out,
    assert_nothing_left,
    check_integrity,
    names,
    read,
    spacing_of,
    write,
)

PIXEL_MM = 0.2
HEAD = Ellipse(60.0, 45.0, 40.0, 30.0, 0.3)
SHAPE = (90, 120)
NOT_CLOSED = ("186_HC", "346_HC", "628_2HC", "787_HC")  # of the real ones: the head leaves the image


def grown(ellipse: Ellipse, pixels: float) -> Ellipse:
    return replace(ellipse, semi_axis_a=ellipse.semi_axis_a + pixels, semi_axis_b=ellipse.semi_axis_b + pixels)


def outline_of(ellipse: Ellipse, half_width: float = 1, shape: tuple[int, int] = SHAPE) -> np.ndarray:
    return grown(ellipse, half_width).filled(shape) & ~grown(ellipse, -half_width).filled(shape)


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
    assert mask[45, 60]
    assert mask.sum() == pytest.approx(np.pi * 40 * 30, rel=0.005)
    assert ellipse_of_mask(mask).circumference() == pytest.approx(HEAD.circumference(), rel=0.002)
    assert spacing_of(folder / "imagesTr" / "000_HC_0000.nii.gz") == pytest.approx((PIXEL_MM, PIXEL_MM))
    assert spacing_of(folder / "imagesUn" / "000_HC_test_0000.nii.gz") == pytest.approx((0.3, 0.3))
    assert "the CSV says" not in capsys.readouterr().out
    check_integrity(folder)


def test_test_set_as_test(raw, challenge):
    folder = convert(challenge, test_as_test=True, num_processes=1)
    assert names(folder / "imagesTs") == ["000_HC_test_0000"]  # no patient of training_set
    assert not (folder / "imagesUn").exists()


@pytest.mark.parametrize("half_width", [0.7, 1.3, 3.0])
@pytest.mark.parametrize(
    "head",
    [
        Ellipse(200.0, 150.0, 120.0, 90.0, 0.4),
        Ellipse(200.0, 80.0, 120.0, 90.0, 0.0),  # leaves the image at its upper side
        Ellipse(310.0, 220.0, 120.0, 90.0, 2.5),  # at its right and its lower side
        Ellipse(200.0, 90.0, 120.0, 90.0, 0.0),  # touches it
    ],
)
def test_line_of_any_width_gives_the_circumference_of_its_middle(head, half_width):
    """Within 0.1 %: 0.2 mm of a head of 200 mm."""
    outline = outline_of(head, half_width, (300, 400))
    mask, circumference = fill_outline(outline)
    assert circumference == pytest.approx(head.circumference(), rel=0.001)
    assert ellipse_of_mask(mask).circumference() == pytest.approx(head.circumference(), rel=0.001)
    assert mask[head.filled(mask.shape)].mean() > 0.998


@pytest.mark.parametrize("gap", [0.5, 1.0, 1.5])
def test_outline_with_a_gap_is_closed_by_its_ellipse(gap):
    """The gap is an angle, in rad."""
    outline, (y, x) = outline_of(HEAD), np.mgrid[: SHAPE[0], : SHAPE[1]]
    outline[np.abs(np.arctan2(y - HEAD.center_y, x - HEAD.center_x)) < gap / 2] = False
    mask, circumference = fill_outline(outline)
    assert circumference == pytest.approx(HEAD.circumference(), rel=0.005)
    assert mask.sum() == pytest.approx(np.pi * 40 * 30, rel=0.01)


def test_conversion_says_its_version_and_is_not_an_older_one(raw, challenge):
    content = json.loads((convert(challenge, num_processes=1) / "dataset.json").read_text())
    assert content["converter_version"] == 2
    assert older_conversion(content) is None


@pytest.mark.parametrize(("share", "is_reported"), [(1.13, True), (1.02, True), (0.98, True), (1.005, False)])
def test_circumference_that_is_not_the_csvs_is_reported(raw, challenge, capsys, share, is_reported):
    text, says = (challenge / TRAINING_CSV).read_text(), round(share * HEAD.circumference() * PIXEL_MM, 2)
    (challenge / TRAINING_CSV).write_text(text.replace(str(HEAD.circumference() * PIXEL_MM), str(says), 1))
    convert(challenge, num_processes=1)
    message = f"000_HC_Annotation.png: its outline measures 44.2 mm, the CSV says {says} mm"
    assert capsys.readouterr().out.count(message) == is_reported


def without_line(tree):
    text = (tree / TRAINING_CSV).read_text()
    (tree / TRAINING_CSV).write_text(text.replace("007_HC.png", "008_HC.png"))


def without_annotation(tree):
    (tree / "training_set" / "007_HC_Annotation.png").unlink()


def no_number(tree):
    (tree / TRAINING_CSV).write_text((tree / TRAINING_CSV).read_text().replace("0.2", "wide"))


def filled_outline(tree):
    write(HEAD.filled(SHAPE).astype(np.uint8), tree / "training_set" / "007_HC_Annotation.png")


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
        (no_number, f"{TRAINING_CSV}: the line of 000_2HC.png has not 2 number"),
        (no_circumference, f"{TRAINING_CSV}: the line of 007_HC.png has not 2 number"),
        (pixel_size_zero, f"{TEST_CSV}: the line of 000_HC.png has not 1 number"),
        (empty_outline, "007_HC_Annotation.png holds no outline of a head"),
        (straight_outline, "007_HC_Annotation.png holds no outline of a head: the points lie on no ellipse"),
        (filled_outline, "007_HC_Annotation.png holds no outline of a head: it is filled, expected a thin line"),
        (colored_annotation, "007_HC_Annotation.png is no gray image"),
    ],
)
def test_faults_are_named_and_leave_nothing(raw, challenge, damage, message):
    damage(challenge)
    with pytest.raises(ValueError, match=message):
        convert(challenge, num_processes=1)
    assert_nothing_left(raw)


def without_image(tree):
    (tree / "training_set" / "007_HC.png").unlink()


def cut_off(tree):
    file = tree / "training_set" / "007_HC.png"
    file.write_bytes(file.read_bytes()[:40])


def endless_pixels(tree):
    text = (tree / TRAINING_CSV).read_text()
    (tree / TRAINING_CSV).write_text(text.replace("007_HC.png,0.2", "007_HC.png,inf"))


def other_size(tree):
    write(outline_of(HEAD, shape=(95, 120)).astype(np.uint8), tree / "training_set" / "007_HC_Annotation.png")


@pytest.mark.parametrize(
    ("damage", "reason"),
    [
        (without_line, f"{TRAINING_CSV} has no line for 007_HC.png"),
        (without_annotation, "007_HC_Annotation.png is missing, the annotation of 007_HC.png"),
        (without_image, "007_HC.png is missing, the image of 007_HC_Annotation.png"),
        (no_circumference, f"{TRAINING_CSV}: the line of 007_HC.png has not 2 number"),
        (endless_pixels, f"{TRAINING_CSV}: the line of 007_HC.png has not 2 number"),
        (cut_off, "007_HC.png is damaged, or no image"),
        (other_size, "007_HC_Annotation.png: the labels have (120, 95) voxels, the image (120, 90)"),
        (filled_outline, "007_HC_Annotation.png holds no outline of a head: it is filled"),
        (colored_annotation, "007_HC_Annotation.png is no gray image"),
    ],
)
def test_broken_image_is_left_out_and_the_rest_converted(raw, challenge, damage, reason, capsys):
    damage(challenge)
    folder = assert_left_out("HC18", challenge, raw, capsys, {"007_HC": reason})
    assert names(folder / "labelsTr") == ["000_2HC", "000_HC"]
    assert names(folder / "imagesUn") == ["000_HC_test_0000"]


def without_csv(tree):
    (tree / TEST_CSV).unlink()


@pytest.mark.parametrize(("damage", "reason"), [(without_csv, "is missing"), (pixel_size_zero, "has not 1 number")])
def test_test_set_that_is_broken_does_not_cost_the_training_set(raw, challenge, damage, reason, capsys):
    damage(challenge)
    folder = assert_left_out("HC18", challenge, raw, capsys, {"000_HC_test": reason})
    assert names(folder / "labelsTr") == ["000_2HC", "000_HC", "007_HC"]


def test_images_of_the_csv_that_are_not_here_are_said(raw, challenge, capsys):
    for ending in (".png", "_Annotation.png"):
        (challenge / "training_set" / f"007_HC{ending}").unlink()
    convert(challenge, num_processes=1)
    assert f"note: cases of {TRAINING_CSV} that are not here: 1 (007_HC.png)\n" in capsys.readouterr().out


@pytest.mark.skipif(not SHARED_DATA.is_dir(), reason="the real HC18 data are not here")
def test_real_masks_end_in_the_middle_of_the_line(raw, capfd):
    """Of each line, one half lies in the mask, and all of it within 2 px of the mask's ellipse: it is 2.5 px wide."""
    folder = convert(SHARED_DATA / "HC18", num_processes=1)
    cases = names(folder / "labelsTr")
    assert (len(cases), len(names(folder / "imagesUn"))) == (74, 50)
    for case in [*cases[::5], *NOT_CLOSED]:
        mask = read(folder / "labelsTr" / f"{case}.nii.gz") > 0
        outline = read(SHARED_DATA / "HC18" / "training_set" / f"{case}_Annotation.png") > 0
        assert mask[outline].mean() == pytest.approx(0.5, abs=0.05), case
        ellipse = ellipse_of_mask(mask)
        assert grown(ellipse, 2).filled(mask.shape)[outline].all(), case
        assert not grown(ellipse, -2).filled(mask.shape)[outline].any(), case
    assert "the CSV says" not in capfd.readouterr().out
