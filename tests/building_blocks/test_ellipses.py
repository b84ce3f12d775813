import math
from dataclasses import astuple

import numpy as np
import pytest
import SimpleITK
from hypothesis import example, given, settings
from hypothesis import strategies as st
from skimage.measure import find_contours

from nnunet_ssl.building_blocks.ellipses import (
    Ellipse,
    border_points,
    ellipse_of_mask,
    ellipse_within,
    fit_ellipse,
    is_cut_by_border,
    without_holes,
)
from tests.conftest import SHARED_DATA


def points_on(ellipse: Ellipse, number: int = 50) -> tuple[np.ndarray, np.ndarray]:
    t = np.linspace(0, 2 * np.pi, number, endpoint=False)
    along, across = ellipse.semi_axis_a * np.cos(t), ellipse.semi_axis_b * np.sin(t)
    cosine, sine = math.cos(ellipse.angle_rad), math.sin(ellipse.angle_rad)
    return ellipse.center_x + cosine * along - sine * across, ellipse.center_y + sine * along + cosine * across


def test_circumference_of_known_ellipses():
    """A circle: 2πr. a = 2, b = 1: 9.688448220547675 (elliptic integral, tables). Flat: 4a."""
    assert Ellipse(0, 0, 3, 3, 0).circumference() == pytest.approx(6 * math.pi)
    assert Ellipse(0, 0, 2, 1, 0).circumference() == pytest.approx(9.688448220547675)
    assert Ellipse(0, 0, 5, 1e-9, 0).circumference() == pytest.approx(20)


@settings(max_examples=200, deadline=None)
@example(x=0.4, y=44.92697692450545, a=20.0, ratio=0.4, angle=0.4)  # complex eigenvalues
@given(
    x=st.floats(-200, 200),
    y=st.floats(-200, 200),
    a=st.floats(20, 200),
    ratio=st.floats(0.4, 0.95),
    angle=st.floats(0.01, math.pi - 0.01),
)
def test_fit_gives_back_the_ellipse_of_its_points(x, y, a, ratio, angle):
    ellipse = Ellipse(x, y, a, a * ratio, angle)
    found = fit_ellipse(*points_on(ellipse))
    for name in ("center_x", "center_y", "semi_axis_a", "semi_axis_b", "angle_rad"):
        assert getattr(found, name) == pytest.approx(getattr(ellipse, name), abs=1e-3), name


@pytest.mark.parametrize("angle", [0.0, 0.5, 2.0])
def test_mask_gives_back_its_ellipse_to_a_fraction_of_a_pixel(angle):
    ellipse = Ellipse(70.3, 60.7, 50.0, 35.0, angle)
    found = ellipse_of_mask(ellipse.filled((120, 140)))
    assert found.circumference() == pytest.approx(ellipse.circumference(), abs=0.5)
    assert (found.center_x, found.center_y) == pytest.approx((70.3, 60.7), abs=0.1)
    assert found.angle_rad == pytest.approx(angle, abs=0.01) or found.angle_rad == pytest.approx(math.pi, abs=0.01)


HEAD, IMAGE = Ellipse(300.0, 250.0, 200.0, 150.0, 0.5), (500, 600)


def cropped(mask: np.ndarray, side: str, share: float) -> np.ndarray:
    """Return the mask in an image that ends within it: on that side a share of its extent is missing."""
    rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
    high, wide = round(share * len(rows)), round(share * len(columns))
    if side == "top":
        return mask[rows[0] + high :]
    if side == "bottom":
        return mask[: rows[-1] + 1 - high]
    if side == "left":
        return mask[:, columns[0] + wide :]
    return mask[:, : columns[-1] + 1 - wide]


@pytest.mark.parametrize("share", [0.05, 0.1, 0.2, 0.4])
@pytest.mark.parametrize("side", ["top", "bottom", "left", "right"])
def test_head_cut_by_the_border_is_fitted_to_its_arc(side, share):
    """Within 0.2 %; with the straight edge it would be 0.7, 2, 6 and 16 % too short."""
    mask = cropped(HEAD.filled(IMAGE), side, share)
    assert is_cut_by_border(mask)
    assert ellipse_of_mask(mask).circumference() == pytest.approx(HEAD.circumference(), rel=0.002)


@pytest.mark.parametrize("sides", [("top", "left"), ("bottom", "right"), ("left", "right"), ("top", "bottom", "left")])
def test_head_cut_on_several_sides_is_fitted_to_its_arcs(sides):
    mask = HEAD.filled(IMAGE)
    for side in sides:
        mask = cropped(mask, side, 0.1)
    assert is_cut_by_border(mask)
    assert ellipse_of_mask(mask).circumference() == pytest.approx(HEAD.circumference(), rel=0.002)


@pytest.mark.parametrize("center", [(60.0, 60.0), (240.0, 180.0), (240.0, 60.0), (60.0, 180.0)])
def test_head_that_covers_a_corner_is_fitted_to_its_arc(center):
    head = Ellipse(*center, 160.0, 120.0, 0.0)
    mask = head.filled((240, 300))
    assert [mask[row, column] for row in (0, -1) for column in (0, -1)].count(True) == 1
    assert ellipse_of_mask(mask).circumference() == pytest.approx(head.circumference(), rel=0.005)


@pytest.mark.parametrize(("center_y", "pixels", "is_cut"), [(35.5, 0, False), (35.0, 1, False), (34.9, 7, True)])
def test_head_that_touches_the_border_in_one_pixel_is_not_cut(center_y, pixels, is_cut):
    head = Ellipse(70.0, center_y, 50.0, 35.0, 0.0)
    mask = head.filled((120, 140))
    assert mask[0].sum() == pixels
    assert is_cut_by_border(mask) == is_cut
    assert ellipse_of_mask(mask).circumference() == pytest.approx(head.circumference(), rel=0.002)


@pytest.mark.parametrize("side", ["top", "bottom", "left", "right"])
def test_head_of_which_the_smaller_half_is_left_is_not_measured(side):
    mask = cropped(HEAD.filled(IMAGE), side, 0.6)
    assert is_cut_by_border(mask)
    with pytest.raises(ValueError, match="more than half of its ellipse is outside of the image"):
        ellipse_of_mask(mask)


def test_speck_on_the_border_does_not_cut_the_head():
    mask = HEAD.filled(IMAGE)
    mask[-1, -9:] = True
    assert not is_cut_by_border(mask)


def test_specks_beside_the_largest_part_do_not_count():
    mask = Ellipse(70, 60, 50, 35, 0.5).filled((120, 140))
    alone = ellipse_of_mask(mask)
    mask[2:6, 2:6] = True
    assert ellipse_of_mask(mask) == alone


def test_filled_has_the_area_of_the_ellipse():
    mask = Ellipse(50, 40, 30, 20, 0.7).filled((80, 100))
    assert mask.sum() == pytest.approx(math.pi * 30 * 20, rel=0.01)


def test_scaled_is_in_the_new_unit():
    ellipse = Ellipse(10, 20, 30, 15, 0.5)
    scaled = ellipse.scaled(0.2)
    assert scaled == Ellipse(2.0, 4.0, 6.0, 3.0, 0.5)
    assert scaled.circumference() == pytest.approx(0.2 * ellipse.circumference())


@pytest.mark.filterwarnings("error")
def test_no_ellipse_is_invented():
    with pytest.raises(ValueError, match="the mask is empty"):
        ellipse_of_mask(np.zeros((9, 9), bool))
    with pytest.raises(ValueError, match="the mask has no border inside of the image"):
        ellipse_of_mask(np.ones((9, 9), bool))
    with pytest.raises(ValueError, match="the mask is empty"):
        is_cut_by_border(np.zeros((9, 9), bool))
    for x, y in (([], []), ([0.0, 2.0, 0.0, -2.0], [1.0, 0.0, -1.0, 0.0])):
        with pytest.raises(ValueError, match="the points lie on no ellipse"):
            fit_ellipse(np.array(x), np.array(y))
    line = np.arange(9.0)
    with pytest.raises(ValueError, match="the points lie on no ellipse"):
        fit_ellipse(line, 2 * line)


# ---- ellipses that lie in the image ----


def test_border_runs_halfway_between_pixels_inside_and_outside():
    """One pixel in the middle of row 1, column 2; and the corner pixel, whose border is partly the image's."""
    for row, column in ((1, 2), (0, 0)):
        mask = np.zeros((3, 4), bool)
        mask[row, column] = True
        found = {(float(x), float(y)) for x, y in zip(*border_points(mask), strict=True)}
        assert found == {
            (column - 0.5, row),
            (column + 0.5, row),
            (column, row - 0.5),
            (column, row + 0.5),
        }


@pytest.mark.parametrize("angle", [0.0, 0.7])
def test_border_points_are_those_of_the_contour(angle):
    mask = Ellipse(20.3, 17.8, 13.0, 9.0, angle).filled((40, 44))
    mask[10:15, 18:22] = True
    found = sorted(zip(*border_points(mask), strict=True))
    (contour,) = find_contours(np.pad(mask, 1).astype(float), 0.5)
    assert found == sorted((x - 1, y - 1) for y, x in contour[:-1])


def test_holes_are_filled_and_bays_are_not():
    mask = np.zeros((7, 7), bool)
    mask[1:6, 1:6] = True
    mask[3, 3] = mask[2, 5] = False
    mask[4, 4] = mask[5, 5] = False  # touches what is outside at a corner alone: a hole
    expected = mask.copy()
    expected[3, 3] = expected[4, 4] = True
    assert np.array_equal(without_holes(mask), expected)
    assert without_holes(np.ones((2, 3), bool)).all()


@pytest.mark.parametrize("angle", [0.0, 0.6, 2.5])
def test_ellipse_of_the_largest_part_whatever_is_beside_it_and_in_it(angle):
    ellipse = Ellipse(60.4, 52.7, 40.0, 30.0, angle)
    mask = ellipse.filled((110, 130))
    mask[40:60, 55:65] = False  # a hole
    mask[2:8, 2:8] = True  # another part
    found = ellipse_within(mask, 0.95)
    assert (found.center_x, found.center_y) == pytest.approx((60.4, 52.7), abs=0.1)
    assert (found.semi_axis_a, found.semi_axis_b) == pytest.approx((40.0, 30.0), abs=0.2)
    assert math.cos(2 * (found.angle_rad - angle)) == pytest.approx(1.0, abs=1e-3)


def test_ellipse_is_fitted_to_all_border_points_of_the_part():
    mask = Ellipse(30.0, 25.0, 20.0, 15.0, 0.4).filled((55, 60))
    mask[20:30, 30:52] = True  # a bump
    assert astuple(ellipse_within(mask, 0.5)) == pytest.approx(astuple(fit_ellipse(*border_points(mask))))


def test_ellipse_that_leaves_the_image_is_none():
    whole = Ellipse(30.0, 25.0, 20.0, 15.0, 0.0)
    mask = whole.filled((60, 80))
    assert ellipse_within(mask, 0.8) is not None
    assert ellipse_within(mask[:, 22:], 0.5) is None, "cut at the left, the ellipse of the rest reaches out there"
    assert ellipse_within(mask[:, :40], 0.5) is None
    assert ellipse_within(mask[18:], 0.5) is None
    assert ellipse_within(mask[:32], 0.5) is None


@pytest.mark.parametrize(
    ("ellipse", "lies"),
    [
        (Ellipse(10.0, 8.0, 6.0, 4.0, 0.0), True),
        (Ellipse(5.5, 8.0, 6.0, 4.0, 0.0), True),  # as far as the first pixel's edge
        (Ellipse(5.4, 8.0, 6.0, 4.0, 0.0), False),
        (Ellipse(13.6, 8.0, 6.0, 4.0, 0.0), False),  # of columns 0 to 19
        (Ellipse(10.0, 3.4, 6.0, 4.0, 0.0), False),
        (Ellipse(10.0, 10.6, 6.0, 4.0, 0.0), False),  # of rows 0 to 14
        (Ellipse(5.4, 8.0, 6.0, 4.0, math.pi / 2), True),  # upright
        (Ellipse(10.0, 5.4, 6.0, 4.0, math.pi / 2), False),
    ],
)
def test_what_lies_within_an_image(ellipse, lies):
    assert ellipse.lies_within((15, 20)) is lies


def test_bad_fits_are_none():
    assert ellipse_within(np.zeros((20, 20), bool), 0.0) is None
    pixel = np.zeros((20, 20), bool)
    pixel[5, 6] = True
    assert ellipse_within(pixel, 0.0) is None, "four points on no ellipse of their own"
    crescent = Ellipse(40.0, 40.0, 25.0, 22.0, 0.0).filled((90, 90)) & ~Ellipse(50.0, 40.0, 22.0, 20.0, 0.0).filled(
        (90, 90)
    )
    assert ellipse_within(crescent, 0.0) is not None
    assert ellipse_within(crescent, 0.8) is None


def test_overlap_is_intersection_over_union():
    mask = Ellipse(40.0, 40.0, 25.0, 20.0, 0.0).filled((90, 90))
    mask[30:50, 60:75] = True
    ellipse = ellipse_within(mask, 0.0)
    filled = ellipse.filled(mask.shape)
    overlap = (filled & mask).sum() / (filled | mask).sum()
    assert 0.8 < overlap < 0.95
    assert ellipse_within(mask, overlap - 0.01) == ellipse
    assert ellipse_within(mask, overlap + 0.01) is None


@pytest.mark.skipif(not (SHARED_DATA / "PSFHS").is_dir(), reason="real data are not at hand")
def test_real_fetal_heads_are_ellipses():
    """PSFHS: neighbors are alike, so that every tenth is enough."""
    files = sorted((SHARED_DATA / "PSFHS" / "label_mha").glob("*.mha"))[::10]
    heads = [SimpleITK.GetArrayFromImage(SimpleITK.ReadImage(file)).squeeze() == 2 for file in files]
    assert all(ellipse_within(head, 0.9) is not None for head in heads)
