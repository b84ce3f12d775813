import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nnunet_ssl.building_blocks.ramps import between, gaussian_rampup


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


@given(st.floats(0, 1), st.floats(0, 1), st.floats(0, 1))
def test_ramp_grows_and_stays_in_the_unit_interval(first, second, duration):
    first, second = sorted((first, second))
    assert 0 <= gaussian_rampup(first, duration) <= gaussian_rampup(second, duration) <= 1


def test_iterations_are_not_mistaken_for_progress():
    with pytest.raises(ValueError, match=r"progress is a fraction of the run in \[0, 1\], got 250"):
        gaussian_rampup(250, 0.4)
    with pytest.raises(ValueError, match=r"duration of a ramp .* got 40"):
        gaussian_rampup(0.5, 40)


def test_numbers_between_two_others():
    assert [between(0.6, 0.95, share) for share in (0.0, 0.5, 1.0)] == pytest.approx([0.6, 0.775, 0.95])
    assert between(0.5, 0.125, 1.0) == 0.125
    assert between(0.3, 0.3, 0.7) == 0.3
