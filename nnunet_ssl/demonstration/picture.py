"""The demo's picture: a held-out scan with reference and predictions, and how the trainers compare over all of them."""

from pathlib import Path
from typing import TYPE_CHECKING

import matplotlib
import matplotlib.style
import numpy as np
import SimpleITK
from matplotlib.figure import Figure

from nnunet_ssl.data.whole_files import replacing
from nnunet_ssl.demonstration.comparison import Comparison
from nnunet_ssl.pictures.overlay import draw_overlay, fullest_slice, legend_entries

if TYPE_CHECKING:
    from matplotlib.axes import Axes

matplotlib.use("agg")
TRAINER_COLORS = ("tab:gray", "tab:blue")


def draw(comparison: Comparison, file: Path) -> None:
    """Draw the typical case above, the Dice of each epoch and of each held-out scan below."""
    with matplotlib.style.context("default"):  # nnU-Net's own plot sets huge fonts for the whole process
        figure = Figure(figsize=(14, 8.5), layout="constrained")
        figure.suptitle(f"{comparison.typical_case()}, the held-out scan whose difference is the median")
        shown = ["image", "reference", *comparison.trainers]
        axes = figure.subplot_mosaic([shown, ["epochs", "epochs", "scans", "scans"]])
        draw_case([axes[name] for name in shown], comparison)
        draw_epochs(axes["epochs"], comparison)
        draw_scans(axes["scans"], comparison)
        with replacing(file) as unfinished:
            figure.savefig(unfinished, dpi=110)


def draw_case(axes: list["Axes"], comparison: Comparison) -> None:
    """Draw the slice with the most foreground: image, reference, both predictions."""
    case = comparison.typical_case()
    image, spacing = read_nifti(comparison.raw / "imagesTs" / f"{case}_0000.nii.gz")
    reference, _ = read_nifti(comparison.raw / "labelsTs" / f"{case}.nii.gz")
    layers = {"image": None, "reference": reference}
    row = comparison.cases.index(case)
    for trainer, folder in comparison.predictions.items():
        dice = comparison.dice[trainer][row].mean()
        layers[f"{trainer}\nDice {dice:.3f}"] = read_nifti(folder / f"{case}.nii.gz")[0]
    index = fullest_slice(reference)
    height, width = image[index].shape
    extent = (0, width * spacing[0], height * spacing[1], 0)
    for axis, (title, labels) in zip(axes, layers.items(), strict=True):
        shown = None if labels is None else labels[index]
        draw_overlay(axis, image[index], shown, len(comparison.labels), extent)
        axis.set_title(title, fontsize="medium")
        axis.set_xlabel("x (mm)")
    axes[0].set_ylabel("y (mm)")
    names = dict(enumerate(comparison.labels.values(), start=1))
    axes[1].legend(handles=legend_entries(names), fontsize="small")


def draw_epochs(axis: "Axes", comparison: Comparison) -> None:
    """Draw nnU-Net's pseudo-Dice over the epochs."""
    for (trainer, curve), color in zip(comparison.epoch_dice.items(), TRAINER_COLORS, strict=True):
        axis.plot(np.arange(1, len(curve) + 1), curve, marker="o", color=color, label=trainer)
    axis.set(title="Validation patches during training", xlabel="epoch", ylabel="pseudo-Dice (mean of both structures)")
    axis.set_ylim(0, 1)
    axis.xaxis.get_major_locator().set_params(integer=True)
    axis.grid(alpha=0.3)
    axis.legend()


def draw_scans(axis: "Axes", comparison: Comparison) -> None:
    """Draw the Dice of every held-out scan, one line from the baseline to the other trainer for each."""
    baseline, ours = (comparison.dice[trainer].mean(axis=1) for trainer in comparison.trainers)
    axis.plot([0, 1], np.stack([baseline, ours]), color="lightgray", zorder=1)
    for place, values, color in zip((0, 1), (baseline, ours), TRAINER_COLORS, strict=True):
        axis.scatter(np.full(len(values), place), values, color=color, zorder=2)
        axis.hlines(values.mean(), place - 0.15, place + 0.15, color="black", zorder=3)
        outside, side = (-0.2, "right") if place == 0 else (0.2, "left")
        text = f"{values.mean():.3f} ± {values.std(ddof=1):.3f}"
        axis.text(place + outside, values.mean(), text, ha=side, va="center")
    axis.set_xticks([0, 1], comparison.trainers)
    axis.set_xlim(-0.6, 1.6)
    axis.set_ylim(max(0.0, np.floor(10 * min(baseline.min(), ours.min()) - 0.5) / 10), 1)
    axis.set(title=f"{len(baseline)} held-out scans: each, and mean ± standard deviation")
    axis.set_ylabel("Dice (mean of both structures)")
    axis.grid(alpha=0.3, axis="y")


def read_nifti(file: Path) -> tuple[np.ndarray, tuple[float, float, float]]:
    """Return the voxels `(Z, Y, X)` and the spacing `(x, y, z)` in mm."""
    image = SimpleITK.ReadImage(str(file))
    return SimpleITK.GetArrayFromImage(image), image.GetSpacing()
