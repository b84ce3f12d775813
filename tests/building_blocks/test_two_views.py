import numpy as np
import pytest
import torch

from nnunet_ssl.building_blocks.contrast import agreement_contrast
from nnunet_ssl.building_blocks.label_space import SigmoidRegions, SoftmaxLabels
from nnunet_ssl.building_blocks.two_views import Seen, Weights, losses_of_pass, see

KEYS = [(network, view) for network in (0, 1) for view in (0, 1)]
SPACES = [SoftmaxLabels(3), SigmoidRegions(2)]


def four_passes(space) -> dict[tuple[int, int], Seen]:
    torch.manual_seed(0)
    passes = {}
    for key in KEYS:
        probs = space.probabilities(2 * torch.randn(2, space.num_channels, 3, 4))
        labels = space.pseudo_label(probs).flatten(2)
        mask = space.one_hot(labels)[:, space.foreground].bool()
        passes[key] = Seen(probs.requires_grad_(), torch.randn(2, 5, 12, requires_grad=True), mask)
    return passes


def sharp(p: float, temperature: float) -> float:
    return p ** (1 / temperature) / (p ** (1 / temperature) + (1 - p) ** (1 / temperature))


@pytest.mark.parametrize("space", SPACES, ids=str)
@pytest.mark.parametrize("which", KEYS)
def test_terms_equal_naive_references(space, which):
    passes, (network, view) = four_passes(space), which
    own, other_view = passes[which], passes[network, 1 - view]
    same_view = passes[1 - network, view]
    found = losses_of_pass(space, own, passes, which, torch.tensor(1.0), Weights(2.0, 3.0, 4.0), 0.1)
    assert list(found) == ["cosine", "competition", "contrast"]

    p, q, r = (one.probs.detach().double().numpy() for one in (own, other_view, same_view))
    distances, errors = [], []
    for image, *voxel in np.ndindex(2, 3, 4):
        one, two = p[(image, slice(None), *voxel)], q[(image, slice(None), *voxel)]
        regions = isinstance(space, SigmoidRegions)
        pairs = [([a, 1 - a], [b, 1 - b]) for a, b in zip(one, two, strict=True)] if regions else [(one, two)]
        distances += [1 - np.dot(a, b) / np.linalg.norm(a) / np.linalg.norm(b) for a, b in pairs]
    for index in np.ndindex(p.shape):
        errors.append((p[index] - sharp(r[index], 0.1)) ** 2)
    assert found["cosine"].item() == pytest.approx(2.0 * np.mean(distances), rel=1e-5)
    assert found["competition"].item() == pytest.approx(3.0 * np.mean(errors), rel=1e-5)
    pairs = [
        agreement_contrast(own.features, o.features, own.mask, o.mask, 0.1)
        for o in (passes[1 - network, 0], passes[1 - network, 1])
    ]
    assert pairs[0] != pairs[1]
    torch.testing.assert_close(found["contrast"], 4.0 * (pairs[0] + pairs[1]))


def test_the_gradient_flows_into_the_own_pass_alone():
    space = SPACES[0]
    for which in KEYS:
        passes = four_passes(space)
        losses = losses_of_pass(space, passes[which], passes, which, torch.tensor(1.0), Weights(1.0, 1.0, 1.0), 0.1)
        sum(losses.values()).backward()
        for key, one in passes.items():
            assert (one.probs.grad is not None) == (key == which)
            assert (one.features.grad is not None) == (key == which)


def test_the_winner_learns_nothing_from_the_loser():
    space, which = SPACES[0], (1, 0)
    passes = four_passes(space)
    losses = losses_of_pass(space, passes[which], passes, which, torch.tensor(0.0), Weights(0.0, 1.0, 0.0), 0.1)
    assert losses["competition"].item() == 0.0
    losses["competition"].backward()
    assert not passes[which].probs.grad.any()


@pytest.mark.parametrize("left", range(3))
def test_a_term_without_weight_is_left_out(left):
    space, which = SPACES[0], (0, 1)
    weights = Weights(*(float(i == left) for i in range(3)))
    passes = {key: Seen(one.probs) if left < 2 else one for key, one in four_passes(space).items()}
    found = losses_of_pass(space, passes[which], passes, which, torch.tensor(1.0), weights, 0.1)
    assert list(found) == [Weights._fields[left]]


@pytest.mark.parametrize("space", SPACES, ids=str)
def test_what_is_seen_at_places(space):
    torch.manual_seed(0)
    logits = torch.randn(2, space.num_channels, 3, 4, requires_grad=True)
    features = torch.randn(2, 5, 3, 4, requires_grad=True)
    probs, projector = space.probabilities(logits), torch.nn.Conv1d(5, 2, 1)
    places = torch.tensor([[0, 5, 11], [3, 2, 1]])
    seen = see(space, probs, features, projector, places)
    foreground = space.one_hot(space.pseudo_label(probs))[:, space.foreground].bool().flatten(2)
    projected = projector(features.flatten(2))
    for image in range(2):
        for i, place in enumerate(places[image].tolist()):
            assert torch.equal(seen.mask[image, :, i], foreground[image, :, place])
            torch.testing.assert_close(seen.features[image, :, i], projected[image, :, place])
    assert seen.probs is probs
    seen.features.sum().backward()
    assert features.grad.flatten(2)[0].any(0).nonzero()[:, 0].tolist() == [0, 5, 11]
    detached = seen.detached()
    assert not any(one.requires_grad for one in detached)
    assert see(space, probs, features, projector, places[:, :0]) == Seen(probs)
