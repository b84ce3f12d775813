"""The curves of a run: values by name and epoch, as `progress_ssl.csv` and `progress_ssl.png`.

nnU-Net's own logger refuses names it does not know, so these have a store of their own, which goes into the checkpoint.
"""

import csv
import math
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType

import matplotlib
import matplotlib.style
import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import SymmetricalLogLocator

from nnunet_ssl.data.whole_files import replacing

matplotlib.use("agg")

SECONDS = ("step_seconds", "host/seconds")  # beginnings of names: an epoch has their median, others have their mean
# Panel: title, unit of its axis, and the curves in it by the beginning of their names.
PANELS = (
    ("Losses, weighted", "loss", ("loss/",)),
    ("Pseudo-Dice of random validation patches", "Dice (mean over foreground)", ("dice/",)),
    ("Ramps", "weight as a fraction of its maximum", ("ramp/",)),
    ("What the network learns from", "share of unlabeled voxels", ("confident", "agreement", "utilization")),
    ("Foreground by class", "share of voxels (log)", ("pseudo_label", "labeled/")),
    ("Learning rate", "learning rate", ("learning_rate",)),
    ("Time of a step", "s (median of the epoch)", SECONDS),
)
OWN = ("Recorded by the method", "value (mean of the epoch)")  # all other curves
LOGARITHMIC = ("Foreground by class",)
SMALLEST_SHARE = 1e-4  # below it the axis is linear
SUBS = (1, 1.5, 2, 3, 5, 7)  # of its decades, so that a short range has more than one tick


class Curves:
    """Values by name, one for each epoch; NaN where an epoch has none."""

    def __init__(self) -> None:
        self.values: dict[str, list[float]] = {}

    def log(self, epoch: int, values: dict[str, float]) -> None:
        """Set the values of an epoch; what was there of it and of later ones is replaced."""
        for name in {*self.values, *values}:
            curve = self.values.setdefault(name, [])[:epoch]
            curve += [math.nan] * (epoch - len(curve))
            self.values[name] = [*curve, float(values.get(name, math.nan))]

    def write_csv(self, file: Path) -> None:
        """Write one line for each epoch, one column for each curve."""
        names = sorted(self.values)
        with replacing(file) as unfinished, unfinished.open("w", newline="") as opened:
            writer = csv.writer(opened)
            writer.writerow(["epoch", *names])
            for epoch, row in enumerate(zip(*(self.values[name] for name in names), strict=True)):
                writer.writerow([epoch, *(f"{value:.6g}" for value in row)])

    def plot(self, file: Path, title: str, class_names: Mapping[int, str] = MappingProxyType({})) -> None:
        """Draw a panel for each kind of curve that there is, and one for what a method recorded beside these.

        Args:
            file: the picture.
            title: above it.
            class_names: of the foreground channels; the number stands for one that has none.
        """
        with matplotlib.style.context("default"):  # nnU-Net's own plot sets huge fonts for the whole process
            self._plot(file, title, {str(channel): name for channel, name in class_names.items()})

    def _plot(self, file: Path, title: str, class_names: Mapping[str, str]) -> None:
        panels = self._panels()
        columns = min(3, max(1, len(panels)))
        rows = math.ceil(len(panels) / columns) or 1
        figure = Figure(figsize=(6.5 * columns, 4.2 * rows), layout="constrained")
        figure.suptitle(title)
        axes = figure.subplots(rows, columns, squeeze=False).ravel()
        for axis, (name, unit, curves) in zip(axes, panels, strict=False):
            self._draw(axis, name, unit, curves, class_names)
        for axis in axes[len(panels) :]:
            axis.set_axis_off()
        with replacing(file) as unfinished:
            figure.savefig(unfinished, dpi=100)

    def _panels(self) -> list[tuple[str, str, list[str]]]:
        """Return title, unit and curves of each panel that has some; each curve is in one of them."""
        panels, left = [], sorted(self.values)
        for title, unit, beginnings in PANELS:
            panels.append((title, unit, [name for name in left if name.startswith(beginnings)]))
            left = [name for name in left if not name.startswith(beginnings)]
        return [panel for panel in (*panels, (*OWN, left)) if panel[2]]

    def _draw(
        self, axis: "matplotlib.axes.Axes", title: str, unit: str, names: list[str], class_names: Mapping[str, str]
    ) -> None:
        classes = sorted({name.partition("/")[2] for name in names})
        for name in names:
            curve = np.array(self.values[name])
            known = np.flatnonzero(np.isfinite(curve))
            kind, _, label = name.partition("/")
            color = f"C{classes.index(label)}" if title in LOGARITHMIC else None
            style = "--" if kind == "labeled" else "-"
            of_class = f"{class_names.get(label, label)} ({kind.replace('_', '-')})"
            text = of_class if title in LOGARITHMIC else label or name
            text = name if title == OWN[0] else text
            axis.plot(known, curve[known], style, label=text, color=color, marker="." if len(known) < 20 else None)
        axis.set(title=title, xlabel="epoch", ylabel=unit)
        axis.xaxis.get_major_locator().set_params(integer=True)
        if title in LOGARITHMIC:
            axis.set_yscale("symlog", linthresh=SMALLEST_SHARE)  # zero is on it: a class may vanish
            axis.yaxis.set_major_locator(SymmetricalLogLocator(base=10, linthresh=SMALLEST_SHARE, subs=SUBS))
            axis.yaxis.set_major_formatter("{x:g}")
        if names[-1].startswith(SECONDS):
            axis.set_ylim(bottom=0)
        axis.grid(alpha=0.3)
        if names not in (["learning_rate"], ["step_seconds"]):
            axis.legend(fontsize="small")
