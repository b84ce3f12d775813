"""Agreement of predictions made at several resolutions."""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from nnunet_ssl.building_blocks.label_space import LabelSpace

EPSILON = 1e-8  # of the division by the mean certainty; URPC's code


def upsampled_probabilities(space: LabelSpace, outputs: Sequence[Tensor]) -> list[Tensor]:
    """Return the probabilities of all heads at full resolution, each (B, C, *spatial) in float32.

    Logits are upsampled linearly, then turned into probabilities.

    Args:
        space: what the channels mean.
        outputs: logits (B, C, *spatial) of each head, full resolution first; the gradient flows here.
    """
    size = outputs[0].shape[2:]
    mode = "bilinear" if len(size) == 2 else "trilinear"
    logits = [outputs[0], *(F.interpolate(output, size, mode=mode, align_corners=False) for output in outputs[1:])]
    return [space.probabilities(level) for level in logits]


def rectified_pyramid_consistency(space: LabelSpace, probs: Sequence[Tensor], mean: Tensor) -> Tensor:
    """Return how far the predictions of S heads are from their mean, less where they are uncertain, as a scalar.

        p̄ = mean_s p_s,  D_s = KL(p̄ ‖ p_s),  mean_s ( ⟨(p̄ - p_s)² e^(-D_s)⟩ / ⟨e^(-D_s)⟩ + ⟨D_s⟩ )

    Luo et al., "Efficient Semi-Supervised Gross Target Volume of Nasopharyngeal Carcinoma Segmentation via
    Uncertainty Rectified Pyramid Consistency", MICCAI 2021, https://arxiv.org/abs/2012.07042, equations 2 to 5.

    Args:
        space: what the channels mean.
        probs: of each head (B, C, *spatial) in [0, 1]; the gradient flows here.
        mean: of the heads, p̄ (B, C, *spatial); the gradient flows here too.
    """

    def distance_from_mean(head: Tensor) -> Tensor:
        divergence = space.divergence(mean, head)
        certainty = torch.exp(-divergence)
        rectified = ((mean - head).square() * certainty).mean() / (certainty.mean() + EPSILON)
        return rectified + divergence.mean()

    # What lies between is computed anew on the way back: else seven maps of each head wait for it.
    distances = [checkpoint(distance_from_mean, head, use_reentrant=False, preserve_rng_state=False) for head in probs]
    return torch.stack(distances).mean()
