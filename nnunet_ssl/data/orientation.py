"""Along which axes scans lie the same way, told by their images alone: headers may be wrong, or missing."""

from collections.abc import Iterable, Sequence
from itertools import permutations, product

import numpy as np
import torch
import torch.nn.functional as F
from scipy.stats import rankdata
from torch import Tensor

SIDE = 16  # voxels of a small image along each axis; ours


def small(image: np.ndarray) -> Tensor:
    """Return the ranks of an image's mean intensities in 16 x 16 x 16 parts: float32, of mean 0 and length 1.

    Parts that are equal, as in a background of zeros, have one rank; an image that is all equal has length 0.

    Args:
        image: one channel, of three axes, in any unit.
    """
    parts = F.adaptive_avg_pool3d(torch.from_numpy(np.array(image, np.float32))[None], SIDE)[0]
    ranks = torch.from_numpy(rankdata(parts.numpy().ravel()))
    return F.normalize(ranks - ranks.mean(), dim=0).float().view_as(parts)


def turned_over(images: Iterable[np.ndarray], axes: Sequence[int]) -> dict[int, int]:
    """Return for each axis how many images seem to have it somewhere else, or reversed.

    Each image is compared with the mean of the others in all 48 ways in which axes can be exchanged and mirrored. An
    axis is elsewhere if the best of the ways that change it is as good as the best of those that leave it. Likeness is
    the correlation of small images. Measured: of 200 scans of the hippocampus none, of 20 left atria 1, 1 and 2, of 90
    images of PSFHS none, of 74 of HC18 5 and 3, of 36 of ACDC in the form of the literature, where some patients lie
    another way, 8 along each axis of the slices.

    Args:
        images: one channel each, of three axes; each is read once, and none is kept.
        axes: 0 is the images' first.
    """
    found = torch.stack([small(one) for one in images])
    others = found.sum(0) - found
    best = {(axis, stays): torch.full((len(found),), -torch.inf) for axis in axes for stays in (True, False)}
    for order in permutations(range(3)):
        for mirrored in product((False, True), repeat=3):
            turned = found.permute(0, *(1 + axis for axis in order)).flip([1 + i for i in range(3) if mirrored[i]])
            likeness = (turned * others).sum((1, 2, 3))
            for axis in axes:
                stays = order[axis] == axis and not mirrored[axis]
                best[axis, stays] = torch.maximum(best[axis, stays], likeness)
    return {axis: int((best[axis, False] >= best[axis, True]).sum()) for axis in axes}
