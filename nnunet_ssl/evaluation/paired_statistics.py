"""Whether one trainer is better than another on the same patients."""

from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
from scipy.stats import t, wilcoxon

from nnunet_ssl.evaluation.comparison import Prediction

CONFIDENCE = 0.95
FEWEST_PATIENTS = 6  # of an interval; with 5 the test cannot reach p < 0.05 either: all of one sign has p = 2 / 2^5
FEWEST_TRAININGS = 3  # of an interval over them; of two, a bootstrap draws one twice in half of the resamples
RESAMPLES = 10_000  # of a bootstrap
DECIMALS = 12  # averages of equal numbers may differ in their last bits, which would break ties

Key = TypeVar("Key", bound=Hashable)


@dataclass(frozen=True)
class PairedDifference:
    """The differences of two trainers over the patients of whom both have predicted the same case in a training.

    Attributes:
        mean: of the patients' differences, trainer minus baseline.
        low: lower end of the 95 % interval of the mean, by Student's t over the patients; NaN below 6 patients.
        high: its upper end.
        p: of the two-sided Wilcoxon signed-rank test over the patients that differ; 1 if none does.
        patients: how many.
        cases: how many, each counted once.
        by_training: the mean difference over the cases of each training.
    """

    mean: float
    low: float
    high: float
    p: float
    patients: int
    cases: int
    by_training: Mapping[str, float]


def paired_difference(
    values: Mapping[Prediction, float], baseline: Mapping[Prediction, float], patients: Mapping[str, str]
) -> PairedDifference:
    """Compare two trainers on the predictions that both have, case by case in each training.

    A case is averaged over its trainings and a patient over its cases before anything is tested: predictions of one
    patient are not independent. What is tested is that the differences are symmetric about 0. A prediction in which
    either has no value (NaN) is left out.

    Args:
        values: of each prediction.
        baseline: the same of the other trainer.
        patients: whose each case is.

    Raises:
        ValueError: there is no prediction that both have a value for.
    """
    both = {prediction: values[prediction] - baseline[prediction] for prediction in values if prediction in baseline}
    both = {prediction: difference for prediction, difference in both.items() if np.isfinite(difference)}
    if not both:
        raise ValueError("a paired comparison needs a prediction that both have a value for")
    of_case = means_by(both, lambda prediction: prediction.case)
    of_patient = np.array(list(means_by(of_case, patients.__getitem__).values())).round(DECIMALS)
    mean, number, half = float(of_patient.mean()), len(of_patient), np.nan
    if number >= FEWEST_PATIENTS:
        half = float(t.ppf((1 + CONFIDENCE) / 2, number - 1) * of_patient.std(ddof=1) / np.sqrt(number))
    return PairedDifference(
        mean=mean,
        low=mean - half,
        high=mean + half,
        p=signed_rank_p(of_patient),
        patients=number,
        cases=len(of_case),
        by_training=means_by(both, lambda prediction: prediction.training),
    )


def signed_rank_p(differences: np.ndarray) -> float:
    """Return p of Wilcoxon's signed-rank test without the differences that are 0.

    With them scipy takes a normal approximation of whatever else there is, which is too small for few.
    """
    differences = differences[differences != 0.0]
    return float(wilcoxon(differences).pvalue) if len(differences) else 1.0


def bootstrap_interval(
    values: Mapping[Prediction, float], baseline: Mapping[Prediction, float], patients: Mapping[str, str]
) -> tuple[float, float] | None:
    """Return the 95 % interval of a mean difference over trainings that each drew labeled cases of their own.

    None below 3 trainings or 6 patients: an interval of so few would be much too narrow.

    Percentiles of a bootstrap: trainings are drawn with replacement, and patients, the same ones for all trainings of a
    resample, because all predict the same cases. It covers what depends on the draws of labeled cases, which
    `PairedDifference` does not. Its random numbers are always the same.

    Args:
        values: of each prediction; the same cases in each training.
        baseline: the same of the other trainer.
        patients: whose each case is.

    Raises:
        ValueError: there are not the same patients in each training.
    """
    found: dict[str, dict[str, list[float]]] = {}
    for prediction, value in values.items():
        of_patient = found.setdefault(prediction.training, {}).setdefault(patients[prediction.case], [])
        of_patient.append(value - baseline[prediction])
    names = sorted(next(iter(found.values()), {}))
    if any(sorted(of_patients) != names for of_patients in found.values()):
        raise ValueError("an interval over draws needs trainings that all predict the same patients")
    if len(found) < FEWEST_TRAININGS or len(names) < FEWEST_PATIENTS:
        return None
    means = np.array([[np.mean(of_patients[name]) for name in names] for of_patients in found.values()])
    draws = np.random.default_rng(0)
    trainings = draws.integers(len(means), size=(RESAMPLES, len(means)))
    chosen = draws.integers(len(names), size=(RESAMPLES, len(names)))
    shares = np.apply_along_axis(np.bincount, 1, chosen, minlength=len(names)) / len(names)
    differences = (means[trainings].mean(axis=1) * shares).sum(axis=1)
    low, high = np.quantile(differences, [(1 - CONFIDENCE) / 2, (1 + CONFIDENCE) / 2])
    return float(low), float(high)


def means_by(values: Mapping[Key, float], group_of: Callable[[Key], str]) -> dict[str, float]:
    """Return the mean of the values of each group, by name in order."""
    groups: dict[str, list[float]] = {}
    for key, value in values.items():
        groups.setdefault(group_of(key), []).append(value)
    return {group: sum(groups[group]) / len(groups[group]) for group in sorted(groups)}


def holm(p_values: Sequence[float]) -> list[float]:
    """Return p-values corrected for their number by Holm's step-down method, in the order given.

    S. Holm, "A simple sequentially rejective multiple test procedure", Scandinavian Journal of Statistics 6 (1979).
    """
    order = np.argsort(p_values, kind="stable")
    corrected, largest = [0.0] * len(p_values), 0.0
    for rank, index in enumerate(order):
        largest = max(largest, min(1.0, (len(p_values) - rank) * p_values[index]))
        corrected[index] = largest
    return corrected
