import math

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from nnunet_ssl.building_blocks.ellipses import Ellipse, ellipse_of_mask, fit_ellipse, is_cut_by_border


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
