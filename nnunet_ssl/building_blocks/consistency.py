"""Distances between two predictions of one image."""

from collections.abc import Sequence
from itertools import permutations

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


def sharpened(probs: Tensor, temperature: float) -> Tensor:
    """Return probabilities moved towards 0 and 1, each for itself: p^(1/T) / (p^(1/T) + (1 - p)^(1/T)).

    Wu et al., "Mutual consistency learning for semi-supervised medical image segmentation", MedIA 2022,
    https://arxiv.org/abs/2109.09960, equation 2.

    Args:
        probs: (B, C, *spatial) in [0, 1]; the gradient flows through.
        temperature: T in (0, 1]; 1 leaves them as they are.
    """
    power = 1.0 / temperature
    yes, no = probs.pow(power), (1.0 - probs).pow(power)
    return yes / (yes + no)


def mutual_consistency(probs: Sequence[Tensor], temperature: float) -> Tensor:
    """Return how far each of some predictions is from the sharpened ones of the others, the mean over pairs, a scalar.

        mean over i ≠ j of ⟨(p_i - sharp(p_j))²⟩

    Wu et al., "Mutual consistency learning for semi-supervised medical image segmentation", MedIA 2022,
    https://arxiv.org/abs/2109.09960, equation 3.

    Args:
        probs: two or more predictions of one image (B, C, *spatial) in [0, 1]; the gradient flows through p_i, and not
            through sharp(p_j).
        temperature: see `sharpened`.
    """
    targets = [sharpened(one.detach(), temperature) for one in probs]
    pairs = permutations(range(len(probs)), 2)
    return torch.stack([mean_squared_error(probs[i], targets[j]) for i, j in pairs]).mean()
