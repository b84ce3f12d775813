"""Pictures of cases: image, reference, baseline and another prediction, side by side."""

from collections.abc import Mapping

import numpy as np
from matplotlib.figure import Figure

from nnunet_ssl.pictures.overlay import draw_overlay, fullest_slice, legend_entries

CASE_NAMES = ("worst", "median", "best")


def chosen_cases(dice: Mapping[str, float]) -> dict[str, str]:
    """Return the worst, the median and the best case of a trainer by its Dice, each case once."""
    ordered = sorted(dice, key=lambda case: (dice[case], case))
    places = (0, (len(ordered) - 1) // 2, len(ordered) - 1)
    chosen: dict[str, str] = {}
    for name, place in zip(CASE_NAMES, places, strict=True):
        if ordered[place] not in chosen.values():
            chosen[name] = ordered[place]
    return chosen


def draw_case(
    image: np.ndarray,
    layers: Mapping[str, np.ndarray],
    spacing: tuple[float, ...],
    names: Mapping[int, str],
    unit: str = "mm",
) -> Figure:
    """Draw the slice with the most reference foreground: the image, and each layer of labels over it.

    Args:
        image: `(Z, Y, X)` or `(Y, X)`.
        layers: labels of that shape by title, the reference first.
        spacing: in mm, in the order of the axes.
        names: of the label values.
        unit: of the spacing, if it is another one.
    """
    if image.ndim == 2:
        image, spacing = image[None], (1.0, *spacing)
        layers = {title: labels[None] for title, labels in layers.items()}
    index = fullest_slice(next(iter(layers.values())))
    highest = max(1, *names, *(int(labels.max()) for labels in layers.values()))
    extent = (0, image.shape[2] * spacing[2], image.shape[1] * spacing[1], 0)
    low, high = np.percentile(image[index], (1, 99))
    figure = Figure(figsize=(3.2 * (1 + len(layers)), 3.6), layout="constrained")
    axes = figure.subplots(1, 1 + len(layers), sharey=True)
    for axis, (title, labels) in zip(axes, {"image": None, **layers}.items(), strict=True):
        shown = None if labels is None else labels[index]
        draw_overlay(axis, image[index], shown, highest, extent, (low, high))
        axis.set_title(title, fontsize="small")
        axis.set_xlabel(unit)
    axes[0].set_ylabel(unit)
    axes[1].legend(handles=legend_entries(dict(names)), fontsize="x-small", loc="lower right")
    return figure
