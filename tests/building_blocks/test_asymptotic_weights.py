import math

import numpy as np
import pytest
import torch
from scipy.special import polygamma

from nnunet_ssl.building_blocks.asymptotic_weights import (
    CHANGE_LIMIT,
    Weights,
    asymptotic_weights,
    losses_by_weight,
    refuse,
    weighted_mean,
)
from nnunet_ssl.building_blocks.evidence import expected_logits
from nnunet_ssl.building_blocks.label_space import SigmoidRegions, SoftmaxLabels
from nnunet_ssl.building_blocks.mixing import mix_labeled_with_unlabeled


def uncertainty_of(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.rand(shape, generator=torch.Generator().manual_seed(seed))


def test_certain_voxels_count_more_early_and_uncertain_ones_late():
    """The stated intention of the paper, whose ranks taken literally do the reverse."""
    uncertainty = torch.tensor([0.1, 0.9, 0.3, 0.7]).view(1, 1, 4)
    early = asymptotic_weights(uncertainty, None, 0.1, 0.5).ravel().tolist()
    late = asymptotic_weights(uncertainty, None, 0.9, 0.5).ravel().tolist()
    certain, uncertain = 0, 1
    assert early[certain] > 1 > early[uncertain]
    assert late[certain] < 1 < late[uncertain]
    assert early[0] > early[2] > early[3] > early[1]
    assert late[0] < late[2] < late[3] < late[1]


def test_weights_by_hand():
    """V = 4 at the start of the run: ψ = -0.5, 0, 0.5, 1 and ζ = -1."""
    found = asymptotic_weights(torch.tensor([[[0.2, 0.1, 0.4, 0.3]]]), None, 0.0, 0.5)
    expected = [1.0, 1 + 0.5 * math.tanh(0.5), 1 + 0.5 * math.tanh(-1.0), 1 + 0.5 * math.tanh(-0.5)]
    assert found.ravel().tolist() == pytest.approx(expected)
    assert (asymptotic_weights(torch.rand(1, 1, 9), None, 0.5, 0.5) == 1).all()


@pytest.mark.parametrize("progress", [0.0, 0.3, 0.8])
def test_weights_equal_naive_reference(progress):
    uncertainty = uncertainty_of(2, 3, 4, 3, 2)
    known = uncertainty_of(2, 1, 4, 3, 2, seed=1) > 0.3
    found = asymptotic_weights(uncertainty, known, progress, 0.7)
    for image in range(2):
        for question in range(3):
            places = [place for place in np.ndindex(4, 3, 2) if known[(image, 0, *place)]]
            values = [uncertainty[(image, question, *place)].item() for place in places]
            for place in np.ndindex(4, 3, 2):
                if place not in places:
                    assert found[(image, question, *place)] == 0
                    continue
                rank = 1 + sum(value < uncertainty[(image, question, *place)].item() for value in values)
                psi = 2 * rank / len(values) - 1
                omega = 1 + 0.7 * math.tanh(psi * (2 * progress - 1))
                assert found[(image, question, *place)].item() == pytest.approx(omega, rel=1e-6)


def test_voxels_that_are_not_known_do_not_matter():
    uncertainty, known = uncertainty_of(2, 1, 6, 5), uncertainty_of(2, 1, 6, 5, seed=1) > 0.4
    changed = torch.where(known, uncertainty, uncertainty_of(2, 1, 6, 5, seed=2) * 3 - 1)
    pair = [asymptotic_weights(one, known, 0.1, 0.5) for one in (uncertainty, changed)]
    assert torch.equal(*pair)
    nothing = asymptotic_weights(uncertainty, torch.zeros_like(known), 0.1, 0.5)
    assert torch.equal(nothing, torch.zeros_like(nothing))


def test_weights_stay_in_their_range_and_average_to_one():
    for progress in (0.0, 0.2, 1.0):
        weights = asymptotic_weights(uncertainty_of(1, 1, 20, 50), None, progress, 0.5)
        assert weights.min() >= 0.5
        assert weights.max() <= 1.5
        assert weights.mean().item() == pytest.approx(1.0, abs=1e-3)


def test_without_change_known_voxels_count_alike():
    known = uncertainty_of(2, 1, 6, seed=1) > 0.4
    weights = asymptotic_weights(uncertainty_of(2, 2, 6), known, 0.1, 0.0)
    assert torch.equal(weights, known.expand(2, 2, 6).float())


def test_weights_carry_no_gradient_and_equal_voxels_are_ranked_in_order():
    weights = asymptotic_weights(torch.ones(1, 1, 5, requires_grad=True), None, 0.0, 0.5)
    assert not weights.requires_grad
    assert (weights.ravel().diff() < 0).all()


def test_settings_that_make_no_sense_are_refused():
    refuse("full", 1.31)
    assert math.tanh(1) * CHANGE_LIMIT == pytest.approx(1.0)
    with pytest.raises(ValueError, match=r"asymptotic_weight is less than 1.313, got 1.4"):
        refuse("rest", 1.4)
    with pytest.raises(ValueError, match="fusion is one of full, rest, mean, got 'sum'"):
        refuse("sum", 0.5)


def test_weighted_mean():
    losses, weights = uncertainty_of(2, 3, 4), uncertainty_of(2, 3, 4, seed=1)
    part = uncertainty_of(2, 1, 4, seed=2) > 0.5
    values = [losses[i, q, v].item() * weights[i, q, v].item() for i, q, v in np.ndindex(2, 3, 4) if part[i, 0, v]]
    assert weighted_mean(losses, weights, part).item() == pytest.approx(sum(values) / len(values))
    assert weighted_mean(losses, weights, torch.zeros_like(part)) == 0


@pytest.mark.parametrize("space", [SoftmaxLabels(3, 3), SigmoidRegions(2, 4)], ids=str)
def test_losses_by_weight_equal_naive_reference(space):
    is_regions = isinstance(space, SigmoidRegions)
    rng = np.random.default_rng(0)
    spatial, questions = (3, 4), 2 if is_regions else 1
    logits = torch.tensor(3 * rng.normal(size=(2, space.num_channels, *spatial)))
    if is_regions:
        target = torch.tensor(rng.integers(0, 2, (2, 3, *spatial)))  # the last one is what is ignored
    else:
        target = torch.tensor(rng.integers(0, 4, (2, 1, *spatial)))
    pseudo = torch.tensor(rng.integers(0, 2 if is_regions else 3, (2, questions, *spatial)))
    is_labeled = torch.tensor(rng.random((2, 1, *spatial)) > 0.5)
    orders = tuple(torch.tensor(rng.uniform(0.5, 1.5, (2, questions, *spatial))) for _ in range(2))
    images = torch.zeros(2, 1, *spatial)
    mixed = mix_labeled_with_unlabeled(space, is_labeled, (images, target), (images, pseudo))
    learned = expected_logits(space, logits)
    found = losses_by_weight(space, logits, learned, mixed, orders, Weights(2.0, 3.0, 0.05))

    ordered, fisher = [], []
    for image, q, *voxel in np.ndindex(2, questions, *spatial):
        place = image, q, *voxel
        of_label = bool(is_labeled[(image, 0, *voxel)])
        ignored = bool(target[(image, -1, *voxel)]) if is_regions else target[(image, 0, *voxel)] == 3
        if of_label and ignored:
            continue
        label = int((target if of_label else pseudo)[place])
        if is_regions:
            scores = [logits[place].item(), -logits[place].item()]
            truth = [label, 1 - label]
        else:
            scores = logits[(image, slice(None), *voxel)].tolist()
            truth = [int(n == label) for n in range(3)]
        alpha = [math.exp(score) + 1 for score in scores]
        strength = sum(alpha)
        if of_label:
            p = alpha[truth.index(1)] / strength
            ordered.append(-math.log(p) * orders[0][place].item())
        else:
            psi = [float(polygamma(1, one)) for one in alpha]
            loss = sum(
                psi[n] * ((truth[n] - a / strength) ** 2 + a * (strength - a) / (strength**2 * (strength + 1)))
                for n, a in enumerate(alpha)
            )
            determinant = np.linalg.slogdet(np.diag(psi) - polygamma(1, strength))[1]
            fisher.append((loss - 0.05 * determinant) * orders[1][place].item())
    assert set(found) == {"ordered", "fisher"}
    assert found["ordered"].item() == pytest.approx(2 * sum(ordered) / len(ordered), rel=1e-4)
    assert found["fisher"].item() == pytest.approx(3 * sum(fisher) / len(fisher), rel=1e-4)


def test_the_fisher_term_can_be_left_out(monkeypatch):
    space, images = SoftmaxLabels(3), torch.zeros(1, 1, 4)
    labels = torch.tensor([[[0, 1, 2, 1]]])
    mixed = mix_labeled_with_unlabeled(space, labels > 0, (images, labels), (images, labels))
    logits, orders = torch.randn(1, 3, 4), (torch.ones(1, 1, 4),) * 2
    losses = losses_by_weight(space, logits, expected_logits(space, logits), mixed, orders, Weights(1.0, 0.0, 0.05))
    assert set(losses) == {"ordered"}


def test_each_term_teaches_its_own_voxels():
    space, images = SoftmaxLabels(3), torch.zeros(1, 1, 4)
    labels, is_labeled = torch.tensor([[[0, 1, 2, 1]]]), torch.tensor([[[True, True, False, False]]])
    mixed = mix_labeled_with_unlabeled(space, is_labeled, (images, labels), (images, labels))
    for name, taught in {"ordered": [0, 1], "fisher": [2, 3]}.items():
        logits = torch.randn(1, 3, 4, requires_grad=True)
        learned, orders = expected_logits(space, logits), (torch.ones(1, 1, 4),) * 2
        losses_by_weight(space, logits, learned, mixed, orders, Weights(1.0, 1.0, 0.05))[name].backward()
        assert logits.grad.abs().sum((0, 1)).nonzero().ravel().tolist() == taught
