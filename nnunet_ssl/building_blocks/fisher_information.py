"""The Fisher information of evidence, as a loss that looks most at the hypotheses of which least is known.

Deng et al., "Uncertainty Estimation by Fisher Information-based Evidential Deep Learning" (I-EDL), ICML 2023,
https://arxiv.org/abs/2303.02045
"""

import torch
from torch import Tensor
from torch.autograd.function import FunctionCtx, once_differentiable

SMALLEST_REST = 1e-8  # of what the determinant's logarithm is taken of, which is more than 0 in exact numbers


def fisher_information_loss(evidence: Tensor, target: Tensor, determinant_weight: float) -> Tensor:
    """Return the loss of evidence for K hypotheses against a label, of each question: (B, Q, *spatial) in float32.

        ℓ = Σ_n ψ₁(α_n) E_n - λ₂ log |I(α)|,    E_n = (y_n - p_n)² + p_n (1 - p_n) / (S + 1)
        log |I(α)| = Σ_n log ψ₁(α_n) + log R,    R = 1 - Σ_n ψ₁(S) / ψ₁(α_n)

    with α = e + 1, S = Σ α, p = α / S, and ψ₁ the trigamma function, which falls as evidence grows. E is error and
    variance of the Dirichlet distribution of α. The gradient flows through ψ₁ too. This is I-EDL's loss as MEDL (He et
    al., 2025, https://arxiv.org/abs/2505.12418) has it: without the divergence from an even distribution.

    Args:
        evidence: (K, B, Q, *spatial), ≥ 0; the gradient flows here, once.
        target: y (K, B, Q, *spatial), 0 or 1 and one of them 1.
        determinant_weight: λ₂ ≥ 0.
    """
    return _FisherInformationLoss.apply(evidence.float() + 1.0, target, determinant_weight)


class _FisherInformationLoss(torch.autograd.Function):
    """Written out: by autograd it would keep nearly twice as many maps for the gradient, and torch's own ψ₂ is slow."""

    @staticmethod
    def forward(ctx: FunctionCtx, alpha: Tensor, target: Tensor, determinant_weight: float) -> Tensor:
        strength = alpha.sum(0)
        information, of_strength = torch.polygamma(1, alpha), torch.polygamma(1, strength)
        probs = alpha / strength
        error = (target - probs).square_().add_(probs * (1.0 - probs) / (strength + 1.0))
        loss = (information * error).sum(0)
        if determinant_weight:
            rest = (1.0 - of_strength * information.reciprocal().sum(0)).clamp_min_(SMALLEST_REST)
            loss.sub_(information.log().sum(0).add_(rest.log_()), alpha=determinant_weight)
        ctx.determinant_weight = determinant_weight
        ctx.save_for_backward(alpha, target, information, of_strength, error)
        return loss

    @staticmethod
    @once_differentiable
    def backward(ctx: FunctionCtx, gradient: Tensor) -> tuple[Tensor, None, None]:
        """Multiply by ∂ℓ/∂α, of which p and S are functions."""
        alpha, target, information, of_strength, error = ctx.saved_tensors
        strength, slope = alpha.sum(0), tetragamma(alpha)
        probs, per_strength = alpha / strength, 1.0 / (strength + 1.0)
        by_probs = information * (per_strength - 2.0 * target + (2.0 - 2.0 * per_strength) * probs)
        by_strength = (information * probs * (1.0 - probs)).sum(0) * per_strength.square()
        result = slope * error + (by_probs - (by_probs * probs).sum(0)) / strength - by_strength
        if ctx.determinant_weight:
            inverse = information.reciprocal()
            total = inverse.sum(0)
            rest = 1.0 - of_strength * total
            per_rest = torch.where(rest > SMALLEST_REST, rest.reciprocal(), 0.0)
            result.sub_(slope * inverse * (1.0 + per_rest * of_strength * inverse), alpha=ctx.determinant_weight)
            result.add_(per_rest * tetragamma(strength) * total, alpha=ctx.determinant_weight)
        return result.mul_(gradient), None, None


def tetragamma(numbers: Tensor) -> Tensor:
    """Return ψ₂, the derivative of ψ₁, of numbers ≥ 1; much faster than torch's own.

    ψ₂(x) = -2 Σ_k (x + k)⁻³ + ψ₂(x + 6) for k in 0 ... 5, the last one by its asymptotic series.
    """
    inverse = (numbers + 6).reciprocal_()
    square = inverse.square()
    result = square * (square * (square * (1 / 6 - square / 6) - 1 / 2) - inverse - 1)
    for k in range(6):
        result.add_((numbers + k).reciprocal_().pow_(3), alpha=-2.0)
    return result
