"""The loss for targets that are probabilities, against loops in float64."""

import itertools
import math

import pytest
import torch

from nnunet_ssl.building_blocks.label_space import SigmoidRegions, SoftmaxLabels
from nnunet_ssl.building_blocks.soft_targets import (
    divergence_from_logits,
    soft_target_loss,
    soft_target_loss_of_heads,
)

SPACES = [SoftmaxLabels(3), SigmoidRegions(3)]
spaces = pytest.mark.parametrize("space", SPACES, ids=["softmax", "regions"])


def probabilities_by_hand(space, logits: list[float]) -> list[float]:
    if isinstance(space, SigmoidRegions):
        return [1 / (1 + math.exp(-z)) for z in logits]
    total = sum(math.exp(z) for z in logits)
    return [math.exp(z) / total for z in logits]


def kl(q: float, p: float) -> float:
    return 0.0 if q == 0 else q * math.log(q / p)


def loss_by_hand(space, logits, target, weight) -> float:
    """Go through all voxels, one by one, in Python's floats."""
    channels, batch = logits.shape[1], range(len(logits))
    overlap, size, divergence, weights = [0.0] * channels, [0.0] * channels, 0.0, 0.0
    for b, *at in itertools.product(batch, *map(range, logits.shape[2:])):
        w = weight[(b, 0, *at)].item()
        p = probabilities_by_hand(space, [logits[(b, c, *at)].item() for c in range(channels)])
        q = [target[(b, c, *at)].item() for c in range(channels)]
        for c in range(channels):
            overlap[c] += w * p[c] * q[c]
            size[c] += w * (p[c] ** 2 + q[c] ** 2)
        if isinstance(space, SigmoidRegions):
            divergence += w * sum(kl(q[c], p[c]) + kl(1 - q[c], 1 - p[c]) for c in range(channels)) / channels
        else:
            divergence += w * sum(kl(q[c], p[c]) for c in range(channels))
        weights += w
    dice = sum(2 * overlap[c] / size[c] for c in range(channels)) / channels
    return 1 - dice + divergence / weights


def example(space, shape=(2, 3, 2, 3, 4)):
    generator = torch.Generator().manual_seed(3)
    logits, other = (2 * torch.randn(shape, generator=generator) for _ in range(2))
    weight = torch.rand((shape[0], 1, *shape[2:]), generator=generator)
    return logits, space.probabilities(other), weight


@spaces
@pytest.mark.parametrize("shape", [(2, 3, 2, 3, 4), (1, 3, 5, 4)], ids=str)
def test_equals_a_loop_over_voxels(space, shape):
    logits, target, weight = example(space, shape)
    assert soft_target_loss(space, logits, target, weight).item() == pytest.approx(
        loss_by_hand(space, logits, target, weight), rel=1e-5
    )


@spaces
def test_equals_a_loop_with_labels_and_voxels_left_out(space):
    logits, target, weight = example(space)
    labels, weight = space.one_hot(space.pseudo_label(target)), (weight > 0.5).float()
    assert soft_target_loss(space, logits, labels, weight).item() == pytest.approx(
        loss_by_hand(space, logits, labels, weight), rel=1e-5
    )


def test_hand_values():
    """One voxel, p = (½, ½), q = (1, 0): Dice (2 · ½ / 1¼ + 0) / 2 = 0.4, and KL ln 2."""
    loss = soft_target_loss(
        SoftmaxLabels(2), torch.zeros(1, 2, 1, 1), torch.tensor([1.0, 0.0]).view(1, 2, 1, 1), torch.ones(1, 1, 1, 1)
    )
    assert loss.item() == pytest.approx(1 - 0.4 + math.log(2))


@spaces
def test_is_zero_and_flat_where_prediction_and_target_are_equal(space):
    logits, _, weight = example(space)
    logits.requires_grad_(True)
    loss = soft_target_loss(space, logits, space.probabilities(logits.detach()), weight)
    loss.backward()
    assert loss.item() == pytest.approx(0.0, abs=1e-6)
    assert logits.grad.abs().max() < 1e-6


@spaces
def test_gradient_goes_to_the_logits_alone(space):
    logits, target, weight = (one.requires_grad_(True) for one in example(space))
    soft_target_loss(space, logits, target, weight.detach()).backward()
    assert logits.grad.abs().min() > 0
    assert target.grad is None


@spaces
def test_left_out_voxels_do_not_matter(space):
    logits, target, weight = example(space)
    weight = (weight > 0.5).float()
    elsewhere = (weight == 0).expand_as(logits)
    changed, other = logits.clone(), target.clone()
    changed[elsewhere], other[elsewhere] = 7.0, 0.9
    assert soft_target_loss(space, changed, other, weight) == soft_target_loss(space, logits, target, weight)


@spaces
def test_nothing_known_gives_a_constant(space):
    logits, target, weight = example(space)
    logits.requires_grad_(True)
    loss = soft_target_loss(space, logits, target, torch.zeros_like(weight))
    loss.backward()
    assert loss.item() == 1.0
    assert not logits.grad.any()


def test_a_class_that_neither_has_gets_no_gradient_from_the_dice():
    """Its Dice is 0 of 0, and stays a number."""
    space, logits = SigmoidRegions(2), torch.full((1, 2, 2, 2), -200.0, requires_grad=True)
    loss = soft_target_loss(space, logits, torch.zeros(1, 2, 2, 2), torch.ones(1, 1, 2, 2))
    loss.backward()
    assert loss.item() == 1.0
    assert not logits.grad.any()


@spaces
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_sure_and_wrong_predictions_are_corrected(space, dtype):
    """Where softmax and sigmoid are 0 or 1 in float32, the gradient is that of p - q still."""
    target = torch.tensor([0.0, 0.0, 1.0]).view(1, 3, 1, 1)
    logits = torch.tensor([200.0, -200.0, -200.0], dtype=dtype).view(1, 3, 1, 1).requires_grad_(True)
    divergence = divergence_from_logits(space, target, logits)
    divergence.sum().backward()
    assert divergence.dtype == torch.float32
    assert divergence.sum().item() == pytest.approx(400.0)
    expected = [1.0, 0.0, -1.0]
    assert logits.grad.flatten().tolist() == pytest.approx(expected)


@spaces
def test_divergence_of_labels_is_their_cross_entropy(space):
    logits, target, _ = example(space)
    labels = space.pseudo_label(target)
    torch.testing.assert_close(
        divergence_from_logits(space, space.one_hot(labels), logits), space.cross_entropy(logits, labels)
    )


@spaces
def test_divergence_is_that_of_the_label_space(space):
    logits, target, _ = example(space)
    expected = space.divergence(target, space.probabilities(logits))
    torch.testing.assert_close(divergence_from_logits(space, target, logits), expected, atol=1e-5, rtol=1e-4)


@spaces
def test_coarser_heads_get_mean_targets(space):
    """Each voxel of a head of half the size: eight of the target, by their weights."""
    logits, target, weight = example(space, (2, 3, 4, 2, 4))
    weight[0, :, :2, :2, :2] = 0  # nothing is known in the voxels of one coarse voxel
    coarse_logits = torch.randn(2, 3, 2, 1, 2, generator=torch.Generator().manual_seed(1))
    coarse, mean_weight = torch.zeros(2, 3, 2, 1, 2), torch.zeros(2, 1, 2, 1, 2)
    for b, z, x in itertools.product((0, 1), (0, 1), (0, 1)):
        cube = (slice(2 * z, 2 * z + 2), slice(0, 2), slice(2 * x, 2 * x + 2))
        w, q = weight[(b, 0, *cube)], target[(b, slice(None), *cube)]
        mean_weight[b, 0, z, 0, x] = w.mean()
        coarse[b, :, z, 0, x] = (w * q).sum((1, 2, 3)) / w.sum() if w.any() else 0
    found = soft_target_loss_of_heads(space, [logits, coarse_logits], target, weight, (0.7, 0.3))
    expected = 0.7 * loss_by_hand(space, logits, target, weight) + 0.3 * loss_by_hand(
        space, coarse_logits, coarse, mean_weight
    )
    assert found.item() == pytest.approx(expected, rel=1e-5)


@spaces
def test_a_head_with_no_weight_is_left_out(space):
    logits, target, weight = example(space)
    coarse = torch.full((2, 3, 1, 1, 2), torch.nan)
    found = soft_target_loss_of_heads(space, [logits, coarse], target, weight, (1.0, 0.0))
    assert found == soft_target_loss(space, logits, target, weight)
    with pytest.raises(ValueError, match="zip"):
        soft_target_loss_of_heads(space, [logits, coarse], target, weight, (1.0,))


def test_another_shape_is_refused():
    with pytest.raises(ValueError, match="one shape"):
        soft_target_loss(SoftmaxLabels(2), torch.zeros(2, 2, 4), torch.zeros(1, 2, 4), torch.ones(1, 1, 4))
