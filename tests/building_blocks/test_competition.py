import math

import numpy as np
import pytest
import torch

from nnunet_ssl.building_blocks.competition import SmoothedErrors, labeled_error
from nnunet_ssl.building_blocks.label_space import SMOOTH, SigmoidRegions, SoftmaxLabels


def naive_error(space, logits: np.ndarray, target: np.ndarray, fraction: float) -> float:
    """α cross-entropy + (1 - α) (1 - Dice), voxel by voxel in float64; the ignore label stands for nothing."""
    is_regions = isinstance(space, SigmoidRegions)
    channels = space.num_channels
    entropies, overlap, size = [], np.zeros(channels), np.zeros(channels)
    for image, *voxel in np.ndindex(logits.shape[0], *logits.shape[2:]):
        scores, truth = logits[(image, slice(None), *voxel)], target[(image, slice(None), *voxel)]
        if is_regions and len(truth) > channels and truth[-1]:
            continue
        if not is_regions and truth[0] == space.ignore_label:
            continue
        if is_regions:
            probs = [1 / (1 + math.exp(-score)) for score in scores]
            reference = truth[:channels]
            entropies += [-math.log(p if y else 1 - p) for p, y in zip(probs, reference, strict=True)]
        else:
            total = sum(math.exp(score) for score in scores)
            probs = [math.exp(score) / total for score in scores]
            reference = [float(channel == truth[0]) for channel in range(channels)]
            entropies.append(-math.log(probs[truth[0]]))
        for channel in range(channels):
            overlap[channel] += probs[channel] * reference[channel]
            size[channel] += probs[channel] + reference[channel]
    foreground = range(channels) if is_regions else range(1, channels)
    dice = [(2 * overlap[c] + SMOOTH) / (size[c] + SMOOTH) for c in foreground]
    entropy = sum(entropies) / len(entropies) if entropies else 0.0
    return fraction * entropy + (1 - fraction) * (1 - sum(dice) / len(dice))


def labels_of(space, rng, shape) -> np.ndarray:
    if isinstance(space, SoftmaxLabels):
        return rng.integers(0, space.num_channels + (space.ignore_label is not None), (shape[0], 1, *shape[2:]))
    return rng.integers(0, 2, (shape[0], space.num_channels + (space.ignore_label is not None), *shape[2:]))


SPACES = [SoftmaxLabels(3), SoftmaxLabels(3, 3), SigmoidRegions(2), SigmoidRegions(2, 3)]


@pytest.mark.parametrize("space", SPACES, ids=str)
@pytest.mark.parametrize("fraction", [0.8, 0.0, 1.0])
def test_error_equals_naive_reference(space, fraction):
    rng = np.random.default_rng(0)
    logits = rng.normal(size=(2, space.num_channels, 3, 4, 2))
    target = labels_of(space, rng, logits.shape)
    found = labeled_error(space, torch.tensor(logits), torch.tensor(target), fraction)
    assert found.item() == pytest.approx(naive_error(space, logits, target, fraction), rel=1e-5)


def test_error_is_zero_at_best_and_carries_no_gradient():
    space, target = SoftmaxLabels(3), torch.tensor([[[0, 1, 2, 1]]])
    logits = (100 * space.one_hot(target)).requires_grad_()
    found = labeled_error(space, logits, target, 0.5)
    assert found.item() == pytest.approx(0.0, abs=1e-5)
    assert not found.requires_grad
    assert labeled_error(space, logits, target.roll(1), 0.5) > 10


@pytest.mark.parametrize("space", [SoftmaxLabels(3, 3), SigmoidRegions(2, 3)], ids=str)
def test_error_of_a_batch_that_is_ignored_wholly_is_a_number(space):
    target = torch.full((1, 1, 4, 4), 3) if isinstance(space, SoftmaxLabels) else torch.ones(1, 3, 4, 4)
    assert labeled_error(space, torch.randn(1, space.num_channels, 4, 4), target, 0.8).isfinite()


def test_error_of_half_precision_is_summed_in_float32():
    space, target = SoftmaxLabels(2), torch.zeros(1, 1, 300, 300, dtype=torch.long)
    logits = torch.zeros(1, 2, 300, 300, dtype=torch.float16)
    found = labeled_error(space, logits, target, 1.0)
    assert found.dtype == torch.float32
    assert found.item() == pytest.approx(math.log(2), rel=1e-5)


# ---- smoothing ----


def test_averages_equal_the_recurrence():
    rng, kept, expected = np.random.default_rng(0), SmoothedErrors(2), np.zeros(2)
    for _ in range(5):
        errors = rng.random(2)
        expected = 0.9 * expected + 0.1 * errors
        worst = kept.is_worst(torch.tensor(errors, dtype=torch.float32))
        np.testing.assert_allclose(kept.means.numpy(), expected, rtol=1e-5)
        assert worst.tolist() == [float(expected[0] > expected[1]), float(expected[0] <= expected[1])]


def test_one_batch_does_not_turn_what_many_have_said():
    kept = SmoothedErrors(2)
    for _ in range(20):
        assert kept.is_worst(torch.tensor([2.0, 1.0])).tolist() == [1.0, 0.0]
    assert kept.is_worst(torch.tensor([1.0, 3.0])).tolist() == [1.0, 0.0]
    for _ in range(10):
        worst = kept.is_worst(torch.tensor([1.0, 3.0]))
    assert worst.tolist() == [0.0, 1.0]


def test_of_equal_networks_one_is_the_worst():
    assert SmoothedErrors(3).is_worst(torch.ones(3)).tolist() == [1.0, 0.0, 0.0]


@pytest.mark.parametrize("bad", [torch.nan, torch.inf])
def test_errors_that_are_not_finite_are_not_added(bad):
    kept = SmoothedErrors(2)
    kept.is_worst(torch.tensor([1.0, 2.0]))
    before = kept.means.clone()
    worst = kept.is_worst(torch.tensor([bad, 1.0]))
    assert torch.equal(kept.means, before)
    assert worst.tolist() == [0.0, 1.0]


def test_averages_are_kept_in_a_checkpoint():
    kept, again = SmoothedErrors(2), SmoothedErrors(2)
    kept.is_worst(torch.tensor([1.0, 2.0]))
    again.load_state_dict(kept.state_dict())
    assert torch.equal(again.means, kept.means)
    assert kept.means.any()
