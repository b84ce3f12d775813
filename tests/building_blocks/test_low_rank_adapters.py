"""Low-rank adapters: what they compute, and what of a module learns beside them."""

import pytest
import torch
from torch import nn

from nnunet_ssl.building_blocks.low_rank_adapters import LowRankAdapter, add_adapters


def layers() -> list[nn.Module]:
    torch.manual_seed(0)
    return [nn.Linear(6, 5), nn.Conv2d(6, 5, 1), nn.Conv2d(6, 5, 1, stride=2, padding=1, bias=False)]


def inputs_of(layer: nn.Module) -> torch.Tensor:
    torch.manual_seed(1)
    return torch.randn(3, 4, 6) if isinstance(layer, nn.Linear) else torch.randn(3, 6, 4, 4)


@pytest.mark.parametrize("i", range(3))
def test_starts_as_the_layer_was(i):
    layer = layers()[i]
    expected = layer(inputs_of(layer))
    adapter = LowRankAdapter(layer, 4, 0.5)
    torch.testing.assert_close(adapter(inputs_of(layer)), expected, rtol=0, atol=0)
    assert not layer.weight.requires_grad


@pytest.mark.parametrize("i", range(3))
def test_is_the_layer_with_a_matrix_of_low_rank_added(i):
    layer = layers()[i]
    adapter = LowRankAdapter(layer, 2, 0.0)
    nn.init.normal_(adapter.up.weight)
    x, expected = inputs_of(layer), layer(inputs_of(layer))
    product = adapter.up.weight.flatten(1) @ adapter.down.weight.flatten(1)
    assert torch.linalg.matrix_rank(product) == 2
    merged = layers()[i]
    merged.weight.data += product.view_as(merged.weight)
    assert not torch.allclose(adapter(x), expected)
    torch.testing.assert_close(adapter(x), merged(x), atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(adapter.weight, merged.weight)
    assert adapter.bias is layer.bias


def test_rank_is_no_more_than_the_layers():
    assert LowRankAdapter(nn.Linear(6, 5), 64, 0.0).down.out_features == 5
    assert LowRankAdapter(nn.Conv2d(3, 5, 1), 64, 0.0).down.out_channels == 3


def test_dropout_is_beside_the_layer_and_in_training_alone():
    adapter = LowRankAdapter(nn.Linear(6, 5), 4, 1.0)
    nn.init.normal_(adapter.up.weight)
    x = torch.randn(2, 6)
    assert torch.equal(adapter.train()(x), adapter.layer(x))
    assert not torch.allclose(adapter.eval()(x), adapter.layer(x))


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.patches = nn.Conv2d(3, 8, 4, stride=4)
        self.norm = nn.LayerNorm(8)
        self.layers = nn.ModuleList([nn.Linear(8, 8), nn.Sequential(nn.Conv2d(8, 8, 1), nn.BatchNorm2d(8))])
        self.depthwise = nn.Conv2d(8, 8, 1, groups=8)
        self.position = nn.Parameter(torch.zeros(1, 1, 8))


def test_large_weights_stay_and_small_ones_learn():
    block = Block()
    add_adapters(block, 4, 0.1)
    learning = {name for name, parameter in block.named_parameters() if parameter.requires_grad}
    assert learning == {
        "patches.bias",
        "norm.weight",
        "norm.bias",
        "layers.0.layer.bias",
        "layers.0.down.weight",
        "layers.0.up.weight",
        "layers.1.0.layer.bias",
        "layers.1.0.down.weight",
        "layers.1.0.up.weight",
        "layers.1.1.weight",
        "layers.1.1.bias",
        "depthwise.bias",
    }
    assert isinstance(block.layers[1][0], LowRankAdapter)


def test_adapters_learn_and_the_weight_stays():
    block = nn.Sequential(nn.Linear(6, 6))
    add_adapters(block, 2, 0.0)
    before = block[0].layer.weight.clone()
    optimizer = torch.optim.AdamW(block.parameters(), 0.1)
    for _ in range(3):
        optimizer.zero_grad()
        (block(torch.ones(1, 6)) - 1).square().sum().backward()
        optimizer.step()
    assert torch.equal(block[0].layer.weight, before)
    assert block[0].up.weight.abs().min() > 0
    assert block[0].down.weight.grad.abs().sum() > 0


def test_state_is_kept_by_name():
    first, second = (nn.Sequential(nn.Linear(6, 6)) for _ in range(2))
    for block in (first, second):
        add_adapters(block, 2, 0.0)
    nn.init.normal_(first[0].up.weight)
    second.load_state_dict(first.state_dict())
    x = torch.randn(2, 6)
    assert torch.equal(first(x), second(x))
