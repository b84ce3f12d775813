import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from nnunet_ssl.evaluation.comparison import Comparison, Prediction
from nnunet_ssl.evaluation.folders import Row
from nnunet_ssl.evaluation.metrics import Metrics
from nnunet_ssl.evaluation.paired_statistics import (
    PairedDifference,
    bootstrap_interval,
    holm,
    paired_difference,
    signed_rank_p,
)
from nnunet_ssl.evaluation.report_tables import differences_table


def difference_of_patients(values, baseline) -> PairedDifference:
    """Return the difference for patients of one case each, of one training."""
    cases = [f"case{i:03}" for i in range(len(values))]
    return paired_difference(
        {Prediction("fold 0", case): value for case, value in zip(cases, values, strict=True)},
        {Prediction("fold 0", case): value for case, value in zip(cases, baseline, strict=True)},
        {case: case for case in cases},
    )


def test_wilcoxon_of_six_gains_by_hand():
    """All six differences are positive: of 2^6 signs one is as extreme at either side, p = 2/64."""
    found = difference_of_patients([0.9, 0.8, 0.7, 0.95, 0.6, 0.5], [0.8, 0.65, 0.5, 0.7, 0.3, 0.15])
    assert found.p == pytest.approx(2 / 64)
    assert found.mean == pytest.approx((0.1 + 0.15 + 0.2 + 0.25 + 0.3 + 0.35) / 6)
    assert (found.patients, found.cases) == (6, 6)


def test_interval_of_six_patients_by_hand():
    """The quantile of t with 5 degrees of freedom is 2.5706; the differences 0 to 5 have SD 1.8708."""
    found = difference_of_patients([0, 1, 2, 3, 4, 5], [0] * 6)
    half = 2.5706 * 1.8708 / math.sqrt(6)
    assert (found.low, found.high) == (pytest.approx(2.5 - half, abs=1e-3), pytest.approx(2.5 + half, abs=1e-3))


def test_interval_is_about_that_of_the_normal_approximation():
    rng = np.random.default_rng(1)
    baseline = rng.normal(0.8, 0.1, 200)
    values = baseline + rng.normal(0.02, 0.05, 200)
    found = difference_of_patients(values, baseline)
    half = 1.96 * (values - baseline).std(ddof=1) / math.sqrt(200)
    assert found.high - found.mean == pytest.approx(half, rel=0.05)
    assert found.mean - found.low == pytest.approx(half, rel=0.05)


@pytest.mark.parametrize("patients", [6, 8, 40])
def test_interval_holds_the_truth_about_as_often_as_it_says(patients):
    rng = np.random.default_rng(2)
    hits = 0
    for _ in range(400):
        found = difference_of_patients(rng.normal(0.03, 0.1, patients), np.zeros(patients))
        hits += found.low <= 0.03 <= found.high
    assert 0.92 <= hits / 400 <= 0.98


@pytest.mark.parametrize("patients", [1, 2, 5])
def test_fewer_than_six_patients_have_no_interval_and_no_small_p(patients):
    found = difference_of_patients(np.linspace(0.1, 0.2, patients), np.zeros(patients))
    assert math.isnan(found.low)
    assert math.isnan(found.high)
    assert found.p == pytest.approx(2 / 2**patients)


def simulated_report(rng: np.random.Generator, patients: int, patient_sd: float) -> list[str]:
    """Return the line of a table of 3 seeds, 2 or 3 cases a patient, without effect and without shift of a training."""
    cases = [(f"p{p}", f"p{p} frame{i}") for p in range(patients) for i in range(2 + p % 2)]
    effects = dict(zip(dict(cases), rng.normal(0, patient_sd, patients), strict=True))
    results: dict[str, dict] = {"baseline": {}, "ours": {}}
    for trainer, predictions in results.items():
        dice = iter(0.8 + rng.normal(0, 0.02, (3, len(cases))).ravel())
        for seed in range(3):
            for patient, case in cases:
                value = next(dice) + (effects[patient] if trainer == "ours" else 0)
                metrics = Metrics(value, value, 1.0, 1.0, 1.0, value, 1.0, 1.0, 9, 9)
                predictions[Prediction(f"fold 0, seed{seed}", case)] = [Row(case, "organ", metrics)]
    return differences_table(Comparison("D", results, {case: patient for patient, case in cases})).rows[0]


@pytest.mark.parametrize(("patients", "patient_sd"), [(24, 0.03), (8, 0.03), (8, 0.0)])
def test_without_effect_p_and_interval_err_in_at_most_8_percent_of_reports(patients, patient_sd):
    rng = np.random.default_rng(4)
    rejected = missed = 0
    for _ in range(1000):
        _, of_patients, of_cases, trainings, _, interval, p, _, _ = simulated_report(rng, patients, patient_sd)
        assert (of_patients, of_cases, trainings) == (str(patients), str(patients * 5 // 2), "3")
        low, high = map(float, interval.split(" to "))
        rejected += float(p) < 0.05
        missed += not low <= 0 <= high
    assert 0.01 <= rejected / 1000 <= 0.08
    assert 0.01 <= missed / 1000 <= 0.08


def random_dice(rng: np.random.Generator, trainings: list[str], cases: list[str]) -> dict[Prediction, float]:
    return {Prediction(training, case): rng.uniform(0.5, 0.9) for training in trainings for case in cases}


FRAMES = {f"p{p} frame{i}": f"p{p}" for p in range(9) for i in range(2)}


@pytest.mark.parametrize("times", [2, 3, 10])
def test_identical_trainings_are_no_evidence(times):
    rng = np.random.default_rng(5)
    own, reference = random_dice(rng, ["0"], list(FRAMES)), random_dice(rng, ["0"], list(FRAMES))
    copies = [
        {Prediction(str(copy), case): value for copy in range(times) for (_, case), value in values.items()}
        for values in (own, reference)
    ]
    once, repeated = paired_difference(own, reference, FRAMES), paired_difference(*copies, FRAMES)
    assert repeated.p == once.p
    assert (repeated.mean, repeated.low, repeated.high) == pytest.approx((once.mean, once.low, once.high))
    assert (repeated.patients, repeated.cases) == (once.patients, once.cases) == (9, 18)
    assert len(repeated.by_training) == times


@pytest.mark.parametrize("times", [2, 3, 10])
def test_frames_of_a_patient_given_again_change_nothing(times):
    rng = np.random.default_rng(6)
    own, reference = random_dice(rng, ["0", "1"], list(FRAMES)), random_dice(rng, ["0", "1"], list(FRAMES))
    copies = [
        {Prediction(training, f"{case} {i}"): value for i in range(times) for (training, case), value in values.items()}
        for values in (own, reference)
    ]
    patients = {f"{case} {i}": patient for i in range(times) for case, patient in FRAMES.items()}
    once, repeated = paired_difference(own, reference, FRAMES), paired_difference(*copies, patients)
    assert repeated.p == once.p
    assert (repeated.mean, repeated.low, repeated.high) == pytest.approx((once.mean, once.low, once.high))
    assert (repeated.patients, repeated.cases) == (9, 18 * times)
    assert repeated.by_training == pytest.approx(once.by_training)


def test_equal_differences_are_ties_whatever_their_last_bits():
    baseline, signs = np.arange(1, 9) / 10, np.array([1, 1, 1, 1, -1, 1, 1, -1])
    assert len(set(np.abs(baseline + signs * 0.1 - baseline))) > 1
    assert difference_of_patients(baseline + signs * 0.1, baseline).p == difference_of_patients(signs, [0] * 8).p


def test_patient_with_many_cases_counts_as_one_with_few():
    own = {Prediction("0", case): value for case, value in {"a1": 0.1, "a2": 0.1, "a3": 0.1, "b1": 0.5}.items()}
    patients = {"a1": "a", "a2": "a", "a3": "a", "b1": "b"}
    assert paired_difference(own, dict.fromkeys(own, 0.0), patients).mean == pytest.approx((0.1 + 0.5) / 2)


def test_differences_are_of_what_both_have():
    """The baseline's second seed and the other's third, in which they are far apart, have no pair."""
    own = {Prediction(training, "a"): value for training, value in {"1": 0.6, "3": 0.9}.items()}
    reference = {Prediction(training, "a"): value for training, value in {"1": 0.5, "2": 0.1}.items()}
    own[Prediction("1", "b")] = reference[Prediction("2", "b")] = 0.3
    found = paired_difference(own, reference, {"a": "a", "b": "b"})
    assert (found.mean, found.cases, found.by_training) == (pytest.approx(0.1), 1, {"1": pytest.approx(0.1)})


def test_spread_is_of_the_trainings_means():
    own = {Prediction("1", "a"): 0.2, Prediction("1", "b"): 0.4, Prediction("2", "a"): -0.1}
    found = paired_difference(own, dict.fromkeys(own, 0.0), {"a": "a", "b": "b"})
    assert found.by_training == {"1": pytest.approx(0.3), "2": pytest.approx(-0.1)}


def test_cases_without_a_value_are_left_out():
    found = difference_of_patients([0.5, math.nan, 0.9, 0.7], [0.4, 0.2, math.nan, 0.5])
    assert (found.cases, found.mean) == (2, pytest.approx(0.15))


def test_no_difference_at_all():
    found = difference_of_patients([0.5, 0.6, 0.7, 0.5, 0.6, 0.7], [0.5, 0.6, 0.7, 0.5, 0.6, 0.7])
    assert (found.mean, found.low, found.high, found.p) == (0, 0, 0, 1)


@pytest.mark.parametrize(
    ("own", "reference"),
    [({}, {}), ({Prediction("1", "a"): 0.5}, {Prediction("2", "a"): 0.5}), ({Prediction("1", "a"): math.nan},) * 2],
)
def test_what_cannot_be_compared_is_said(own, reference):
    with pytest.raises(ValueError, match="a paired comparison needs a prediction that both have a value for"):
        paired_difference(own, reference, {"a": "a"})


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


def interval_of(differences: np.ndarray) -> tuple[float, float]:
    """Return the interval over the draws (rows) and the cases (columns), of patients of one case each."""
    found = {
        Prediction(f"seed {i}", f"case{j}"): float(value)
        for i, row in enumerate(differences)
        for j, value in enumerate(row)
    }
    patients = {f"case{j}": f"case{j}" for j in range(differences.shape[1])}
    return bootstrap_interval(found, dict.fromkeys(found, 0.0), patients)


def test_interval_over_draws_covers_what_the_draws_differ_in():
    """Of three draws that differ in everything, one resample in 27 holds the one alone, and one the other."""
    assert interval_of(np.array([[0.0] * 20, [0.5] * 20, [1.0] * 20])) == (pytest.approx(0.0), pytest.approx(1.0))
    assert interval_of(np.full((3, 20), 0.25)) == (pytest.approx(0.25), pytest.approx(0.25))


def test_interval_over_draws_takes_the_same_cases_for_all_draws():
    """Where the draws agree, more of them tell nothing more about the cases."""
    cases = np.random.default_rng(1).normal(size=400)
    for draws in (3, 20):
        low, high = interval_of(np.tile(cases, (draws, 1)))
        half = 1.96 * cases.std() / math.sqrt(400)
        assert (low, high) == (
            pytest.approx(cases.mean() - half, abs=0.01),
            pytest.approx(cases.mean() + half, abs=0.01),
        )


def test_interval_over_draws_needs_the_same_patients_in_each():
    patients = {"a": "a", "b": "b"}
    found = {Prediction("1", "a"): 0.5, Prediction("2", "b"): 0.5}
    with pytest.raises(ValueError, match="needs trainings that all predict the same patients"):
        bootstrap_interval(found, dict.fromkeys(found, 0.0), patients)


@pytest.mark.parametrize("shape", [(2, 20), (3, 5)])
def test_there_is_no_interval_over_few_draws_or_patients(shape):
    assert interval_of(np.random.default_rng(1).normal(size=shape)) is None


@pytest.mark.parametrize("zeros", [0, 8, 10, 30])
def test_patients_that_do_not_differ_do_not_make_others_significant(zeros):
    """By hand: of 5 patients, all of one sign, p is 2 / 2^5, however many have the same Dice with both trainers."""
    assert signed_rank_p(np.array([0.1, 0.2, 0.3, 0.4, 0.5] + [0.0] * zeros)) == pytest.approx(2 / 2**5)
    assert signed_rank_p(np.zeros(zeros)) == 1.0
