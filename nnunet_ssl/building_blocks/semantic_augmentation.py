"""Cross-entropy over infinitely many augmented features, in closed form, and the moments of features that it needs.

The classes of features are those of the labels; for regions, which are yes or no each, there are two for each region:
outside of it and inside.

Y. Wang, X. Pan, S. Song, H. Zhang, C. Wu, G. Huang, "Implicit Semantic Data Augmentation for Deep Networks", NeurIPS
2019, https://arxiv.org/abs/1909.12220; between two domains: S. Li, M. Xie, K. Gong, C. H. Liu, Y. Wang, W. Li,
"Transferable Semantic Augmentation for Domain Adaptation", CVPR 2021, https://arxiv.org/abs/2103.12562
"""

from math import ceil, prod
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd

from nnunet_ssl.building_blocks.label_space import LabelSpace, SigmoidRegions

STREAMS = ("labeled", "unlabeled")  # of features: the student's of labeled images, the teacher's of unlabeled ones
LARGEST_SAMPLE = 2**11  # voxels of each image whose features are counted; ours: neighbors are alike, and steps add up


def refuse(augmented: str, largest_margin: float) -> None:
    """Raise a ValueError for features of no stream, and for a limit below 0."""
    if augmented not in STREAMS:
        raise ValueError(f"augmented is {' or '.join(STREAMS)}, got {augmented!r}")
    if largest_margin < 0.0:
        raise ValueError(f"largest_margin is 0 or more, got {largest_margin}")


def num_classes(space: LabelSpace) -> int:
    """Return K, the number of classes of features: C labels, or outside and inside of each region."""
    return 2 * space.num_channels if isinstance(space, SigmoidRegions) else space.num_channels


def class_maps(space: LabelSpace, labels: Tensor, weight: Tensor) -> Tensor:
    """Return for each class of features where its voxels are: float32 (B, K, *spatial), 0 where the weight is 0.

    Args:
        space: what the labels mean.
        labels: nnU-Net's target at full resolution, or pseudo-labels.
        weight: bool or ≥ 0, (B, 1, *spatial), for regions also (B, C, *spatial); 0 leaves a voxel out.
    """
    inside = space.one_hot(labels)
    if isinstance(space, SigmoidRegions):
        return torch.cat([weight * (1.0 - inside), weight * inside], 1)
    return weight * inside


@torch.no_grad()
def class_moments(features: Tensor, classes: Tensor, voxels: int = LARGEST_SAMPLE) -> Tensor:
    """Return the sums of (1, f) (1, f)ᵀ over the voxels of each class: float32 (K, 1 + F, 1 + F), without gradient.

    [:, 0, 0] counts the voxels, [:, 0, 1:] sums their features, [:, 1:, 1:] the products of these. Moments of several
    batches are added up.

    Args:
        features: (B, F, *spatial), in any precision.
        classes: as `class_maps` returns them.
        voxels: of each image at most; of larger ones those on a lattice are counted.
    """
    features, classes = (_on_lattice(maps, voxels).float().transpose(0, 1).flatten(1) for maps in (features, classes))
    with torch.autocast(features.device.type, enabled=False):
        features = torch.cat([torch.ones_like(features[:1]), features])
        return torch.stack([(one * features) @ features.T for one in classes])


def _on_lattice(maps: Tensor, voxels: int) -> Tensor:
    """Return the voxels of maps (B, C, *spatial) on the finest lattice that has no more of them than asked for.

    Its spacing is odd, so that it meets all phases of transposed convolutions, which double the resolution.
    """
    spatial, spacing = maps.shape[2:], 1
    while prod(ceil(size / spacing) for size in spatial) > voxels:
        spacing += 2
    return maps[(..., *(slice(min(spacing, size) // 2, None, spacing) for size in spatial))]


class RunningMoments(nn.Module):
    """Means and covariances of each class's features over the last steps, of the two streams of features.

    A step in which a class occurs multiplies the weight of the steps before it by the decay, and each voxel of a step
    counts alike: the mean is Σ d^(t - i) s_i / Σ d^(t - i) n_i over the steps i with the class, of which nothing has to
    be corrected at the start. A class that is absent keeps what it has. It has to be given the same in all processes.
    """

    moments: Tensor

    def __init__(self, space: LabelSpace, classifier: _ConvNd) -> None:
        """Start with no class seen.

        Args:
            space: what the labels mean.
            classifier: the convolution that makes logits of the features.
        """
        super().__init__()
        size = 1 + classifier.in_channels
        self.register_buffer("moments", torch.zeros(len(STREAMS), num_classes(space), size, size))

    @torch.no_grad()
    def update(self, moments: Tensor, decay: float) -> None:
        """Add a step's moments, as `class_moments` returns them.

        Args:
            moments: (2, K, 1 + F, 1 + F) of both streams, the sum over all processes.
            decay: weight of what was before, in [0, 1].
        """
        is_present = moments[..., :1, :1] > 0
        self.moments.mul_(torch.where(is_present, decay, 1.0)).add_(moments)

    @property
    def counts(self) -> Tensor:
        """Voxels of each class (2, K), weighted by their age; 0 until it is seen."""
        return self.moments[..., 0, 0]

    @property
    def means(self) -> Tensor:
        """Mean features of each class (2, K, F); 0 until it is seen."""
        return self.moments[..., 0, 1:] / self.counts.clamp_min(1.0)[..., None]

    @property
    def covariances(self) -> Tensor:
        """Covariance of each class's features (2, K, F, F); 0 until it is seen."""
        products = self.moments[..., 1:, 1:] / self.counts.clamp_min(1.0)[..., None, None]
        return products - self.means[..., :, None] * self.means[..., None, :]

    def transfer(self, stream: str, fraction: float) -> "Transfer":
        """Return what moves a stream's features part of the way to the other stream's, without gradient.

        Args:
            stream: "labeled" or "unlabeled".
            fraction: λ in [0, 1]: how much of the way.
        """
        source = STREAMS.index(stream)
        target = 1 - source
        is_seen = (self.counts > 0).all(0)[:, None]
        shift = (self.means[target] - self.means[source]) * is_seen
        return Transfer(fraction * shift, fraction * self.covariances[target])


class Transfer(NamedTuple):
    """The normal distribution of what is added to the features of each class.

    Attributes:
        shift: λ Δμ (K, F), from the class's mean to the other stream's; 0 until it is seen in both.
        covariance: λ Σ (K, F, F), of the other stream; 0 until it is seen there.
    """

    shift: Tensor
    covariance: Tensor


class Margins(NamedTuple):
    """What augmentation adds to the logits.

    Attributes:
        table: (K, C), for a voxel of each class.
        spread: (K, C), the part of it that comes from the covariance, ≥ 0 and up to the limit.
        is_clamped: bool (K, C), where that part would be more than the limit.
        pairs: (K, C), 1 where a class has this answer as a wrong one, 0 elsewhere.
    """

    table: Tensor
    spread: Tensor
    is_clamped: Tensor
    pairs: Tensor


def expected_margins(space: LabelSpace, weight: Tensor, transfer: Transfer, limit: float) -> Margins:
    """Return what stands for augmented features f̃ ~ N(f + λ Δμ_y, λ Σ_y) in the logits z = W f + b of a voxel.

    Softmax labels, of class y:

        E[CE(W f̃ + b, y)] ≤ CE(ẑ, y),    ẑ_k = z_k + λ (w_k - w_y)ᵀ Δμ_y + ½ λ (w_k - w_y)ᵀ Σ_y (w_k - w_y)

    by Jensen's inequality and the moment generating function of a normal variable; k = y adds nothing. For a region it
    is the same with the logits (0, z): outside, ẑ = z + λ wᵀ Δμ + ½ λ wᵀ Σ w; inside, ẑ = z + λ wᵀ Δμ - ½ λ wᵀ Σ w.

    Each ½ λ dᵀ Σ d is clamped: the loss is at most the limit more than with the shift alone, whatever Σ is, and what is
    clamped has no gradient. It bounds the expectation where nothing is clamped.

    Args:
        space: what the channels mean.
        weight: W of the classifier (C, F); the gradient flows here.
        transfer: λ Δμ and λ Σ; taken as constant.
        limit: of ½ λ dᵀ Σ d, in units of logits, ≥ 0.
    """
    with torch.autocast(weight.device.type, enabled=False):
        weight = weight.float()
        same = torch.eye(len(weight), device=weight.device)
        if isinstance(space, SigmoidRegions):
            pairs, sign = same.repeat(2, 1), torch.cat([same.new_ones(len(same), 1), -same.new_ones(len(same), 1)])
            directions = pairs[:, :, None] * weight
        else:
            pairs, sign = 1.0 - same, same.new_ones(())
            directions = weight - weight[:, None]
        spread = 0.5 * ((directions @ transfer.covariance.detach()) * directions).sum(2)
        shift = (directions @ transfer.shift.detach()[:, :, None])[:, :, 0]
        clamped = spread.clamp(0.0, limit)
        return Margins(shift + sign * clamped, clamped, spread > limit, pairs)


def expected_cross_entropy(space: LabelSpace, logits: Tensor, classes: Tensor, table: Tensor) -> Tensor:
    """Return the mean cross-entropy of augmented features over all voxels that have a class, in float32, as a scalar.

    For regions it is the binary one, a mean over regions too. Without any voxel it is 0.

    Args:
        space: what the channels mean.
        logits: (B, C, *spatial) of the features as they are; the gradient flows here.
        classes: as `class_maps` returns them.
        table: see `Margins`; the gradient flows here.
    """
    logits, classes = logits.flatten(2), classes.flatten(2)
    with torch.autocast(logits.device.type, enabled=False):
        logits = logits + torch.einsum("bkn,kc->bcn", classes, table)  # of which one at least is in float32
    if isinstance(space, SigmoidRegions):
        log_probs = torch.cat([F.logsigmoid(-logits), F.logsigmoid(logits)], 1)
    else:
        log_probs = logits.log_softmax(1)
    return -(classes * log_probs).sum() / classes.sum().clamp_min(1.0)


class Augmented(NamedTuple):
    """The loss of augmented features, and two numbers for the curves, all scalars.

    Attributes:
        loss: see `expected_cross_entropy`.
        margin: what the covariance adds to the logit of a wrong answer, the mean over pairs of a class and such one.
        clamped: the share of these pairs at the limit.
    """

    loss: Tensor
    margin: Tensor
    clamped: Tensor


def augment(
    space: LabelSpace, classifier: _ConvNd, features: Tensor, classes: Tensor, transfer: Transfer, limit: float
) -> Augmented:
    """Return the mean cross-entropy of features that are augmented without end, by their closed form.

    Args:
        space: what the channels mean.
        classifier: a convolution of kernel size 1 that makes logits of features; the gradient flows to its weights.
        features: (B, F, *spatial); the gradient flows here.
        classes: as `class_maps` returns them.
        transfer: what is added to the features of each class; taken as constant.
        limit: see `expected_margins`.
    """
    margins = expected_margins(space, classifier.weight.flatten(1), transfer, limit)
    loss = expected_cross_entropy(space, classifier(features), classes, margins.table)
    number = margins.pairs.sum().clamp_min(1.0)
    return Augmented(loss, margins.spread.detach().sum() / number, margins.is_clamped.sum() / number)
