"""Pictures of the pseudo-labels of unlabeled patches."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import matplotlib.style
import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from torch import Tensor

from nnunet_ssl.building_blocks.label_space import LabelSpace
from nnunet_ssl.building_blocks.pseudo_label_statistics import CONFIDENT
from nnunet_ssl.data.loaders import UnlabeledBatch
from nnunet_ssl.data.whole_files import replacing
from nnunet_ssl.pictures.overlay import draw_border, draw_overlay, fullest_slice, legend_entries

MOST_PATCHES = 4


@torch.no_grad()
def draw_pseudo_labels(
    space: LabelSpace,
    unlabeled: UnlabeledBatch,
    probs: Tensor,
    outlined: Tensor | None,
    threshold: float | None,
    file: Path,
    title: str,
    class_names: Mapping[int, str],
) -> None:
    """Draw a row for each of some patches: its views, the pseudo-label, and the pseudo-label where it is accepted.

    Of a method without threshold, which learns from every voxel, the last picture shows where the pseudo-label is sure.

    The patches are those with the most pseudo-label foreground, and of a 3-D patch it is the slice that has the most.

    Args:
        space: what the channels mean.
        unlabeled: the patches.
        probs: probabilities (B, C, *spatial) from which pseudo-labels are made.
        outlined: masks (B, 1, *spatial) whose borders are drawn over the pseudo-labels; None: there are none.
        threshold: of the method's confidence, see `LabelSpace.is_accepted`; None if it has none.
        file: the PNG to write.
        title: above the picture.
        class_names: of the foreground channels, by number.
    """
    views = {name: view for name in ("weak", "strong") if (view := getattr(unlabeled, name)) is not None}
    labels = label_map(space, probs)
    if threshold is None:
        accepted, name = space.confidence(probs) > CONFIDENT, f"where confidence > {CONFIDENT:g}"
    else:
        accepted, name = space.is_accepted(probs, threshold), f"accepted (threshold {threshold:g})"
    names = [*views, "pseudo-label", name]
    rows = (labels > 0).flatten(1).sum(1).argsort(descending=True, stable=True)[:MOST_PATCHES].tolist()
    with matplotlib.style.context("default"):  # nnU-Net's own plot sets huge fonts for the whole process
        figure = Figure(figsize=(2.5 * len(names), 3.0 * len(rows) + 0.8), layout="constrained")
        figure.suptitle(title)
        for row, axes in zip(rows, figure.subplots(len(rows), len(names), squeeze=False), strict=True):
            kept = accepted[row].all(0)
            images, border = [view[row, 0] for view in views.values()], None if outlined is None else outlined[row, 0]
            _draw_patch(axes, names, images, labels[row], kept, border, len(class_names))
            axes[0].set_ylabel(unlabeled.keys[row])
        names = [name for _, name in sorted(class_names.items())]
        legend = legend_entries(dict(enumerate(names, start=1)))
        figure.legend(handles=legend, loc="outside lower center", ncols=len(legend))
        with replacing(file) as unfinished:
            figure.savefig(unfinished, dpi=90)


def _draw_patch(
    axes: Sequence[Axes],
    names: list[str],
    views: list[Tensor],
    label: Tensor,
    kept: Tensor,
    outlined: Tensor | None,
    highest: int,
) -> None:
    """Draw one patch: each view, then over the first one its label, and its label where it is kept, with a border."""
    shares = float(kept.float().mean()), float(kept[label > 0].float().mean()) if (label > 0).any() else None
    label = label.cpu().numpy()
    where = fullest_slice(label) if label.ndim == 3 else slice(None)
    images = [view[where].float().cpu().numpy() for view in views]
    layers = [label[where], np.where(kept.cpu().numpy()[where], label[where], 0)]
    pictures = zip(axes, names, [*images, images[0], images[0]], [None] * len(images) + layers, strict=True)
    for axis, name, image, layer in pictures:
        draw_overlay(axis, image, layer, highest)
        axis.set_title(name, fontsize="medium")
        if layer is not None and outlined is not None:
            draw_border(axis, outlined.cpu().numpy()[where])
        axis.set(xticks=[], yticks=[])
    of_foreground = "" if shares[1] is None else f", {shares[1]:.0%} of foreground"
    axes[-1].set_title(f"{names[-1]}:\n{shares[0]:.0%} of voxels{of_foreground}", fontsize="medium")


def label_map(space: LabelSpace, probs: Tensor) -> Tensor:
    """Return 0 for background and n for the n-th foreground channel, (B, *spatial); of several regions the last."""
    maps = space.one_hot(space.pseudo_label(probs))[:, space.foreground]
    numbers = torch.arange(1, maps.shape[1] + 1, device=maps.device).view(1, -1, *[1] * (maps.ndim - 2))
    return (maps * numbers).amax(1)
