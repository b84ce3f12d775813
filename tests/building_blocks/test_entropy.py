import math

import pytest
import torch

from nnunet_ssl.building_blocks.entropy import balanced_entropy
from nnunet_ssl.building_blocks.label_space import SigmoidRegions, SoftmaxLabels


def binary(*foreground: float) -> torch.Tensor:
    p = torch.tensor(foreground)[None, None, None]
    return torch.cat([1 - p, p], 1)


def entropy_of(p: float) -> float:
    return -(p * math.log(p) + (1 - p) * math.log(1 - p)) / math.log(2)


def test_foreground_and_background_count_one_half_each():
    probs = binary(0.9, 0.2, 0.2, 0.3)
    expected = 0.5 * entropy_of(0.9) + 0.5 * (2 * entropy_of(0.2) + entropy_of(0.3)) / 3
    assert balanced_entropy(SoftmaxLabels(2), probs).item() == pytest.approx(expected, rel=1e-6)


def test_regions_count_alike():
    probs = binary(0.9, 0.2, 0.2, 0.3)[:, 1:]
    expected = 0.5 * entropy_of(0.9) + 0.5 * (2 * entropy_of(0.2) + entropy_of(0.3)) / 3
    assert balanced_entropy(SigmoidRegions(1), probs).item() == pytest.approx(expected, rel=1e-6)


def test_limits():
    space = SoftmaxLabels(2)
    assert balanced_entropy(space, binary(0.0, 1.0)).item() == 0.0
    assert balanced_entropy(space, binary(0.1)).item() == pytest.approx(0.5 * entropy_of(0.1))  # no foreground at all
    assert balanced_entropy(space, binary(0.5 - 1e-6, 0.5 + 1e-6)).item() == pytest.approx(1.0)


@pytest.mark.parametrize("space", [SoftmaxLabels(2), SigmoidRegions(2)], ids=lambda space: type(space).__name__)
def test_gradient_is_finite_where_a_probability_is_exactly_zero_or_one(space):
    z = torch.tensor([[[[200.0, -200.0, 30.0]], [[-200.0, 200.0, -30.0]]]], requires_grad=True)
    probs = space.probabilities(z)
    assert probs.min() == 0.0
    balanced_entropy(space, probs).backward()
    assert z.grad.isfinite().all()


def test_a_step_down_makes_predictions_surer():
    space, z = SoftmaxLabels(3), torch.randn(2, 3, 6, 6, generator=torch.Generator().manual_seed(0)).requires_grad_()
    before = balanced_entropy(space, space.probabilities(z))
    before.backward()
    after = balanced_entropy(space, space.probabilities(z - 10.0 * z.grad))
    assert after < before
