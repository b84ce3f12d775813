"""Pictures of what a network is taught on unlabeled patches."""

from pathlib import Path

import matplotlib.style
import numpy as np
import torch
from matplotlib.figure import Figure
from torch import Tensor

from nnunet_ssl.building_blocks.label_space import LabelSpace
from nnunet_ssl.building_blocks.teaching import CONFIDENT
from nnunet_ssl.data.loaders import UnlabeledBatch
from nnunet_ssl.pictures.overlay import draw_overlay, fullest_slice

MOST_PATCHES = 4


@torch.no_grad()
def draw_teaching(
    space: LabelSpace,
    unlabeled: UnlabeledBatch,
    probs: Tensor,
    threshold: float | None,
    file: Path,
    title: str,
) -> None:
    """Draw a row for each of some patches: its views, the pseudo-label, and the pseudo-label where it is accepted.

    Of a method without threshold, which teaches every voxel, the last picture shows where the pseudo-label is sure.

    Of a 3-D patch the slice is shown that has the most pseudo-label foreground.

    Args:
        space: what the channels mean.
        unlabeled: the patches.
        probs: probabilities (B, C, *spatial) from which pseudo-labels are made.
        threshold: of the method's confidence, see `LabelSpace.is_accepted`; None if it has none.
        file: the PNG to write.
        title: above the picture.
    """
    views = {name: view for name in ("weak", "strong") if (view := getattr(unlabeled, name)) is not None}
    labels = label_map(space, probs)
    if threshold is None:
        accepted, name = space.confidence(probs) > CONFIDENT, f"where confidence > {CONFIDENT:g}"
    else:
        accepted, name = space.is_accepted(probs, threshold), f"accepted (threshold {threshold:g})"
    accepted = accepted.all(1)
    names = [*views, "pseudo-label", name]
    patches = min(MOST_PATCHES, len(labels))
    highest = len(range(space.num_channels)[space.foreground])
    with matplotlib.style.context("default"):  # nnU-Net's own plot sets huge fonts for the whole process
        figure = Figure(figsize=(3.2 * len(names), 3.3 * patches + 0.5), layout="constrained")
        figure.suptitle(title)
        for row, axes in enumerate(figure.subplots(patches, len(names), squeeze=False)):
            label = labels[row].cpu().numpy()
            where = fullest_slice(label) if label.ndim == 3 else slice(None)
            background = {name: view[row, 0][where].float().cpu().numpy() for name, view in views.items()}
            label = label[where]
            kept = accepted[row][where].cpu().numpy()
            layers = [None] * len(views) + [label, np.where(kept, label, 0)]
            images = [*background.values(), *[next(iter(background.values()))] * 2]
            for axis, name, image, layer in zip(axes, names, images, layers, strict=True):
                draw_overlay(axis, image, layer, highest)
                axis.set_title(name, fontsize="small")
                axis.set_xlabel("voxels")
            share = float(accepted[row].float().mean())
            axes[-1].set_title(f"{names[-1]}:\n{share:.0%} of the patch", fontsize="small")
            axes[0].set_ylabel(unlabeled.keys[row])
        file.parent.mkdir(parents=True, exist_ok=True)
        figure.savefig(file, dpi=90)


def label_map(space: LabelSpace, probs: Tensor) -> Tensor:
    """Return 0 for background and n for the n-th foreground channel, (B, *spatial); of several regions the last."""
    maps = space.one_hot(space.pseudo_label(probs))[:, space.foreground]
    numbers = torch.arange(1, maps.shape[1] + 1, device=maps.device).view(1, -1, *[1] * (maps.ndim - 2))
    return (maps * numbers).amax(1)
