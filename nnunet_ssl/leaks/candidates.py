"""Which pairs of scans may be copies, by their small images alone."""

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from scipy import fft

FARTHEST = 2  # voxels that a copy may be shifted
SHIFT_MATTERS = 0.75  # cells: shifts of less are left to the finer comparison
MOST_NEIGHBORS, MOST_CANDIDATES = 20, 5  # of a scan: that are compared finely; that are looked at in full
COARSE_LIKENESS, FINE_LIKENESS = 0.5, 0.55  # that copies have at least
ROWS = 256  # that are compared with all others at once


@dataclass(frozen=True)
class Candidate:
    """Two scans by number, the axes along which the second is mirrored, and how alike their small images are."""

    first: int
    second: int
    flipped: tuple[int, ...]
    likeness: float


def candidates(small: np.ndarray, sizes: Sequence[tuple[int, ...]]) -> list[Candidate]:
    """Return the pairs that are alike over flips and small shifts, the best first.

    Small images of half the resolution choose the neighbours of each scan, whole ones the candidates among them. A scan
    is a candidate with so many others at most, so that 10 000 scans stay possible.

    Args:
        small: (N, *grid), as `small_image` returns them.
        sizes: of each scan in voxels, without axes of one voxel.
    """
    if len(small) < 2:
        return []
    usual = np.percentile(sizes, 10, axis=0)  # small ones, in which a voxel is much; but not a single odd one
    reach = [_cells(cells, size) for cells, size in zip(small.shape[1:], usual, strict=True)]
    spectra: dict[int, np.ndarray] = {}
    found = []
    for first, second, flipped in _neighbors(small, reach):
        likeness = _at_best_shift(_spectrum(first, small, spectra), small[second], flipped, reach)
        if likeness >= FINE_LIKENESS:
            found.append(Candidate(first, second, flipped, likeness))
    found.sort(key=lambda one: -one.likeness)
    kept, count = [], np.zeros(len(small), int)
    for one in found:
        if min(count[one.first], count[one.second]) < MOST_CANDIDATES:
            kept.append(one)
            count[[one.first, one.second]] += 1
    return kept


def _cells(cells: int, size: float) -> int:
    """Return over how many cells of an axis a copy may be shifted; 0 where that is too little to matter."""
    shift = FARTHEST * cells / size
    return max(1, min(round(shift), cells // 3)) if shift >= SHIFT_MATTERS else 0


def _neighbors(small: np.ndarray, reach: Sequence[int]) -> Iterator[tuple[int, int, tuple[int, ...]]]:
    """Give for each scan those after it that it is most like at half the resolution, with the flip where it is."""
    axes = range(1, small.ndim)
    flips = [flip for number in range(small.ndim) for flip in itertools.combinations(axes, number)]
    shifts = [*itertools.product(*(sorted({0, *range(-most, most + 1, 2), most}) for most in reach))]
    small = small.astype(np.float32, copy=False)
    coarse = _coarse(small)
    for start in range(0, len(small), ROWS):
        rows, others = small[start : start + ROWS], coarse[start:]
        best, flip_of = np.full((len(rows), len(others)), -1, np.float32), np.zeros((len(rows), len(others)), np.int8)
        for number, flip in enumerate(flips):
            mirrored = np.flip(rows, flip)
            for shift in shifts:
                likeness = _coarse(np.roll(mirrored, shift, tuple(axes))) @ others.T
                better = likeness > best
                best[better], flip_of[better] = likeness[better], number
        best[np.tri(*best.shape, dtype=bool)] = -1  # itself, and those before it
        for row, likeness in enumerate(best):
            near = np.argsort(-likeness)[:MOST_NEIGHBORS]
            for other in near[likeness[near] >= COARSE_LIKENESS]:
                flip = flips[flip_of[row, other]]
                yield start + row, start + int(other), tuple(axis - 1 for axis in flip)


def _coarse(small: np.ndarray) -> np.ndarray:
    """Return (N, *grid) at half the resolution as rows of norm 1."""
    for axis in range(1, small.ndim):
        even, odd = (np.moveaxis(small, axis, 0)[start::2] for start in (0, 1))
        small = np.moveaxis(even + odd, 0, axis)
    rows = small.reshape(len(small), -1).astype(np.float32, copy=False)
    return rows / np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), 1e-12)


def _spectrum(number: int, small: np.ndarray, known: dict[int, np.ndarray]) -> np.ndarray:
    """Return the spectrum of a small image; pairs come in the order of the first, so that one is kept."""
    if number not in known:
        known.clear()
        known[number] = fft.rfftn(small[number].astype(np.float32))
    return known[number]


def _at_best_shift(first: np.ndarray, second: np.ndarray, flipped: Sequence[int], reach: Sequence[int]) -> float:
    mirrored = np.flip(second, flipped).astype(np.float32)
    together = fft.irfftn(first * np.conj(fft.rfftn(mirrored)), mirrored.shape)
    return float(together[np.ix_(*[np.arange(-most - 1, most + 2) for most in reach])].max())
