import math
import weakref

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from nnunet_ssl.building_blocks.self_paced_contrast import (
    Pace,
    age_at_quantile,
    age_between_bounds,
    alike,
    losses_in_passes,
    mirrored,
    paced_loss,
    pair_losses,
    part_of,
    pooled,
    projector_of,
    refuse,
    self_paced_weights,
)

CPU = torch.device("cpu")
LABELS = ["a", "a", "b", "a", "b", "c"]  # c is alone


def pace(**changed) -> Pace:
    return Pace(
        **{"pair_weights": "linear", "age": "quantile", "ages": (0.5, 1.0), "progress": 0.25} | changed, temperature=0.5
    )


def unit_vectors(number: int, seed: int = 0, dimensions: int = 5) -> torch.Tensor:
    return F.normalize(torch.tensor(np.random.default_rng(seed).normal(size=(number, dimensions))).float(), dim=1)


def naive_pair_losses(vectors: np.ndarray, temperature: float) -> np.ndarray:
    """Each pair for itself, in float64."""
    number = len(vectors)
    found = np.zeros((number, number))
    for i in range(number):
        for j in range(number):
            if i != j:
                others = [math.exp(vectors[i] @ vectors[a] / temperature) for a in range(number) if a != i]
                found[i, j] = -math.log(math.exp(vectors[i] @ vectors[j] / temperature) / sum(others))
    return found


def naive_loss(losses: np.ndarray, labels, weight_of) -> tuple[float, float, float]:
    """Return loss, mean weight and admitted share; `weight_of` gives the weight of ℓ with |P| alike ones."""
    rows = []
    for i, label in enumerate(labels):
        positives = [j for j, other in enumerate(labels) if other == label and j != i]
        if positives:
            weights = [weight_of(losses[i, j], len(positives)) for j in positives]
            terms = [weight * losses[i, j] for weight, j in zip(weights, positives, strict=True)]
            rows.append((np.mean(terms), np.mean(weights), np.mean([weight > 0 for weight in weights])))
    loss, mean, admitted = (float(np.mean(column)) for column in zip(*rows, strict=True))
    return (loss / mean if mean else 0.0), mean, admitted


def naive_quantile(losses: np.ndarray, labels, share: float) -> float:
    number = len(labels)
    known = [losses[i, j] for i in range(number) for j in range(number) if i != j and labels[i] == labels[j]]
    return 1.001 * sorted(known)[math.ceil(share * (len(known) - 1))]


# ---- pairs ----


@pytest.mark.parametrize("temperature", [0.07, 1.0])
def test_pair_losses_equal_naive_reference(temperature):
    vectors = unit_vectors(6)
    expected = naive_pair_losses(vectors.double().numpy(), temperature)
    np.testing.assert_allclose(pair_losses(vectors, temperature).numpy(), expected, rtol=1e-5, atol=1e-5)


def test_pair_losses_of_equal_images_are_the_log_of_their_number():
    losses = pair_losses(unit_vectors(1).expand(60, 5), 0.07)
    off_diagonal = losses[~torch.eye(60, dtype=torch.bool)]
    torch.testing.assert_close(off_diagonal, torch.full_like(off_diagonal, math.log(59)))
    assert losses.diagonal().abs().max() == 0.0


def test_perfect_clusters_have_the_log_of_their_size_as_floor():
    """Two clusters of four, opposite to each other: |P| = 3."""
    first = torch.tensor([1.0, 0.0]).expand(4, 2)
    losses = pair_losses(torch.cat([first, -first]), 0.07)
    assert losses[0, 1].item() == pytest.approx(math.log(3), abs=1e-5)


def test_pair_losses_are_float32_under_mixed_precision():
    vectors = unit_vectors(6)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        losses = pair_losses(vectors, 0.07)
    assert losses.dtype == torch.float32
    assert torch.equal(losses, pair_losses(vectors, 0.07))


def test_one_image_has_no_pair_and_no_gradient_that_is_not_a_number():
    vector = unit_vectors(1).requires_grad_()
    loss = paced_loss(pair_losses(vector, 0.07), alike(["a"], CPU), pace()).loss
    loss.backward()
    assert loss.item() == 0.0
    assert vector.grad.isfinite().all()


def test_alike_leaves_out_the_image_itself():
    expected = [[0, 1, 0, 1], [1, 0, 0, 1], [0, 0, 0, 0], [1, 1, 0, 0]]
    assert alike(["x", "x", None, "x"], CPU).int().tolist() == expected


# ---- age ----


@pytest.mark.parametrize(("share", "expected"), [(0.0, 1.0), (0.25, 2.0), (0.5, 3.0), (0.6, 4.0), (1.0, 5.0)])
def test_age_at_a_quantile_is_that_of_the_pairs_alike(share, expected):
    losses = torch.tensor([[0.0, 3.0, 5.0], [1.0, 0.0, 9.0], [4.0, 2.0, 0.0]])
    is_alike = torch.tensor([[0, 1, 1], [1, 0, 0], [1, 1, 0]]).bool()  # one of the nine lies outside
    assert age_at_quantile(losses, is_alike, share).item() == pytest.approx(1.001 * expected)


def test_age_without_a_pair_is_infinite_and_the_loss_zero():
    losses, nothing = pair_losses(unit_vectors(3), 0.5), torch.zeros(3, 3, dtype=torch.bool)
    assert age_at_quantile(losses, nothing, 0.5) == torch.inf
    for kind in ("linear", "hard", "constant"):
        found = paced_loss(losses, nothing, pace(pair_weights=kind))
        assert [one.item() for one in found] == [0.0, 0.0, 0.0]


def test_age_lies_between_the_floor_and_the_start_of_the_pair_losses():
    """An ACDC batch of 60: 19 others of a position, 5 of a patient; the authors' first ages are 5 and 3.5."""
    position, patient = (alike([i // size for i in range(60)], CPU) for size in (20, 6))
    assert age_between_bounds(position, 0.0).flatten().tolist() == pytest.approx([math.log(19)] * 60)
    assert age_between_bounds(position, 1.0).flatten().tolist() == pytest.approx([math.log(60)] * 60)
    assert age_between_bounds(position, 1.8)[0].item() == pytest.approx(5.0, abs=0.05)
    assert age_between_bounds(patient, 0.76)[0].item() == pytest.approx(3.5, abs=0.05)


def test_an_image_alike_with_no_other_has_a_finite_age():
    assert age_between_bounds(alike(["a", "b"], CPU), 0.5).isfinite().all()


@pytest.mark.parametrize("age", ["quantile", "bounds"])
@pytest.mark.parametrize("spread", [0.02, 1.0], ids=["barely different", "different"])
def test_some_pairs_are_admitted_from_the_start_and_more_later(age, spread):
    """Also where nothing is learned yet and all images look nearly alike; the bounds begin at ln 2N."""
    vectors = F.normalize(unit_vectors(1) + spread * unit_vectors(12, seed=1), dim=1)
    losses, is_alike = pair_losses(vectors, 0.07), alike([0, 1, 2] * 4, CPU)
    ages = (0.3, 1.0) if age == "quantile" else (1.0, 20.0)
    admitted = [
        paced_loss(losses, is_alike, pace(age=age, ages=ages, progress=progress)).admitted.item()
        for progress in (0.0, 0.1, 0.5, 1.0)
    ]
    assert admitted[0] > 0.0
    assert admitted == sorted(admitted)
    assert admitted[-1] == 1.0
    if spread == 1.0:
        assert admitted[0] < admitted[-1]


def test_share_grows_with_the_root_of_time():
    assert [pace(ages=(5.0, 60.0), progress=at).share for at in (0.0, 0.25, 1.0)] == [5.0, 32.5, 60.0]


# ---- weights ----


@pytest.mark.parametrize(
    ("kind", "expected"), [("linear", [0.75, 0.5, 0.0, 0.0]), ("hard", [1, 1, 1, 0]), ("constant", [1, 1, 1, 1])]
)
def test_weights_of_pairs(kind, expected):
    """Of losses 1, 2, 4 and 5 at age 4; the last one is of images that are not alike."""
    losses, is_alike = torch.tensor([[1.0, 2.0, 4.0, 5.0, 0.5]]), torch.tensor([[True, True, True, True, False]])
    weights = self_paced_weights(losses, is_alike, torch.tensor(4.0), kind)
    assert weights[0].tolist() == [*expected, 0.0]


def test_pairs_without_a_loss_are_admitted():
    weights = self_paced_weights(torch.zeros(1, 1), torch.ones(1, 1).bool(), torch.tensor(0.0))
    assert weights.item() == 1.0


@pytest.mark.parametrize("kind", ["linear", "hard", "constant"])
@pytest.mark.parametrize("age", ["quantile", "bounds"])
def test_paced_loss_equals_naive_reference(kind, age):
    vectors = unit_vectors(6)
    losses = naive_pair_losses(vectors.double().numpy(), 0.5)
    share = 0.5 + (1.0 - 0.5) * math.sqrt(0.25)

    def weight_of(loss: float, positives: int) -> float:
        bounds = math.log(positives) + share * (math.log(6) - math.log(positives))
        gamma = naive_quantile(losses, LABELS, share) if age == "quantile" else bounds
        return {"linear": max(1 - loss / gamma, 0.0), "hard": float(loss <= gamma), "constant": 1.0}[kind]

    expected = naive_loss(losses, LABELS, weight_of)
    found = paced_loss(pair_losses(vectors, 0.5), alike(LABELS, CPU), pace(pair_weights=kind, age=age))
    assert [one.item() for one in found] == pytest.approx(expected, rel=1e-4)
    assert 0.0 < expected[2] <= 1.0


def test_gradient_flows_to_both_images_of_a_pair_and_not_through_the_weights():
    """That of the linear loss is that of a mean with the weights as constants."""
    vectors, is_alike = unit_vectors(6).requires_grad_(), alike(LABELS, CPU)
    losses = pair_losses(vectors, 0.5)
    weights = self_paced_weights(losses, is_alike, age_at_quantile(losses, is_alike, 0.75))
    assert not weights.requires_grad
    count = is_alike.sum(1).clamp_min(1)
    rows = [(weights.detach() * one * is_alike).sum(1) / count for one in (losses, torch.ones_like(losses))]
    expected = torch.autograd.grad(rows[0].sum() / rows[1].sum(), vectors, retain_graph=True)[0]
    found = torch.autograd.grad(paced_loss(losses, is_alike, pace()).loss, vectors)[0]
    torch.testing.assert_close(found, expected)
    assert (found[:5].abs().sum(1) > 0.0).all()


def test_where_no_pair_is_admitted_the_loss_is_zero():
    losses = pair_losses(unit_vectors(6), 0.07)
    found = paced_loss(losses, alike(LABELS, CPU), pace(age="bounds", ages=(-30.0, -30.0)))
    assert [one.item() for one in found] == [0.0, 0.0, 0.0]


def test_label_that_all_images_share_tells_nothing():
    vectors = unit_vectors(4).requires_grad_()
    loss = paced_loss(pair_losses(vectors, 0.5), alike(["a"] * 4, CPU), pace()).loss
    loss.backward()
    assert loss.item() == 0.0
    assert vectors.grad.abs().max() == 0.0


@pytest.mark.parametrize("kind", ["linear", "hard", "constant"])
@pytest.mark.parametrize("age", ["quantile", "bounds"])
def test_an_image_that_is_not_finite_makes_the_loss_not_finite(kind, age):
    vectors = unit_vectors(6)
    vectors[2] = torch.nan
    loss = paced_loss(pair_losses(vectors, 0.5), alike(LABELS, CPU), pace(pair_weights=kind, age=age)).loss
    assert loss.isnan()


@pytest.mark.parametrize(("age", "ages"), [("bounds", (1.0, 2.0)), ("quantile", (0.5, 0.8))])
def test_wrong_labels_end_with_lower_weights_than_right_ones(age, ages):
    """Images of three kinds, of which each sixth has another one's label; a small network learns for 300 steps."""
    rng, found = torch.Generator().manual_seed(0), {}
    kinds = torch.arange(36) % 3
    is_wrong = torch.randperm(36, generator=rng) < 6
    labels = ((kinds + is_wrong) % 3).tolist()
    images = torch.randn(3, 20, generator=rng)[kinds] + 0.3 * torch.randn(36, 20, generator=rng)
    is_alike, really_alike = alike(labels, CPU), alike(kinds.tolist(), CPU)
    for kind in ("linear", "constant"):
        torch.manual_seed(0)
        network = nn.Sequential(nn.Linear(20, 16), nn.LeakyReLU(0.01), nn.Linear(16, 8))
        optimizer = torch.optim.SGD(network.parameters(), lr=0.01, momentum=0.9)
        for step in range(300):
            embeddings = F.normalize(network(images), dim=1)
            losses = pair_losses(embeddings, 0.07)
            now = pace(pair_weights=kind, age=age, ages=ages, progress=step / 300)
            optimizer.zero_grad()
            paced_loss(losses, is_alike, now).loss.backward()
            optimizer.step()
        similarity = (embeddings @ embeddings.T).detach()
        found[kind] = (similarity[really_alike].mean() - similarity[~really_alike].mean()).item()
        if kind == "linear":
            gamma = age_at_quantile(losses, is_alike, now.share)
            gamma = gamma if age == "quantile" else age_between_bounds(is_alike, now.share)
            weights = self_paced_weights(losses, is_alike, gamma)
            right, wrong = weights[is_alike & really_alike].mean(), weights[is_alike & ~really_alike].mean()
            assert 0.3 < right
            assert wrong < 0.5 * right
    assert found["linear"] > found["constant"] + 0.05, "and the embedding follows the images, not the wrong labels"


# ---- passes ----


def small_encoder() -> nn.Module:
    torch.manual_seed(1)
    return nn.Sequential(nn.Conv2d(1, 4, 3), nn.LeakyReLU(), nn.Conv2d(4, 6, 3))


def passes_of(images, labels, now):
    """Return encoder, projectors and the passes; the features before the last ones are another's business."""
    encoder = small_encoder()
    projectors = nn.ModuleDict({name: nn.Linear(6, 5) for name in labels})
    encode = lambda image: [image, encoder(image)]  # noqa: E731
    return encoder, projectors, losses_in_passes(encode, images, projectors, labels, now)


@pytest.mark.parametrize("kind", ["linear", "constant"])
def test_passes_sum_to_loss_and_gradient_of_all_images_at_once(kind):
    images = torch.randn(3, 2, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    labels = {"position": [0, 1, 0, 1, 1, 1], "patient": list("aabbcc")}
    now = pace(pair_weights=kind)
    encoder, projectors, passes = passes_of(list(images), labels, now)
    total = 0.0
    for found in passes:
        loss = found["position"].loss + 0.1 * found["patient"].loss
        loss.backward()
        total += loss.item()
    modules = nn.ModuleList([encoder, projectors])
    gradients = [parameter.grad.clone() for parameter in modules.parameters()]
    modules.zero_grad()
    features = encoder(images.flatten(0, 1)).amax((2, 3))
    expected = 0.0
    for name, factor in (("position", 1.0), ("patient", 0.1)):
        losses = pair_losses(F.normalize(projectors[name](features), dim=1), 0.5)
        expected = expected + factor * paced_loss(losses, alike(labels[name], CPU), now).loss
    expected.backward()
    assert total == pytest.approx(expected.item(), rel=1e-5)
    for parameter, gradient in zip(modules.parameters(), gradients, strict=True):
        torch.testing.assert_close(gradient, parameter.grad, rtol=1e-4, atol=1e-6)


class Held:
    """Something that a graph holds on to, as long as it is there."""


def test_one_graph_is_alive_at_a_time():
    """When a batch is encoded with gradient, what was encoded so before is gone."""
    images, encoder, with_gradient = [torch.randn(2, 1, 8, 8) for _ in range(3)], small_encoder(), []

    def encode(image):
        assert all(graph() is None for graph in with_gradient)
        found = encoder(image)
        if found.requires_grad:
            held = Held()
            found.register_hook(lambda _, held=held: None)
            with_gradient.append(weakref.ref(held))
        return [found]

    projectors = nn.ModuleDict({"patient": nn.Linear(6, 5)})
    for found in losses_in_passes(encode, images, projectors, {"patient": list("abcabc")}, pace()):
        found["patient"].loss.backward()
        del found
    assert len(with_gradient) == 3


def test_labels_without_projector_do_not_count_and_without_any_nothing_is_encoded():
    images = [torch.randn(2, 1, 8, 8)] * 2
    labels = {"patient": list("abab")}
    *_, passes = passes_of(images, labels, pace())
    with_more = losses_in_passes(
        lambda image: [image.expand(-1, 6, -1, -1)],
        images,
        {"patient": nn.Linear(6, 5)},
        labels | {"phase": list("aaaa")},
        pace(),
    )
    assert [list(found) for found in passes] == [list(found) for found in with_more] == [["patient"]] * 2
    assert list(losses_in_passes(lambda image: pytest.fail("encoded"), images, {}, labels, pace())) == []


def test_part_of_a_loss_has_its_gradient():
    value = torch.tensor(3.0, requires_grad=True)
    part = part_of(value.square(), 4)
    part.backward()
    assert part.item() == pytest.approx(9.0 / 4.0)
    assert value.grad.item() == 6.0


# ---- views and projector ----


@pytest.mark.parametrize("axes", [(0,), (1,), (0, 1, 2)])
def test_mirrored_images_are_all_turned_along_axes_that_may_be(axes):
    torch.manual_seed(0)
    image = torch.arange(2 * 3 * 4 * 5.0).reshape(1, 2, 3, 4, 5).repeat(40, 1, 1, 1, 1)
    found = mirrored(image, axes)
    seen = set()
    for one in found:
        steps = [(one[0].diff(dim=axis) < 0).all().item() for axis in range(3)]
        flipped = tuple(axis for axis, is_flipped in enumerate(steps) if is_flipped)
        assert torch.equal(one, image[0].flip([axis + 1 for axis in flipped]))
        seen.add(flipped)
    assert () not in seen
    assert {axis for one in seen for axis in one} == set(axes)
    assert len(seen) == 2 ** len(axes) - 1


def test_without_an_axis_images_stay_as_they_are():
    image = torch.randn(2, 1, 4, 4)
    assert mirrored(image, ()) is image


def test_pooled_features_are_the_largest_of_all_places_in_float32():
    features = torch.arange(24.0).reshape(2, 3, 2, 2).half()
    found = pooled(features)
    assert found.dtype == torch.float32
    assert found.tolist() == [[3.0, 7.0, 11.0], [15.0, 19.0, 23.0]]


def test_mean_features_of_a_network_that_normalises_each_image_hardly_tell_images_apart():
    """The reason for the maximum: the means of two images differ by a fraction of what their largest values do."""
    torch.manual_seed(0)
    images = torch.stack([torch.randn(1, 32, 32), torch.randn(1, 4, 4).repeat_interleave(8, 1).repeat_interleave(8, 2)])
    network = nn.Sequential(nn.Conv2d(1, 16, 3, 2), nn.InstanceNorm2d(16), nn.LeakyReLU())
    with torch.no_grad():
        features = network(images)
        mean, largest = (one[0] - one[1] for one in (features.flatten(2).mean(2), pooled(features)))
    assert mean.norm() < 0.2 * largest.norm()


def test_projector_takes_the_features_of_the_bottleneck():
    network = nn.Module()
    network.encoder = nn.Module()
    network.encoder.output_channels = [4, 8, 12]
    assert projector_of(network)(torch.randn(3, 12)).shape == (3, 256)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (("soft", "quantile", (0.5, 1.0), 0.07), "pair_weights is linear, hard or constant, got 'soft'"),
        (("hard", "epoch", (0.5, 1.0), 0.07), "age is quantile or bounds, got 'epoch'"),
        (("hard", "quantile", (0.5, 1.5), 0.07), r"last_age is a fraction in \[0, 1\], of the pairs, got 1.5"),
        (("hard", "bounds", (-0.5, 1.5), 0.07), "first_age is 0 or more, got -0.5"),
        (("hard", "bounds", (0.5, 1.5), 0.0), "temperature is more than 0, got 0.0"),
    ],
)
def test_settings_that_mean_nothing_are_refused(given, message):
    with pytest.raises(ValueError, match=message):
        refuse(*given)


def test_bounds_may_be_passed():
    refuse("linear", "bounds", (1.0, 20.0), 0.07)
