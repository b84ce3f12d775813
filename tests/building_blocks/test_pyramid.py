import numpy as np
import pytest
import torch

from nnunet_ssl.building_blocks.label_space import SigmoidRegions, SoftmaxLabels
from nnunet_ssl.building_blocks.pyramid import rectified_pyramid_consistency, upsampled_probabilities

SPACES = [SoftmaxLabels(3), SigmoidRegions(3)]


def outputs(seed: int = 0) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(2, 3, size, size, generator=generator) for size in (8, 4, 2)]


@pytest.mark.parametrize("space", SPACES, ids=lambda space: type(space).__name__)
def test_loss_equals_a_naive_reference(space):
    probs = upsampled_probabilities(space, outputs())
    p = probs.double().numpy()
    mean, losses = p.mean(0), []
    for head in p:
        divergence = mean * np.log(mean / head)
        if isinstance(space, SigmoidRegions):
            divergence += (1 - mean) * np.log((1 - mean) / (1 - head))
        else:
            divergence = divergence.sum(1, keepdims=True)
        certainty = np.exp(-divergence)
        losses.append(((mean - head) ** 2 * certainty).mean() / (certainty.mean() + 1e-8) + divergence.mean())
    assert rectified_pyramid_consistency(space, probs).item() == pytest.approx(np.mean(losses), rel=1e-5)


def test_heads_that_agree_cost_nothing():
    probs = torch.full((3, 2, 3, 4, 4), 1 / 3)
    assert rectified_pyramid_consistency(SoftmaxLabels(3), probs).item() == pytest.approx(0.0, abs=1e-7)


def test_the_full_resolution_is_left_as_it_is_and_the_others_are_brought_to_it():
    space, heads = SoftmaxLabels(3), outputs()
    probs = upsampled_probabilities(space, heads)
    assert probs.shape == (3, 2, 3, 8, 8)
    assert torch.equal(probs[0], space.probabilities(heads[0]))
    constant = [torch.tensor([1.0, 2.0, 3.0])[None, :, None, None].expand(1, 3, size, size) for size in (8, 2)]
    first, second = upsampled_probabilities(space, constant)
    torch.testing.assert_close(first, second)


def test_gradient_reaches_all_heads_through_their_mean():
    heads = [head.requires_grad_() for head in outputs()]
    rectified_pyramid_consistency(SoftmaxLabels(3), upsampled_probabilities(SoftmaxLabels(3), heads)).backward()
    assert all(head.grad.abs().sum() > 0 for head in heads)


def test_volumes_too():
    heads = [torch.randn(1, 2, 4, 4, 4), torch.randn(1, 2, 2, 2, 2)]
    assert upsampled_probabilities(SoftmaxLabels(2), heads).shape == (2, 1, 2, 4, 4, 4)
