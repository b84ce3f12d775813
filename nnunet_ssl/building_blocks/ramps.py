"""Ramps: progress of the run in, weight in [0, 1] out."""

import math


def gaussian_rampup(progress: float, duration: float) -> float:
    """Return exp(-5 (1 - t)^2) with t = progress / duration, and 1 from `duration` on.

    The field calls it "sigmoid ramp-up" although it is the left half of a Gaussian. Laine & Aila, "Temporal Ensembling
    for Semi-Supervised Learning", ICLR 2017, https://arxiv.org/abs/1610.02242, appendix A.

    Args:
        progress: how much of the run is over, a fraction in [0, 1].
        duration: after which fraction of the run the weight is 1; 0 means at once.
    """
    if not 0.0 <= progress <= 1.0:
        raise ValueError(f"progress is a fraction of the run in [0, 1], got {progress}")
    if not 0.0 <= duration <= 1.0:
        raise ValueError(f"the duration of a ramp is a fraction of the run in [0, 1], got {duration}")
    position = min(progress / duration, 1.0) if duration > 0 else 1.0
    return math.exp(-5.0 * (1.0 - position) ** 2)


def between(first: float, last: float, share: float) -> float:
    """Return the number that lies a share of the way from the first to the last one."""
    return first + share * (last - first)
