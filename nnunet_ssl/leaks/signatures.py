"""A small image of each scan, by which copies find one another whatever their names, sizes and intensities."""

from collections.abc import Sequence

import numpy as np
from scipy.ndimage import gaussian_filter

GRIDS = {1: (512,), 2: (64, 64), 3: (24, 24, 24)}  # cells of a small image, by the number of axes
OUTLIERS = (0.5, 99.5)  # percentiles beyond which intensities are cut: a single odd voxel changes nothing
MOST_SAMPLED = 100_000  # voxels from which the percentiles are taken
FAINT = 0.02  # of the range of intensities: weaker details, such as noise, do not count as much
ANATOMY = 3.0  # cells: what is smoother than this is alike in all scans of a kind, and left out


def small_image(voxels: np.ndarray) -> np.ndarray | None:
    """Return the small image of a scan, of mean 0 and norm 1: averaged to a fixed grid, its smooth part removed.

    Channels are added up. Axes of one voxel do not count.

    Args:
        voxels: (C, *spatial).

    Returns:
        An array of the shape `GRIDS` has for so many axes, float32; None of a scan that is flat.
    """
    normalized = one_channel(voxels)
    if normalized is None or normalized.ndim not in GRIDS:
        return None
    small = averaged(normalized, GRIDS[normalized.ndim])
    return unit(even(small - gaussian_filter(small, ANATOMY, mode="nearest"), ANATOMY))


def one_channel(voxels: np.ndarray) -> np.ndarray | None:
    """Return the sum of the channels (C, *spatial), each without outliers and from 0 to 1, without axes of one voxel.

    None where all channels are flat.
    """
    spatial = tuple(size for size in voxels.shape[1:] if size > 1)
    total = None
    for channel in voxels:
        step = channel.size // MOST_SAMPLED | 1  # odd: an even one may take the same columns of every row
        low, high = np.percentile(channel.ravel()[::step], OUTLIERS)
        if low == high:  # few voxels differ from the rest, or none
            low, high = channel.min(), channel.max()
        if low < high:
            scaled = (np.clip(channel, low, high).astype(np.float32) - low) / (high - low)
            total = scaled if total is None else total + scaled
    return None if total is None else total.reshape(spatial)


def averaged(image: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    """Return an image `(*spatial)` on another grid over the same extent: the mean of each cell's share of voxels."""
    for axis, (size, cells) in enumerate(zip(image.shape, shape, strict=True)):
        if size != cells:
            image = np.moveaxis(np.tensordot(_shares(size, cells), image, (1, axis)), 0, axis)
    return np.ascontiguousarray(image, dtype=np.float32)


def even(details: np.ndarray, width: float | Sequence[float]) -> np.ndarray:
    """Return details divided by how strong they are around each voxel, so that those of all places count alike.

    Edges that many scans share, such as those of a field of view, would otherwise count for more than all the rest.
    """
    energy = gaussian_filter(np.square(details), width, mode="nearest")
    return details / np.sqrt(np.maximum(energy, 0) + FAINT**2)


def unit(image: np.ndarray) -> np.ndarray | None:
    """Return an image with mean 0 and norm 1; None of a flat one."""
    centered = image - image.mean()
    norm = np.linalg.norm(centered)
    return None if norm <= 1e-4 * np.sqrt(image.size) else (centered / norm).astype(np.float32)


def _shares(size: int, cells: int) -> np.ndarray:
    """Return what share each of `size` voxels has in each of so many cells, (cells, size)."""
    edges, voxels = np.linspace(0, size, cells + 1), np.arange(size)
    upper, lower = np.minimum(edges[1:, None], voxels + 1), np.maximum(edges[:-1, None], voxels)
    return (np.clip(upper - lower, 0, None) * (cells / size)).astype(np.float32)
