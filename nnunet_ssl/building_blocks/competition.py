"""Which of several networks is the better one, by a smoothed error on labeled images.

He et al., "C3S3: Complementary Competition and Contrastive Selection for Semi-Supervised Medical Image Segmentation",
ICME 2025, https://arxiv.org/abs/2506.07368
"""

import torch
from torch import Tensor, nn

from nnunet_ssl.building_blocks.label_space import LabelSpace

ERROR_DECAY = 0.9  # ours: one batch says little about which network is better, and the authors take one alone


class SmoothedErrors(nn.Module):
    """Moving averages of the errors of several networks, which start at 0: their order is what counts.

    Attributes:
        means: (networks,).
    """

    def __init__(self, networks: int) -> None:
        """Start with errors of 0."""
        super().__init__()
        self.register_buffer("means", torch.zeros(networks))

    @torch.no_grad()
    def is_worst(self, errors: Tensor) -> Tensor:
        """Add the errors of one more step; return 1 for the network with the largest average, 0 for the others.

        They count even if the step is skipped, for a later loss that is not finite: they say as much of the networks.
        The first of several that are equal is taken. Errors that are not all finite are not added. A GPU is not waited
        for.

        Args:
            errors: (networks,), equal in all processes.
        """
        moved = torch.lerp(errors, self.means, ERROR_DECAY)
        self.means.copy_(torch.where(errors.isfinite().all(), moved, self.means))
        return (torch.arange(len(self.means), device=errors.device) == self.means.argmax()).float()


@torch.no_grad()
def labeled_error(space: LabelSpace, logits: Tensor, target: Tensor, cross_entropy_fraction: float) -> Tensor:
    """Return α cross-entropy + (1 - α) (1 - Dice), 0 at best, as a scalar in float32, without gradient.

    The cross-entropy is the mean over voxels, and over regions; the Dice is over foreground channels and the whole
    batch. The ignore label is left out of both; where there is nothing else the cross-entropy is 0.

    Args:
        space: what the channels mean.
        logits: (B, C, *spatial).
        target: nnU-Net's, at full resolution.
        cross_entropy_fraction: α in [0, 1].
    """
    known = space.is_known(target).float()
    cross_entropy = space.cross_entropy(logits, target)  # 0 on the ignore label
    mean = cross_entropy.sum() / known.expand_as(cross_entropy).sum().clamp_min(1.0)
    dice = space.dice(space.probabilities(logits), space.one_hot(target), known)
    return cross_entropy_fraction * mean + (1.0 - cross_entropy_fraction) * (1.0 - dice)
