"""Distances between two predictions of one image."""

import torch
from torch import Tensor


def mean_squared_error(probs: Tensor, target: Tensor) -> Tensor:
    """Return the squared difference of two predictions, the mean over batch, channels and voxels, as a scalar.

    Args:
        probs: (B, C, *spatial) in [0, 1]; the gradient flows here.
        target: (B, C, *spatial) in [0, 1]; taken as constant.

    Raises:
        ValueError: the shapes differ (broadcasting would hide a mistake).
    """
    if probs.shape != target.shape:
        raise ValueError(f"the two predictions must have one shape, got {tuple(probs.shape)} and {tuple(target.shape)}")
    return torch.nn.functional.mse_loss(probs.float(), target.detach().float())


def masked_mean_squared_error(probs: Tensor, target: Tensor, mask: Tensor) -> Tensor:
    """Return the squared difference of two predictions, the mean over channels and the voxels of a mask, as a scalar.

    An empty mask gives 0.

    Args:
        probs: (B, C, *spatial) in [0, 1]; the gradient flows here.
        target: (B, C, *spatial) in [0, 1]; taken as constant.
        mask: bool (B, 1, *spatial) or (B, C, *spatial).
    """
    mask = mask.float().expand_as(probs)
    return (mask * (probs.float() - target.detach().float()).square()).sum() / mask.sum().clamp_min(1.0)
