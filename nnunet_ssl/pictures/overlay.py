"""A slice of an image with labels over it."""

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import ListedColormap
from matplotlib.patches import Patch


def draw_overlay(
    axis: Axes,
    image: np.ndarray,
    labels: np.ndarray | None,
    highest: int,
    extent: tuple[float, float, float, float] | None = None,
    window: tuple[float, float] | None = None,
) -> None:
    """Draw a slice in gray, and its labels but 0 over it in the colors of `legend_entries`.

    Args:
        axis: to draw on.
        image: `(Y, X)`.
        labels: `(Y, X)`; None for the image alone.
        highest: the highest value of labels that a picture shows, so that all its slices share colors.
        extent: left, right, bottom, top of the slice; None counts voxels.
        window: the intensities that are black and white; None takes the image's lowest and highest.
    """
    low, high = window or (None, None)
    axis.imshow(image, cmap="gray", vmin=low, vmax=high, extent=extent)
    if labels is not None:
        shown = np.ma.masked_equal(labels, 0)
        colors = ListedColormap([color_of(value) for value in range(1, highest + 1)])
        axis.imshow(shown, cmap=colors, vmin=1, vmax=highest, alpha=0.5, extent=extent, interpolation="nearest")


def draw_border(axis: Axes, mask: np.ndarray) -> None:
    """Draw the border of a mask `(Y, X)` as a line; nothing of one that is empty or fills the slice."""
    if 0 < mask.sum() < mask.size:
        axis.contour(mask.astype(float), levels=[0.5], colors="yellow", linewidths=1.2)


def color_of(value: int) -> str:
    """Return the color of a label value from 1 on."""
    return f"C{(value - 1) % 10}"


def legend_entries(names: dict[int, str]) -> list[Patch]:
    """Return what a legend shows for label values and their names."""
    return [Patch(color=color_of(value), label=name) for value, name in names.items()]


def fullest_slice(labels: np.ndarray) -> int:
    """Return the index of the slice of labels `(Z, Y, X)` with the most foreground."""
    return int((labels > 0).sum(axis=(1, 2)).argmax())
