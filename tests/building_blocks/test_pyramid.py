import numpy as np
import pytest
import torch

from nnunet_ssl.building_blocks.label_space import LabelSpace, SigmoidRegions, SoftmaxLabels
from nnunet_ssl.building_blocks.pyramid import rectified_pyramid_consistency, upsampled_probabilities

SPACES = [SoftmaxLabels(3), SigmoidRegions(3)]


def consistency(space: LabelSpace, probs: list[torch.Tensor]) -> torch.Tensor:
    return rectified_pyramid_consistency(space, probs, torch.stack(probs).mean(0))


def outputs(seed: int = 0) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(2, 3, size, size, generator=generator) for size in (8, 4, 2)]


@pytest.mark.parametrize("space", SPACES, ids=lambda space: type(space).__name__)
def test_loss_equals_a_naive_reference(space):
    probs = upsampled_probabilities(space, outputs())
    p = torch.stack(probs).double().numpy()
    mean, losses = p.mean(0), []
    for head in p:
        divergence = mean * np.log(mean / head)
        if isinstance(space, SigmoidRegions):
            divergence += (1 - mean) * np.log((1 - mean) / (1 - head))
        else:
            divergence = divergence.sum(1, keepdims=True)
        certainty = np.exp(-divergence)
        losses.append(((mean - head) ** 2 * certainty).mean() / (certainty.mean() + 1e-8) + divergence.mean())
    assert consistency(space, probs).item() == pytest.approx(np.mean(losses), rel=1e-5)


def test_heads_that_agree_cost_nothing():
    probs = [torch.full((2, 3, 4, 4), 1 / 3)] * 3
    assert consistency(SoftmaxLabels(3), probs).item() == pytest.approx(0.0, abs=1e-7)


def test_the_full_resolution_is_left_as_it_is_and_the_others_are_brought_to_it():
    space, heads = SoftmaxLabels(3), outputs()
    probs = upsampled_probabilities(space, heads)
    assert [head.shape for head in probs] == [(2, 3, 8, 8)] * 3
    assert torch.equal(probs[0], space.probabilities(heads[0]))
    constant = [torch.tensor([1.0, 2.0, 3.0])[None, :, None, None].expand(1, 3, size, size) for size in (8, 2)]
    first, second = upsampled_probabilities(space, constant)
    torch.testing.assert_close(first, second)


def test_gradient_reaches_all_heads_through_their_mean():
    heads = [head.requires_grad_() for head in outputs()]
    consistency(SoftmaxLabels(3), upsampled_probabilities(SoftmaxLabels(3), heads)).backward()
    assert all(head.grad.abs().sum() > 0 for head in heads)


def test_volumes_too():
    heads = [torch.randn(1, 2, 4, 4, 4), torch.randn(1, 2, 2, 2, 2)]
    assert [probs.shape for probs in upsampled_probabilities(SoftmaxLabels(2), heads)] == [(1, 2, 4, 4, 4)] * 2


@pytest.mark.parametrize("space", SPACES, ids=lambda space: type(space).__name__)
def test_gradient_equals_that_of_finite_differences(space):
    heads = [head.double().requires_grad_() for head in outputs()]

    def loss(*heads: torch.Tensor) -> torch.Tensor:
        as_probs = torch.sigmoid if isinstance(space, SigmoidRegions) else lambda head: head.softmax(1)
        size = heads[0].shape[2:]
        return consistency(
            space, [as_probs(torch.nn.functional.interpolate(head, size, mode="bilinear")) for head in heads]
        )

    assert torch.autograd.gradcheck(loss, heads, fast_mode=True)


def test_no_more_than_a_few_maps_of_each_head_wait_for_the_way_back():
    heads = [head.requires_grad_() for head in outputs()]
    kept: dict[int, int] = {}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        probs = upsampled_probabilities(SoftmaxLabels(3), heads)
        consistency(SoftmaxLabels(3), probs)
    one_map = probs[0].nelement() * probs[0].element_size()
    assert sum(kept.values()) < 1.5 * len(heads) * one_map
