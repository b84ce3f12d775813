"""A loss for targets that are probabilities: a network's own, or labels as 0/1 maps."""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from nnunet_ssl.building_blocks.label_space import LabelSpace, SigmoidRegions

SMALLEST_SIZE = 1e-6  # of what a Dice is divided by; M&N's code


def soft_target_loss(space: LabelSpace, logits: Tensor, target: Tensor, weight: Tensor) -> Tensor:
    """Return 1 - Dice(p, q) + KL(q ‖ p) of a network's probabilities p, as a scalar in float32.

        Dice = mean over channels of 2 Σ w p q / (Σ w p² + Σ w q²), sums over the whole batch
        KL = Σ w Σ_c q ln(q / p) / Σ w, for regions the mean over regions of each one's

    With squares in it the Dice is highest where p = q, also for a q between 0 and 1, and all channels count, the
    background too. The KL of 0/1 maps is nnU-Net's cross-entropy. A channel that neither has gives a Dice of 0, and no
    gradient; without any weight the loss is constant.

    M&N's code, https://github.com/pakheiyeung/M-N, whose KL is also divided by the number of classes.

    Args:
        space: what the channels mean.
        logits: (B, C, *spatial); the gradient flows here.
        target: q, (B, C, *spatial) in [0, 1]; taken as constant.
        weight: w of each voxel, (B, 1, *spatial), ≥ 0; 0 leaves it out.

    Raises:
        ValueError: the target has another shape than the logits (broadcasting would hide a mistake).
    """
    if logits.shape != target.shape:
        raise ValueError(f"logits and target have one shape, got {tuple(logits.shape)} and {tuple(target.shape)}")
    target, weight, probs = target.detach().float(), weight.float(), space.probabilities(logits)
    axes = [0, *range(2, probs.ndim)]
    overlap = (weight * probs * target).sum(axes)
    size = (weight * (probs.square() + target.square())).sum(axes)
    dice = (2.0 * overlap / size.clamp_min(SMALLEST_SIZE)).mean()
    divergence = divergence_from_logits(space, target, logits)
    weight = weight.expand_as(divergence)
    return 1.0 - dice + (weight * divergence).sum() / weight.sum().clamp_min(1.0)


def divergence_from_logits(space: LabelSpace, target: Tensor, logits: Tensor) -> Tensor:
    """Return KL(q ‖ p) of each voxel in nats, (B, 1, *spatial), for regions of each, (B, C, *spatial); in float32.

    The gradient to the logits is p - q, however sure and wrong they are.

    Args:
        space: what the channels mean.
        target: q, (B, C, *spatial) in [0, 1].
        logits: (B, C, *spatial); the gradient flows here.
    """
    target, logits = target.float(), logits.float()
    if isinstance(space, SigmoidRegions):
        entropy = torch.special.entr(target) + torch.special.entr(1.0 - target)
        return F.binary_cross_entropy_with_logits(logits, target, reduction="none") - entropy
    cross_entropy = -(target * logits.log_softmax(1)).sum(1, keepdim=True)
    return cross_entropy - torch.special.entr(target).sum(1, keepdim=True)


def soft_target_loss_of_heads(
    space: LabelSpace, outputs: Sequence[Tensor], target: Tensor, weight: Tensor, head_weights: Sequence[float]
) -> Tensor:
    """Return the `soft_target_loss` of all heads of a network, as a scalar.

    A coarser head gets the mean target of the voxels in each of its own, by their weights, and their mean weight.

    Args:
        space: what the channels mean.
        outputs: logits of each head, full resolution first.
        target: at full resolution, (B, C, *spatial) in [0, 1]; taken as constant.
        weight: at full resolution, (B, 1, *spatial), ≥ 0.
        head_weights: of each head; one with 0 is left out.
    """
    losses = []
    for logits, head_weight in zip(outputs, head_weights, strict=True):
        if head_weight:
            losses.append(head_weight * soft_target_loss(space, logits, *_pooled(target, weight, logits.shape[2:])))
    return sum(losses)


def _pooled(target: Tensor, weight: Tensor, size: torch.Size) -> tuple[Tensor, Tensor]:
    """Return a target and its weight at a coarser size."""
    if target.shape[2:] == size:
        return target, weight
    pool = {2: F.adaptive_avg_pool2d, 3: F.adaptive_avg_pool3d}[len(size)]
    target, weight = target.float(), weight.float()
    coarse = pool(weight, size)
    return pool(weight * target, size) / coarse.clamp_min(torch.finfo(coarse.dtype).tiny), coarse
