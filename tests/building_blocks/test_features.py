import pytest
import torch
from nnunetv2.utilities.get_network_from_plans import get_network_from_plans
from torch import nn

from nnunet_ssl.building_blocks.features import decode, encode, forward_pass, has_features
from tests.conftest import Case


def network_of(case: Case, deep_supervision: bool = True) -> torch.nn.Module:
    torch.manual_seed(0)
    architecture = case.plans()["configurations"][case.configuration]["architecture"]
    name, arguments = architecture["network_class_name"], architecture["arch_kwargs"]
    return get_network_from_plans(
        name, arguments, architecture["_kw_requires_import"], 1, 3, deep_supervision=deep_supervision
    )


def image_of(case: Case) -> torch.Tensor:
    return torch.randn(2, 1, *case.patch_size)


@pytest.mark.parametrize("deep_supervision", [True, False])
@pytest.mark.parametrize(
    "case", [Case(), Case(dim=2, residual=True), Case(residual=True, anisotropic=True), Case(stages=6)], ids=str
)
def test_outputs_are_those_of_the_network_bit_for_bit(case, deep_supervision):
    network, image = network_of(case, deep_supervision), image_of(case)
    expected = network(image)
    found = forward_pass(network, image)
    expected = expected if deep_supervision else [expected]
    assert len(found.outputs) == len(expected)
    assert all(torch.equal(one, other) for one, other in zip(found.outputs, expected, strict=True))
    assert found.logits is found.outputs[0]


class HalvesSkips(nn.Module):
    """A forward that is more than encoder and decoder, as an architecture of one's own may have."""

    def forward(self, x):
        return self.decoder([level / 2 for level in self.encoder(x)])


@pytest.mark.parametrize("deep_supervision", [True, False])
@pytest.mark.parametrize("has_own_forward", [True, False])
def test_compiled_passes_are_those_of_the_networks_own_forward(deep_supervision, has_own_forward):
    case = Case(dim=2)
    network, image = network_of(case, deep_supervision), image_of(case)
    if has_own_forward:
        network.__class__ = type("Own", (HalvesSkips, type(network)), {})
    assert has_features(network) is not has_own_forward
    expected = network(image)
    for run in (forward_pass, torch.compile(forward_pass, backend="eager", fullgraph=True)):
        found = run(network, image)
        for ours, its in zip(found.outputs, expected if deep_supervision else [expected], strict=True):
            assert torch.equal(ours, its)
        assert len(found.skips) == (0 if has_own_forward else 3)


def test_gradients_are_those_of_the_network_bit_for_bit():
    case = Case(dim=2)
    network, image = network_of(case), image_of(case)
    sum(head.square().sum() for head in network(image)).backward()
    expected = [parameter.grad.clone() for parameter in network.parameters()]
    network.zero_grad()
    sum(head.square().sum() for head in forward_pass(network, image).outputs).backward()
    assert all(torch.equal(one.grad, other) for one, other in zip(network.parameters(), expected, strict=True))


def test_skips_are_the_encoders_and_features_those_before_the_logits():
    case = Case()
    network, image = network_of(case), image_of(case)
    skips = encode(network, image)
    assert [tuple(level.shape[1:]) for level in skips] == [(4, 16, 16, 16), (8, 8, 8, 8), (16, 4, 4, 4)]
    found = decode(network.decoder, skips)
    assert all(torch.equal(one, other) for one, other in zip(found.skips, skips, strict=True))
    assert found.features.shape == (2, 4, 16, 16, 16)
    assert torch.equal(network.decoder.seg_layers[-1](found.features), found.logits)
    changed = decode(network.decoder, [*skips[:-1], torch.zeros_like(skips[-1])])
    assert not torch.equal(changed.logits, found.logits)
