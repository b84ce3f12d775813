"""Which unlabeled scan a trained model is most uncertain about."""

from dataclasses import dataclass

import numpy as np
from scipy.ndimage import binary_dilation
from scipy.stats import rankdata

BORDER_VOXELS = 2  # around the predicted foreground that uncertainty is measured in, too


@dataclass(frozen=True)
class Uncertainty:
    """How uncertain the prediction of a case is.

    Attributes:
        entropy: mean over the predicted foreground and its border, in [0, 1]; NaN if nothing is predicted.
        disagreement: share of the voxels that either network calls foreground on which the two differ, in [0, 1]; NaN
            without a second network, or if both predict nothing.
        confidence: by structure, the mean probability of its predicted voxels, in [0, 1]; NaN where there are none.
    """

    entropy: float
    disagreement: float
    confidence: dict[str, float]


def measure_uncertainty(
    probs: np.ndarray,
    masks: dict[str, np.ndarray],
    channels: dict[str, int],
    is_softmax: bool,
    other_masks: dict[str, np.ndarray] | None = None,
) -> Uncertainty:
    """Return how uncertain a prediction is.

    Args:
        probs: `(C, *spatial)`, in [0, 1]: softmax over all classes, or one sigmoid for each region.
        masks: by structure the predicted voxels, `(*spatial)`, bool.
        channels: by structure its channel in `probs`.
        is_softmax: which of the two `probs` is.
        other_masks: the second network's prediction.
    """
    foreground = np.logical_or.reduce(list(masks.values()))
    near = binary_dilation(foreground, iterations=BORDER_VOXELS) if foreground.any() else foreground
    entropy = float(normalized_entropy(probs[:, near], is_softmax).mean()) if near.any() else float("nan")
    confidence = {
        name: float(probs[channels[name]][mask].mean()) if mask.any() else float("nan") for name, mask in masks.items()
    }
    return Uncertainty(entropy, disagreement(masks, other_masks), confidence)


def normalized_entropy(probs: np.ndarray, is_softmax: bool) -> np.ndarray:
    """Return the entropy of probabilities `(C, N)` as a fraction of the largest possible one, `(N,)`.

    For sigmoids it is the largest binary entropy among the regions.
    """
    p = np.clip(probs, 1e-12, 1)
    if is_softmax:
        return -(p * np.log(p)).sum(axis=0) / np.log(len(p))
    q = np.clip(1 - probs, 1e-12, 1)
    return (-(p * np.log(p) + q * np.log(q)) / np.log(2)).max(axis=0)


def disagreement(masks: dict[str, np.ndarray], other_masks: dict[str, np.ndarray] | None) -> float:
    """Return the share of voxels, among those that either network calls foreground, on which they differ."""
    if other_masks is None:
        return float("nan")
    either = np.logical_or.reduce([*masks.values(), *other_masks.values()])
    if not either.any():
        return float("nan")
    differs = np.logical_or.reduce([masks[name] != other_masks[name] for name in masks])
    return float(differs.sum() / either.sum())


def priority(cases: dict[str, Uncertainty]) -> list[str]:
    """Return the cases, the most uncertain one first: by the mean of their ranks in entropy and disagreement.

    A case in which nothing is predicted comes first: either it shows nothing, or everything was missed.
    """
    if not cases:
        return []
    columns = np.array([[case.entropy, case.disagreement] for case in cases.values()])
    columns = columns[:, ~np.isnan(columns).all(axis=0)]
    ranks = rankdata(-np.where(np.isnan(columns), np.inf, columns), axis=0).mean(axis=1) if columns.size else None
    names = list(cases)
    return names if ranks is None else [names[index] for index in np.argsort(ranks, kind="stable")]
