"""Along which axes scans lie the same way, told by their images: headers may be wrong, or missing.

And whether their labels do: what is labeled alike on both sides may be mirrored, however the scans lie.
"""

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


def overlap_of_mirrored(labels: Iterable[np.ndarray], classes: Sequence[int], axes: Sequence[int]) -> dict[int, float]:
    """Return for each axis how well labels overlap with those of other cases mirrored along it, as a share.

    It is a share of how well they overlap unmirrored; 1 where they do not at all, and nan of fewer than two cases. The
    overlap is the Dice of how much of each of 16 x 16 x 16 parts a class fills, a mean over classes and pairs of cases.
    Measured, with 40 cases each: 0.26, 0.14 and 0.63 along the three axes of the hippocampus, 0.45 and 0.61 along those
    of PSFHS, whose labels lie one beside the other, 1.00 and 0.99 in HC18, an ellipse. With 2 of them, drawn 200 times,
    0.8 and more in 2.5, 0 and 11 % of the draws of the hippocampus, 96 and 96.5 % of those of HC18.

    Args:
        labels: of each case, of three axes; each is read once, and none is kept.
        classes: the labels of the foreground.
        axes: 0 is the labels' first.
    """
    cases = [filled(np.asarray(one), classes) for one in labels]
    if len(cases) < 2:
        return dict.fromkeys(axes, float("nan"))
    shares = torch.stack(cases)
    pairs = ~torch.eye(len(shares), dtype=torch.bool)
    same = _overlaps(shares, shares)[pairs].mean().item()
    mirrored = {axis: _overlaps(shares, shares.flip(2 + axis))[pairs].mean().item() for axis in axes}
    return {axis: overlap / same if same != 0.0 else 1.0 for axis, overlap in mirrored.items()}


def filled(labels: np.ndarray, classes: Sequence[int]) -> Tensor:
    """Return which share of each of 16 x 16 x 16 parts each of K classes fills: float32, (K, 16, 16, 16).

    It is the adaptive average pooling of each class's mask, in one pass over the labels however many classes there are.

    Args:
        labels: of three axes.
        classes: K values, at least 0.
    """
    cuts, windows = zip(*map(_windows, labels.shape), strict=True)
    piece = [np.repeat(np.arange(len(cut) - 1), np.diff(cut)) for cut in cuts]  # of each voxel along each axis
    number = len(classes) + 1  # the last one is all else
    index = np.full(max(classes) + 2, len(classes))
    index[list(classes)] = np.arange(len(classes))
    plane = piece[1][:, None] * (len(cuts[2]) - 1) + piece[2]
    cells = (len(cuts[1]) - 1) * (len(cuts[2]) - 1) * number
    counts = []
    for first, end in zip(cuts[0][:-1], cuts[0][1:], strict=True):
        found = index[np.clip(labels[first:end].astype(np.int64), -1, max(classes) + 1)]
        counts.append(np.bincount((plane * number + found).ravel(), minlength=cells))
    shares = np.stack(counts).reshape([len(cut) - 1 for cut in cuts] + [number])[..., :-1]
    for window in windows:  # the axis in front goes to the end
        shares = np.tensordot(shares, window, (0, 1))
    return torch.from_numpy(shares.astype(np.float32))


def _windows(length: int) -> tuple[np.ndarray, np.ndarray]:
    """Return where an axis is to be cut so that each part is some of the pieces, and of which part each is a share."""
    part = np.arange(SIDE)
    starts, ends = part * length // SIDE, -(-(part + 1) * length // SIDE)
    cuts = np.unique([starts, ends])
    inside = (starts[:, None] <= cuts[:-1]) & (cuts[:-1] < ends[:, None])
    return cuts, inside / (ends - starts)[:, None]


def _overlaps(first: Tensor, second: Tensor) -> Tensor:
    """Return the mean Dice over classes of each of N cases with each of M others, (N, M)."""
    first, second = first.flatten(2), second.flatten(2)
    common = torch.stack([2 * torch.minimum(one, second).sum(2) for one in first])
    volumes = first.sum(2)[:, None] + second.sum(2)
    return (common / volumes.clamp_min(torch.finfo().tiny)).mean(2)
