"""Moments and margins against naive float64 references, and the closed form against a Monte-Carlo estimate."""

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from nnunet_ssl.building_blocks.label_space import SigmoidRegions, SoftmaxLabels
from nnunet_ssl.building_blocks.semantic_augmentation import (
    RunningMoments,
    Transfer,
    augment,
    class_maps,
    class_moments,
    expected_cross_entropy,
    expected_margins,
    num_classes,
)

SPACES = [SoftmaxLabels(3), SigmoidRegions(2)]
by_space = pytest.mark.parametrize("space", SPACES, ids=lambda space: type(space).__name__)
FEATURES = 4
UNLIMITED = math.inf


def normal(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def integers(*shape: int, below: int, seed: int = 0) -> torch.Tensor:
    return torch.randint(0, below, shape, generator=torch.Generator().manual_seed(seed))


def labels_of(space, *shape: int, seed: int = 0) -> torch.Tensor:
    """Return random labels of B images of some size."""
    if isinstance(space, SigmoidRegions):
        return integers(shape[0], space.num_channels, *shape[1:], below=2, seed=seed)
    return integers(shape[0], 1, *shape[1:], below=space.num_channels, seed=seed)


def classifier_of(space, dimensions: int = 2) -> nn.Module:
    """Return a convolution with random weights."""
    torch.manual_seed(0)
    return (nn.Conv2d if dimensions == 2 else nn.Conv3d)(FEATURES, space.num_channels, 1)


def covariance_of(classes: int, scale: float = 1.0, seed: int = 0) -> torch.Tensor:
    """Return a random covariance for each class, of full rank."""
    root = normal(classes, FEATURES, FEATURES, seed=seed)
    return scale * (root @ root.transpose(1, 2) / FEATURES + 0.1 * torch.eye(FEATURES))


def transfer_of(space, scale: float = 1.0, seed: int = 0) -> Transfer:
    classes = num_classes(space)
    return Transfer(scale * normal(classes, FEATURES, seed=seed), covariance_of(classes, scale, seed))


def running(space, *steps: torch.Tensor, decay: float = 0.99) -> RunningMoments:
    """Return the running moments after some steps."""
    moments = RunningMoments(space, classifier_of(space))
    for step in steps:
        moments.update(step, decay)
    return moments


# ---- classes and moments ----


def test_classes_of_labels_by_hand():
    """The ignored voxel (3) and that without weight have no class."""
    space = SoftmaxLabels(3, ignore_label=3)
    labels = torch.tensor([[[0, 2, 3, 1, 1]]])
    weight = space.is_known(labels) & torch.tensor([[[True, True, True, True, False]]])
    assert class_maps(space, labels, weight).tolist() == [[[1, 0, 0, 0, 0], [0, 0, 0, 1, 0], [0, 1, 0, 0, 0]]]
    assert num_classes(space) == 3


def test_classes_of_regions_by_hand():
    """Outside of both regions, then inside of both; the second voxel is ignored, the third unsure of region two."""
    space = SigmoidRegions(2, ignore_label=3)
    target = torch.tensor([[[1, 1, 0], [0, 1, 1], [0, 1, 0]]])
    weight = space.is_known(target) * torch.tensor([[[True, True, True], [True, True, False]]])
    outside, inside = [[0, 0, 1], [1, 0, 0]], [[1, 0, 0], [0, 0, 0]]
    assert class_maps(space, target, weight).tolist() == [[*outside, *inside]]
    assert class_maps(space, target, space.is_known(target))[0, 3].tolist() == [0, 0, 1]
    assert num_classes(space) == 4


def naive_moments(space, features, labels, weight) -> np.ndarray:
    """Return the sums over voxels in float64, one voxel after the other."""
    moments = np.zeros((num_classes(space), 1 + features.shape[1], 1 + features.shape[1]))
    f, y, w = (one.double().numpy() for one in (features, labels, weight))
    for place in np.ndindex(f.shape[0], *f.shape[2:]):
        b, voxel = place[0], place[1:]
        vector = np.array([1.0, *f[(b, slice(None), *voxel)]])
        if isinstance(space, SigmoidRegions):
            regions = range(space.num_channels)
            taught = [(r + space.num_channels * int(y[(b, r, *voxel)]), w[(b, r, *voxel)]) for r in regions]
        else:
            taught = [(int(y[(b, 0, *voxel)]), w[(b, 0, *voxel)])]
        for one, counts in taught:
            moments[one] += counts * np.outer(vector, vector)
    return moments


@by_space
@pytest.mark.parametrize("spatial", [(5, 6), (3, 4, 2)])
def test_moments_are_sums_over_the_voxels_of_each_class(space, spatial):
    features, labels = normal(2, FEATURES, *spatial), labels_of(space, 2, *spatial)
    weight = integers(*labels.shape, below=2, seed=1).bool()
    found = class_moments(features, class_maps(space, labels, weight))
    expected = naive_moments(space, features, labels, weight)
    np.testing.assert_allclose(found.numpy(), expected, rtol=1e-5, atol=1e-5)
    assert found[:, 0, 0].sum() == weight.sum()


def test_moments_of_two_batches_add_up():
    space = SoftmaxLabels(3)
    features, labels = normal(4, FEATURES, 5, 6), labels_of(space, 4, 5, 6)
    classes = class_maps(space, labels, torch.ones_like(labels))
    halves = [class_moments(features[part], classes[part]) for part in (slice(2), slice(2, 4))]
    torch.testing.assert_close(sum(halves), class_moments(features, classes))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_moments_of_half_precision_are_summed_in_float32(dtype):
    """So many products would overflow float16, and lose three digits in bfloat16, also under mixed precision."""
    space, features = SoftmaxLabels(2), (30.0 + normal(1, FEATURES, 32, 32)).to(dtype)
    labels = labels_of(space, 1, 32, 32)
    classes = class_maps(space, labels, torch.ones_like(labels))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = class_moments(features, classes)
    assert found.dtype == torch.float32
    expected = naive_moments(space, features, labels, torch.ones_like(labels))
    assert expected.max() > torch.finfo(torch.float16).max
    np.testing.assert_allclose(found.numpy(), expected, rtol=1e-6)


def test_moments_have_no_gradient():
    features = normal(1, FEATURES, 4, 4).requires_grad_()
    assert not class_moments(features, torch.ones(1, 2, 4, 4)).requires_grad


@pytest.mark.parametrize(
    ("spatial", "voxels", "expected"),
    [((8, 8), 64, 64), ((8, 8), 63, 3 * 3), ((4, 30, 30), 199, 1 * 6 * 6), ((1, 100), 10, 9), ((60, 60), 100, 9 * 9)],
)
def test_moments_of_large_images_are_those_of_a_lattice(spatial, voxels, expected):
    """As many voxels as asked for at most, from all parts of the image, even and odd."""
    places = torch.stack(torch.meshgrid(*(torch.arange(size) for size in spatial), indexing="ij"))[None].float()
    found = class_moments(places, torch.ones(1, 1, *spatial), voxels)[0]
    assert found[0, 0] == expected
    means = found[0, 1:] / found[0, 0]
    middle = torch.tensor([(size - 1) / 2 for size in spatial])
    assert ((means - middle).abs() <= 1.5).all()
    parity = class_moments(places % 2, torch.ones(1, 1, *spatial), voxels)[0]
    shares = (parity[0, 1:] / parity[0, 0])[[size > 20 for size in spatial]]
    assert ((shares > 0.3) & (shares < 0.7)).all()


@by_space
def test_means_and_covariances_of_a_step_are_numpys(space):
    features, labels = 2.0 + normal(2, FEATURES, 8, 8), labels_of(space, 2, 8, 8)
    step = class_moments(features, class_maps(space, labels, torch.ones_like(labels)))
    moments = running(space, torch.stack([step, 3.0 * step]))
    f = features.double().transpose(0, 1).flatten(1).numpy()
    maps = class_maps(space, labels, torch.ones_like(labels)).transpose(0, 1).flatten(1).numpy()
    for k, one in enumerate(maps):
        for stream in (0, 1):
            np.testing.assert_allclose(moments.means[stream, k], f[:, one > 0].mean(1), rtol=1e-5)
            covariance = np.cov(f[:, one > 0], ddof=0)
            np.testing.assert_allclose(moments.covariances[stream, k], covariance, rtol=1e-4, atol=1e-5)


def test_means_and_covariances_over_steps_are_numpys_with_weights_by_age():
    """No step before the first pulls towards 0: there is nothing to correct for at the start."""
    space, decay, ages = SoftmaxLabels(1), 0.6, (2, 1, 0)
    batches = [normal(1, FEATURES, 3 + i, 5, seed=i) + i for i in range(3)]
    steps = [class_moments(batch, torch.ones(1, 1, *batch.shape[2:]))[None].repeat(2, 1, 1, 1) for batch in batches]
    moments = running(space, *steps, decay=decay)
    f = np.concatenate([batch[0].flatten(1).double().numpy() for batch in batches], 1)
    weights = np.concatenate([np.full(b[0, 0].numel(), decay**age) for b, age in zip(batches, ages, strict=True)])
    np.testing.assert_allclose(moments.means[1, 0], np.average(f, axis=1, weights=weights), rtol=1e-5)
    np.testing.assert_allclose(moments.covariances[1, 0], np.cov(f, ddof=0, aweights=weights), rtol=1e-4)
    assert moments.counts[1, 0].item() == pytest.approx(weights.sum())


def test_absent_classes_keep_what_they_have_and_decay_no_further():
    space, labels = SoftmaxLabels(2), torch.zeros(1, 1, 4, 4, dtype=torch.long)
    labels[..., 2:] = 1
    ones = torch.ones_like(labels)
    both = class_moments(normal(1, FEATURES, 4, 4), class_maps(space, labels, ones))
    first = class_moments(normal(1, FEATURES, 4, 4, seed=1), class_maps(space, 0 * labels, ones))
    before = running(space, torch.stack([both, both]))
    after = running(space, torch.stack([both, both]), *[torch.stack([first, first])] * 50)
    assert torch.equal(after.moments[:, 1], before.moments[:, 1])
    assert not torch.isclose(after.means[:, 0], before.means[:, 0]).any()


@by_space
def test_classes_never_seen_move_nothing(space):
    """Δμ needs both streams, Σ the other one."""
    moments = running(space)
    for name in ("labeled", "unlabeled"):
        assert all(one.abs().max() == 0.0 for one in moments.transfer(name, 0.5))
    step = class_moments(1.0 + normal(1, FEATURES, 6, 6), torch.ones(1, num_classes(space), 6, 6))
    moments.update(torch.stack([torch.zeros_like(step), step]), 0.99)
    shift, covariance = moments.transfer("labeled", 0.5)
    assert shift.abs().max() == 0.0
    assert (covariance.diagonal(dim1=1, dim2=2) > 0.0).all()
    assert all(one.abs().max() == 0.0 for one in moments.transfer("unlabeled", 0.5))


def test_transfer_is_part_of_the_way_to_the_other_stream():
    space, ones = SoftmaxLabels(2), torch.ones(1, 2, 6, 6)
    steps = [class_moments(seed + normal(1, FEATURES, 6, 6, seed=seed), ones) for seed in (1, 5)]
    moments = running(space, torch.stack(steps))
    way = moments.means[1] - moments.means[0]
    assert (way > 2.0).all()
    for name, sign, target in (("labeled", 1.0, 1), ("unlabeled", -1.0, 0)):
        shift, covariance = moments.transfer(name, 0.25)
        torch.testing.assert_close(shift, sign * 0.25 * way)
        torch.testing.assert_close(covariance, 0.25 * moments.covariances[target])


def test_moments_survive_a_checkpoint():
    space = SoftmaxLabels(2)
    step = class_moments(normal(1, FEATURES, 6, 6), torch.ones(1, 2, 6, 6))
    moments, other = running(space, torch.stack([step, 2.0 * step])), running(space)
    other.load_state_dict(moments.state_dict())
    assert torch.equal(other.covariances, moments.covariances)
    assert torch.equal(other.counts, moments.counts)


# ---- margins and the loss ----


def naive_table(space, weight, transfer: Transfer, limit: float) -> tuple[np.ndarray, np.ndarray]:
    """Return what is added to each logit by class, and the part of the covariance, in float64."""
    w, mu, sigma = (one.detach().double().numpy() for one in (weight, *transfer))
    table, spread = np.zeros((num_classes(space), len(w))), np.zeros((num_classes(space), len(w)))
    for y in range(num_classes(space)):
        for k in range(len(w)):
            if isinstance(space, SigmoidRegions):
                is_inside, region = divmod(y, len(w))
                d, sign = (w[k] if k == region else 0.0 * w[k]), (-1.0 if is_inside else 1.0)
            else:
                d, sign = w[k] - w[y], 1.0
            spread[y, k] = min(0.5 * d @ sigma[y] @ d, limit)
            table[y, k] = d @ mu[y] + sign * spread[y, k]
    return table, spread


@by_space
@pytest.mark.parametrize("limit", [UNLIMITED, 0.4])
def test_margins_are_those_of_the_naive_reference(space, limit):
    weight, transfer = normal(space.num_channels, FEATURES, seed=3), transfer_of(space)
    margins = expected_margins(space, weight, transfer, limit)
    table, spread = naive_table(space, weight, transfer, limit)
    np.testing.assert_allclose(margins.table.numpy(), table, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(margins.spread.numpy(), spread, rtol=1e-4, atol=1e-5)
    assert (spread < limit).any()
    assert (limit == UNLIMITED) == (not margins.is_clamped.any())
    assert np.array_equal(margins.is_clamped.numpy(), spread == limit)
    assert np.array_equal(margins.pairs.numpy() > 0, spread > 0.0)


def naive_loss(space, logits, labels, weight, table) -> float:
    """Return the mean cross-entropy over voxels (and regions) with weight, one after the other, in float64."""
    z, y, w = (one.detach().double().numpy() for one in (logits, labels, weight))
    total, number = 0.0, 0.0
    for place in np.ndindex(z.shape[0], *z.shape[2:]):
        b, voxel = place[0], place[1:]
        here = z[(b, slice(None), *voxel)]
        if isinstance(space, SigmoidRegions):
            for r, one in enumerate(here):
                is_inside = int(y[(b, r, *voxel)])
                moved = one + table[r + len(here) * is_inside, r]
                total += w[(b, r, *voxel)] * math.log1p(math.exp(-moved if is_inside else moved))
                number += w[(b, r, *voxel)]
        else:
            answer = int(y[(b, 0, *voxel)])
            moved = here + table[answer]
            total += w[(b, 0, *voxel)] * (math.log(sum(math.exp(one) for one in moved)) - moved[answer])
            number += w[(b, 0, *voxel)]
    return total / max(number, 1.0)


@by_space
@pytest.mark.parametrize("spatial", [(4, 5), (2, 3, 4)])
def test_loss_is_that_of_the_naive_reference(space, spatial):
    classifier = classifier_of(space, len(spatial))
    features, labels, transfer = normal(2, FEATURES, *spatial), labels_of(space, 2, *spatial), transfer_of(space)
    weight = integers(*labels.shape, below=2, seed=1).bool()
    _, spread = naive_table(space, classifier.weight.flatten(1), transfer, UNLIMITED)
    limit = np.median(spread[spread > 0])
    table, spread = naive_table(space, classifier.weight.flatten(1), transfer, limit)
    found = augment(space, classifier, features, class_maps(space, labels, weight), transfer, limit)
    expected = naive_loss(space, classifier(features), labels, weight, table)
    assert found.loss.item() == pytest.approx(expected, rel=1e-5)
    assert found.margin.item() == pytest.approx(spread[spread > 0].mean(), rel=1e-4)
    assert found.clamped.item() == pytest.approx(0.5)


@by_space
def test_without_shift_and_covariance_it_is_plain_cross_entropy(space):
    classifier, features = classifier_of(space), normal(2, FEATURES, 6, 5)
    labels = labels_of(space, 2, 6, 5)
    nothing = Transfer(*(torch.zeros_like(one) for one in transfer_of(space)))
    found = augment(space, classifier, features, class_maps(space, labels, torch.ones_like(labels)), nothing, 5.0)
    logits = classifier(features)
    if isinstance(space, SigmoidRegions):
        expected = F.binary_cross_entropy_with_logits(logits, labels.float())
    else:
        expected = F.cross_entropy(logits, labels[:, 0])
    torch.testing.assert_close(found.loss, expected)
    assert found.margin == found.clamped == 0.0


@by_space
def test_without_any_voxel_the_loss_is_zero_and_so_is_its_gradient(space):
    classifier, labels = classifier_of(space), labels_of(space, 1, 3, 3)
    classes = class_maps(space, labels, torch.zeros_like(labels))
    found = augment(space, classifier, normal(1, FEATURES, 3, 3), classes, transfer_of(space), 5.0)
    found.loss.backward()
    assert found.loss == 0.0
    assert classifier.weight.grad.abs().max() == 0.0


def drawn(space, weight, bias, features, answer: int, transfer: Transfer, number: int = 200_000):
    """Return, of drawn augmentations of one voxel, the cross-entropy and its exponential, less one: (number,) each."""
    generator = torch.Generator().manual_seed(7)
    shift, covariance = (one[answer].double() for one in transfer)
    noise = torch.randn(number, FEATURES, generator=generator, dtype=torch.float64)
    augmented = features.double() + shift + noise @ torch.linalg.cholesky(covariance).T
    logits = augmented @ weight.double().T + bias.double()
    if isinstance(space, SigmoidRegions):
        is_inside, region = divmod(answer, space.num_channels)
        wrong = (-logits if is_inside else logits)[:, region].exp()
    else:
        wrong = (logits - logits[:, answer : answer + 1]).exp().sum(1) - 1.0
    return wrong.log1p(), wrong


@by_space
@pytest.mark.parametrize("scale", [0.05, 1.0, 4.0])
def test_closed_form_bounds_the_expectation(space, scale):
    """It is the logarithm of the mean of what the cross-entropy is the logarithm of, to the error of its estimate."""
    weight, bias = 0.7 * normal(space.num_channels, FEATURES, seed=3), normal(space.num_channels, seed=4)
    transfer = transfer_of(space, scale)
    margins = expected_margins(space, weight, transfer, UNLIMITED)
    assert not margins.is_clamped.any()
    for answer in range(num_classes(space)):
        features = normal(FEATURES, seed=answer)
        logits = (weight @ features + bias)[None, :, None]
        classes = torch.eye(num_classes(space))[answer][None, :, None]
        closed = expected_cross_entropy(space, logits, classes, margins.table).item()
        losses, wrong = drawn(space, weight, bias, features, answer, transfer)
        assert closed >= losses.mean().item() - 4.0 * (losses.std() / len(losses) ** 0.5).item()
        if scale <= 1.0:  # the mean of the exponential of a wide normal variable converges slowly
            estimate, error = wrong.mean().item(), (wrong.std() / len(wrong) ** 0.5).item()
            assert math.expm1(closed) == pytest.approx(estimate, abs=5.0 * error)


@by_space
def test_bound_is_close_for_a_narrow_distribution_and_not_for_a_wide_one(space):
    weight, bias = normal(space.num_channels, FEATURES, seed=3), normal(space.num_channels, seed=4)
    gaps = []
    for scale in (0.001, 1.0):
        transfer = transfer_of(space, scale)
        table = expected_margins(space, weight, transfer, UNLIMITED).table
        features, classes = normal(FEATURES, seed=1), torch.eye(num_classes(space))[1][None, :, None]
        closed = expected_cross_entropy(space, (weight @ features + bias)[None, :, None], classes, table).item()
        gaps.append(closed - drawn(space, weight, bias, features, 1, transfer)[0].mean().item())
    assert abs(gaps[0]) < 0.005 < 0.1 < gaps[1]


@by_space
def test_gradient_is_that_of_the_closed_form(space):
    """To features, weights and bias; through the margins to the weights too, and to no statistics."""
    classifier, features = classifier_of(space), normal(1, FEATURES, 3, 4).requires_grad_()
    labels = labels_of(space, 1, 3, 4)
    transfer = Transfer(*(one.requires_grad_() for one in transfer_of(space)))
    classes = class_maps(space, labels, torch.ones_like(labels))
    inputs = [features, classifier.weight, classifier.bias]
    loss = augment(space, classifier, features, classes, transfer, UNLIMITED).loss
    gradients = torch.autograd.grad(loss, inputs, retain_graph=True)
    assert torch.autograd.grad(loss, list(transfer), allow_unused=True) == (None, None)

    f, w, b = (one.detach().double().requires_grad_() for one in inputs)
    mu, sigma = (one.detach().double() for one in transfer)
    losses, kernel = [], w.flatten(1)
    for place in np.ndindex(3, 4):
        z = kernel @ f[(0, slice(None), *place)] + b
        if isinstance(space, SigmoidRegions):
            for r in range(space.num_channels):
                inside = int(labels[(0, r, *place)])
                y, d = r + space.num_channels * inside, kernel[r] if not inside else -kernel[r]
                margin = (-z[r] if inside else z[r]) + d @ mu[y] + 0.5 * d @ sigma[y] @ d
                losses.append(F.softplus(margin))
        else:
            y = int(labels[(0, 0, *place)])
            moved = []
            for k in range(space.num_channels):
                d = kernel[k] - kernel[y]
                moved.append(z[k] + d @ mu[y] + 0.5 * d @ sigma[y] @ d)
            losses.append(torch.stack(moved).logsumexp(0) - moved[y])
    expected = torch.autograd.grad(torch.stack(losses).mean(), [f, w, b])
    for ours, theirs in zip(gradients, expected, strict=True):
        torch.testing.assert_close(ours.double(), theirs, rtol=1e-4, atol=1e-6)


@by_space
def test_clamp_limits_the_loss_whatever_the_covariance(space):
    """The loss is at most the limit above that with the shift alone, and what is clamped has no gradient."""
    classifier, features = classifier_of(space), normal(2, FEATURES, 6, 5)
    labels, transfer = labels_of(space, 2, 6, 5), transfer_of(space)
    classes = class_maps(space, labels, torch.ones_like(labels))
    shift_alone = transfer._replace(covariance=torch.zeros_like(transfer.covariance))
    huge = transfer._replace(covariance=1e12 * transfer.covariance)
    plain, found = (augment(space, classifier, features, classes, one, 3.0) for one in (shift_alone, huge))
    assert plain.loss < found.loss <= plain.loss + 3.0
    assert found.margin == pytest.approx(3.0)
    assert found.clamped == 1.0
    moved = transfer._replace(shift=0.0 * transfer.shift, covariance=huge.covariance)
    weight = classifier.weight.flatten(1).detach().requires_grad_()
    expected_margins(space, weight, moved, 3.0).table.sum().backward()
    assert weight.grad.abs().max() == 0.0


def test_share_of_clamped_pairs_by_hand():
    """Of six pairs of a class and a wrong answer, the four with d = 2 are within the limit, and two with d = 4 not."""
    weight = torch.tensor([[-2.0], [0.0], [2.0]])
    transfer = Transfer(torch.zeros(3, 1), torch.full((3, 1, 1), 0.5))
    margins = expected_margins(SoftmaxLabels(3), weight, transfer, 2.0)
    assert margins.table.tolist() == [[0.0, 1.0, 2.0], [1.0, 0.0, 1.0], [2.0, 1.0, 0.0]]
    assert margins.is_clamped.tolist() == [[False, False, True], [False, False, False], [True, False, False]]
    classifier = nn.Conv2d(1, 3, 1)
    classifier.weight.data = weight[:, :, None, None]
    found = augment(SoftmaxLabels(3), classifier, torch.ones(1, 1, 2, 2), torch.ones(1, 3, 2, 2), transfer, 2.0)
    assert found.clamped.item() == pytest.approx(2 / 6)
    assert found.margin.item() == pytest.approx(8 / 6)


@by_space
def test_covariance_of_wrong_labels_makes_training_blow_up_without_the_limit_alone(space):
    """Gradient descent with statistics that are as wide as mixed-up classes make them."""
    features, labels = normal(1, FEATURES, 8, 8), labels_of(space, 1, 8, 8)
    classes = class_maps(space, labels, torch.ones_like(labels))
    shift, covariance = transfer_of(space)
    losses = {}
    for limit in (UNLIMITED, 5.0):
        classifier = classifier_of(space)
        optimizer = torch.optim.SGD(classifier.parameters(), lr=0.1)
        for _ in range(50):
            optimizer.zero_grad()
            loss = augment(space, classifier, features, classes, Transfer(0.0 * shift, 1000.0 * covariance), limit).loss
            loss.backward()
            optimizer.step()
        losses[limit] = loss.item()
    assert not losses[UNLIMITED] < 1e6
    assert losses[5.0] < math.log(space.num_channels) + 5.0


@by_space
def test_mixed_precision_leaves_the_margins_in_float32(space):
    weight, transfer = normal(space.num_channels, FEATURES), transfer_of(space)
    labels = labels_of(space, 1, 4, 4)
    classes, logits = class_maps(space, labels, torch.ones_like(labels)), normal(1, space.num_channels, 4, 4)
    expected = expected_margins(space, weight, transfer, 5.0)
    loss = expected_cross_entropy(space, logits.half().float(), classes, expected.table)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = expected_margins(space, weight, transfer, 5.0)
        assert torch.equal(found.table, expected.table)
        assert torch.equal(expected_cross_entropy(space, logits.half(), classes, found.table), loss)
