"""Pictures of cases: image, reference, baseline and another prediction, side by side."""

from collections.abc import Mapping
from pathlib import Path

import numpy as np
from matplotlib.colors import ListedColormap
from matplotlib.figure import Figure
from matplotlib.patches import Patch

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
    image: np.ndarray, layers: Mapping[str, np.ndarray], spacing: tuple[float, ...], names: Mapping[int, str]
) -> Figure:
    """Draw the slice with the most reference foreground: the image, and each layer of labels over it.

    Args:
        image: `(Z, Y, X)` or `(Y, X)`.
        layers: labels of that shape by title, the reference first.
        spacing: in mm, in the order of the axes.
        names: of the label values.
    """
    if image.ndim == 2:
        image, spacing = image[None], (1.0, *spacing)
        layers = {title: labels[None] for title, labels in layers.items()}
    reference = next(iter(layers.values()))
    index = int((reference > 0).sum(axis=(1, 2)).argmax())
    highest = max(1, *names, *(int(labels.max()) for labels in layers.values()))
    extent = (0, image.shape[2] * spacing[2], image.shape[1] * spacing[1], 0)
    low, high = np.percentile(image[index], (1, 99))
    colors = ListedColormap([f"C{value % 10}" for value in range(highest)])
    figure = Figure(figsize=(3.2 * (1 + len(layers)), 3.6), layout="constrained")
    axes = figure.subplots(1, 1 + len(layers), sharey=True)
    for axis, (title, labels) in zip(axes, {"image": None, **layers}.items(), strict=True):
        axis.imshow(image[index], cmap="gray", vmin=low, vmax=high, extent=extent)
        if labels is not None:
            shown = np.ma.masked_equal(labels[index], 0)
            axis.imshow(shown, cmap=colors, vmin=1, vmax=highest, alpha=0.5, extent=extent, interpolation="nearest")
        axis.set_title(title, fontsize="small")
        axis.set_xlabel("mm")
    axes[0].set_ylabel("mm")
    patches = [Patch(color=colors(value - 1), label=name) for value, name in names.items()]
    axes[1].legend(handles=patches, fontsize="x-small", loc="lower right")
    return figure


def image_file(raw: Path, case: str, ending: str) -> Path | None:
    """Return the first channel of a case, wherever it lies in a raw data set; None if it is not there."""
    for folder in ("imagesTr", "imagesTs", "imagesUn"):
        file = raw / folder / f"{case}_0000{ending}"
        if file.is_file():
            return file
    return None
