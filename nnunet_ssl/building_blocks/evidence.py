"""What two networks know of each voxel and how much they know, as opinions that can be fused.

He et al., "Mutual Evidential Deep Learning for Medical Image Segmentation", 2025,
https://arxiv.org/abs/2505.12418; evidence and Dirichlet distributions: Sensoy et al., "Evidential Deep Learning to
Quantify Classification Uncertainty", NeurIPS 2018, https://arxiv.org/abs/1806.01768

Evidence e ≥ 0 for each of K hypotheses gives a Dirichlet distribution: α = e + 1, S = Σ α, its mean is p = α / S.

| | softmax labels | sigmoid regions |
|---|---|---|
| hypotheses K | the C classes | 2, inside and outside: a Beta distribution |
| evidence for a logit z | exp(z) of each class | exp(z) and exp(-z) |
| questions Q | 1 for each voxel | C for each voxel, one for each region |

Maps of hypotheses are (K, B, Q, *spatial); what there is one of for each question is (B, Q, *spatial), the shape of
`LabelSpace.confidence`.
"""

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import FunctionCtx, once_differentiable

from nnunet_ssl.building_blocks.label_space import LabelSpace, SigmoidRegions

FUSIONS = ("full", "rest", "mean")
LARGEST_EVIDENCE = 1e3  # ours: p of 10 classes is then 0.99; a label's cross-entropy never stops asking for more


class Opinion(NamedTuple):
    """What is believed; beliefs and uncertainty sum to 1.

    Attributes:
        belief: in each hypothesis (K, B, Q, *spatial), ≥ 0.
        uncertainty: (B, Q, *spatial) in (0, 1], 1 without any evidence.
    """

    belief: Tensor
    uncertainty: Tensor


def evidence_of(space: LabelSpace, logits: Tensor) -> Tensor:
    """Return the evidence of logits (B, C, *spatial) for each hypothesis, ≥ 0: (K, B, Q, *spatial) in float32.

    From `LARGEST_EVIDENCE` = L on it is L (1 + ln(e / L)): so it does not overflow, the order of classes stays that of
    the logits, and what is wrong still has a gradient to learn from. The gradient flows through.

    A class that is wrongly sure has the gradient e / S, nearly 1, as with softmax. With softplus, which is common, it
    has 1 / S, less the surer it is: a small structure may then never be learned beside much background.
    """
    logits = logits.float()
    signed = torch.stack([logits, -logits]) if isinstance(space, SigmoidRegions) else logits.movedim(1, 0)[:, :, None]
    return _Evidence.apply(signed)


def hypotheses_of(space: LabelSpace, maps: Tensor) -> Tensor:
    """Return maps (B, C, *spatial) in [0, 1], one-hot labels for example, as maps of hypotheses (K, B, Q, *spatial)."""
    return torch.stack([maps, 1.0 - maps]) if isinstance(space, SigmoidRegions) else maps.movedim(1, 0)[:, :, None]


def expected_logits(space: LabelSpace, logits: Tensor) -> Tensor:
    """Return ln α of a network's logits (B, C, *spatial), in float32; for regions ln α_inside - ln α_outside.

    Their softmax, or sigmoid, is α / S. So every loss of logits becomes that of the expected probabilities, nnU-Net's
    own with its heads and its ignore label too. The gradient flows through.
    """
    log_alpha = evidence_of(space, logits).log1p()
    return log_alpha[0] - log_alpha[1] if isinstance(space, SigmoidRegions) else log_alpha[:, :, 0].movedim(0, 1)


def opinion_of(space: LabelSpace, logits: Tensor) -> Opinion:
    """Return the opinion b = e / S, u = K / S of a network's logits (B, C, *spatial), without gradient."""
    evidence = evidence_of(space, logits.detach())
    strength = evidence.sum(0) + len(evidence)
    return Opinion(evidence / strength, len(evidence) / strength)


def combine(first: Opinion, second: Opinion, fusion: str) -> Opinion:
    """Return what two opinions of the same voxels are together, by one of `FUSIONS`.

    Full and rest are `class_aware_fusion`: a single class |C_n| = 1 has the share |C_n| / (|C_n| + |C_K|) of it and the
    frame, of which the paper counts all K hypotheses in one place and the K - 1 others in another.
    """
    if fusion == "mean":
        return Opinion((first.belief + second.belief) / 2, (first.uncertainty + second.uncertainty) / 2)
    frame = len(first.belief) - (fusion == "rest")
    return class_aware_fusion(first, second, 1 / (1 + frame))


def class_aware_fusion(first: Opinion, second: Opinion, cross_factor: float) -> Opinion:
    """Return the class-aware evidential fusion of two opinions of the same voxels.

        b̃_n = b_1n b_2n + κ (b_1n u_2 + b_2n u_1),    ũ = u_1 u_2,    both divided by Σ b̃ + ũ

    It is Dempster's rule (κ = 1) with a smaller weight where one of both is uncertain. Networks that are sure of unlike
    classes give an opinion that is even and still not uncertain: the rule leaves conflict out.

    Args:
        first: of the first network.
        second: of the second one.
        cross_factor: κ in (0, 1].
    """
    crossed = first.belief * second.uncertainty + second.belief * first.uncertainty
    belief = first.belief * second.belief + cross_factor * crossed
    uncertainty = first.uncertainty * second.uncertainty
    mass = belief.sum(0) + uncertainty
    return Opinion(belief / mass, uncertainty / mass)


def expected_probabilities(space: LabelSpace, opinion: Opinion) -> Tensor:
    """Return b + u / K of each class, for regions of the inside, (B, C, *spatial) in [0, 1]; α / S for a network's."""
    probs = _expected(opinion)
    return probs[0] if isinstance(space, SigmoidRegions) else probs[:, :, 0].movedim(0, 1)


def reliability(opinion: Opinion) -> Tensor:
    """Return R = exp(u Σ p log₂ p), small where an opinion is both uncertain and even: (B, Q, *spatial) in (0, 1].

    p = b + u / K, where the paper has the masses of the classes alone: by these an opinion without any evidence would
    be the most reliable of all.
    """
    probs = _expected(opinion)
    negative_entropy = torch.xlogy(probs, probs).sum(0) / math.log(2.0)
    return (opinion.uncertainty * negative_entropy).exp()


def means(opinions: Sequence[Opinion], fused: Opinion, trust: Tensor) -> dict[str, Tensor]:
    """Return the mean uncertainty of two networks and of what they say together, and the mean reliability, by name."""
    uncertainties = {"first": opinions[0], "second": opinions[1], "fused": fused}
    return {f"uncertainty/{name}": one.uncertainty.mean() for name, one in uncertainties.items()} | {
        "reliability": trust.mean()
    }


class _Evidence(torch.autograd.Function):
    """Written out, because its gradient needs nothing but the evidence itself."""

    @staticmethod
    def forward(ctx: FunctionCtx, signed: Tensor) -> Tensor:
        largest = math.log(LARGEST_EVIDENCE)
        linear = (signed - largest).clamp_min_(0.0)
        evidence = signed.clamp_max(largest).exp_().add_(linear, alpha=LARGEST_EVIDENCE)
        ctx.save_for_backward(evidence)
        return evidence

    @staticmethod
    @once_differentiable
    def backward(ctx: FunctionCtx, gradient: Tensor) -> Tensor:
        """Multiply by the slope: e, and from L on L."""
        (evidence,) = ctx.saved_tensors
        return gradient * evidence.clamp_max(LARGEST_EVIDENCE)


def _expected(opinion: Opinion) -> Tensor:
    """Return b + u / K, (K, B, Q, *spatial)."""
    return opinion.belief + opinion.uncertainty / len(opinion.belief)
