import numpy as np
import pytest
import torch
from scipy.special import polygamma

from nnunet_ssl.building_blocks.evidence import LARGEST_EVIDENCE
from nnunet_ssl.building_blocks.fisher_information import fisher_information_loss, tetragamma


def naive_fisher(alpha: list[float], target: list[float], weight: float) -> float:
    """With the Fisher matrix itself and its determinant."""
    strength = sum(alpha)
    information = [float(polygamma(1, one)) for one in alpha]
    loss = 0.0
    for n, one in enumerate(alpha):
        error = (target[n] - one / strength) ** 2
        variance = one * (strength - one) / (strength**2 * (strength + 1))
        loss += information[n] * (error + variance)
    sign, determinant = np.linalg.slogdet(np.diag(information) - polygamma(1, strength))
    assert sign > 0
    return loss - weight * determinant


@pytest.mark.parametrize("weight", [0.0, 0.05, 1.0])
@pytest.mark.parametrize("count", [2, 3, 5])
def test_fisher_loss_equals_naive_reference(monkeypatch, count, weight):
    monkeypatch.setattr(torch.Tensor, "float", torch.Tensor.double)
    rng = np.random.default_rng(count)
    evidence = torch.tensor(rng.gamma(0.5, 20.0, (count, 2, 3, 4)))
    target = torch.nn.functional.one_hot(torch.tensor(rng.integers(0, count, (2, 3, 4))), count).movedim(-1, 0)
    found = fisher_information_loss(evidence, target, weight)
    assert found.dtype == torch.float64
    for place in np.ndindex(*found.shape):
        alpha = [evidence[(n, *place)].item() + 1 for n in range(count)]
        truth = [float(target[(n, *place)]) for n in range(count)]
        assert found[place].item() == pytest.approx(naive_fisher(alpha, truth, weight), rel=1e-8)


def test_fisher_loss_is_right_in_single_precision_up_to_the_limit():
    rng = np.random.default_rng(0)
    values = np.concatenate([rng.uniform(0, 5, (3, 20)), rng.uniform(0, LARGEST_EVIDENCE, (3, 20))], 1)
    target = np.eye(3)[rng.integers(0, 3, 40)].T
    found = fisher_information_loss(
        *(torch.tensor(one)[:, None, None].half().float() for one in (values, target)), 0.05
    )
    assert found.dtype == torch.float32
    values = torch.tensor(values).half().double().numpy()
    for i in range(40):
        assert found[0, 0, i].item() == pytest.approx(
            naive_fisher(list(values[:, i] + 1), target[:, i], 0.05), rel=2e-3
        )


def test_fisher_loss_of_half_precision_is_single():
    evidence = torch.rand(3, 1, 1, 4).half()
    assert fisher_information_loss(evidence, torch.zeros_like(evidence), 0.05).dtype == torch.float32


def test_gradient_of_the_fisher_loss(monkeypatch):
    monkeypatch.setattr(torch.Tensor, "float", torch.Tensor.double)
    evidence = (5 * torch.rand(3, 2, 1, 2, dtype=torch.float64)).requires_grad_()
    target = torch.nn.functional.one_hot(torch.randint(0, 3, (2, 1, 2)), 3).movedim(-1, 0).double()
    assert torch.autograd.gradcheck(lambda e: fisher_information_loss(e, target, 0.05), (evidence,))


def test_fisher_loss_asks_for_evidence_of_the_label_and_against_the_others():
    evidence = torch.full((3, 1, 1, 1), 4.0, requires_grad=True)
    target = torch.tensor([0.0, 1.0, 0.0]).view(3, 1, 1, 1)
    fisher_information_loss(evidence, target, 0.0).sum().backward()
    gradient = evidence.grad.ravel()
    assert gradient[1] < 0 < gradient[0]
    assert gradient[0] == gradient[2]


@pytest.mark.parametrize("weight", [0.0, 0.05])
def test_gradient_is_that_of_the_formula(monkeypatch, weight):
    """By autograd, with torch's own derivative of ψ₁, for evidence of all sizes."""
    monkeypatch.setattr(torch.Tensor, "float", torch.Tensor.double)
    rng = np.random.default_rng(1)
    evidence = torch.tensor(10 ** rng.uniform(-6, 3, (3, 2, 1, 50)), requires_grad=True)
    target = torch.nn.functional.one_hot(torch.tensor(rng.integers(0, 3, (2, 1, 50))), 3).movedim(-1, 0)
    upstream = torch.tensor(rng.normal(size=(2, 1, 50)))

    alpha = evidence + 1
    strength, information = alpha.sum(0), torch.polygamma(1, alpha)
    probs = alpha / strength
    loss = (information * ((target - probs) ** 2 + probs * (1 - probs) / (strength + 1))).sum(0)
    rest = 1 - (torch.polygamma(1, strength) / information).sum(0)
    loss = loss - weight * (information.log().sum(0) + rest.log())
    (expected,) = torch.autograd.grad((upstream * loss).sum(), evidence)

    found = fisher_information_loss(evidence, target, weight)
    torch.testing.assert_close(found, loss, rtol=1e-10, atol=0)
    (gradient,) = torch.autograd.grad((upstream * found).sum(), evidence)
    torch.testing.assert_close(gradient, expected, rtol=1e-7, atol=1e-12)


def test_tetragamma_is_the_second_polygamma():
    numbers = torch.logspace(0, 6, 200, dtype=torch.float64)
    np.testing.assert_allclose(tetragamma(numbers), polygamma(2, numbers.numpy()), rtol=1e-9)
