"""Perturbations under which a prediction ought to stay the same."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import chain, combinations

import torch
import torch.nn.functional as F
from torch import Tensor


def with_noise(image: Tensor, deviation: float = 0.1, limit: float = 0.2) -> Tensor:
    """Return an image with normal noise that is cut off at ± limit; units are those of the normalised image.

    The values are those of UA-MT and all of SSL4MIS, for images of about unit variance.
    """
    return image + (deviation * torch.randn_like(image)).clamp(-limit, limit)


def mirrorings(axes: Sequence[int]) -> list[tuple[int, ...]]:
    """Return all combinations of spatial axes to mirror, none first, as dimensions of (B, C, *spatial)."""
    dimensions = [axis + 2 for axis in axes]
    return list(chain.from_iterable(combinations(dimensions, count) for count in range(len(dimensions) + 1)))


class FeatureDropout:
    """Drops whole channels of an encoder's features while it is switched on, and passes them on otherwise.

    Ouali et al., "Semi-Supervised Semantic Segmentation with Cross-Consistency Training", CVPR 2020,
    https://arxiv.org/abs/2003.09005

    Attributes:
        probability: of a channel to be dropped, in [0, 1).
    """

    def __init__(self, probability: float) -> None:
        self.probability = probability
        self.is_on = False

    def __call__(self, features: Sequence[Tensor]) -> list[Tensor]:
        """Return features (B, F, *spatial) of all levels; those kept are scaled so that the mean stays."""
        if not self.is_on:
            return list(features)
        drop = F.dropout2d if features[0].ndim == 4 else F.dropout3d
        return [drop(level, self.probability, training=True) for level in features]

    @contextmanager
    def switched_on(self) -> Iterator[None]:
        """Drop channels in what is computed inside."""
        self.is_on = True
        try:
            yield
        finally:
            self.is_on = False
