"""Displacement: the largest region of an image that a network is unsure of takes the content of a sure one.

The device makes maps of the probabilities, the host looks for boxes in them, and the device pastes. All boxes lie on a
grid of cells, a few voxels along each axis, over which the maps are means: so many windows cost little.

W. Xiao et al., "CAD: Confidence-Aware Adaptive Displacement for Semi-Supervised Medical Image Segmentation", 2025,
https://arxiv.org/abs/2502.00536; H. Chi et al., "Adaptive Bidirectional Displacement for Semi-Supervised Medical Image
Segmentation" (ABD), CVPR 2024, https://arxiv.org/abs/2405.00378
"""

import functools
import math
from collections.abc import Sequence
from dataclasses import dataclass

import cc3d
import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from nnunet_ssl.building_blocks.label_space import LabelSpace

CELLS = 32  # along an axis at least, where the patch has as many voxels; ours: the first cap has four of them
CANDIDATES = 4  # ABD's code
# Share of the box's predicted foreground that a source holds; ours, measured: of windows with any foreground at all the
# surest ones only touch it (7 % of their voxels, 30 % of the box's), so that what is hard was replaced by what is easy.
LEAST_FOREGROUND = 0.5

Place = tuple[int, ...]  # along each axis


@dataclass(frozen=True)
class Search:
    """Which boxes are looked for.

    Attributes:
        threshold: τ in [0, 1]: a voxel of less confidence is unsure, and a source has at least this mean confidence.
        fraction: κ in [0, 1], of an image's voxels: about so many are unsure in any case; see `confidence_limit`.
        largest_side: of the patch along each axis, in (0, 1], to which boxes are cut down.
        smallest_side: of the patch along each axis, in (0, 1]; an image whose largest unsure region has fewer voxels
            than a box of this side is left alone.
        probability: that an image is displaced at all, in [0, 1].
        at_random: boxes at random places are replaced, of the size that they would have.
    """

    threshold: float
    fraction: float
    largest_side: float
    smallest_side: float
    probability: float = 1.0
    at_random: bool = False


@dataclass(frozen=True)
class Displacement:
    """A box of one image, in voxels, and the box of the same size whose content it takes.

    Attributes:
        image: which of the batch.
        start: of its box.
        source: which image of the batch the content is from.
        source_start: of the other box.
        size: of both.
    """

    image: int
    start: Place
    source: int
    source_start: Place
    size: Place

    @property
    def box(self) -> tuple[slice, ...]:
        """The voxels that are replaced."""
        return tuple(slice(first, first + length) for first, length in zip(self.start, self.size, strict=True))

    @property
    def source_box(self) -> tuple[slice, ...]:
        """The voxels that replace them."""
        return tuple(slice(first, first + length) for first, length in zip(self.source_start, self.size, strict=True))


# ---- on the device ----


def maps_to_search(space: LabelSpace, search: Search, probs: Sequence[Tensor]) -> tuple[Tensor, Tensor, Tensor]:
    """Return what `find_boxes` needs, without gradient.

    Args:
        space: what the channels mean.
        search: which boxes are looked for.
        probs: of some networks, each (B, C, *spatial); their mean counts.

    Returns:
        Where voxels are unsure, bool (B, 1, *spatial); means over cells of confidence, predicted foreground and
        probabilities, (B, 2 + C, *cells) in float32; random numbers in [0, 1), (B, 1 + dimensions), of the CPU.
    """
    mean = (sum(probs) / len(probs)).detach().float()
    confidence = space.confidence(mean).amin(1, keepdim=True)  # of the least sure region
    is_unsure = confidence < confidence_limit(confidence, search.threshold, search.fraction)
    is_foreground = space.pseudo_label(mean).amax(1, keepdim=True) > 0  # any class or region
    size = cell_size(mean.shape[2:])
    pool = F.avg_pool2d if len(size) == 2 else F.avg_pool3d
    cells = torch.cat([pool(maps.float(), size) for maps in (confidence, is_foreground, mean)], 1)
    return is_unsure, cells, torch.rand(len(mean), 1 + len(size))


def confidence_limit(confidence: Tensor, threshold: float, fraction: float) -> Tensor:
    """Return below which confidence a voxel is unsure, for each image: max(τ, Q_κ(c)), (B, 1, 1 ...).

    Networks are sure of nearly everything after a while, of what is wrong too: then no voxel is below a constant τ,
    and the quantile Q_κ still is the limit of the least sure ones.

    Args:
        confidence: c (B, 1, *spatial).
        threshold: τ in [0, 1].
        fraction: κ in [0, 1] of an image's voxels; of equally sure ones fewer may be below the quantile.
    """
    by_image = confidence.flatten(1)
    rank = 1 + int(fraction * (by_image.shape[1] - 1))
    quantile = by_image.kthvalue(rank, 1).values
    return quantile.clamp_min(threshold).view(-1, *[1] * (confidence.ndim - 1))


def cell_size(spatial: Sequence[int]) -> Place:
    """Return the voxels of a cell: along each axis the largest power of 2 that divides it into at least `CELLS`."""
    return tuple(max([1, *(2**i for i in range(16) if side % 2**i == 0 and side >= CELLS * 2**i)]) for side in spatial)


def displaced(maps: Sequence[Tensor], displacements: Sequence[Displacement]) -> list[Tensor]:
    """Return maps of one batch, each (B, C, *spatial), in which boxes hold what their sources held before."""
    pasted = [whole.clone() for whole in maps]
    for one in displacements:
        for new, whole in zip(pasted, maps, strict=True):
            new[(one.image, ..., *one.box)] = whole[(one.source, ..., *one.source_box)]
    return pasted


def displaced_shares(displacements: Sequence[Displacement], shape: Sequence[int]) -> dict[str, float]:
    """Return for the curves which share of the images, and of the voxels, of a batch (B, C, *spatial) is replaced."""
    voxels = sum(math.prod(one.size) for one in displacements)
    images, _, *spatial = shape
    return {"displaced/images": len(displacements) / images, "displaced/voxels": voxels / images / math.prod(spatial)}


# ---- on the host ----


def find_boxes(
    space: LabelSpace, search: Search, is_unsure: np.ndarray, cells: np.ndarray, drawn: np.ndarray
) -> list[Displacement]:
    """Return for each image at most one box and its source.

    The box is that of the largest connected region of unsure voxels, widened to whole cells; along an axis where it is
    longer than the largest side it is the window of that length, inside of it, of the lowest mean confidence. Of the
    windows of its size that are confident enough and hold predicted foreground, at least half as much as the box, the
    four surest ones are candidates; the source is the one whose mean probabilities are nearest to those of the box, by
    KL(box ‖ source). They are windows of the next image; if it has none of the one after that, and so on. At batch
    size 1 they are windows of the image itself that do not overlap the box. Where there is no region or no source, the
    image is left alone.

    Args:
        space: what the probabilities mean.
        search: which boxes are looked for.
        is_unsure: bool (B, 1, *spatial).
        cells: (B, 2 + C, *cells), as `maps_to_search` returns them.
        drawn: random numbers in [0, 1), (B, 1 + dimensions): whether each image is displaced, and at which place if
            places are random.
    """
    sums = integral_image(cells, is_unsure.ndim - 2)
    found = (_displacement(space, search, i, is_unsure[i, 0], sums, drawn[i]) for i in range(len(is_unsure)))
    return [one for one in found if one is not None]


def _displacement(
    space: LabelSpace, search: Search, image: int, is_unsure: np.ndarray, sums: np.ndarray, drawn: np.ndarray
) -> Displacement | None:
    """Return the displacement of one image, if it has one."""
    region = largest_region(is_unsure) if drawn[0] < search.probability else None
    if region is None or region[1] < math.prod(search.smallest_side * side for side in is_unsure.shape):
        return None
    cell, cells = cell_size(is_unsure.shape), [corners - 1 for corners in sums.shape[2:]]
    first = [one.start // length for one, length in zip(region[0], cell, strict=True)]
    last = [math.ceil(one.stop / length) for one, length in zip(region[0], cell, strict=True)]
    most = [max(1, int(search.largest_side * number)) for number in cells]
    size = tuple(min(b - a, longest) for a, b, longest in zip(first, last, most, strict=True))
    if search.at_random:
        free = [number - length + 1 for number, length in zip(cells, size, strict=True)]
        start = tuple(int(share * number) for share, number in zip(drawn[1:], free, strict=True))
    else:
        start = least_confident_window(sums[image, 0], first, last, size)
    wanted = window_means(sums[image, 1:], [np.array([one]) for one in start], size).ravel()
    others = [(image + i) % len(sums) for i in range(1, len(sums))] or [image]
    for other in others:
        near = start if other == image else None
        source = find_source(space, search.threshold, sums[other], wanted, size, near)
        if source is not None:
            return Displacement(image, _product(start, cell), other, _product(source, cell), _product(size, cell))
    return None


def _product(place: Place, other: Place) -> Place:
    return tuple(a * b for a, b in zip(place, other, strict=True))


def largest_region(is_inside: np.ndarray) -> tuple[tuple[slice, ...], int] | None:
    """Return box and number of voxels of the largest connected region, the first of equals; None where there is none.

    Voxels that touch at a corner are connected.

    Args:
        is_inside: bool, of 2 or 3 dimensions.
    """
    even = np.pad(is_inside, [(0, side % 2) for side in is_inside.shape])  # cc3d miscounts regions of odd sides
    regions = cc3d.connected_components(even, connectivity=3**even.ndim - 1)
    inside = regions[even]
    voxels = np.bincount(inside)
    if not voxels.size:
        return None
    first = inside[np.argmax(voxels[inside] == voxels.max())]  # cc3d does not number regions in the order of voxels
    is_largest, axes = regions == first, range(regions.ndim)
    extents = [np.flatnonzero(is_largest.any(tuple({*axes} - {axis}))) for axis in axes]
    return tuple(slice(int(along[0]), int(along[-1]) + 1) for along in extents), int(voxels.max())


def integral_image(maps: np.ndarray, dimensions: int) -> np.ndarray:
    """Return the sums of maps (..., *cells) over all that lies before each corner, (..., *(cells + 1)) in float64."""
    for axis in range(-dimensions, 0):
        maps = np.cumsum(maps, axis, dtype=np.float64)
    return np.pad(maps, [(0, 0)] * (maps.ndim - dimensions) + [(1, 0)] * dimensions)


def window_means(sums: np.ndarray, starts: Sequence[np.ndarray], size: Place) -> np.ndarray:
    """Return the means of maps over windows of one size, (..., *numbers of starts).

    Args:
        sums: as `integral_image` returns them.
        starts: of the windows along each axis.
        size: of the windows.
    """
    for axis, (first, length) in enumerate(zip(starts, size, strict=True), start=sums.ndim - len(size)):
        sums = sums.take(first + length, axis) - sums.take(first, axis)
    return sums / math.prod(size)


def least_confident_window(sums: np.ndarray, first: Sequence[int], last: Sequence[int], size: Place) -> Place:
    """Return where in the box from `first` to `last` the window with the lowest mean begins; the first one of equals.

    Args:
        sums: of the confidence, as `integral_image` returns them.
        first: where the box begins.
        last: where it ends.
        size: of the window, at most the box's.
    """
    starts = [np.arange(a, b - length + 1) for a, b, length in zip(first, last, size, strict=True)]
    means = window_means(sums, starts, size)
    place = np.unravel_index(int(means.argmin()), means.shape)
    return tuple(int(along[i]) for along, i in zip(starts, place, strict=True))


def find_source(
    space: LabelSpace,
    least_confidence: float,
    sums: np.ndarray,
    wanted: np.ndarray,
    size: Place,
    apart_from: Place | None = None,
) -> Place | None:
    """Return where the window begins that is the source for a box; None where no window is good enough.

    Args:
        space: what the probabilities mean.
        least_confidence: of a source, a mean.
        sums: of one image's maps of cells, as `integral_image` returns them.
        wanted: means of the box that is replaced, of predicted foreground and probabilities, (1 + C,).
        size: of the box.
        apart_from: where a box of this size begins that the source has no cell of.
    """
    starts = [_starts(corners - 1, length) for corners, length in zip(sums.shape[1:], size, strict=True)]
    means = window_means(sums, starts, size)
    confidence, foreground, probs = means[0], means[1], means[2:]
    is_good = (confidence >= least_confidence) & (foreground > 0) & (foreground >= LEAST_FOREGROUND * wanted[0])
    if apart_from is not None:
        near = [abs(along - at) < length for along, at, length in zip(starts, apart_from, size, strict=True)]
        is_good &= ~functools.reduce(np.logical_and.outer, near)
    good = np.flatnonzero(is_good)
    if not good.size:
        return None
    surest = good[np.argsort(-confidence.ravel()[good], kind="stable")[:CANDIDATES]]
    theirs = torch.from_numpy(probs.reshape(len(probs), -1).T[surest])
    divergence = space.divergence(torch.from_numpy(wanted)[None, 1:], theirs).sum(1).numpy()
    place = np.unravel_index(surest[divergence.argmin()], confidence.shape)
    return tuple(int(along[i]) for along, i in zip(starts, place, strict=True))


def _starts(cells: int, length: int) -> np.ndarray:
    """Return where windows of a length begin along an axis: they overlap by half, and the last one ends at the end."""
    return np.unique(np.append(np.arange(0, cells - length, max(1, length // 2)), cells - length))
