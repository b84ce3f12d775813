"""Whole images are compared by what is known of them for free: alike where they share a meta-label, easy pairs first.

Peng, Wang, Desrosiers, Pedersoli, "Self-Paced Contrastive Learning for Semi-supervised Medical Image Segmentation with
Meta-labels", NeurIPS 2021, https://arxiv.org/abs/2107.13741
"""

from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from nnunet_ssl.building_blocks.ramps import between

EMBEDDING = 256  # authors' code
GROWTH = 0.5  # exponent of the growth of the age parameter; authors' code
SLACK = 1e-3  # by which the age parameter is above the quantile, so that the pair at it is admitted; ours
WEIGHTS, AGES = ("linear", "hard", "constant"), ("quantile", "bounds")


class Pace(NamedTuple):
    """How pairs of images are weighted.

    Attributes:
        pair_weights: "linear", "hard" or "constant"; see `self_paced_weights`.
        age: "quantile" or "bounds"; see `age_at_quantile` and `age_between_bounds`.
        ages: first and last share of that quantile, or of the way between the bounds.
        progress: how much of the stage is over, a fraction in [0, 1].
        temperature: of the pair losses, more than 0.
    """

    pair_weights: str
    age: str
    ages: tuple[float, float]
    progress: float
    temperature: float

    @property
    def share(self) -> float:
        """The share now: first + (last - first) √progress."""
        return between(*self.ages, self.progress**GROWTH)


class Paced(NamedTuple):
    """What became of a meta-label: its loss, with gradient, the mean weight and the share of pairs with a weight."""

    loss: Tensor
    mean_weight: Tensor
    admitted: Tensor


def projector_of(network: nn.Module) -> nn.Module:
    """Return a small network from pooled features of the bottleneck (B, F) to (B, 256), the authors' projection head.

    Args:
        network: a bare U-Net as nnU-Net builds it.
    """
    features = network.encoder.output_channels[-1]
    return nn.Sequential(nn.Linear(features, EMBEDDING), nn.LeakyReLU(0.01), nn.Linear(EMBEDDING, EMBEDDING))


def pooled(features: Tensor) -> Tensor:
    """Return the largest value of each feature (B, F, *spatial) over all places, (B, F) in float32, with gradient.

    The authors take the mean. But nnU-Net's networks normalise each image for itself: the mean over all places, which
    tells images apart in a network with batch normalisation, is then nearly the same in all of them.
    """
    return features.float().flatten(2).amax(2)


def mirrored(image: Tensor, axes: Sequence[int]) -> Tensor:
    """Return each image of a batch (B, C, *spatial) mirrored along some of the axes, at least one of them.

    Which ones is drawn on the CPU, so that nothing waits for the device.

    Args:
        image: the batch.
        axes: spatial ones, the first is 0; without any the batch comes back as it is.
    """
    if not axes:
        return image
    drawn = torch.randint(1, 2 ** len(axes), (len(image),)).tolist()
    flips = [[axis for bit, axis in enumerate(axes) if number >> bit & 1] for number in drawn]
    return torch.stack([one.flip([1 + axis for axis in along]) for one, along in zip(image, flips, strict=True)])


def pair_losses(embeddings: Tensor, temperature: float) -> Tensor:
    """Return how unlike each two images are, against all others: (M, M), 0 on the diagonal, in float32.

        ℓ_ij = -log(exp(z_i·z_j / τ) / Σ_{a≠i} exp(z_i·z_a / τ))

    An image has no part in its own denominator, but all that are alike have. So ℓ has a floor: if M - 1 others are as
    like as can be, it is ln(M - 1), and with |P| alike ones and the rest far away ln |P|.

    Args:
        embeddings: z, (M, D) of length 1; the gradient flows to both sides of a pair.
        temperature: τ, more than 0.
    """
    with torch.autocast(embeddings.device.type, enabled=False):
        embeddings = embeddings.float()
        similarity = embeddings @ embeddings.T / temperature
    is_itself = torch.eye(len(embeddings), dtype=torch.bool, device=embeddings.device)
    others = similarity.masked_fill(is_itself, torch.finfo(similarity.dtype).min)
    return (others.logsumexp(1, keepdim=True) - similarity).masked_fill(is_itself, 0.0)


def alike(labels: Sequence[Hashable], device: torch.device) -> Tensor:
    """Return which two different images have the same label: bool (M, M), false on the diagonal."""
    numbers = {label: number for number, label in enumerate(dict.fromkeys(labels))}
    found = torch.tensor([numbers[label] for label in labels])
    is_alike = (found[:, None] == found[None]) & ~torch.eye(len(found), dtype=torch.bool)
    return is_alike.to(device, non_blocking=True)


def age_at_quantile(losses: Tensor, is_alike: Tensor, share: float) -> Tensor:
    """Return the age parameter, a scalar, that admits a share of the pairs that are alike: a quantile of their losses.

    It is a little above, so that the pair at the quantile is admitted too. Without a pair it is infinite.

    Args:
        losses: (M, M); taken as constant.
        is_alike: bool (M, M).
        share: of the pairs, in [0, 1]; 0 admits the easiest one.
    """
    ordered = losses.detach().masked_fill(~is_alike, torch.inf).flatten().sort().values
    place = (share * (is_alike.sum() - 1).clamp_min(0)).ceil().long()
    return (1.0 + SLACK) * ordered.gather(0, place.view(1))[0]


def age_between_bounds(is_alike: Tensor, share: float) -> Tensor:
    """Return the age parameter of each image, (M, 1): between ln |P|, the floor of its pair losses, and ln M.

    ln M is a little more than they all are before anything is learned, when all images look alike. In an ACDC batch of
    the authors, M = 60, their first values are at 1.8 (position) and 0.8 (patient), their last ones at 50 and 20.

    Args:
        is_alike: bool (M, M); |P| is how many an image is alike with.
        share: of the way from ln |P| (0) to ln M (1); may be more.
    """
    floor = is_alike.sum(1, keepdim=True).clamp_min(1).float().log()
    return floor.lerp(torch.full_like(floor, len(is_alike)).log(), share)


@torch.no_grad()
def self_paced_weights(losses: Tensor, is_alike: Tensor, age: Tensor, kind: str = "linear") -> Tensor:
    """Return the weight of each pair, (M, M) in [0, 1], without gradient; 0 where two images are not alike.

    linear: max(1 - ℓ / γ, 0). hard: 1 where ℓ ≤ γ. constant: 1.

    Args:
        losses: ℓ, (M, M).
        is_alike: bool (M, M).
        age: γ, that broadcasts to (M, M).
        kind: of the weights.
    """
    if kind == "linear":
        weights = (1.0 - losses / age.clamp_min(torch.finfo(losses.dtype).tiny)).clamp_min(0.0)
    else:
        weights = (losses <= age).float() if kind == "hard" else torch.ones_like(losses)
    return torch.where(is_alike, weights, 0.0)


def paced_loss(losses: Tensor, is_alike: Tensor, pace: Pace) -> Paced:
    """Return the self-paced loss of one meta-label: the mean over images i of the mean over P(i) of w_ij ℓ_ij.

    It is divided by the same mean of w, which keeps the scale of the gradient. Images that are alike with no other are
    left out of the means. Where all weights are 0, the loss is 0; and where all images are alike, since then their
    meta-label tells nothing.

    Args:
        losses: ℓ, (M, M); the gradient flows here, and not through the weights.
        is_alike: bool (M, M), of which P(i) is a row.
        pace: how pairs are weighted.
    """
    share, known = pace.share, losses.detach()
    age = age_at_quantile(known, is_alike, share) if pace.age == "quantile" else age_between_bounds(is_alike, share)
    weights = self_paced_weights(known, is_alike, age, pace.pair_weights)
    mean_weight = mean_over_pairs(weights, is_alike)
    loss = mean_over_pairs(weights * losses, is_alike)
    tells = is_alike.sum() < is_alike.numel() - len(is_alike)
    admitted = mean_over_pairs((weights > 0.0).float(), is_alike)
    return Paced(tells * loss / mean_weight.where(mean_weight > 0.0, 1.0), mean_weight, admitted)


def mean_over_pairs(values: Tensor, is_alike: Tensor) -> Tensor:
    """Return the mean over images of the mean of some values (M, M) over those alike, a scalar; 0 where none are."""
    count = is_alike.sum(1)
    rows = torch.where(is_alike, values, 0.0).sum(1) / count.clamp_min(1)
    return rows.sum() / (count > 0).sum().clamp_min(1)


def losses_in_passes(
    encode: Callable[[Tensor], Sequence[Tensor]],
    images: Sequence[Tensor],
    projectors: Mapping[str, nn.Module],
    labels: Mapping[str, Sequence[Hashable]],
    pace: Pace,
) -> Iterator[dict[str, Paced]]:
    """Yield for each batch of images the self-paced loss of each meta-label over all of them.

    The gradient is that of the one batch; the others, and what the projectors make of them, are constant, so that one
    pass is in memory at a time. Over all batches the gradients sum to that of the loss, and so do the values: each has
    an equal part. All batches but the first are encoded twice, once without gradient.

    Args:
        encode: returns the features of an image, the bottleneck's last, with gradient.
        images: batches (B, C, *spatial).
        projectors: as `projector_of` returns them, by meta-label; others do not count. Without any nothing is yielded.
        labels: of the images of all batches, by meta-label.
        pace: how pairs are weighted.
    """
    if not projectors:
        return
    with torch.no_grad():
        seen = [torch.empty(0), *(pooled(encode(image)[-1]) for image in images[1:])]
    for own, image in enumerate(images):
        seen[own] = pooled(encode(image)[-1])
        yield {name: _loss_of_pass(seen, own, projectors[name], labels[name], pace) for name in projectors}
        seen[own] = seen[own].detach()


def _loss_of_pass(seen: list[Tensor], own: int, projector: nn.Module, labels: Sequence[Hashable], pace: Pace) -> Paced:
    embeddings = [F.normalize(projector(one).float(), dim=1) for one in seen]
    embeddings = [one if i == own else one.detach() for i, one in enumerate(embeddings)]
    losses = pair_losses(torch.cat(embeddings), pace.temperature)
    found = paced_loss(losses, alike(labels, losses.device), pace)
    return found._replace(loss=part_of(found.loss, len(seen)))


def part_of(loss: Tensor, parts: int) -> Tensor:
    """Return a loss with its whole gradient and one of several equal parts of its value.

    For a loss whose gradient is taken in several passes, each of which sees the others' results as constant: the values
    of all passes sum to the loss, and so do the gradients.
    """
    return loss - (1.0 - 1.0 / parts) * loss.detach()


def refuse(pair_weights: str, age: str, ages: tuple[float, float], temperature: float) -> None:
    """Raise a ValueError in one sentence for settings of a pace that mean nothing.

    Args:
        pair_weights: see `Pace`.
        age: see `Pace`.
        ages: its first and last share.
        temperature: of the pair losses.
    """
    for name, word, words in (("pair_weights", pair_weights, WEIGHTS), ("age", age, AGES)):
        if word not in words:
            raise ValueError(f"{name} is {', '.join(words[:-1])} or {words[-1]}, got {word!r}")
    for name, value in zip(("first_age", "last_age"), ages, strict=True):
        if value < 0.0 or (age == "quantile" and value > 1.0):
            allowed = "a fraction in [0, 1], of the pairs" if age == "quantile" else "0 or more"
            raise ValueError(f"{name} is {allowed}, got {value}")
    if temperature <= 0.0:
        raise ValueError(f"temperature is more than 0, got {temperature}")
