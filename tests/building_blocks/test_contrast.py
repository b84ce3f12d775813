import math

import numpy as np
import pytest
import torch

from nnunet_ssl.building_blocks.contrast import (
    agreement_contrast,
    at_places,
    places_to_compare,
    prediction_cosine_distance,
    projector_of,
)
from nnunet_ssl.building_blocks.label_space import SigmoidRegions, SoftmaxLabels
from tests.conftest import Case


def cosine(first: np.ndarray, second: np.ndarray) -> float:
    return float(first @ second / math.sqrt(first @ first) / math.sqrt(second @ second))


def naive_contrast(features, other, mask, other_mask, temperature: float) -> float:
    """Both terms of each image and channel, voxel by voxel, in float64, with nothing taken out of the sums."""
    found = []
    for image in range(mask.shape[0]):
        voxels = range(mask.shape[2])
        similarity = [cosine(features[image, :, v], other[image, :, v]) / temperature for v in voxels]
        agrees = [all(mask[image, :, v] == other_mask[image, :, v]) for v in voxels]
        for channel in range(mask.shape[1]):
            one, two = mask[image, channel], other_mask[image, channel]
            differing = [math.exp(similarity[w]) for w in voxels if (one[w] or two[w]) and not (one[w] and two[w])]
            if not differing:
                continue
            total = 0.0
            for members in (
                [v for v in voxels if one[v] and two[v] and agrees[v]],
                [v for v in voxels if not (one[v] or two[v]) and agrees[v]],
            ):
                terms = [-similarity[v] + math.log(math.exp(similarity[v]) + sum(differing)) for v in members]
                total += sum(terms) / len(terms) if terms else 0.0
            found.append(total)
    return sum(found) / len(found) if found else 0.0


def random_pair(rng, batch: int, channels: int, voxels: int, share: float = 0.3):
    features, other = (torch.tensor(rng.normal(size=(batch, 5, voxels))) for _ in range(2))
    mask = torch.tensor(rng.random((batch, channels, voxels)) < 0.4)
    return features, other, mask, mask ^ torch.tensor(rng.random((batch, channels, voxels)) < share)


@pytest.mark.parametrize(("batch", "channels"), [(1, 1), (2, 3)])
@pytest.mark.parametrize("temperature", [0.1, 1.0])
def test_contrast_equals_naive_reference(batch, channels, temperature):
    rng = np.random.default_rng(batch)
    pair = random_pair(rng, batch, channels, 23)
    expected = naive_contrast(*(one.numpy() for one in pair), temperature)
    assert expected > 0.5
    assert agreement_contrast(*pair, temperature).item() == pytest.approx(expected, rel=1e-5)


def test_contrast_by_hand():
    """Similarities 1, -1 and 0: foreground agreed, background agreed, disagreement; the temperature is 1."""
    features = torch.tensor([[[1.0, 1.0, 1.0], [0.0, 0.0, 0.0]]])
    other = torch.tensor([[[2.0, -3.0, 0.0], [0.0, 0.0, 1.0]]])
    mask, other_mask = torch.tensor([[[True, False, True]]]), torch.tensor([[[True, False, False]]])
    inside = -1.0 + math.log(math.e + 1.0)
    outside = 1.0 + math.log(1.0 / math.e + 1.0)
    found = agreement_contrast(features, other, mask, other_mask, 1.0)
    assert found.item() == pytest.approx(inside + outside, rel=1e-6)


def test_contrast_is_averaged_over_images_and_channels_that_have_a_disagreement():
    rng = np.random.default_rng(0)
    features, other, mask, other_mask = random_pair(rng, 1, 1, 31)
    alone = agreement_contrast(features, other, mask, other_mask, 0.1)
    twice = [torch.cat([one, one]) for one in (features, other, mask)]
    agreed = torch.cat([other_mask, mask])
    torch.testing.assert_close(agreement_contrast(*twice, agreed, 0.1), alone)
    absent = torch.zeros_like(mask)
    channels = [torch.cat([one, absent], 1) for one in (mask, other_mask)]
    torch.testing.assert_close(agreement_contrast(features, other, *channels, 0.1), alone)


def test_a_voxel_that_differs_in_another_channel_is_no_positive():
    """The networks say class 1 and class 2; both say not 3, which is no reason to pull their features together."""
    labels, other_labels = torch.tensor([[[1, 3, 0, 3]]]), torch.tensor([[[2, 3, 0, 0]]])
    space = SoftmaxLabels(4)
    mask, other_mask = (space.one_hot(one)[:, 1:].bool() for one in (labels, other_labels))
    torch.manual_seed(0)
    features, other = torch.randn(1, 5, 4, requires_grad=True), torch.randn(1, 5, 4)
    agreement_contrast(features, other, mask, other_mask, 0.1).backward()
    similarity = torch.cosine_similarity(features, other, 1)
    (rise,) = torch.autograd.grad(similarity.sum(), features)
    pull = -(features.grad * rise).sum(1)[0].sign()
    assert pull.tolist() == [-1.0, 1.0, 1.0, -1.0]


@pytest.mark.parametrize(
    ("mask", "other_mask"),
    [
        ([0, 0, 0, 0], [0, 0, 0, 0]),  # both masks empty
        ([1, 1, 1, 1], [1, 1, 1, 1]),  # one class only
        ([1, 0, 1, 0], [1, 0, 1, 0]),  # no disagreement
        ([1, 1, 1, 1], [0, 0, 0, 0]),  # nothing but disagreement
        ([1, 0, 0, 0], [0, 0, 0, 0]),  # no agreed foreground
        ([1, 1, 1, 1], [0, 1, 1, 1]),  # no agreed background
    ],
)
def test_contrast_without_members_or_negatives_is_a_number(mask, other_mask):
    torch.manual_seed(0)
    features, other = torch.randn(1, 3, 4, requires_grad=True), torch.randn(1, 3, 4, requires_grad=True)
    masks = [torch.tensor(one, dtype=torch.bool).view(1, 1, 4) for one in (mask, other_mask)]
    found = agreement_contrast(features, other, *masks, 0.1)
    found.backward()
    given = [features.detach(), other.detach(), *masks]
    assert found.item() == pytest.approx(naive_contrast(*(one.numpy() for one in given), 0.1), rel=1e-5)
    assert features.grad.isfinite().all()
    assert other.grad.isfinite().all()
    has_both = mask != other_mask and (any(a == b for a, b in zip(mask, other_mask, strict=True)))
    assert bool(features.grad.any()) == has_both


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_many_similar_voxels_do_not_overflow(dtype):
    """e^(1/τ) = e^10 of 60 000 negatives is 1.3e9, and float16 ends at 65 504."""
    voxels = 60_000
    features = torch.ones(1, 8, voxels, dtype=dtype, requires_grad=True)
    mask, other_mask = torch.ones(2, 1, 1, voxels, dtype=torch.bool)
    mask[..., 0], other_mask[..., 0] = False, False
    mask[..., 2:] = False
    found = agreement_contrast(features, features.detach(), mask, other_mask, 0.1)
    assert found.dtype == torch.float32
    assert found.item() == pytest.approx(2 * math.log(1 + voxels - 2), rel=1e-4)
    found.backward()
    assert features.grad.isfinite().all()


@pytest.mark.parametrize("channels", [1, 3])
def test_minimised_freely_agreed_voxels_are_alike_and_differing_ones_are_not(channels):
    """What the authors' denominators do not do: there agreed voxels end near 0."""
    rng = np.random.default_rng(0)
    labels = torch.tensor(rng.integers(0, channels + 1, (1, 1, 2000)))
    changed = torch.tensor(rng.random(labels.shape) < 0.05)
    other_labels = torch.where(changed, (labels + 1) % (channels + 1), labels)
    space = SoftmaxLabels(channels + 1)
    mask, other_mask = (space.one_hot(one)[:, 1:].bool() for one in (labels, other_labels))
    features, other = (torch.tensor(rng.normal(size=(1, 64, 2000)), requires_grad=True) for _ in range(2))
    optimizer = torch.optim.Adam([features, other], lr=0.1)
    for _ in range(150):
        optimizer.zero_grad()
        agreement_contrast(features, other, mask, other_mask, 0.1).backward()
        optimizer.step()
    similarity = torch.cosine_similarity(features, other, 1).detach()
    differs = changed[:, 0]
    inside, outside = ~differs & (labels[:, 0] > 0), ~differs & (labels[:, 0] == 0)
    assert similarity[inside].mean() > 0.7
    assert similarity[outside].mean() > 0.7
    assert similarity[inside | outside].min() > 0.4
    assert similarity[differs].max() < 0.0


# ---- places ----

SPACES = {"softmax": (SoftmaxLabels(3), (2, 3, 6, 7)), "regions": (SigmoidRegions(2), (2, 2, 4, 5, 3))}


def differing_and_foreground(space, probs):
    labels = torch.stack([space.pseudo_label(one) for one in probs]).flatten(3)
    return (labels != labels[:1]).any(0).any(1), (labels > 0).any(0).any(1)


@pytest.mark.parametrize("name", SPACES)
def test_places_are_different_ones_and_half_are_where_predictions_differ(name):
    space, shape = SPACES[name]
    torch.manual_seed(0)
    voxels = math.prod(shape[2:])
    probs = [space.probabilities(torch.randn(shape)) for _ in range(3)]
    differs, _ = differing_and_foreground(space, probs)
    assert (differs.sum(1) >= 10).all()
    places = places_to_compare(space, probs, 20)
    assert places.shape == (2, 20)
    assert all(len(set(one)) == 20 for one in places.tolist())
    assert differs.gather(1, places[:, 10:]).all()
    for count in (voxels, voxels + 5):
        everything = places_to_compare(space, probs, count)
        assert [sorted(one) for one in everything.tolist()] == [list(range(voxels))] * 2
    assert places_to_compare(space, probs, 0).shape == (2, 0)
    assert places_to_compare(space, probs, 1).shape == (2, 1)


def test_places_that_are_left_are_foreground_then_any():
    """A single voxel differs, 8 are foreground in some prediction, and half of 24 places are chosen."""
    space = SoftmaxLabels(2)
    labels = torch.zeros(1, 1, 10, 10, dtype=torch.long)
    labels[..., :4, :2] = 1
    other = labels.clone()
    other[..., 0, 0] = 0
    probs = [space.one_hot(one) for one in (labels, other)]
    for seed in range(5):
        torch.manual_seed(seed)
        places = places_to_compare(space, probs, 24)[0]
        assert {10 * i + j for i in range(4) for j in range(2)} <= set(places.tolist())
    drawn = [places_to_compare(space, probs, 24)[0, :12] for _ in range(400)]
    counts = torch.bincount(torch.cat(drawn), minlength=100)
    assert counts.min() > 20, "half of the places lie anywhere"
    assert counts.max() < 90


def test_places_take_what_any_of_three_predictions_sees_differently():
    """All is foreground, and one voxel of another class in the last prediction."""
    space = SoftmaxLabels(3)
    labels = torch.ones(3, 1, 1, 1000, dtype=torch.long)
    labels[2, ..., 7] = 2
    probs = [space.one_hot(one[None]) for one in labels]
    for seed in range(5):
        torch.manual_seed(seed)
        assert 7 in places_to_compare(space, probs, 2)[0]


def test_maps_at_places():
    maps = torch.arange(2 * 3 * 4 * 5).float().view(2, 3, 4, 5).requires_grad_()
    places = torch.tensor([[0, 19], [7, 3]])
    found = at_places(maps, places)
    for image, channel, i in np.ndindex(2, 3, 2):
        row, column = divmod(places[image, i].item(), 5)
        assert found[image, channel, i] == maps[image, channel, row, column]
    found.sum().backward()
    assert maps.grad.sum() == 12


@pytest.mark.parametrize("dim", [2, 3])
def test_projector_maps_each_place_for_itself(dim):
    from nnunetv2.utilities.get_network_from_plans import get_network_from_plans

    architecture = Case(dim=dim).plans()["configurations"][Case(dim=dim).configuration]["architecture"]
    name, arguments = architecture["network_class_name"], architecture["arch_kwargs"]
    network = get_network_from_plans(name, arguments, architecture["_kw_requires_import"], 1, 2)
    projector, points = projector_of(network), torch.randn(2, 4, 9)
    found = projector(points)
    assert found.shape == (2, 64, 9)
    torch.testing.assert_close(projector(points[:, :, 3:4]), found[:, :, 3:4])
    kinds = [type(one).__name__ for one in projector]
    assert kinds == ["Conv1d", "PReLU", "Conv1d"]


# ---- cosine ----


@pytest.mark.parametrize("name", SPACES)
def test_cosine_distance_equals_naive_reference(name):
    space, shape = SPACES[name]
    rng = np.random.default_rng(0)
    first, second = rng.random((2, *shape))
    total, count = 0.0, 0
    for image, *voxel in np.ndindex(shape[0], *shape[2:]):
        one, two = first[(image, slice(None), *voxel)], second[(image, slice(None), *voxel)]
        pairs = [(one, two)]
        if name == "regions":
            pairs = [(np.array([p, 1 - p]), np.array([q, 1 - q])) for p, q in zip(one, two, strict=True)]
        for pair in pairs:
            total, count = total + 1.0 - cosine(*pair), count + 1
    found = prediction_cosine_distance(space, torch.tensor(first), torch.tensor(second))
    assert found.item() == pytest.approx(total / count, rel=1e-5)


def test_cosine_distance_at_its_ends():
    for space in (SoftmaxLabels(2), SigmoidRegions(2)):
        probs = torch.eye(2).view(1, 2, 2, 1)
        assert prediction_cosine_distance(space, probs, probs).item() == pytest.approx(0.0, abs=1e-6)
        assert prediction_cosine_distance(space, probs, 1.0 - probs).item() == pytest.approx(1.0, abs=1e-6)


def test_a_single_region_has_a_direction_too():
    probs, other = (torch.full((1, 1, 4, 4), value, requires_grad=True) for value in (0.3, 0.6))
    prediction_cosine_distance(SigmoidRegions(1), probs, other).backward()
    assert (probs.grad < 0).all(), "0.3 moves towards 0.6"
    assert other.grad is None


def test_cosine_distance_moves_the_first_prediction_alone():
    probs, other = (torch.rand(1, 3, 4, 4, requires_grad=True) for _ in range(2))
    prediction_cosine_distance(SoftmaxLabels(3), probs, other).backward()
    assert probs.grad.abs().sum() > 0
    assert other.grad is None
