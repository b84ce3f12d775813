"""Cross-entropy and Dice where there is a label or an accepted pseudo-label, and nowhere else."""

from collections.abc import Sequence

import torch.nn.functional as F
from torch import Tensor

from nnunet_ssl.building_blocks.label_space import LabelSpace


def masked_cross_entropy_and_dice(space: LabelSpace, logits: Tensor, labels: Tensor, weight: Tensor) -> Tensor:
    """Return cross-entropy minus Dice, nnU-Net's loss with a weight for each voxel, as a scalar.

    The cross-entropy is the weighted mean over voxels; the Dice is over foreground channels and the whole batch.
    Without any weight the loss is constant.

    Args:
        space: what the channels mean.
        logits: (B, C, *spatial); the gradient flows here.
        labels: as `LabelSpace.pseudo_label` returns them.
        weight: bool or ≥ 0, (B, 1, *spatial), for regions also (B, C, *spatial); 0 leaves a voxel out.
    """
    cross_entropy = space.cross_entropy(logits, labels)
    weight = weight.float().expand_as(cross_entropy)
    mean = (weight * cross_entropy).sum() / weight.sum().clamp_min(1.0)
    return mean - space.dice(space.probabilities(logits), labels, weight)


def deep_supervision_loss(
    space: LabelSpace, outputs: Sequence[Tensor], labels: Tensor, weight: Tensor, head_weights: Sequence[float]
) -> Tensor:
    """Return the masked loss of all heads of a network, as a scalar.

    Args:
        space: what the channels mean.
        outputs: logits of each head, full resolution first.
        labels: at full resolution, as `LabelSpace.pseudo_label` returns them; each head gets the nearest voxels.
        weight: at full resolution, see `masked_cross_entropy_and_dice`.
        head_weights: of each head; a head with 0 is left out.
    """
    losses = []
    for logits, head_weight in zip(outputs, head_weights, strict=True):
        if head_weight:
            at_head = (resize_nearest(labels, logits.shape[2:]), resize_nearest(weight, logits.shape[2:]))
            losses.append(head_weight * masked_cross_entropy_and_dice(space, logits, *at_head))
    return sum(losses)


def resize_nearest(maps: Tensor, size: Sequence[int]) -> Tensor:
    """Return maps (B, C, *spatial) at another size, each voxel that of the nearest centre, in float32."""
    return maps.float() if maps.shape[2:] == size else F.interpolate(maps.float(), tuple(size), mode="nearest-exact")
