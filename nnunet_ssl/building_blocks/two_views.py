"""Two networks that see two views of an image each: what one pass learns from the three others.

He et al., "C3S3: Complementary Competition and Contrastive Selection for Semi-Supervised Medical Image Segmentation",
ICME 2025, https://arxiv.org/abs/2506.07368
"""

from collections.abc import Mapping
from typing import NamedTuple

from torch import Tensor, nn

from nnunet_ssl.building_blocks.consistency import mean_squared_error, sharpened
from nnunet_ssl.building_blocks.contrast import agreement_contrast, at_places, prediction_cosine_distance
from nnunet_ssl.building_blocks.label_space import LabelSpace


class Weights(NamedTuple):
    """Of the terms of the joint loss; a term with 0 is left out."""

    cosine: float
    competition: float
    contrast: float


class Seen(NamedTuple):
    """What a network makes of a view.

    Attributes:
        probs: (B, C, *spatial).
        features: projected ones of the compared places, (B, D, N); None where nothing is compared.
        mask: predicted foreground of those places, bool (B, foreground channels, N); None where nothing is compared.
    """

    probs: Tensor
    features: Tensor | None = None
    mask: Tensor | None = None

    def detached(self) -> "Seen":
        """Return the same without gradient."""
        return Seen(*(one if one is None else one.detach() for one in self))


def see(space: LabelSpace, probs: Tensor, features: Tensor, projector: nn.Module, places: Tensor) -> Seen:
    """Return probabilities, and at some places the projected features and the predicted foreground.

    Args:
        space: what the channels mean.
        probs: (B, C, *spatial); the gradient flows through, and not through the foreground made of them.
        features: (B, F, *spatial), from which the logits are made; the gradient flows through, at the places.
        projector: as `projector_of` returns it.
        places: (B, N), as `places_to_compare` returns them; without any there are probabilities alone.
    """
    if not places.shape[1]:
        return Seen(probs)
    labels = space.pseudo_label(at_places(probs.detach(), places))
    return Seen(probs, projector(at_places(features, places)), space.one_hot(labels)[:, space.foreground].bool())


def losses_of_pass(
    space: LabelSpace,
    own: Seen,
    seen: Mapping[tuple[int, int], Seen],
    which: tuple[int, int],
    is_loser: Tensor,
    weights: Weights,
    temperature: float,
) -> dict[str, Tensor]:
    """Return the terms of the joint loss of four passes that one of them has a part in, weighted, by name.

        cosine: 1 - cos between both views of this network
        competition: ⟨(p - sharp(q))²⟩ of this network's p and the other one's q for the same view, if this one loses
        contrast: of this pass and each view of the other network, the sum

    A term that two passes share has its value in both, and each of them its own part of the gradient.

    Args:
        space: what the channels mean.
        own: of this pass; the gradient flows here alone, so that over all four passes it is that of the joint loss.
        seen: of the other passes, by network and view, each 0 or 1; taken as constant.
        which: network and view of this pass.
        is_loser: a scalar, 1 if this network learns from the other one, and 0 if not.
        weights: of the terms.
        temperature: of both the sharpening and the contrast.
    """
    network, view = which
    partner, losses = 1 - network, {}
    if weights.cosine:
        losses["cosine"] = weights.cosine * prediction_cosine_distance(space, own.probs, seen[network, 1 - view].probs)
    if weights.competition:
        target = sharpened(seen[partner, view].probs, temperature)
        losses["competition"] = weights.competition * is_loser * mean_squared_error(own.probs, target)
    if weights.contrast:
        others = (seen[partner, 0].detached(), seen[partner, 1].detached())
        pairs = ((own.features, other.features, own.mask, other.mask) for other in others)
        losses["contrast"] = weights.contrast * sum(agreement_contrast(*pair, temperature) for pair in pairs)
    return losses
