"""How long the weights of convolutions are, where a normalisation makes the outputs independent of it."""

import torch
from torch import nn


@torch.no_grad()
def restore_weight_norms(network: nn.Module) -> None:
    """Give each convolution that a normalisation follows weights as long as those of a fresh network; outputs stay.

    A normalisation takes the length of the weights before it out again, but a step of SGD turns long weights less: by
    the square of the length, so that a loss with large gradients leaves a network behind that hardly learns. Fresh
    weights, as nnU-Net draws them (He et al., ICCV 2015), are √(2 F) long, of F output channels. The running statistics
    of a batch normalisation are scaled too; weights that are all zero stay.

    Args:
        network: of blocks as nnU-Net's networks have them; others stay as they are.
    """
    for block in network.modules():
        conv, norm = getattr(block, "conv", None), getattr(block, "norm", None)
        if conv is None or norm is None:
            continue
        length = conv.weight.norm()
        scale = torch.where(length > 0.0, (2 * conv.weight.shape[0]) ** 0.5 / length, 1.0)
        conv.weight.mul_(scale)
        statistics = getattr(norm, "running_mean", None), getattr(norm, "running_var", None)
        for scaled, factor in zip((conv.bias, *statistics), (scale, scale, scale**2), strict=True):
            if scaled is not None:
                scaled.mul_(factor)
