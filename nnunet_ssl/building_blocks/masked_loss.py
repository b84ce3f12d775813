"""Cross-entropy and Dice where there is a label or an accepted pseudo-label, and nowhere else."""

from collections.abc import Sequence

import torch.nn.functional as F
from torch import Tensor

from nnunet_ssl.building_blocks.label_space import LabelSpace


def masked_cross_entropy_and_dice(
    space: LabelSpace, logits: Tensor, labels: Tensor, weights: Sequence[Tensor]
) -> list[Tensor]:
    """Return cross-entropy minus Dice, nnU-Net's loss, for each of some maps of voxel weights, as scalars.

    The cross-entropy is the weighted mean over voxels and regions (nnU-Net sums regions where there is an ignore
    label); the Dice is over foreground channels and the whole batch, also where the plans ask for it by sample, because
    the accepted voxels of a sample often lack a class. Without any weight the loss is constant. What does not depend on
    the weights is computed and kept once.

    Args:
        space: what the channels mean.
        logits: (B, C, *spatial); the gradient flows here.
        labels: as `LabelSpace.pseudo_label` returns them.
        weights: each bool or ≥ 0, (B, 1, *spatial), for regions also (B, C, *spatial); 0 leaves a voxel out.
    """
    cross_entropy = space.cross_entropy(logits, labels)
    probs, reference = space.probabilities(logits), space.one_hot(labels)
    losses = []
    for weight in weights:
        weight = weight.float().expand_as(cross_entropy)
        mean = (weight * cross_entropy).sum() / weight.sum().clamp_min(1.0)
        losses.append(mean - space.dice(probs, reference, weight))
    return losses


def deep_supervision_loss(
    space: LabelSpace,
    outputs: Sequence[Tensor],
    labels: Tensor,
    weights: Sequence[Tensor],
    head_weights: Sequence[float],
) -> list[Tensor]:
    """Return the masked loss of all heads of a network, for each of some maps of voxel weights, as scalars.

    Args:
        space: what the channels mean.
        outputs: logits of each head, full resolution first.
        labels: at full resolution, as `LabelSpace.pseudo_label` returns them; each head gets the nearest voxels.
        weights: at full resolution, see `masked_cross_entropy_and_dice`.
        head_weights: of each head; a head with 0 is left out.
    """
    by_head = []
    for logits, head_weight in zip(outputs, head_weights, strict=True):
        if head_weight:
            labels_here, *weights_here = (resize_nearest(maps, logits.shape[2:]) for maps in (labels, *weights))
            losses = masked_cross_entropy_and_dice(space, logits, labels_here, weights_here)
            by_head.append([head_weight * loss for loss in losses])
    return [sum(losses) for losses in zip(*by_head, strict=True)]


def resize_nearest(maps: Tensor, size: Sequence[int]) -> Tensor:
    """Return maps (B, C, *spatial) at another size, each voxel that of the nearest centre, in float32."""
    return maps.float() if maps.shape[2:] == size else F.interpolate(maps.float(), tuple(size), mode="nearest-exact")
