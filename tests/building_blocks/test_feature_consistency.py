import numpy as np
import pytest
import torch

from nnunet_ssl.building_blocks.feature_consistency import cosine_distance, mean_absolute_difference, of_own_and_next


def maps(seed: int, requires_grad: bool = False) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn((3, 4, 2, 5), generator=generator).requires_grad_(requires_grad)


def test_cosine_distance_against_loops():
    first, second = maps(1), maps(2)
    expected = []
    for a, b in zip(first.double().numpy(), second.double().numpy(), strict=True):
        a, b = a.ravel(), b.ravel()
        expected.append(1 - sum(x * y for x, y in zip(a, b, strict=True)) / np.sqrt((a * a).sum() * (b * b).sum()))
    assert cosine_distance(first, second).item() == pytest.approx(np.mean(expected), abs=1e-6)


@pytest.mark.parametrize(("factor", "expected"), [(3.0, 0.0), (-0.5, 2.0)])
def test_cosine_distance_does_not_know_lengths(factor, expected):
    assert cosine_distance(maps(1), factor * maps(1)).item() == pytest.approx(expected, abs=1e-6)


def test_cosine_distance_of_many_halves_is_finite():
    """A sum of squares of so many features is more than half precision holds."""
    first = torch.full((1, 320, 16, 16), 30.0, dtype=torch.float16)
    assert cosine_distance(first, first).item() == pytest.approx(0.0, abs=1e-5)


def test_absolute_difference_against_loops():
    first, second = maps(1), maps(2)
    mask = torch.rand((3, 1, 2, 5), generator=torch.Generator().manual_seed(3)) < 0.4
    differences = np.abs(first.double().numpy() - second.double().numpy())
    assert mean_absolute_difference(first, second).item() == pytest.approx(differences.mean(), abs=1e-6)
    inside = [differences[b, f, y, x] for b in range(3) for f in range(4) for y in range(2) for x in range(5)
              if mask[b, 0, y, x]]  # fmt: skip
    assert mean_absolute_difference(first, second, mask).item() == pytest.approx(np.mean(inside), abs=1e-6)


def test_absolute_difference_of_no_voxel_is_0():
    assert mean_absolute_difference(maps(1), maps(2), torch.zeros((3, 1, 2, 5), dtype=torch.bool)) == 0.0


def test_own_and_next_by_hand():
    """Samples 0, 30, 5 and targets 10, 20, 40: own differences 10, 10, 35, to the next 20, 10, 5."""
    features, target = (torch.tensor(values).view(3, 1, 1) for values in ([0.0, 30.0, 5.0], [10.0, 20.0, 40.0]))
    found = of_own_and_next(mean_absolute_difference, features, target)
    assert found.item() == pytest.approx((10 + 10 + 35 + 20 + 10 + 5) / 6)


@pytest.mark.parametrize("distance", [cosine_distance, mean_absolute_difference])
def test_gradient_flows_to_the_first_alone(distance):
    features, target = maps(1, requires_grad=True), maps(2, requires_grad=True)
    of_own_and_next(distance, features, target).backward()
    assert features.grad.abs().sum() > 0
    assert target.grad is None
