"""Decoders beside a network's own, on the same encoder."""

import copy

import torch
from torch import nn
from torch.nn.modules.conv import _ConvNd

LINEAR = {1: "linear", 2: "bilinear", 3: "trilinear"}  # by the number of dimensions


def other_decoder(network: nn.Module, upsampling: str) -> nn.Module:
    """Return a decoder like the network's own, with random numbers of its own and another way to double resolution.

    A transposed convolution becomes an interpolation and a convolution of kernel size 3.

    Args:
        network: a bare U-Net as nnU-Net builds it; it stays as it is.
        upsampling: "linear" or "nearest".
    """
    encoder = network.decoder.encoder
    decoder = copy.deepcopy(network.decoder, {id(encoder): None})  # the encoder is no part of the other decoder
    decoder.transpconvs = nn.ModuleList(_interpolation(one, upsampling) for one in decoder.transpconvs)
    return decoder.apply(network.initialize)


def _interpolation(transposed: _ConvNd, upsampling: str) -> nn.Module:
    dimensions = len(transposed.stride)
    mode = LINEAR[dimensions] if upsampling == "linear" else upsampling
    convolution = getattr(torch.nn, f"Conv{dimensions}d")
    return nn.Sequential(
        nn.Upsample(scale_factor=tuple(map(float, transposed.stride)), mode=mode),
        convolution(transposed.in_channels, transposed.out_channels, 3, padding=1, bias=transposed.bias is not None),
    )
