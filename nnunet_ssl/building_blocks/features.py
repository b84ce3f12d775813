"""What a nnU-Net U-Net computes on the way to its outputs: the features of encoder and decoder."""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn


class Pass(NamedTuple):
    """One pass of a network; the gradient flows through all of it unless it was made without.

    Attributes:
        outputs: logits (B, C, *spatial) of each deep supervision head, full resolution first; without deep supervision
            those at full resolution alone.
        skips: features of the encoder (B, F, *spatial), full resolution first; the last ones are the bottleneck.
        features: of the last stage of the decoder, (B, F, *spatial) at full resolution, from which its logits are made.
    """

    outputs: list[Tensor]
    skips: list[Tensor]
    features: Tensor

    @property
    def logits(self) -> Tensor:
        """Logits (B, C, *spatial) at full resolution."""
        return self.outputs[0]


def encode(network: nn.Module, image: Tensor) -> list[Tensor]:
    """Return the features of a network's encoder (B, F, *spatial), full resolution first.

    Args:
        network: a bare U-Net as nnU-Net builds it.
        image: (B, C, *spatial).
    """
    return network.encoder(image)


def decode(decoder: nn.Module, skips: Sequence[Tensor]) -> Pass:
    """Return what a nnU-Net decoder makes of features, as its own forward does, with the features of its last stage.

    Args:
        decoder: of a nnU-Net U-Net; with deep supervision if that is switched on in it.
        skips: as `encode` returns them.
    """
    features, outputs = skips[-1], []
    for i, (transposed, stage) in enumerate(zip(decoder.transpconvs, decoder.stages, strict=True)):
        features = stage(torch.cat((transposed(features), skips[-(i + 2)]), 1))
        if decoder.deep_supervision or i == len(decoder.stages) - 1:
            outputs.append(decoder.seg_layers[i](features))
    return Pass(outputs[::-1], list(skips), features)


def forward_pass(network: nn.Module, image: Tensor) -> Pass:
    """Return a whole pass of a network; its outputs are those of the network's own forward.

    Args:
        network: a bare U-Net as nnU-Net builds it.
        image: (B, C, *spatial).
    """
    return decode(network.decoder, encode(network, image))
