import math

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from nnunet_ssl.building_blocks.ellipses import Ellipse, ellipse_of_mask, fit_ellipse


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


def test_no_ellipse_is_invented():
    with pytest.raises(ValueError, match="the mask is empty"):
        ellipse_of_mask(np.zeros((9, 9), bool))
    line = np.arange(9.0)
    with pytest.raises(ValueError, match="the points lie on no ellipse"):
        fit_ellipse(line, 2 * line)
