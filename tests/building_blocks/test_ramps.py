import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nnunet_ssl.building_blocks.ramps import gaussian_rampup, linear_rampup


@pytest.mark.parametrize(
    ("progress", "duration", "expected"),
    [
        (0.0, 0.4, math.exp(-5)),
        (0.2, 0.4, math.exp(-1.25)),  # half way: exp(-5 * 0.5^2)
        (0.4, 0.4, 1.0),
        (1.0, 0.4, 1.0),
        (0.0, 0.0, 1.0),  # no ramp
    ],
)
def test_gaussian_rampup_values(progress, duration, expected):
    assert gaussian_rampup(progress, duration) == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize(("progress", "expected"), [(0.0, 0.0), (0.1, 0.25), (0.4, 1.0), (0.9, 1.0)])
def test_linear_rampup_values(progress, expected):
    assert linear_rampup(progress, 0.4) == pytest.approx(expected)


@given(st.floats(0, 1), st.floats(0, 1), st.floats(0, 1))
def test_ramps_grow_and_stay_in_the_unit_interval(first, second, duration):
    first, second = sorted((first, second))
    for ramp in (gaussian_rampup, linear_rampup):
        assert 0 <= ramp(first, duration) <= ramp(second, duration) <= 1


@pytest.mark.parametrize("ramp", [gaussian_rampup, linear_rampup])
def test_iterations_are_not_mistaken_for_progress(ramp):
    with pytest.raises(ValueError, match=r"progress is a fraction of the run in \[0, 1\], got 250"):
        ramp(250, 0.4)
    with pytest.raises(ValueError, match=r"duration of a ramp .* got 40"):
        ramp(0.5, 40)
