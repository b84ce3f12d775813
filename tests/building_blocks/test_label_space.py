"""Softmax labels and sigmoid regions against naive float64 references and hand values."""

import math

import numpy as np
import pytest
import torch

from nnunet_ssl.building_blocks.label_space import SigmoidRegions, SoftmaxLabels

SPACES = [SoftmaxLabels(3), SigmoidRegions(3)]


def logits(seed: int = 0, scale: float = 3.0) -> torch.Tensor:
    return torch.tensor(np.random.default_rng(seed).normal(0, scale, (2, 3, 4, 5)), dtype=torch.float32)


def test_softmax_hand_values():
    space = SoftmaxLabels(2)
    probs = space.probabilities(torch.tensor([[[[0.0]], [[math.log(3.0)]]]]))  # odds 1 : 3
    assert probs.flatten().tolist() == pytest.approx([0.25, 0.75])
    assert space.pseudo_label(probs).flatten().tolist() == [1]
    assert space.confidence(probs).item() == pytest.approx(0.75)
    entropy = -(0.25 * math.log(0.25) + 0.75 * math.log(0.75)) / math.log(2)
    assert space.entropy(probs).item() == pytest.approx(entropy)


def test_region_hand_values():
    space = SigmoidRegions(2)
    probs = space.probabilities(torch.tensor([[[[math.log(3.0)]], [[0.0]]]]))
    assert probs.flatten().tolist() == pytest.approx([0.75, 0.5])
    assert space.pseudo_label(probs).flatten().tolist() == [1, 0]
    assert space.confidence(probs).flatten().tolist() == pytest.approx([0.75, 0.5])
    assert space.entropy(probs).flatten().tolist()[1] == pytest.approx(1.0)


@pytest.mark.parametrize("space", SPACES, ids=lambda space: type(space).__name__)
def test_dice_and_cross_entropy_equal_naive_references(space):
    z, weight = logits(), torch.tensor(np.random.default_rng(1).random((2, 1, 4, 5)))
    probs = space.probabilities(z)
    labels = space.pseudo_label(space.probabilities(logits(2)))
    p, w = probs.double().numpy(), weight.numpy()[:, 0]
    reference = labels.numpy()
    maps = reference if isinstance(space, SigmoidRegions) else (reference == np.arange(3)[None, :, None, None])
    channels = range(3) if isinstance(space, SigmoidRegions) else range(1, 3)
    scores = []
    for c in channels:
        overlap = (w * p[:, c] * maps[:, c]).sum()
        size = (w * (p[:, c] + maps[:, c])).sum()
        scores.append((2 * overlap + 1e-5) / (size + 1e-5))
    assert space.dice(probs, space.one_hot(labels), weight).item() == pytest.approx(np.mean(scores), rel=1e-5)

    voxelwise = space.cross_entropy(z, labels).numpy()
    if isinstance(space, SigmoidRegions):
        expected = -(maps * np.log(p) + (1 - maps) * np.log(1 - p))
    else:
        expected = -np.log((p * maps).sum(1, keepdims=True))
    np.testing.assert_allclose(voxelwise, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("space", SPACES, ids=lambda space: type(space).__name__)
def test_perfect_prediction_has_dice_one_and_an_empty_one_too(space):
    labels = space.pseudo_label(space.probabilities(logits()))
    for maps in (space.one_hot(labels), space.one_hot(torch.zeros_like(labels))):
        assert space.dice(maps, maps).item() == pytest.approx(1.0)


@pytest.mark.parametrize("space", SPACES, ids=lambda space: type(space).__name__)
def test_entropy_is_a_share_and_finite_for_certain_predictions(space):
    certain = space.one_hot(space.pseudo_label(space.probabilities(logits())))
    assert space.entropy(certain).abs().max().item() == pytest.approx(0.0, abs=1e-6)
    uniform = torch.full((1, 3, 2, 2), 1 / 3 if isinstance(space, SoftmaxLabels) else 0.5)
    torch.testing.assert_close(space.entropy(uniform), torch.ones_like(space.entropy(uniform)))


def test_ignore_label_is_unknown_background_without_loss():
    space = SoftmaxLabels(3, ignore_label=3)
    target = torch.tensor([[[[0, 1], [2, 3]]]])
    assert space.is_known(target).flatten().tolist() == [True, True, True, False]
    assert space.one_hot(target)[0, :, 1, 1].tolist() == [1, 0, 0]
    assert space.cross_entropy(torch.randn(1, 3, 2, 2), target)[0, 0, 1, 1] == 0


def test_ignore_channel_of_regions():
    space = SigmoidRegions(2, ignore_label=3)
    target = torch.tensor([[1, 1], [0, 1], [0, 1]])[None, :, None]  # regions, regions, ignore: (1, 3, 1, 2)
    assert space.is_known(target).flatten().tolist() == [True, False]
    assert space.one_hot(target)[0, :, 0].tolist() == [[1, 0], [0, 0]]
    assert space.cross_entropy(torch.randn(1, 2, 1, 2), target)[0, :, 0, 1].tolist() == [0, 0]


def test_probabilities_leave_half_precision():
    for space in SPACES:
        assert space.probabilities(logits().half()).dtype == torch.float32


@pytest.mark.parametrize("space", SPACES, ids=lambda space: type(space).__name__)
def test_gradient_of_the_entropy_is_finite_where_a_probability_is_exactly_zero_or_one(space):
    z = torch.tensor([[[[200.0, -200.0, 30.0]], [[-200.0, 200.0, -30.0]], [[-200.0, 0.0, 0.0]]]], requires_grad=True)
    probs = space.probabilities(z)
    assert probs.min() == 0.0
    space.entropy(probs).mean().backward()
    assert z.grad.isfinite().all()
    assert z.grad.abs().sum() > 0


@pytest.mark.parametrize("space", SPACES, ids=lambda space: type(space).__name__)
def test_pseudo_labels_carry_no_gradient(space):
    z = logits().requires_grad_()
    probs = space.probabilities(z)
    assert not space.pseudo_label(probs).requires_grad
    space.dice(probs, space.one_hot(space.pseudo_label(probs))).backward()
    assert z.grad.abs().sum() > 0


@pytest.mark.parametrize("space", SPACES, ids=lambda space: type(space).__name__)
def test_divergence_equals_a_naive_reference(space):
    p, q = space.probabilities(logits()), space.probabilities(logits(1))
    a, b = p.double().numpy(), q.double().numpy()
    expected = a * np.log(a / b)
    if isinstance(space, SigmoidRegions):
        expected += (1 - a) * np.log((1 - a) / (1 - b))
    else:
        expected = expected.sum(1, keepdims=True)
    np.testing.assert_allclose(space.divergence(p, q).numpy(), expected, atol=1e-5)
    assert space.divergence(p, p).abs().max() == 0.0


def test_class_thresholds_by_hand():
    """Background is predicted with mean confidence 0.9, class 1 with 0.6; class 2 nowhere."""
    probs = torch.tensor([[1.0, 0.8, 0.3, 0.4], [0.0, 0.1, 0.7, 0.5], [0.0, 0.1, 0.0, 0.1]])[None, :, None]
    thresholds = SoftmaxLabels(3).class_thresholds(probs, 0.9)
    assert thresholds.flatten().tolist() == pytest.approx([0.9, 0.9, 0.6, 0.6])
    accepted = SoftmaxLabels(3).confidence(probs) >= thresholds
    assert accepted.flatten().tolist() == [True, False, True, False]


def test_thresholds_of_a_region_by_hand():
    """Outside is predicted with mean confidence 0.9, inside with 0.6; each region for itself."""
    probs = torch.tensor([[0.0, 0.2, 0.7, 0.5001], [1.0, 1.0, 1.0, 1.0]])[None, :, None]
    thresholds = SigmoidRegions(2).class_thresholds(probs, 0.9)
    assert thresholds[0, 0, 0].tolist() == pytest.approx([0.9, 0.9, 0.6, 0.6], abs=1e-3)
    assert thresholds[0, 1, 0].tolist() == pytest.approx([0.9] * 4)


@pytest.mark.parametrize("space", SPACES, ids=lambda space: type(space).__name__)
def test_no_class_asks_for_more_than_the_threshold(space):
    probs = space.probabilities(logits(3))
    thresholds = space.class_thresholds(probs, 0.95)
    assert thresholds.shape == space.confidence(probs).shape
    assert 0.0 < thresholds.min() <= thresholds.max() <= 0.95 + 1e-6


def test_labels_of_targets_have_no_ignore_label():
    target = torch.tensor([0, 1, 3])[None, None, None]
    assert SoftmaxLabels(3, ignore_label=3).labels(target).flatten().tolist() == [0, 1, 0]
    regions = torch.tensor([[1, 0, 1], [0, 1, 0], [0, 0, 1]])[None, :, None]  # the last channel says: ignore
    labels = SigmoidRegions(2, ignore_label=3).labels(regions)
    assert labels[0, :, 0].tolist() == [[1, 0, 0], [0, 1, 0]]
