"""A 2-D network that sees a 3-D patch slice by slice."""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils.checkpoint import checkpoint

from nnunet_ssl.building_blocks.features import NetworkWithoutFeatures

COLORS = 3  # of natural images
GROUPS = 8  # of channels, which are normalised together where there is no pretrained batch normalisation; ours


class SlicewiseNetwork(NetworkWithoutFeatures):
    """A 2-D network whose batch is the slices of a batch of 3-D patches.

    They pass in chunks. With gradient the features of one chunk are in memory at a time: those of several chunks are
    computed again in the backward pass, with the same random numbers, so that the result does not depend on the chunks
    and a loss can be over all slices. Batch normalisation keeps its pretrained statistics, in training too.
    """

    def __init__(self, network: nn.Module, axis: int, slices_per_pass: int, divisor: tuple[int, int] = (1, 1)) -> None:
        """Wrap a 2-D network.

        Args:
            network: makes logits (N, K, Y, X) of slices (N, C, Y, X).
            axis: the spatial axis that is cut: 0, 1 or 2.
            slices_per_pass: most slices of a chunk.
            divisor: what the sides of the network's slices are multiples of: they are padded with 0, logits cropped.
        """
        super().__init__()
        self.network = network
        self.axis, self.slices_per_pass, self.divisor = axis, slices_per_pass, divisor

    @torch.compiler.disable  # chunks and slices of many shapes, and networks of any library
    def logits(self, image: Tensor) -> Tensor:
        """Return logits (B, K, *spatial) of images (B, C, *spatial)."""
        by_slice = image.movedim(2 + self.axis, 1)
        chunks = by_slice.flatten(0, 1).split(self.slices_per_pass)
        is_kept_small = torch.is_grad_enabled() and len(chunks) > 1
        done = [checkpoint(self._pass, c, use_reentrant=False) if is_kept_small else self._pass(c) for c in chunks]
        return torch.cat(done).unflatten(0, by_slice.shape[:2]).movedim(1, 2 + self.axis)

    def _pass(self, slices: Tensor) -> Tensor:
        height, width = slices.shape[2:]
        down, right = (-side % divisor for side, divisor in zip((height, width), self.divisor, strict=True))
        return self.network(F.pad(slices, (0, right, 0, down)))[..., :height, :width]

    def train(self, mode: bool = True) -> "SlicewiseNetwork":
        """Put the network into training or evaluation mode, batch normalisation always into the latter."""
        super().train(mode)
        for module in self.modules():
            if isinstance(module, _BatchNorm):
                module.eval()
        return self


class ColorsFirst(nn.Module):
    """A network of natural images, given images of any number of channels.

    One channel is repeated; more than one, unless they are three, are mixed by a layer that learns and starts with
    their mean.
    """

    def __init__(self, network: nn.Module, channels: int) -> None:
        """Put what makes three channels of some before a network."""
        super().__init__()
        self.mix = None if channels in (1, COLORS) else nn.Conv2d(channels, COLORS, 1)
        if self.mix is not None:
            nn.init.constant_(self.mix.weight, 1.0 / channels)
            nn.init.zeros_(self.mix.bias)
        self.network = network

    def forward(self, image: Tensor) -> Tensor:
        """Return what the network makes of images (N, channels, Y, X)."""
        return self.network(image.expand(-1, COLORS, -1, -1) if self.mix is None else self.mix(image))


def without_batch_norm(module: nn.Module) -> None:
    """Replace batch normalisation inside of a module that is not pretrained by one of groups of channels, in place.

    So what is made of a slice depends neither on the other slices of its chunk nor on those of other processes.
    """
    for parent in list(module.modules()):
        for name, child in list(parent.named_children()):
            if type(child) is nn.BatchNorm2d:
                groups = math.gcd(GROUPS, child.num_features)
                setattr(parent, name, nn.GroupNorm(groups, child.num_features, child.eps, child.affine))
