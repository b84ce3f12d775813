"""Two predictions of one image are compared by their features: alike where they agree, unlike where they do not.

He et al., "C3S3: Complementary Competition and Contrastive Selection for Semi-Supervised Medical Image Segmentation",
ICME 2025, https://arxiv.org/abs/2506.07368
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from nnunet_ssl.building_blocks.label_space import LabelSpace, SigmoidRegions

PROJECTED_CHANNELS = 64  # authors' code
SMALLEST_SQUARE = 1e-16  # of both lengths' product; a vector without length has no direction, and a cosine of 0


def projector_of(network: nn.Module) -> nn.Module:
    """Return a small network from the features of a network's last stage, at places (B, F, N), to (B, 64, N).

    It is the authors' projector, which sees all voxels: two convolutions of kernel size 1 and a PReLU between them.

    Args:
        network: a bare U-Net as nnU-Net builds it.
    """
    features = network.decoder.seg_layers[-1].in_channels
    return nn.Sequential(nn.Conv1d(features, features, 1), nn.PReLU(), nn.Conv1d(features, PROJECTED_CHANNELS, 1))


@torch.no_grad()
def places_to_compare(space: LabelSpace, probs: Sequence[Tensor], count: int) -> Tensor:
    """Return places of each image at which predictions are compared, none twice: (B, N), indices of flattened voxels.

    Half of them lie anywhere. The other half are voxels on which the predictions differ; if there are not so many, all
    of them, then voxels that some prediction has as foreground, then any. How many there are depends on no prediction,
    so that a GPU is not waited for.

    Args:
        space: what the channels mean.
        probs: of each prediction, (B, C, *spatial).
        count: N, 0 or more; all voxels, if there are not more.
    """
    labels = torch.stack([space.pseudo_label(one) for one in probs]).flatten(3)  # 0 is background
    differs, is_foreground = (labels != labels[0]).any(0).any(1), (labels > 0).any(0).any(1)  # (B, voxels)
    drawn = torch.rand(differs.shape, device=differs.device)
    count = min(count, drawn.shape[1])
    anywhere = drawn.topk(count // 2).indices
    wanted = (drawn + differs.float() + is_foreground.float()).scatter(1, anywhere, -1.0)
    return torch.cat([anywhere, wanted.topk(count - count // 2).indices], 1)


def at_places(maps: Tensor, places: Tensor) -> Tensor:
    """Return what maps (B, C, *spatial) have at places (B, N), as (B, C, N); the gradient flows through."""
    maps = maps.flatten(2)
    return maps.gather(2, places[:, None].expand(-1, maps.shape[1], -1))


def agreement_contrast(features: Tensor, other: Tensor, mask: Tensor, other_mask: Tensor, temperature: float) -> Tensor:
    """Return by how much two predictions' features are not more alike where both agree than where they differ.

        ℓ = ⟨ -s_v/τ + log(e^(s_v/τ) + Σ_w e^(s_w/τ)) ⟩ over v in I, plus the same over v outside of U

    s_v is the cosine similarity of both features at v, I where both masks are true, U where one is; w runs over U
    without I. ℓ is of one image and one channel of its masks; a mean over no v is 0, and without a w all of ℓ is. The
    result is the mean of ℓ over the images and channels that have a w, and 0 if none has: a scalar in float32.

    He et al. (above), with the denominators that their text asks for: in their code what is masked stays there as e⁰,
    beside the voxels on which both agree, so that nothing pulls the features of these together. With several channels a
    v agrees in all of them, as one similarity cannot be pulled for one class and pushed for another.

    Args:
        features: (B, D, N) of the one prediction; the gradient flows here.
        other: (B, D, N) of the other one; the gradient flows here too.
        mask: bool (B, C, N), the foreground of the one.
        other_mask: bool (B, C, N), that of the other.
        temperature: τ > 0.
    """
    similarity = _cosine(features.float(), other.float())[:, None] / temperature
    differs = mask != other_mask
    nothing = torch.finfo(similarity.dtype).min  # finite: without a w the gradient has to stay a number
    negatives = similarity.masked_fill(~differs, nothing).logsumexp(2, keepdim=True)
    losses = F.softplus(negatives - similarity)  # -s + log(e^s + e^n) = log(1 + e^(n - s))
    agrees, has_negatives = ~differs.any(1, keepdim=True), differs.any(2).float()
    pulled = _mean_over(losses, agrees & mask) + _mean_over(losses, agrees & ~mask)
    return (has_negatives * pulled).sum() / has_negatives.sum().clamp_min(1.0)


def _mean_over(values: Tensor, mask: Tensor) -> Tensor:
    """Return the mean over the last axis where a mask is true, (B, C); 0 where it is nowhere."""
    mask = mask.float()
    return (mask * values).sum(2) / mask.sum(2).clamp_min(1.0)


def prediction_cosine_distance(space: LabelSpace, probs: Tensor, other: Tensor) -> Tensor:
    """Return 1 - cos of the angle between two predictions of a voxel, the mean over batch and voxels, as a scalar.

    The angle is that between the vectors of class probabilities; for regions, between (p, 1 - p) of each region, and
    the mean is over regions too. Of logits it would mean little: a number that is added to all of them changes it and
    not the prediction, and a region's single logit has a sign and no direction.

    Args:
        space: what the channels mean.
        probs: (B, C, *spatial) in [0, 1]; the gradient flows here.
        other: (B, C, *spatial) in [0, 1]; taken as constant.
    """
    probs, other = probs.float(), other.detach().float()
    if isinstance(space, SigmoidRegions):
        probs, other = (torch.stack([one, 1.0 - one], 1) for one in (probs, other))
    return (1.0 - _cosine(probs, other)).mean()


def _cosine(one: Tensor, other: Tensor) -> Tensor:
    """Return cosines over the second axis; on the CPU torch's cosine_similarity takes many times as long."""
    squares = (one * one).sum(1) * (other * other).sum(1)
    return (one * other).sum(1) * squares.clamp_min(SMALLEST_SQUARE).rsqrt()
