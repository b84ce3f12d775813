"""Entropy as a loss: predictions are pushed away from the boundary between classes."""

from torch import Tensor

from nnunet_ssl.building_blocks.label_space import LabelSpace


def balanced_entropy(space: LabelSpace, probs: Tensor) -> Tensor:
    """Return half the mean entropy of predicted foreground and half that of background, a share of its maximum.

    Each half counts the same, because a mean over all voxels falls fastest where small structures vanish.

    Args:
        space: what the channels mean.
        probs: (B, C, *spatial) in [0, 1]; the gradient flows here.
    """
    entropy = space.entropy(probs)
    foreground = (space.pseudo_label(probs) > 0).float()
    return 0.5 * sum((part * entropy).sum() / part.sum().clamp_min(1.0) for part in (foreground, 1.0 - foreground))
