"""Perturbations under which a prediction ought to stay the same."""

from collections.abc import Sequence
from itertools import chain, combinations

import torch
import torch.nn.functional as F
from torch import Tensor


def with_noise(image: Tensor, channels: int | None = None, deviation: float = 0.1, limit: float = 0.2) -> Tensor:
    """Return an image with normal noise that is cut off at ± limit; units are those of the normalised image.

    The values are those of UA-MT and all of SSL4MIS, for images of about unit variance.

    Args:
        image: (B, C, *spatial).
        channels: how many of the C, the first ones, have noise; None: all.
        deviation: of the noise.
        limit: at which it is cut off.
    """
    kept = image[:, :channels]
    noisy = kept + (deviation * torch.randn_like(kept)).clamp(-limit, limit)
    return noisy if noisy.shape == image.shape else torch.cat([noisy, image[:, channels:]], dim=1)


def mirrorings(axes: Sequence[int]) -> list[tuple[int, ...]]:
    """Return all combinations of spatial axes to mirror, none first, as dimensions of (B, C, *spatial)."""
    dimensions = [axis + 2 for axis in axes]
    return list(chain.from_iterable(combinations(dimensions, count) for count in range(len(dimensions) + 1)))


def drop_channels(features: Sequence[Tensor], probability: float) -> list[Tensor]:
    """Return features in which whole channels of each sample are zero; the others are scaled so that the mean stays.

    Ouali et al., "Semi-Supervised Semantic Segmentation with Cross-Consistency Training", CVPR 2020,
    https://arxiv.org/abs/2003.09005

    Args:
        features: of several levels, each (B, F, *spatial); the gradient flows through what is kept.
        probability: of a channel to be dropped, in [0, 1).
    """
    drop = F.dropout2d if features[0].ndim == 4 else F.dropout3d
    return [drop(level, probability, training=True) for level in features]


def complementary_masks(features: Sequence[Tensor], probability: float) -> tuple[list[Tensor], list[Tensor]]:
    """Return masks of two views' channels, d ~ 2 Bernoulli(½) for the one and 2 - d for the other: (B, F, 1 ...).

    What the one view lacks the other has; a sample without dropout has 1 in both. L. Yang, Z. Zhao, H. Zhao, "UniMatch
    V2: Pushing the Limit of Semi-Supervised Semantic Segmentation", TPAMI 2025, https://arxiv.org/abs/2410.10777

    Args:
        features: of several levels, each (B, F, *spatial).
        probability: that a sample of the batch has its channels dropped, in [0, 1].
    """
    is_dropped = torch.rand(len(features[0])) < probability
    first = []
    for level in features:
        mask = 2.0 * torch.randint(2, level.shape[:2])
        mask[~is_dropped] = 1.0
        mask = mask.to(level.device, level.dtype, non_blocking=True)
        first.append(mask.view(*level.shape[:2], *[1] * (level.ndim - 2)))
    return first, [2.0 - mask for mask in first]
