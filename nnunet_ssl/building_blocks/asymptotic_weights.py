"""Weights of voxels that move, over a run, from those a network is certain of to those it is not.

He et al., "Mutual Evidential Deep Learning for Medical Image Segmentation", 2025,
https://arxiv.org/abs/2505.12418
"""

import math
from typing import NamedTuple

import torch
from torch import Tensor

from nnunet_ssl.building_blocks.evidence import FUSIONS, evidence_of, hypotheses_of
from nnunet_ssl.building_blocks.fisher_information import fisher_information_loss
from nnunet_ssl.building_blocks.label_space import LabelSpace
from nnunet_ssl.building_blocks.mixing import Mixed

CHANGE_LIMIT = 1.0 / math.tanh(1.0)  # of Ξ, about 1.31: from there on some weight is below 0


class Weights(NamedTuple):
    """Of the terms of `losses_by_weight`, and λ₂ of the `fisher_information_loss`."""

    ordered: float
    fisher: float
    determinant: float


def refuse(fusion: str, largest_change: float) -> None:
    """Raise a ValueError for a fusion that there is not, or a Ξ with which some voxels have a weight below 0."""
    if fusion not in FUSIONS:
        raise ValueError(f"fusion is one of {', '.join(FUSIONS)}, got {fusion!r}")
    if largest_change >= CHANGE_LIMIT:
        raise ValueError(f"asymptotic_weight is less than {CHANGE_LIMIT:.3f}, got {largest_change}")


def asymptotic_weights(uncertainty: Tensor, known: Tensor | None, progress: float, largest_change: float) -> Tensor:
    """Return the weight of each voxel, by its rank among those of its image: in [1 - Ξ, 1 + Ξ], without gradient.

        ω = 1 + Ξ tanh(ψ ζ),    ψ = 2 h / V - 1,    ζ = 2 q - 1

    h in 1 ... V is the rank of one of V voxels, V that of the most uncertain one. So the certain voxels count more at
    first, the uncertain ones in the end. (The paper ranks "in descending order", which taken literally is the reverse
    of what it says it is for.) A voxel that is not known has no rank and the weight 0. Of equal ones the first is
    ranked lower. Nothing is waited for on a GPU.

    Args:
        uncertainty: (B, Q, *spatial), ≥ 0; each of the Q maps is ranked for itself.
        known: bool (B, 1, *spatial), which voxels there are; None means all.
        progress: q, how much is over, a fraction in [0, 1].
        largest_change: Ξ in [0, `CHANGE_LIMIT`); 0 makes all weights 1.
    """
    known = torch.ones_like(uncertainty, dtype=torch.bool) if known is None else known.expand_as(uncertainty)
    if not largest_change:
        return known.to(uncertainty.dtype)
    flat, known = uncertainty.detach().flatten(2), known.flatten(2)
    ranks = _ranks(flat.masked_fill(~known, torch.inf))
    position = 2.0 * ranks / known.sum(2, keepdim=True).clamp_min(1) - 1.0
    weights = 1.0 + largest_change * torch.tanh(position * (2.0 * progress - 1.0))
    return torch.where(known, weights, 0.0).view_as(uncertainty)


def _ranks(numbers: Tensor) -> Tensor:
    """Return the rank of each number ≥ 0, rounded to float32, among those of its row, the last axis, from 1 on.

    All rows are sorted at once, by integers whose upper half is the row and whose lower half the bits of the number,
    which are in the order of the numbers: torch sorts integers several times faster than floats.
    """
    rows = numbers.to(torch.float32).flatten(0, -2)
    upper = torch.arange(len(rows), device=rows.device)[:, None] << 32
    order = (rows.view(torch.int32) + upper).flatten().sort(stable=True).indices
    places = torch.arange(1, rows.shape[1] + 1, dtype=numbers.dtype, device=rows.device).repeat(len(rows))
    return torch.empty_like(places).scatter_(0, order, places).view(numbers.shape)


def weighted_mean(losses: Tensor, weights: Tensor, part: Tensor) -> Tensor:
    """Return the mean of ω ℓ over the voxels of a part, as a scalar; 0 where the part is empty.

    Args:
        losses: ℓ (B, Q, *spatial); the gradient flows here.
        weights: ω (B, Q, *spatial).
        part: bool (B, 1, *spatial).
    """
    part = part.expand_as(losses)
    return (losses * weights * part).sum() / part.sum().clamp_min(1)


def losses_by_weight(
    space: LabelSpace, logits: Tensor, learned: Tensor, mixed: Mixed, orders: tuple[Tensor, Tensor], weights: Weights
) -> dict[str, Tensor]:
    """Return the terms whose voxels have asymptotic weights, by name.

        ordered: ⟨ω CE(p, y)⟩ over the labeled voxels
        fisher: ⟨ω ℓ(e, ŷ)⟩ over the pseudo-labeled ones, ℓ the `fisher_information_loss`; left out with a weight of 0

    Args:
        space: what the channels mean.
        logits: (B, C, *spatial) of the mixed images, at full resolution; the gradient of fisher flows here.
        learned: their `expected_logits`; the gradient of ordered flows here.
        mixed: images that are labeled in one part and pseudo-labeled in the other.
        orders: ω (B, Q, *spatial) of the voxels of labeled images, and of unlabeled ones.
        weights: of the terms.
    """
    cross_entropy = space.cross_entropy(learned, mixed.labels)
    losses = {"ordered": weights.ordered * weighted_mean(cross_entropy, orders[0], mixed.parts[0])}
    if weights.fisher:
        target = hypotheses_of(space, space.one_hot(mixed.labels))
        information = fisher_information_loss(evidence_of(space, logits), target, weights.determinant)
        losses["fisher"] = weights.fisher * weighted_mean(information, orders[1], mixed.parts[1])
    return losses
