import math

import numpy as np
import pytest
import torch

from nnunet_ssl.building_blocks.evidence import (
    LARGEST_EVIDENCE,
    Opinion,
    class_aware_fusion,
    combine,
    evidence_of,
    expected_logits,
    expected_probabilities,
    hypotheses_of,
    means,
    opinion_of,
    reliability,
)
from nnunet_ssl.building_blocks.fisher_information import fisher_information_loss
from nnunet_ssl.building_blocks.label_space import SigmoidRegions, SoftmaxLabels

SPACES = [SoftmaxLabels(3), SoftmaxLabels(2), SigmoidRegions(2), SigmoidRegions(1)]


def voxels_of(space, logits: np.ndarray):
    """Yield the place of each question in the result, and the logits of its hypotheses' evidence."""
    for image, *voxel in np.ndindex(logits.shape[0], *logits.shape[2:]):
        if isinstance(space, SigmoidRegions):
            for region in range(space.num_channels):
                value = float(logits[(image, region, *voxel)])
                yield (image, region, *voxel), [value, -value]
        else:
            yield (image, 0, *voxel), [float(value) for value in logits[(image, slice(None), *voxel)]]


def logits_for(space, scale: float = 3.0) -> torch.Tensor:
    return scale * torch.randn(2, space.num_channels, 3, 4, 2, generator=torch.Generator().manual_seed(0))


def opinions_for(space) -> tuple[Opinion, Opinion]:
    """Two opinions in float64."""
    generator = torch.Generator().manual_seed(1)
    opinions = []
    for scale in (2.0, 9.0):
        evidence = scale * torch.rand(evidence_of(space, logits_for(space)).shape, generator=generator).double()
        strength = evidence.sum(0) + len(evidence)
        opinions.append(Opinion(evidence / strength, len(evidence) / strength))
    return opinions[0], opinions[1]


@pytest.mark.parametrize("space", SPACES, ids=str)
def test_evidence_opinion_and_mean_equal_naive_reference(space):
    logits = logits_for(space, 2.0)
    assert logits.abs().max() < math.log(LARGEST_EVIDENCE)
    evidence, opinion = evidence_of(space, logits), opinion_of(space, logits)
    expected, probs = expected_logits(space, logits), expected_probabilities(space, opinion)
    turned = space.probabilities(expected)
    for (image, question, *voxel), scores in voxels_of(space, logits.numpy()):
        e = [math.exp(score) for score in scores]
        alpha = [one + 1 for one in e]
        strength, place = sum(alpha), (image, question, *voxel)
        for n in range(len(scores)):
            assert evidence[(n, *place)].item() == pytest.approx(e[n], rel=1e-5)
            assert opinion.belief[(n, *place)].item() == pytest.approx(e[n] / strength, rel=1e-5)
        assert opinion.uncertainty[place].item() == pytest.approx(len(scores) / strength, rel=1e-5)
        for channel in [question] if isinstance(space, SigmoidRegions) else range(space.num_channels):
            p = alpha[0 if isinstance(space, SigmoidRegions) else channel] / strength
            assert turned[(image, channel, *voxel)].item() == pytest.approx(p, rel=1e-5)
            assert probs[(image, channel, *voxel)].item() == pytest.approx(p, rel=1e-5)
        if isinstance(space, SoftmaxLabels):
            found = expected[(image, slice(None), *voxel)].tolist()
            assert found == pytest.approx([math.log(one) for one in alpha], rel=1e-4, abs=1e-6)
        else:
            assert expected[place].item() == pytest.approx(math.log(alpha[0] / alpha[1]), rel=1e-4, abs=1e-6)


@pytest.mark.parametrize("space", SPACES, ids=str)
def test_losses_of_expected_logits_are_those_of_the_mean(space):
    logits = logits_for(space, 2.0)
    labels = space.pseudo_label(space.probabilities(torch.randn_like(logits)))
    found = space.cross_entropy(expected_logits(space, logits), labels)
    target = hypotheses_of(space, space.one_hot(labels))
    for place, scores in voxels_of(space, logits.numpy()):
        alpha = [math.exp(score) + 1 for score in scores]
        chosen = [n for n in range(len(alpha)) if target[(n, *place)] == 1]
        assert len(chosen) == 1
        assert found[place].item() == pytest.approx(-math.log(alpha[chosen[0]] / sum(alpha)), rel=1e-5, abs=1e-6)


def test_belief_and_uncertainty_sum_to_one_and_no_gradient_flows():
    for space in SPACES:
        logits = logits_for(space).requires_grad_()
        opinion = opinion_of(space, logits)
        torch.testing.assert_close(opinion.belief.sum(0) + opinion.uncertainty, torch.ones_like(opinion.uncertainty))
        assert not opinion.belief.requires_grad
        assert not opinion.uncertainty.requires_grad


def test_evidence_by_hand():
    (none, much) = evidence_of(SoftmaxLabels(2), torch.tensor([[[0.0], [5.0]]]))[:, 0, 0, 0].tolist()
    assert none == pytest.approx(1.0)
    assert much == pytest.approx(math.exp(5))
    inside, outside = evidence_of(SigmoidRegions(1), torch.tensor([[[5.0]]]))[:, 0, 0, 0].tolist()
    assert inside == pytest.approx(math.exp(5))
    assert outside == pytest.approx(math.exp(-5))


def test_a_class_that_is_wrongly_sure_is_told_so_as_with_softmax():
    """Background is far ahead, the label is foreground: α = e + 1, so d CE / d z = e / S - y e / α."""
    logits = torch.tensor([[[6.0], [-3.0]]], requires_grad=True)
    foreground = torch.ones(1, 1, 1, dtype=torch.long)
    SoftmaxLabels(2).cross_entropy(expected_logits(SoftmaxLabels(2), logits), foreground).sum().backward()
    e0, e1 = math.exp(6), math.exp(-3)
    strength = e0 + e1 + 2
    assert logits.grad.flatten().tolist() == pytest.approx([e0 / strength, e1 / strength - e1 / (e1 + 1)], rel=1e-4)
    assert logits.grad[0, 0] > 0.99


def test_a_region_is_a_softmax_of_two_classes_with_opposite_logits():
    logits = logits_for(SigmoidRegions(1))
    region, classes = (SigmoidRegions(1), logits), (SoftmaxLabels(2), torch.cat([-logits, logits], 1))
    torch.testing.assert_close(opinion_of(*region).uncertainty, opinion_of(*classes).uncertainty)
    torch.testing.assert_close(opinion_of(*region).belief, opinion_of(*classes).belief.flip(0))


@pytest.mark.parametrize("space", SPACES, ids=str)
@pytest.mark.parametrize("scale", [1.0, 30.0, 1000.0])
def test_labels_of_evidence_are_those_of_the_logits(space, scale):
    """What stock nnU-Net makes of the logits is what has most evidence, beyond the limit too.

    Where no class has any, because all logits are far below 0, a number cannot hold which has most.
    """
    logits = logits_for(space, scale)
    stock = space.pseudo_label(space.probabilities(logits))
    evidence, probs = evidence_of(space, logits), expected_probabilities(space, opinion_of(space, logits))
    most = evidence.amax(0)
    by_evidence = (evidence[0] > evidence[1]).long() if isinstance(space, SigmoidRegions) else evidence.argmax(0)
    assert torch.equal(by_evidence[most > 0], stock[most > 0])
    seen = most > 1e-5  # 1 + e is another number than 1
    assert torch.equal(space.pseudo_label(probs)[seen], stock[seen])
    assert seen.float().mean() > 0.5


def test_evidence_does_not_explode_and_keeps_order_and_gradient():
    limit = LARGEST_EVIDENCE
    beyond = math.log(limit)
    values = torch.tensor([-50.0, 0.0, 3.0, beyond - 0.01, beyond + 0.01, beyond + 1, 6e4, 1e30])
    logits = values.view(1, 1, -1).expand(1, 2, -1).clone().requires_grad_()
    evidence = evidence_of(SoftmaxLabels(2), logits)[0, 0, 0]
    assert evidence.isfinite().all()
    assert (evidence.diff() > 0).all()
    torch.testing.assert_close(evidence[:4], values[:4].exp())
    torch.testing.assert_close(evidence[5].item(), limit * 2)
    evidence.sum().backward()
    gradient = logits.grad[0, 0]
    assert gradient.isfinite().all()
    torch.testing.assert_close(gradient[[1, 5]], torch.tensor([1.0, limit]))


@pytest.mark.parametrize("space", [SoftmaxLabels(3), SigmoidRegions(2)], ids=str)
def test_losses_of_extreme_logits_are_finite_and_teach(space):
    """Wrong and sure beyond the limit: the gradient is a number, and lowers what is wrong."""
    labels = torch.zeros(1, 1 if isinstance(space, SoftmaxLabels) else 2, 2, dtype=torch.long)
    for size in (1e2, 1e4, 1e8, 1e30):
        logits = torch.full((1, space.num_channels, 2), -size)
        logits[:, 1] = size
        logits.requires_grad_()
        fisher = fisher_information_loss(
            evidence_of(space, logits), hypotheses_of(space, space.one_hot(labels)), 0.05
        ).mean()
        loss = space.cross_entropy(expected_logits(space, logits), labels).mean()
        (fisher + loss).backward()
        assert fisher.isfinite()
        assert loss.isfinite()
        assert logits.grad.isfinite().all()
        if size < 1e30:
            assert (logits.grad[:, 1] > 0).all()


def naive_fusion(first: Opinion, second: Opinion, factor: float) -> tuple[np.ndarray, np.ndarray]:
    belief, uncertainty = np.zeros(first.belief.shape), np.zeros(first.uncertainty.shape)
    for place in np.ndindex(*first.uncertainty.shape):
        u1, u2 = first.uncertainty[place].item(), second.uncertainty[place].item()
        masses = []
        for n in range(len(first.belief)):
            b1, b2 = first.belief[(n, *place)].item(), second.belief[(n, *place)].item()
            masses.append(b1 * b2 + factor * (b1 * u2 + b2 * u1))
        total = sum(masses) + u1 * u2
        uncertainty[place] = u1 * u2 / total
        for n, mass in enumerate(masses):
            belief[(n, *place)] = mass / total
    return belief, uncertainty


@pytest.mark.parametrize("space", SPACES, ids=str)
@pytest.mark.parametrize("fusion", ["full", "rest", "mean"])
def test_fusion_equals_naive_reference(space, fusion):
    first, second = opinions_for(space)
    found = combine(first, second, fusion)
    count = 2 if isinstance(space, SigmoidRegions) else space.num_channels
    if fusion == "mean":
        belief, uncertainty = (np.mean([a.numpy(), b.numpy()], 0) for a, b in zip(first, second, strict=True))
    else:
        belief, uncertainty = naive_fusion(first, second, 1 / (1 + count) if fusion == "full" else 1 / count)
    np.testing.assert_allclose(found.belief.numpy(), belief, rtol=1e-12)
    np.testing.assert_allclose(found.uncertainty.numpy(), uncertainty, rtol=1e-12)
    torch.testing.assert_close(found.belief.sum(0) + found.uncertainty, torch.ones_like(found.uncertainty))
    again = combine(second, first, fusion)
    torch.testing.assert_close(again.belief, found.belief)


def opinion(*belief: float) -> Opinion:
    return Opinion(torch.tensor(belief).view(-1, 1, 1, 1), torch.tensor(1.0 - sum(belief)).view(1, 1, 1))


def test_fusion_by_hand():
    """b = (0.6, 0.2), u = 0.2 and b = (0.1, 0.4), u = 0.5 with a factor of 1/3."""
    fused = class_aware_fusion(opinion(0.6, 0.2), opinion(0.1, 0.4), 1 / 3)
    masses = 0.06 + (0.3 + 0.02) / 3, 0.08 + (0.1 + 0.08) / 3
    total = sum(masses) + 0.1
    assert fused.belief.ravel().tolist() == pytest.approx([mass / total for mass in masses])
    assert fused.uncertainty.item() == pytest.approx(0.1 / total)


def test_two_that_agree_are_surer_together_and_two_vacuous_ones_stay_vacuous():
    one = opinion(0.7, 0.1)
    assert combine(one, one, "full").uncertainty < one.uncertainty
    nothing = combine(opinion(0.0, 0.0), opinion(0.0, 0.0), "full")
    assert nothing.uncertainty.item() == 1.0
    assert nothing.belief.sum() == 0.0


def test_the_surer_network_decides():
    fused = combine(opinion(0.85, 0.05), opinion(0.1, 0.3), "full")
    assert fused.belief[0] > fused.belief[1]
    assert combine(opinion(0.1, 0.3), opinion(0.3, 0.2), "full").belief.argmax() == 1


@pytest.mark.parametrize("space", SPACES, ids=str)
def test_reliability_equals_naive_reference(space):
    fused = combine(*opinions_for(space), "full")
    found = reliability(fused)
    for place in np.ndindex(*found.shape):
        u, count = fused.uncertainty[place].item(), len(fused.belief)
        probs = [fused.belief[(n, *place)].item() + u / count for n in range(count)]
        assert found[place].item() == pytest.approx(math.exp(u * sum(p * math.log2(p) for p in probs)), rel=1e-10)


def test_reliability_is_one_for_certainty_and_least_without_evidence():
    assert reliability(opinion(1.0, 0.0)).item() == 1.0
    assert reliability(opinion(0.0, 0.0)).item() == pytest.approx(math.exp(-1))
    ordered = [opinion(0.0, 0.0), opinion(0.2, 0.2), opinion(0.6, 0.1), opinion(0.9, 0.05)]
    values = [reliability(one).item() for one in ordered]
    assert values == sorted(values)
    assert len(set(values)) == len(values)


def test_hypotheses_of_labels():
    labels = torch.tensor([[[0.0, 1.0], [1.0, 0.0]]])  # (1, 2, 2)
    regions = hypotheses_of(SigmoidRegions(2), labels)
    assert torch.equal(regions[0], labels)
    assert torch.equal(regions[1], 1 - labels)
    classes = hypotheses_of(SoftmaxLabels(2), labels)
    assert classes.shape == (2, 1, 1, 2)
    assert torch.equal(classes[:, 0, 0], labels[0])


def test_means_for_the_curves():
    first, second = opinions_for(SoftmaxLabels(3))
    fused = combine(first, second, "full")
    found = means((first, second), fused, torch.full((2, 2), 0.25))
    assert found["reliability"] == 0.25
    for name, one in {"first": first, "second": second, "fused": fused}.items():
        assert found[f"uncertainty/{name}"] == one.uncertainty.mean()
