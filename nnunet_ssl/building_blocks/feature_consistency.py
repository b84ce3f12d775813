"""Distances between the features that two networks have of two images."""

from collections.abc import Callable

import torch.nn.functional as F
from torch import Tensor

from nnunet_ssl.building_blocks.mixing import partner


def cosine_distance(features: Tensor, target: Tensor) -> Tensor:
    """Return 1 - cos of the whole feature maps of each sample, the mean over the batch, a scalar in [0, 2].

    Args:
        features: (B, F, *spatial); the gradient flows here.
        target: (B, F, *spatial); taken as constant.
    """
    return 1.0 - F.cosine_similarity(features.float().flatten(1), target.detach().float().flatten(1)).mean()


def mean_absolute_difference(features: Tensor, target: Tensor, mask: Tensor | None = None) -> Tensor:
    """Return ⟨|a - b|⟩ over batch, channels and voxels, or the voxels of a mask, as a scalar; an empty mask gives 0.

    Args:
        features: (B, F, *spatial); the gradient flows here.
        target: (B, F, *spatial); taken as constant.
        mask: bool (B, 1, *spatial); None means everywhere.
    """
    features, target = features.float(), target.detach().float()
    if mask is None:
        return F.l1_loss(features, target)  # keeps no map of differences for the backward pass
    difference = (features - target).abs()
    return (difference * mask).sum() / (mask.sum() * features.shape[1]).clamp_min(1)


def of_own_and_next(distance: Callable[[Tensor, Tensor], Tensor], features: Tensor, target: Tensor) -> Tensor:
    """Return the mean of the distances to the target of the same sample and to that of the next one, as a scalar.

    The four pairings of mixed and unlabeled images of M3HL: Liu et al., MICCAI 2025, https://arxiv.org/abs/2508.03752

    Args:
        distance: of two maps.
        features: (B, F, *spatial); the gradient flows here.
        target: (B, F, *spatial); taken as constant.
    """
    return 0.5 * (distance(features, target) + distance(features, partner(target)))
