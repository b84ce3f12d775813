"""A 2-D network on 3-D patches: slices, chunks, sides, batch normalisation."""

import pytest
import torch
from torch import nn

from nnunet_ssl.building_blocks.features import forward_pass
from nnunet_ssl.building_blocks.slicewise_network import ColorsFirst, SlicewiseNetwork, without_batch_norm

SHAPE = (2, 3, 4, 5, 6)  # (B, C, *spatial)


def image(requires_grad: bool = False) -> torch.Tensor:
    return torch.randn(SHAPE, generator=torch.Generator().manual_seed(0), dtype=torch.float64).requires_grad_(
        requires_grad
    )


def small_network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), nn.Tanh(), nn.Conv2d(4, 2, 3, padding=1)).double()


@pytest.mark.parametrize("axis", [0, 1, 2])
@pytest.mark.parametrize("chunk", [1, 3, 100])
def test_each_slice_is_seen_for_itself(axis, chunk):
    network, x = small_network(), image()
    found = SlicewiseNetwork(network, axis, chunk).logits(x)
    assert found.shape == (2, 2, 4, 5, 6)
    for i in range(SHAPE[2 + axis]):
        torch.testing.assert_close(found.select(2 + axis, i), network(x.select(2 + axis, i)))


@pytest.mark.parametrize("axis", [0, 2])
def test_gradient_does_not_depend_on_the_chunks(axis):
    """Of a loss over all slices at once; the whole in one chunk is the reference."""
    gradients = []
    for chunk in (1, 3, 100):
        wrapped = SlicewiseNetwork(small_network(), axis, chunk)
        probs = wrapped.logits(image()).softmax(1)
        (1 - (probs * probs.detach().roll(1, 1)).sum() / probs.square().sum()).backward()
        gradients.append([parameter.grad for parameter in wrapped.parameters()])
    for other in gradients[:2]:
        for one, whole in zip(other, gradients[2], strict=True):
            torch.testing.assert_close(one, whole)


def test_dropout_of_a_chunk_is_the_same_when_it_is_computed_again():
    """The gradient is that of the outputs that were seen: of a linear function its own mask."""
    torch.manual_seed(0)
    network = nn.Sequential(nn.Dropout(0.5), nn.Conv2d(1, 1, 1, bias=False)).double()
    wrapped = SlicewiseNetwork(network, 0, 2)
    outputs = wrapped.logits(torch.ones(1, 1, 6, 4, 4, dtype=torch.float64))
    outputs.sum().backward()
    torch.testing.assert_close(network[1].weight.grad.sum(), (outputs / network[1].weight.detach()).sum())


def test_features_of_one_chunk_are_in_memory_at_a_time():
    """What is saved for the backward pass: with chunks their inputs, and no features."""
    saved = {}
    for chunk in (2, 100):
        sizes = saved[chunk] = []
        wrapped = SlicewiseNetwork(small_network(), 0, chunk)
        with torch.autograd.graph.saved_tensors_hooks(lambda t, sizes=sizes: sizes.append(t.numel()) or t, lambda t: t):
            wrapped.logits(image())
    features = 8 * 4 * 5 * 6
    assert sum(saved[100]) > 2 * features
    assert sum(saved[2]) < features
    passes = []
    wrapped = SlicewiseNetwork(small_network(), 0, 2)
    wrapped.network.register_forward_pre_hook(lambda *_: passes.append(len(passes)))
    wrapped.logits(image()).sum().backward()
    assert len(passes) == 2 * 4, "each chunk passes again"
    with torch.no_grad():
        wrapped.logits(image())
    assert len(passes) == 3 * 4, "without gradient once"


def test_sides_are_padded_and_cropped():
    sizes = []

    class Whole(nn.Module):
        def forward(self, x):
            sizes.append(tuple(x.shape[2:]))
            return x[:, :2] + x.sum((2, 3), keepdim=True)[:, :2]

    x = image()
    found = SlicewiseNetwork(Whole(), 0, 100, (8, 6)).logits(x)
    assert sizes == [(8, 6)]
    expected = x[:, :2] + x.sum((3, 4), keepdim=True)[:, :2]  # zeros change no sum
    torch.testing.assert_close(found, expected)


def test_is_called_as_nnunet_calls_a_unet():
    wrapped, x = SlicewiseNetwork(small_network(), 0, 3), image()
    logits = wrapped(x)
    wrapped.decoder.deep_supervision = True
    (output,) = wrapped(x)
    assert torch.equal(output, logits)
    found = forward_pass(wrapped, x)
    assert len(found.outputs) == 1
    assert torch.equal(found.logits, logits)
    assert found.skips == []


def test_batch_normalisation_keeps_its_statistics():
    network = nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4), nn.Dropout(0.5))
    wrapped = SlicewiseNetwork(network, 0, 2).train()
    assert wrapped.training
    assert network[2].training
    assert not network[1].training
    before = {name: value.clone() for name, value in network[1].named_buffers()}
    wrapped.logits(image().float()).sum().backward()
    assert all(torch.equal(value, before[name]) for name, value in network[1].named_buffers())
    assert network[1].weight.grad is not None
    assert not wrapped.eval().network[2].training


def test_batch_normalisation_that_is_not_pretrained_is_of_groups():
    block = nn.Sequential(nn.BatchNorm2d(12), nn.ModuleDict({"inner": nn.BatchNorm2d(16)}), nn.LayerNorm(4))
    without_batch_norm(block)
    assert isinstance(block[0], nn.GroupNorm)
    assert block[0].num_groups == 4
    assert block[1]["inner"].num_groups == 8
    assert isinstance(block[2], nn.LayerNorm)


@pytest.mark.parametrize(("channels", "learns"), [(1, False), (3, False), (2, True)])
def test_three_channels_are_made_of_some(channels, learns):
    colors = ColorsFirst(nn.Identity(), channels)
    x = torch.randn(2, channels, 4, 5)
    found = colors(x)
    expected = x if channels == 3 else x.mean(1, keepdim=True).expand(-1, 3, -1, -1)
    torch.testing.assert_close(found, expected)
    assert any(True for _ in colors.parameters()) == learns


def test_passes_that_are_compiled_are_the_same():
    """nnU-Net compiles its networks and the base its passes; slices are left as they are."""
    wrapped, x = SlicewiseNetwork(small_network(), 1, 2, (4, 4)), image()
    compiled = torch.compile(forward_pass, backend="eager")
    torch.testing.assert_close(compiled(wrapped, x).logits, wrapped.logits(x))
    gradients = []
    for run in (compiled, forward_pass):
        wrapped.zero_grad()
        run(wrapped, x).logits.square().sum().backward()
        gradients.append(wrapped.network[0].weight.grad.clone())
    torch.testing.assert_close(*gradients)
