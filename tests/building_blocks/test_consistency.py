import numpy as np
import pytest
import torch

from nnunet_ssl.building_blocks.consistency import (
    masked_mean_squared_error,
    mean_squared_error,
    mutual_consistency,
    sharpened,
)


@pytest.mark.parametrize("shape", [(2, 3, 4, 5), (1, 2, 3, 4, 5)])
def test_equals_naive_reference(shape):
    first, second = np.random.default_rng(0).random((2, *shape))
    total = 0.0
    for index in np.ndindex(shape):
        total += (first[index] - second[index]) ** 2
    result = mean_squared_error(torch.tensor(first), torch.tensor(second))
    assert result.item() == pytest.approx(total / first.size, rel=1e-6)


def test_gradient_flows_to_the_prediction_only():
    probs, target = torch.rand(1, 2, 3, 3, requires_grad=True), torch.rand(1, 2, 3, 3, requires_grad=True)
    mean_squared_error(probs, target).backward()
    torch.testing.assert_close(probs.grad, 2 * (probs - target).detach() / probs.numel())
    assert target.grad is None


def test_half_precision_does_not_underflow():
    """A difference of 1e-4 squared is 1e-8, which float16 rounds to 0."""
    probs = torch.full((1, 2, 4, 4), 1e-4, dtype=torch.float16)
    assert mean_squared_error(probs, torch.zeros_like(probs)).item() == pytest.approx(1e-8, rel=1e-2)


def test_shapes_are_not_broadcast():
    with pytest.raises(ValueError, match=r"one shape, got \(2, 3, 4, 4\) and \(2, 1, 4, 4\)"):
        mean_squared_error(torch.rand(2, 3, 4, 4), torch.rand(2, 1, 4, 4))


def test_masked_error_is_the_mean_over_the_mask():
    rng = np.random.default_rng(0)
    first, second = (torch.tensor(rng.random((2, 3, 4, 5))) for _ in range(2))
    mask = torch.tensor(rng.random((2, 1, 4, 5)) < 0.5)
    there = mask.expand_as(first)
    expected = ((first - second)[there] ** 2).mean().item()
    assert masked_mean_squared_error(first, second, mask).item() == pytest.approx(expected, rel=1e-6)
    full = torch.ones_like(mask)
    assert masked_mean_squared_error(first, second, full) == pytest.approx(mean_squared_error(first, second).item())
    assert masked_mean_squared_error(first, second, ~full).item() == 0.0


def test_masked_error_moves_accepted_voxels_of_the_prediction_only():
    probs, target = torch.rand(1, 2, 4, 4, requires_grad=True), torch.rand(1, 2, 4, 4, requires_grad=True)
    mask = torch.zeros(1, 2, 4, 4, dtype=torch.bool)
    mask[:, 0, :2] = True
    masked_mean_squared_error(probs, target, mask).backward()
    assert target.grad is None
    assert torch.equal(probs.grad != 0, mask)


def test_sharpening_by_hand():
    """0.6 to the fifth is 0.07776, 0.4 to the fifth 0.01024: 0.07776 / 0.088 = 0.88364."""
    probs = torch.tensor([0.0, 0.4, 0.5, 0.6, 1.0])
    expected = torch.tensor([0.0, 0.11636, 0.5, 0.88364, 1.0])
    torch.testing.assert_close(sharpened(probs, 0.2), expected, atol=1e-5, rtol=0)
    torch.testing.assert_close(sharpened(probs, 1.0), probs)
    assert torch.equal(sharpened(probs, 0.01).round(), torch.tensor([0.0, 0.0, 0.0, 1.0, 1.0]))


@pytest.mark.parametrize("count", [2, 3])
def test_mutual_consistency_equals_naive_reference(count):
    rng = np.random.default_rng(0)
    probs = rng.random((count, 2, 3, 4, 5))
    sharp = probs**10 / (probs**10 + (1 - probs) ** 10)
    pairs = [np.mean((probs[i] - sharp[j]) ** 2) for i in range(count) for j in range(count) if i != j]
    found = mutual_consistency([torch.tensor(one) for one in probs], 0.1)
    assert found.item() == pytest.approx(np.mean(pairs), rel=1e-6)


def test_targets_of_mutual_consistency_are_constant():
    first, second = (torch.rand(1, 2, 4, 4, requires_grad=True) for _ in range(2))
    mutual_consistency([first, second], 0.1).backward()
    for one, other in ((first, second), (second, first)):
        torch.testing.assert_close(one.grad, (one - sharpened(other, 0.1)).detach() / one.numel())


def test_sure_predictions_that_agree_are_consistent():
    probs = torch.tensor([[[[1.0, 0.0]], [[0.0, 1.0]]]])
    assert mutual_consistency([probs, probs, probs], 0.1).item() == 0.0
