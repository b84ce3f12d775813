"""What the student is being taught, in a few numbers for the curves."""

import torch
from torch import Tensor

from nnunet_ssl.building_blocks.label_space import LabelSpace

CONFIDENT = 0.95  # FixMatch's threshold, https://arxiv.org/abs/2001.07685


@torch.no_grad()
def teaching_statistics(space: LabelSpace, probs: Tensor, target: Tensor) -> dict[str, Tensor]:
    """Return what share of voxels is taught with confidence, agrees already, and is of each foreground channel.

    Args:
        space: what the channels mean.
        probs: the student's probabilities (B, C, *spatial).
        target: the probabilities it is taught, of the same shape.

    Returns:
        Scalars by name: confident, agreement, pseudo_label/<channel>.
    """
    pseudo_label = space.pseudo_label(target)
    return {
        "confident": (space.confidence(target) > CONFIDENT).float().mean(),
        "agreement": (space.pseudo_label(probs) == pseudo_label).float().mean(),
        **{f"pseudo_label/{name}": share for name, share in foreground_shares(space, pseudo_label).items()},
    }


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
