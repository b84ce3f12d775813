"""Low-rank adapters: a pretrained module keeps its large matrices, and learns small ones beside them."""

from typing import Any

from torch import Tensor, nn


class LowRankAdapter(nn.Module):
    """A layer whose weight stays as it is, with a product of two small matrices beside it that learns.

        y = W x + b + (α / r) · up(down(dropout(x))),    α = r

    `up` starts as zeros, so that the layer starts as it was. Its bias b learns.

    E. Hu et al., "LoRA: Low-Rank Adaptation of Large Language Models", ICLR 2022, https://arxiv.org/abs/2106.09685
    """

    def __init__(self, layer: nn.Linear | nn.Conv2d, rank: int, dropout: float) -> None:
        """Wrap a layer.

        Args:
            layer: linear, or a 1 x 1 convolution of one group.
            rank: r; at most as many as the layer has inputs and outputs.
            dropout: the probability with which each input is left out beside the layer.
        """
        super().__init__()
        is_linear = isinstance(layer, nn.Linear)
        inputs, outputs = (
            (layer.in_features, layer.out_features) if is_linear else (layer.in_channels, layer.out_channels)
        )
        rank = min(rank, inputs, outputs)
        self.layer, self.dropout = layer, nn.Dropout(dropout)
        self.down = (
            nn.Linear(inputs, rank, bias=False)
            if is_linear
            else nn.Conv2d(inputs, rank, 1, stride=layer.stride, padding=layer.padding, bias=False)
        )
        self.up = nn.Linear(rank, outputs, bias=False) if is_linear else nn.Conv2d(rank, outputs, 1, bias=False)
        nn.init.zeros_(self.up.weight)
        layer.weight.requires_grad_(False)

    def forward(self, x: Tensor) -> Tensor:
        """Return what the layer makes of (..., inputs), or of (B, inputs, Y, X), with what was learned beside it."""
        return self.layer(x) + self.up(self.down(self.dropout(x)))

    @property
    def weight(self) -> Tensor:
        """What the layer's weight amounts to, for modules that read it: without dropout."""
        product = self.up.weight.flatten(1) @ self.down.weight.flatten(1)
        return self.layer.weight + product.view_as(self.layer.weight)

    @property
    def bias(self) -> Tensor | None:
        """The layer's bias."""
        return self.layer.bias


def add_adapters(module: nn.Module, rank: int, dropout: float) -> int:
    """Give each linear layer and 1 x 1 convolution inside of a module an adapter, and let nothing else large learn.

    Weights of other layers stay as they are, those of larger convolutions too; biases, and scale and shift of
    normalisation, learn.

    Args:
        module: pretrained; changed in place.
        rank: see `LowRankAdapter`.
        dropout: see there.

    Returns:
        The number of adapters.
    """
    for parameter in module.parameters():
        parameter.requires_grad_(parameter.ndim <= 1)
    adaptable = [
        (parent, name, child)
        for parent in module.modules()
        for name, child in parent.named_children()
        if _is_adaptable(child)
    ]
    for parent, name, child in adaptable:
        setattr(parent, name, LowRankAdapter(child, rank, dropout))
    return len(adaptable)


def _is_adaptable(layer: Any) -> bool:  # noqa: ANN401 - any module
    is_pointwise = isinstance(layer, nn.Conv2d) and layer.kernel_size == (1, 1) and layer.groups == 1
    return isinstance(layer, nn.Linear) or is_pointwise
