"""Mixing images with each other: boxes that are cut and pasted, and partners in the batch."""

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from nnunet_ssl.building_blocks.label_space import LabelSpace


class Mixed(NamedTuple):
    """Images that are labeled in some places and pseudo-labeled in the others.

    Attributes:
        image: (B, C, *spatial).
        labels: as `LabelSpace.pseudo_label` returns them.
        parts: where a label is known, and where there is a pseudo-label; each bool (B, 1, *spatial).
    """

    image: Tensor
    labels: Tensor
    parts: tuple[Tensor, Tensor]


def random_box(spatial: Sequence[int], side: float, device: torch.device) -> Tensor:
    """Return a mask, bool (1, 1, *spatial), true in one box at a random place that lies wholly in the patch.

    The place is drawn on the CPU, so that nothing waits for the device.

    Args:
        spatial: size of the patch.
        side: of the box, as a fraction of the patch's, along each axis; rounded to voxels, at least one.
        device: of the mask.

    Raises:
        ValueError: the side is no fraction in (0, 1].
    """
    if not 0.0 < side <= 1.0:
        raise ValueError(f"the side of a box is a fraction of the patch in (0, 1], got {side}")
    mask = torch.zeros((1, 1, *spatial), dtype=torch.bool, device=device)
    place: list[slice] = [slice(None), slice(None)]
    for size in spatial:
        length = max(1, round(side * size))
        start = int(torch.randint(size - length + 1, ()))
        place.append(slice(start, start + length))
    mask[tuple(place)] = True
    return mask


def random_boxes(
    batch_size: int, spatial: Sequence[int], probability: float, shares: tuple[float, float], device: torch.device
) -> Tensor:
    """Return a box of its own for each sample, or none: bool (B, 1, *spatial), true inside.

    CutMix: Yun et al., ICCV 2019, https://arxiv.org/abs/1905.04899

    Args:
        batch_size: B.
        spatial: size of the patch, whose shape a box has.
        probability: that a sample has a box.
        shares: between which shares of the patch's volume a box lies.
        device: of the mask.
    """
    drawn = torch.empty(batch_size).uniform_(*shares) * (torch.rand(batch_size) < probability)
    boxes = torch.zeros((batch_size, 1, *spatial), dtype=torch.bool, device=device)
    for sample, share in enumerate(drawn.tolist()):
        if share > 0.0:
            boxes[sample] = random_box(spatial, share ** (1 / len(spatial)), device)[0]
    return boxes


def random_blocks(count: int, spatial: Sequence[int], blocks: int, share: float, device: torch.device) -> Tensor:
    """Return masks of a grid of blocks, some of which are true at random: bool (count, 1, *spatial).

    Which ones is drawn on the CPU, so that nothing waits for the device.

    Args:
        count: of the masks.
        spatial: size of the patch.
        blocks: along each axis, of nearly one size; an axis that is shorter has one for each voxel.
        share: of the blocks that are true, in (0, 1]; rounded, at least one.
        device: of the masks.

    Raises:
        ValueError: the share is none, or there is no block.
    """
    if not 0.0 < share <= 1.0 or blocks < 1:
        raise ValueError(f"a grid has a share of its blocks in (0, 1] and at least one, got {share} of {blocks}")
    grid = [min(blocks, size) for size in spatial]
    chosen = max(1, round(share * math.prod(grid)))
    drawn = torch.rand(count, math.prod(grid)).argsort(1) < chosen
    mask = drawn.view(count, 1, *grid).to(device, non_blocking=True)
    for axis, (number, size) in enumerate(zip(grid, spatial, strict=True), start=2):
        mask = mask.index_select(axis, torch.arange(size, device=device) * number // size)
    return mask


def alternating(batch_size: int, dimensions: int, device: torch.device) -> Tensor:
    """Return true for every other sample of a batch: bool (B, 1, 1 ...). Whether the first is one of them is drawn.

    Args:
        batch_size: B.
        dimensions: how many spatial ones follow.
        device: of the mask.
    """
    is_chosen = (torch.arange(batch_size, device=device) + int(torch.randint(2, ()))) % 2 == 0
    return is_chosen.view(-1, *[1] * (dimensions + 1))


def partner(batch: Tensor) -> Tensor:
    """Return for each sample of a batch (B, ...) the next one; at batch size 1 the sample itself."""
    return batch.roll(-1, 0)


def cut_mix(maps: Sequence[Tensor], probability: float, shares: tuple[float, float]) -> list[Tensor]:
    """Return maps of one batch in which a box of each sample is that of the next one, the same box in all maps.

    Args:
        maps: images, labels and what else belongs to them, each (B, C, *spatial).
        probability: that a sample has a box; see `random_boxes`.
        shares: between which shares of the patch's volume a box lies.
    """
    boxes = random_boxes(len(maps[0]), maps[0].shape[2:], probability, shares, maps[0].device)
    return [torch.where(boxes, partner(whole), whole) for whole in maps]


def random_pairs(box: Tensor, batch_size: int, unlabeled_share: float) -> tuple[Tensor, Tensor]:
    """Return where mixed images are labeled, and where they are the next unlabeled one; elsewhere they are unlabeled.

    Each image is drawn to be one of three pairs: a labeled image around a box of an unlabeled one, the reverse, or an
    unlabeled image around a box of the next one. At batch size 1, where there is no next one, the third is not drawn.

    Args:
        box: bool (1 or B, 1, *spatial).
        batch_size: B.
        unlabeled_share: how probable the third pair is, in [0, 1]; the first two share the rest.

    Returns:
        Two masks, each bool (B, 1, *spatial).
    """
    draws = torch.rand(batch_size).to(box.device, non_blocking=True).view(-1, *[1] * (box.ndim - 1))
    unlabeled_share = unlabeled_share if batch_size > 1 else 0.0
    labeled_is_outside = draws < 0.5 * (1.0 - unlabeled_share)
    both_unlabeled = draws >= 1.0 - unlabeled_share
    return (box ^ labeled_is_outside) & ~both_unlabeled, box & both_unlabeled


def mix_labeled_with_unlabeled(
    space: LabelSpace, is_labeled: Tensor, labeled: tuple[Tensor, Tensor], unlabeled: tuple[Tensor, Tensor]
) -> Mixed:
    """Return images that are those of one batch where a mask says so, and those of the other one elsewhere.

    Args:
        space: what the labels mean.
        is_labeled: bool (B, 1, *spatial).
        labeled: images (B, C, *spatial) and nnU-Net's target at full resolution.
        unlabeled: images (B, C, *spatial) and their pseudo-labels.
    """
    (image, target), (other_image, pseudo_label) = labeled, unlabeled
    parts = (is_labeled & space.is_known(target), ~is_labeled)
    labels = torch.where(is_labeled, space.labels(target), pseudo_label)
    return Mixed(torch.where(is_labeled, image, other_image), labels, parts)


def interpolate(first: Tensor, second: Tensor, share: Tensor) -> Tensor:
    """Return (1 - λ) first + λ second for samples (B, C, *spatial).

    MixUp: Zhang et al., ICLR 2018, https://arxiv.org/abs/1710.09412

    Args:
        first: the samples.
        second: their partners.
        share: λ in [0, 1] of each sample, (B,).
    """
    return torch.lerp(first, second, share.view(-1, *[1] * (first.ndim - 1)).to(first.dtype))


def random_shares(batch_size: int, concentration: float, device: torch.device) -> Tensor:
    """Return λ ~ Beta(α, α) for each sample, (B,)."""
    alpha = torch.full((batch_size,), concentration)
    return torch.distributions.Beta(alpha, alpha, validate_args=False).sample().to(device, non_blocking=True)
