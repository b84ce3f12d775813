"""What pseudo-labels are like, in a few numbers for the curves."""

import math
from collections.abc import Sequence
from statistics import fmean, median

import torch
from torch import Tensor

from nnunet_ssl.building_blocks.label_space import LabelSpace

CONFIDENT = 0.95  # FixMatch's threshold, https://arxiv.org/abs/2001.07685
COLLAPSE_RATIO, COLLAPSE_EPOCHS = 10.0, 3
NEARLY_ALL = 0.99  # ours


@torch.no_grad()
def pseudo_label_statistics(space: LabelSpace, target: Tensor, probs: Tensor | None = None) -> dict[str, Tensor]:
    """Return what share of voxels is confident, agrees already, and is of each foreground channel.

    Args:
        space: what the channels mean.
        target: the probabilities (B, C, *spatial) that a network learns from.
        probs: its own probabilities of the same voxels; None where it sees others.

    Returns:
        Scalars by name: confident, pseudo_label/<channel>, and with `probs` agreement.
    """
    pseudo_label = space.pseudo_label(target)
    statistics = {"confident": (space.confidence(target) > CONFIDENT).float().mean()}
    if probs is not None:
        statistics["agreement"] = (space.pseudo_label(probs) == pseudo_label).float().mean()
    shares = foreground_shares(space, pseudo_label)
    return statistics | {f"pseudo_label/{channel}": share for channel, share in shares.items()}


def collapsed(prior: Sequence[float], pseudo: Sequence[float], labels_are_complete: bool = True) -> str | None:
    """Return "vanished" or "flooded" if a class is hardly, or nearly everywhere, in the last pseudo-labels.

    The measure is the median share of voxels, in the pseudo-labels of the last epochs and in the labels of all, both of
    random patches. Vanished is less than a tenth of the labels' share; flooded is more than tenfold odds, so that a
    large structure can flood too. Both are ours, far beyond what the choice of a few labeled cases explains. That a
    structure vanishes which most epochs' labels lack tells nothing; for floods of it see `usual_share`.

    Args:
        prior: share of the class in the labels, by epoch.
        pseudo: share of the class in the pseudo-labels, by epoch.
        labels_are_complete: false with an ignore label, where the labels' share is one of chosen places; then vanished
            means none at all, and flooded nearly all.
    """
    last = finite(pseudo[-COLLAPSE_EPOCHS:])
    expected = usual_share(prior)
    if len(last) < COLLAPSE_EPOCHS or not expected:
        return None
    share, is_rare = median(last), not median(finite(prior))
    least, most = expected / COLLAPSE_RATIO, COLLAPSE_RATIO * expected / (1.0 + (COLLAPSE_RATIO - 1.0) * expected)
    if not labels_are_complete:
        least, most = 0.0, NEARLY_ALL
    return "flooded" if share > most else "vanished" if share <= least and not is_rare else None


def usual_share(shares: Sequence[float]) -> float:
    """Return the median of a class's shares by epoch, or the mean where most epochs have none of it; 0 at least."""
    known = finite(shares)
    return (median(known) or fmean(known)) if known else 0.0


def finite(values: Sequence[float]) -> list[float]:
    """Return the values of the epochs that were observed."""
    return [value for value in values if math.isfinite(value)]


@torch.no_grad()
def foreground_shares(space: LabelSpace, labels: Tensor) -> dict[str, Tensor]:
    """Return the share of voxels of each foreground channel, by the channel's number, over known voxels.

    Args:
        space: what the channels mean.
        labels: nnU-Net's target, or pseudo-labels.
    """
    known = space.is_known(labels)
    shares = (space.one_hot(labels) * known).sum((0, *range(2, labels.ndim))) / known.sum().clamp_min(1)
    channels = range(space.num_channels)[space.foreground]
    return {str(channel): shares[channel] for channel in channels}
