"""Copies of a scan of every kind that the audit finds, for tests and for benchmarks/copies.py."""

from collections.abc import Callable
from functools import partial

import numpy as np
from scipy.ndimage import zoom

Change = Callable[[np.ndarray], np.ndarray]  # of (C, *spatial); axes of one voxel stay


def kinds_of_copies(rng: np.random.Generator) -> dict[str, Change]:
    """Return what may have been done to a copy, by name, up to the magnitudes that are promised to be found."""
    return {
        "equal": lambda voxels: voxels,
        "intensities rescaled and shifted": lambda voxels: 3.7 * voxels - 50,
        "rounded to 8 bits": to_8_bits,
        "resampled by 1.5": partial(resampled, factor=1.5),
        "resampled by 1 / 1.5": partial(resampled, factor=1 / 1.5),
        "resampled by 0.8, nearest": partial(resampled, factor=0.8, order=0),
        "flipped, first axis": lambda voxels: np.flip(voxels, long_axes(voxels)[0]),
        "flipped, last axis": lambda voxels: np.flip(voxels, -1),
        "flipped, all axes": lambda voxels: np.flip(voxels, long_axes(voxels)),
        "shifted by 2, edge repeated": partial(shifted, by=2),
        "shifted by 2, wrapped": lambda voxels: np.roll(voxels, 2, long_axes(voxels)),
        "shifted by -1": partial(shifted, by=-1),
        "without its first slice": lambda voxels: np.delete(voxels, 0, long_axes(voxels)[0]),
        "without its last column": lambda voxels: voxels[..., :-1],
        "one voxel changed": partial(with_odd_voxel, rng=rng),
        "noise of 1 % of the range": partial(noisy, rng=rng),
        "flipped, resampled by 1 / 1.3, shifted by 1, rescaled, noisy": lambda voxels: noisy(
            2 * np.flip(resampled(shifted(voxels, 1), 1 / 1.3), -1) + 1, rng
        ),
    }


def long_axes(voxels: np.ndarray) -> tuple[int, ...]:
    """Return the spatial axes of more than one voxel."""
    return tuple(axis for axis in range(1, voxels.ndim) if voxels.shape[axis] > 1)


def to_8_bits(voxels: np.ndarray) -> np.ndarray:
    """Return an image as whole numbers from 0 to 255."""
    return np.round((voxels - voxels.min()) / np.ptp(voxels) * 255)


def resampled(voxels: np.ndarray, factor: float, order: int = 1) -> np.ndarray:
    """Return an image with so many times the voxels along each axis."""
    return np.stack(
        [zoom(channel, [factor if size > 1 else 1 for size in channel.shape], order=order) for channel in voxels]
    )


def shifted(voxels: np.ndarray, by: int) -> np.ndarray:
    """Return an image moved by so many voxels along each axis, its edge repeated."""
    for axis in long_axes(voxels):
        places = np.clip(np.arange(voxels.shape[axis]) + by, 0, voxels.shape[axis] - 1)
        voxels = np.take(voxels, places, axis)
    return voxels


def with_odd_voxel(voxels: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Return an image in which one voxel is far out of the range."""
    voxels = voxels.copy()
    voxels[tuple(rng.integers(size) for size in voxels.shape)] = 100 * (np.abs(voxels).max() + 1)
    return voxels


def noisy(voxels: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Return an image with normal noise, its standard deviation 1 % of the range."""
    return voxels + rng.normal(0, 0.01 * np.ptp(voxels), voxels.shape)
