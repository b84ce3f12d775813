import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from nnunet_ssl.evaluation.paired_statistics import holm, paired_difference


def test_wilcoxon_of_six_gains_by_hand():
    """All six differences are positive: of 2^6 signs one is as extreme at either side, p = 2/64."""
    found = paired_difference([0.9, 0.8, 0.7, 0.95, 0.6, 0.5], [0.8, 0.65, 0.5, 0.7, 0.3, 0.15])
    assert found.p == pytest.approx(2 / 64)
    assert found.mean == pytest.approx((0.1 + 0.15 + 0.2 + 0.25 + 0.3 + 0.35) / 6)
    assert 0.1 <= found.low < found.mean < found.high <= 0.35
    assert found.cases == 6


def test_interval_is_about_that_of_the_normal_approximation():
    rng = np.random.default_rng(1)
    baseline = rng.normal(0.8, 0.1, 200)
    values = baseline + rng.normal(0.02, 0.05, 200)
    found = paired_difference(values, baseline)
    half = 1.96 * (values - baseline).std(ddof=1) / math.sqrt(200)
    assert found.high - found.mean == pytest.approx(half, rel=0.05)
    assert found.mean - found.low == pytest.approx(half, rel=0.05)
    assert paired_difference(values, baseline) == found  # seeded


def test_interval_holds_the_truth_about_as_often_as_it_says():
    rng = np.random.default_rng(2)
    hits = 0
    for _ in range(100):
        differences = rng.normal(0.03, 0.1, 40)
        found = paired_difference(differences, np.zeros(40))
        hits += found.low <= 0.03 <= found.high
    assert 88 <= hits <= 100


def test_cases_without_a_value_are_left_out():
    found = paired_difference([0.5, math.nan, 0.9, 0.7], [0.4, 0.2, math.nan, 0.5])
    assert (found.cases, found.mean) == (2, pytest.approx(0.15))


def test_no_difference_at_all():
    found = paired_difference([0.5, 0.6, 0.7], [0.5, 0.6, 0.7])
    assert (found.mean, found.low, found.high, found.p) == (0, 0, 0, 1)


@pytest.mark.parametrize(
    ("values", "baseline", "message"),
    [([0.5], [0.5, 0.6], "1 values cannot be paired with 2"), ([0.5, math.nan], [0.4, 0.3], "at least two cases")],
)
def test_what_cannot_be_compared_is_said(values, baseline, message):
    with pytest.raises(ValueError, match=message):
        paired_difference(values, baseline)


def test_holm_by_hand():
    """Sorted 0.01, 0.02, 0.03, 0.04 times 4, 3, 2, 1, never falling."""
    assert holm([0.04, 0.01, 0.03, 0.02]) == pytest.approx([0.06, 0.04, 0.06, 0.06])
    assert holm([0.5, 0.9]) == [1.0, 1.0]
    assert holm([]) == []


@given(st.lists(st.floats(0, 1), min_size=1, max_size=8))
def test_holm_lies_between_the_value_and_bonferroni_and_keeps_the_order(p_values):
    corrected = holm(p_values)
    for p, q in zip(p_values, corrected, strict=True):
        assert p <= q <= min(1, len(p_values) * p) + 1e-12
    assert list(np.argsort(p_values, kind="stable")) == sorted(
        range(len(p_values)), key=lambda index: (corrected[index], p_values[index], index)
    )
