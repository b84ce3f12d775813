import math

import pytest
import torch
from torch import nn

from nnunet_ssl.building_blocks.weight_norms import restore_weight_norms
from tests.building_blocks.test_features import image_of, network_of
from tests.conftest import Case

CASES = [Case(), Case(dim=2, residual=True), Case(stages=4)]


def convolutions_before_norms(network: nn.Module) -> list[nn.Module]:
    return [block.conv for block in network.modules() if hasattr(block, "conv") and hasattr(block, "norm")]


@pytest.mark.parametrize("case", CASES, ids=str)
def test_fresh_network_of_nnunet_has_such_norms(case):
    for conv in convolutions_before_norms(network_of(case)):
        expected = math.sqrt(2 * conv.weight.shape[0])
        assert float(conv.weight.detach().norm()) == pytest.approx(expected, rel=5 / math.sqrt(conv.weight.numel()))


@pytest.mark.parametrize("case", CASES, ids=str)
def test_outputs_stay_and_norms_are_those_of_a_fresh_network(case):
    network, image = network_of(case).eval(), image_of(case)
    for conv in convolutions_before_norms(network):
        with torch.no_grad():
            conv.weight.mul_(3.0)
            if conv.bias is not None:
                conv.bias.normal_()
    before = network(image)
    others = {name: value.clone() for name, value in network.state_dict().items() if "conv." not in name}
    restore_weight_norms(network)
    for conv in convolutions_before_norms(network):
        assert float(conv.weight.detach().norm()) == pytest.approx(math.sqrt(2 * conv.weight.shape[0]))
    assert all(torch.allclose(one, other, atol=1e-3) for one, other in zip(network(image), before, strict=True))
    after = network.state_dict()
    assert all(torch.equal(after[name], value) for name, value in others.items() if "all_modules.0." not in name)


def test_twice_is_once():
    network = network_of(Case())
    restore_weight_norms(network)
    once = [value.clone() for value in network.state_dict().values()]
    restore_weight_norms(network)
    assert all(torch.allclose(a, b) for a, b in zip(once, network.state_dict().values(), strict=True))


def test_convolution_without_a_normalisation_stays():
    network = nn.Sequential(nn.Conv2d(1, 2, 3), nn.ReLU())
    before = network[0].weight.clone()
    restore_weight_norms(network)
    assert torch.equal(network[0].weight, before)


def test_weights_that_are_all_zero_stay():
    network = network_of(Case())
    for conv in convolutions_before_norms(network):
        nn.init.zeros_(conv.weight)
        nn.init.ones_(conv.bias)
    restore_weight_norms(network)
    for conv in convolutions_before_norms(network):
        assert torch.equal(conv.weight, torch.zeros_like(conv.weight))
        assert torch.equal(conv.bias, torch.ones_like(conv.bias))


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv2d(1, 8, 3), nn.BatchNorm2d(8)

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        return self.norm(self.conv(image))


def test_outputs_with_running_statistics_stay():
    block, image = Block(), torch.randn(4, 1, 9, 9)
    with torch.no_grad():
        block.conv.weight.mul_(5.0)
    for _ in range(50):
        block(image)
    before = block.eval()(image)
    restore_weight_norms(block)
    assert block.conv.weight.detach().norm().item() == pytest.approx(4.0)
    assert torch.allclose(block(image), before, atol=1e-3)
    assert before.std() > 0.5
