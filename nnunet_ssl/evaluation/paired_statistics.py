"""Whether one trainer is better than another on the same cases."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy.stats import bootstrap, wilcoxon

RESAMPLES = 10_000
CONFIDENCE = 0.95


@dataclass(frozen=True)
class PairedDifference:
    """The differences of two trainers over the cases that both have a value for.

    Attributes:
        mean: of the differences, trainer minus baseline.
        low: lower end of the 95 % bootstrap interval of the mean (percentile method).
        high: its upper end.
        p: of the two-sided Wilcoxon signed-rank test; 1 if no case differs.
        cases: how many.
    """

    mean: float
    low: float
    high: float
    p: float
    cases: int


def paired_difference(values: Sequence[float], baseline: Sequence[float], seed: int = 0) -> PairedDifference:
    """Compare two trainers case by case; a case in which either has no value (NaN) is left out.

    Args:
        values: one for each case.
        baseline: in the same order.
        seed: of the bootstrap.

    Raises:
        ValueError: the numbers of values differ, or fewer than two cases have both.
    """
    if len(values) != len(baseline):
        raise ValueError(f"{len(values)} values cannot be paired with {len(baseline)}")
    differences = np.asarray(values, float) - np.asarray(baseline, float)
    differences = differences[np.isfinite(differences)]
    if len(differences) < 2:
        raise ValueError(f"a paired comparison needs at least two cases with both values, got {len(differences)}")
    mean = float(differences.mean())
    if not np.ptp(differences):
        low = high = mean  # nothing to resample
    else:
        interval = bootstrap(
            (differences,),
            np.mean,
            n_resamples=RESAMPLES,
            confidence_level=CONFIDENCE,
            method="percentile",
            rng=np.random.default_rng(seed),
        ).confidence_interval
        low, high = float(interval.low), float(interval.high)
    p = float(wilcoxon(differences).pvalue) if differences.any() else 1.0
    return PairedDifference(mean, low, high, p, len(differences))


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
