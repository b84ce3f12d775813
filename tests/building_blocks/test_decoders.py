import pytest
import torch
from torch import nn

from nnunet_ssl.building_blocks.decoders import other_decoder
from nnunet_ssl.building_blocks.features import decode, encode
from tests.building_blocks.test_features import image_of, network_of
from tests.conftest import Case


@pytest.mark.parametrize("upsampling", ["linear", "nearest"])
@pytest.mark.parametrize("case", [Case(), Case(dim=2, residual=True), Case(anisotropic=True), Case(stages=6)], ids=str)
def test_it_decodes_the_same_features_to_outputs_of_the_same_shapes(case, upsampling):
    network, image = network_of(case), image_of(case)
    before = {name: value.clone() for name, value in network.state_dict().items()}
    decoder = other_decoder(network, upsampling)
    skips = encode(network, image)
    own, other = decode(network.decoder, skips), decode(decoder, skips)
    assert [head.shape for head in other.outputs] == [head.shape for head in own.outputs]
    assert not torch.equal(own.logits, other.logits)
    assert all(torch.equal(value, network.state_dict()[name]) for name, value in before.items())
    assert network.decoder.encoder is network.encoder


def test_it_shares_no_weight_and_has_no_encoder():
    network = network_of(Case())
    decoder = other_decoder(network, "linear")
    own = {id(parameter) for parameter in network.parameters()}
    assert not own & {id(parameter) for parameter in decoder.parameters()}
    assert not [name for name, _ in decoder.named_parameters() if "encoder" in name]
    stages = zip(network.decoder.stages.parameters(), decoder.stages.parameters(), strict=True)
    assert any(not torch.equal(one, other) for one, other in stages), "random numbers of its own"


@pytest.mark.parametrize(("upsampling", "mode"), [("linear", "trilinear"), ("nearest", "nearest")])
def test_resolution_is_doubled_by_interpolation(upsampling, mode):
    decoder = other_decoder(network_of(Case(anisotropic=True)), upsampling)
    assert not [module for module in decoder.modules() if isinstance(module, nn.ConvTranspose3d)]
    for block in decoder.transpconvs:
        assert (block[0].mode, block[0].scale_factor) == (mode, (1.0, 2.0, 2.0))
        assert block[1].kernel_size == (3, 3, 3)
