"""What an nnU-Net U-Net computes on the way to its outputs: the features of encoder and decoder."""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import NamedTuple

import torch
from dynamic_network_architectures.architectures.unet import PlainConvUNet, ResidualEncoderUNet, ResidualUNet
from dynamic_network_architectures.building_blocks.unet_decoder import UNetDecoder
from dynamic_network_architectures.building_blocks.unet_residual_decoder import UNetResDecoder
from torch import Tensor, nn

# Those which call the encoder and then the decoder, and those which do what `decode` does.
FORWARDS_OF_NETWORKS = (PlainConvUNet.forward, ResidualEncoderUNet.forward, ResidualUNet.forward)
FORWARDS_OF_DECODERS = (UNetDecoder.forward, UNetResDecoder.forward)


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


class NetworkWithoutFeatures(nn.Module, ABC):
    """A network that is no U-Net as nnU-Net builds them: it can be trained and validated beside one.

    It is called as nnU-Net calls a U-Net, whose decoder has the switch for deep supervision.
    """

    def __init__(self) -> None:
        super().__init__()
        self.deep_supervision = False

    @abstractmethod
    def logits(self, image: Tensor) -> Tensor:
        """Return logits (B, C, *spatial) of images (B, C, *spatial)."""

    @property
    def decoder(self) -> nn.Module:
        """The module that has the switch for deep supervision."""
        return self

    def forward(self, image: Tensor) -> Tensor | list[Tensor]:
        """Return logits, with deep supervision as a list of one."""
        logits = self.logits(image)
        return [logits] if self.deep_supervision else logits


def has_features(network: nn.Module) -> bool:
    """Return whether a pass of a bare network is its encoder and its decoder, and nothing else.

    It is in nnU-Net's U-Nets. What an architecture of one's own does in its `forward`, or in its decoder's, is in no
    other part of it: without it that would neither be trained nor be in what a teacher says.
    """
    decoder = getattr(network, "decoder", None)
    return type(network).forward in FORWARDS_OF_NETWORKS and getattr(type(decoder), "forward", None) in (
        FORWARDS_OF_DECODERS
    )


def encode(network: nn.Module, image: Tensor) -> list[Tensor]:
    """Return the features of a network's encoder (B, F, *spatial), full resolution first.

    Args:
        network: a bare U-Net as nnU-Net builds it.
        image: (B, C, *spatial).
    """
    return network.encoder(image)


def decode(decoder: nn.Module, skips: Sequence[Tensor]) -> Pass:
    """Return what an nnU-Net decoder makes of features, as its own forward does, with the features of its last stage.

    Args:
        decoder: of an nnU-Net U-Net; with deep supervision if that is switched on in it.
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
        network: bare. One that is not of encoder and decoder alone returns logits at full resolution, or with deep
            supervision a list of them, full resolution first; its logits are its features too, and it has no skips.
        image: (B, C, *spatial).
    """
    if has_features(network):
        return decode(network.decoder, encode(network, image))
    outputs = network(image)
    outputs = [outputs] if isinstance(outputs, Tensor) else [*outputs]
    return Pass(outputs, [], outputs[0])
