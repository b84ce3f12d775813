"""Whether two scans are copies, seen at full resolution: what their small images alone cannot tell from neighbours."""

from collections.abc import Iterator, Sequence

import numpy as np
from scipy import fft
from scipy.ndimage import gaussian_filter, maximum_filter

from nnunet_ssl.leaks.signatures import averaged, even, unit

MOST_CELLS = {1: 4096, 2: 384, 3: 96}  # of an axis, by the number of axes: larger scans are averaged to so many
FARTHEST = 3  # voxels that a copy may be shifted, or longer; one more than 2 where grids do not match
NOISE, ANATOMY = 0.7, 2.0  # voxels: details between these scales are compared
SHORT = 16  # voxels: axes of fewer, such as those of thick slices, are not filtered
FEWEST_VOXELS = 2000  # that have to lie upon one another: fewer are alike by chance
LEAST_PADDING = 0.02  # of a scan: less than that are outliers that were cut
LEAST_INSIDE = 0.05  # of a scan, without padding: of less all of it is compared
COPY = 0.7  # likeness of copies and more; benchmarks/copies.py measures that of neighbours


def likeness(first: np.ndarray, second: np.ndarray, flipped: Sequence[int]) -> float:
    """Return the correlation of the details of two scans, at the shift where it is highest.

    Args:
        first: (*spatial), as `one_channel` returns it.
        second: the same, of as many axes.
        flipped: the axes along which the second one is mirrored.

    Returns:
        1 for a copy, about 0 for scans that have nothing in common; 0 where there are too few voxels to tell.
    """
    second = np.flip(second, tuple(flipped))
    return max(_at_best_shift(*pair) for pair in _on_common_grids(first, second))


def _on_common_grids(first: np.ndarray, second: np.ndarray) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Give both scans on one grid: over the extent of each, as of resampled ones, or cut, as of one without a slice."""
    least = np.minimum(first.shape, second.shape)
    shape = tuple(int(size) for size in np.minimum(least, MOST_CELLS[first.ndim]))
    yield averaged(first, shape), averaged(second, shape)
    difference = np.abs(np.subtract(first.shape, second.shape)).max()
    if 0 < difference <= FARTHEST:
        cut = tuple(slice(int(size)) for size in least)
        yield averaged(first[cut], shape), averaged(second[cut], shape)


def _at_best_shift(first: np.ndarray, second: np.ndarray) -> float:
    details = [_details(image) for image in (first, second)]
    spectra = [fft.rfftn(one) for one in details]
    together = fft.irfftn(spectra[0] * np.conj(spectra[1]), first.shape)
    reach = [min(FARTHEST, (size - 1) // 2) for size in first.shape]
    near = together[np.ix_(*[np.arange(-most, most + 1) for most in reach])]
    shift = np.subtract(np.unravel_index(near.argmax(), near.shape), reach)
    parts, outside = [], False
    for image, detail, by in zip((first, second), details, (shift, -shift), strict=True):
        parts.append(_overlap(detail, by))
        outside = outside | _overlap(_padding(image), by)
    inside = ~outside
    if inside.sum() < max(FEWEST_VOXELS, LEAST_INSIDE * inside.size):
        inside[:] = True
    if inside.sum() < FEWEST_VOXELS:
        return 0.0
    units = [unit(part[inside]) for part in parts]
    return 0.0 if any(one is None for one in units) else float(np.vdot(*units))


def _details(image: np.ndarray) -> np.ndarray:
    widths = [[scale * is_long for is_long in _long(image)] for scale in (NOISE, ANATOMY)]
    if not any(widths[1]):
        return image - image.mean()
    fine, coarse = (gaussian_filter(image, width, mode="nearest") for width in widths)
    return even(fine - coarse, widths[1])


def _padding(image: np.ndarray) -> np.ndarray:
    """Return where a scan has nothing around the body or the field of view, and the voxels whose details reach there.

    The edge of it is sharp and alike in all scans of a device. Scans without such padding have none.
    """
    empty = image <= 0  # the least intensity: see `one_channel`
    if empty.mean() < LEAST_PADDING:
        return np.zeros(image.shape, bool)
    return maximum_filter(empty, [1 + 2 * round(2 * ANATOMY) * is_long for is_long in _long(image)])


def _long(image: np.ndarray) -> list[bool]:
    return [size >= SHORT for size in image.shape]


def _overlap(image: np.ndarray, shift: np.ndarray) -> np.ndarray:
    """Return the part of an image that lies upon another one that is shifted by so much."""
    return image[tuple(slice(max(0, by), size + min(0, by)) for by, size in zip(shift, image.shape, strict=True))]
