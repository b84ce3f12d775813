import math
from dataclasses import astuple

import numpy as np
import pytest
import torch

from nnunet_ssl.building_blocks import symmetry
from nnunet_ssl.building_blocks.ellipses import Ellipse
from nnunet_ssl.building_blocks.symmetry import (
    gaussian_blur,
    mirror_at_long_axis,
    perturbed,
    symmetric_image,
    symmetric_losses,
)

SHAPE = (22, 26)
HEADS = [Ellipse(12.3, 10.4, 8.0, 5.5, 0.5), Ellipse(16.0, 9.0, 7.0, 6.0, 2.3)]
ELLIPSES = torch.tensor([astuple(head) for head in HEADS])
SIDES = {"left": 1, "right": -1}


def random_maps(channels: int = 1, seed: int = 0) -> torch.Tensor:
    return torch.rand(2, channels, *SHAPE, generator=torch.Generator().manual_seed(seed))


def structure() -> torch.Tensor:
    """The heads, one with a bump on one side that reaches to the border."""
    masks = np.stack([head.filled(SHAPE) for head in HEADS])
    masks[0, :8, 14:20] = True
    return torch.from_numpy(masks)[:, None].float()


def naive_mirror(head: Ellipse, y: int, x: int) -> tuple[int, int, bool]:
    """The mirror image of a pixel, and whether the pixel is on the left: there the normal points away."""
    axis = complex(math.cos(head.angle_rad), math.sin(head.angle_rad))
    center = complex(head.center_x, head.center_y)
    turned = (complex(x, y) - center) / axis
    other = center + turned.conjugate() * axis
    return round(other.imag), round(other.real), turned.imag < 0


def is_in_patch(y: int, x: int) -> bool:
    return 0 <= y < SHAPE[0] and 0 <= x < SHAPE[1]


def naive_symmetric(head: Ellipse, u: np.ndarray, is_head: np.ndarray, side: str):
    """Return image, known pixels, and for each pixel where its prediction ought to come from."""
    new, known, source = u.copy(), np.zeros(SHAPE, bool), {}
    for y, x in np.ndindex(SHAPE):
        my, mx, left = naive_mirror(head, y, x)
        if left == (side == "left"):
            known[y, x], source[y, x] = True, (y, x)
        elif is_in_patch(my, mx):
            source[y, x] = (my, mx)
            if is_head[my, mx]:
                new[:, y, x] = u[:, my, mx]
            known[y, x] = is_head[my, mx] or not is_head[y, x]
    return new, known, source


def test_mirror_is_a_reflection_at_the_long_axis():
    mirror = mirror_at_long_axis(ELLIPSES, SHAPE)
    rows, columns = np.divmod(mirror.places.view(2, *SHAPE).numpy(), SHAPE[1])
    for b, head in enumerate(HEADS):
        for y, x in np.ndindex(SHAPE):
            my, mx, left = naive_mirror(head, y, x)
            assert mirror.is_left[b, 0, y, x] == left
            assert mirror.is_inside[b, 0, y, x] == is_in_patch(my, mx)
            clamped = min(max(my, 0), SHAPE[0] - 1), min(max(mx, 0), SHAPE[1] - 1)
            assert (rows[b, y, x], columns[b, y, x]) == clamped


def test_mirror_along_columns_and_rows_by_hand():
    """The long axis along x through row 4: the mirror image of row y is row 8 - y."""
    maps = torch.arange(9.0).view(1, 1, 9, 1).expand(1, 2, 9, 7)
    mirror = mirror_at_long_axis(torch.tensor([[3.0, 4.0, 2.0, 1.0, 0.0]]), (9, 7))
    assert torch.equal(mirror.of(maps), 8 - maps)
    assert mirror.is_left[0, 0, :, 0].tolist() == [True] * 4 + [False] * 5
    mirror = mirror_at_long_axis(torch.tensor([[4.0, 3.0, 2.0, 1.0, math.pi / 2]]), (7, 9))
    assert torch.equal(mirror.of(maps.mT), 8 - maps.mT)


@pytest.mark.parametrize("side", SIDES)
def test_symmetric_image_and_what_is_known_of_it(side):
    image, mask = random_maps(channels=2), structure()
    shown = symmetric_image(image, mask, mirror_at_long_axis(ELLIPSES, SHAPE), side, probability=0.0)
    for b, head in enumerate(HEADS):
        new, known, _ = naive_symmetric(head, image[b].numpy(), mask[b, 0].numpy() > 0, side)
        assert not np.array_equal(new, image[b])
        np.testing.assert_allclose(shown.image[b], new)
        assert np.array_equal(shown.is_known[b, 0], known)
        assert not known.all(), "the bump, and pixels whose mirror image is outside"


def test_the_head_alone_is_perturbed_and_each_half_for_itself(monkeypatch):
    image, mask, mirror = random_maps(), structure(), mirror_at_long_axis(ELLIPSES, SHAPE)
    added = iter([10.0, 100.0])
    monkeypatch.setattr(symmetry, "perturbed", lambda given, probability: given + next(added))
    shown = symmetric_image(image, mask, mirror, "left")
    plain = symmetric_image_of(monkeypatch, image, mask, mirror, "left")
    moved = (shown.image - plain).round()
    is_own = mirror.is_left & (mask > 0)
    is_copied = ~mirror.is_left & mirror.is_inside & (mirror.of(mask) > 0)
    assert torch.equal(moved, 10.0 * is_own + 100.0 * is_copied)
    assert (moved == 0).any()


def symmetric_image_of(monkeypatch, *arguments) -> torch.Tensor:
    monkeypatch.setattr(symmetry, "perturbed", lambda given, _: given)
    return symmetric_image(*arguments).image


@pytest.mark.parametrize("side", SIDES)
def test_losses_are_those_of_their_formulas(side):
    mirror, mask = mirror_at_long_axis(ELLIPSES, SHAPE), structure()
    shown = symmetric_image(random_maps(), mask, mirror, side)
    probs, whole = random_maps(seed=1), random_maps(seed=2)
    for used in ([True, True], [False, True], [True, False]):
        found = symmetric_losses(probs, whole, mirror, shown, torch.tensor(used).view(2, 1, 1, 1))
        perturbed_terms, mirrored_terms = [], []
        for b, head in enumerate(HEADS):
            p, s = probs[b, 0].double().numpy(), whole[b, 0].double().numpy()
            _, known, source = naive_symmetric(head, whole[b].numpy(), mask[b, 0].numpy() > 0, side)
            for y, x in np.ndindex(SHAPE) if used[b] else ():
                my, mx, _ = naive_mirror(head, y, x)
                if known[y, x]:
                    perturbed_terms.append((p[y, x] - s[source[y, x]]) ** 2)
                if known[y, x] and is_in_patch(my, mx) and known[my, mx]:
                    mirrored_terms.append((p[y, x] - p[my, mx]) ** 2)
        assert found["perturbed"].item() == pytest.approx(np.mean(perturbed_terms), rel=1e-5)
        assert found["mirrored"].item() == pytest.approx(np.mean(mirrored_terms), rel=1e-5)


def test_losses_of_no_image_are_0_and_give_no_gradient():
    mirror = mirror_at_long_axis(ELLIPSES, SHAPE)
    probs = random_maps(seed=1).requires_grad_()
    shown = symmetric_image(random_maps(), structure(), mirror, "left")
    losses = symmetric_losses(probs, random_maps(seed=2), mirror, shown, torch.zeros(2, 1, 1, 1, dtype=torch.bool))
    assert [loss.item() for loss in losses.values()] == [0.0, 0.0]
    sum(losses.values()).backward()
    assert not probs.grad.any()


def test_losses_of_a_perfect_prediction_are_0():
    """Even rows and columns, so that a mirror image falls on a pixel."""
    ellipses = torch.tensor([[12.0, 10.0, 8.0, 5.0, 0.0]])
    mirror = mirror_at_long_axis(ellipses, SHAPE)
    mask = torch.from_numpy(Ellipse(12.0, 10.0, 8.0, 5.0, 0.0).filled(SHAPE))[None, None].float()
    shown = symmetric_image(random_maps()[:1], mask, mirror, "right")
    losses = symmetric_losses(mask, mask, mirror, shown, torch.ones(1, 1, 1, 1, dtype=torch.bool))
    assert [loss.item() for loss in losses.values()] == [0.0, 0.0]


def test_gradient_flows_through_the_prediction_of_the_symmetric_image_alone():
    mirror = mirror_at_long_axis(ELLIPSES, SHAPE)
    shown = symmetric_image(random_maps(), structure(), mirror, "left")
    for name in ("perturbed", "mirrored"):
        probs, whole = (random_maps(seed=seed).requires_grad_() for seed in (1, 2))
        symmetric_losses(probs, whole, mirror, shown, torch.ones(2, 1, 1, 1, dtype=torch.bool))[name].backward()
        assert whole.grad is None
        on_own, on_mirrored = probs.grad[~shown.is_mirrored], probs.grad[shown.is_mirrored]
        assert on_own.any()
        assert on_mirrored.any()
        assert not probs.grad[~shown.is_known].any()


# ---- perturbations ----


def test_with_probability_0_nothing_changes_and_with_1_everything_does():
    image = 30.0 * random_maps(channels=2) - 7.0
    torch.testing.assert_close(perturbed(image, 0.0), image)
    assert (perturbed(image, 1.0) != image).float().mean() > 0.99


def test_images_are_not_stretched_and_strengths_follow_their_range():
    """Of an image of another range and place the same random numbers make the same, in its units."""
    results = []
    for scale, shift in ((1.0, 0.0), (40.0, -12.0)):
        torch.manual_seed(3)
        results.append((perturbed(scale * random_maps() + shift, 0.7) - shift) / scale)
    torch.testing.assert_close(*results, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize(
    ("which", "changed"),
    [
        (0, lambda v: None),
        (1, lambda v: v**1.5),
        (2, lambda v: v + 0.05),
        (3, lambda v: gaussian_blur(v, torch.full((2,), 0.75))),
    ],
)
def test_each_perturbation_has_its_form(monkeypatch, which, changed):
    """Alone in the first image; strengths: gamma at half of its range, shift at three quarters, blur at a quarter."""
    drawn = torch.ones(7, 2)
    drawn[which, 0] = 0.0
    drawn[4:] = torch.tensor([0.5, 0.75, 0.25])[:, None]
    image = random_maps()
    image[:, 0, 0, :2] = torch.tensor([0.0, 1.0])  # the range
    monkeypatch.setattr(torch, "rand", lambda *shape: drawn.view(*shape))
    found = perturbed(image, 0.2)
    torch.testing.assert_close(found[1], image[1])
    if which == 0:
        assert (found - image)[0].std() == pytest.approx(0.05, rel=0.15)
    else:
        torch.testing.assert_close(found[0], changed(image)[0], atol=1e-5, rtol=1e-5)


def test_each_perturbation_comes_with_its_probability():
    torch.manual_seed(0)
    image = random_maps().repeat(1000, 1, 1, 1)
    changed = (perturbed(image, 0.2) - image).abs().amax((1, 2, 3)) > 1e-4
    assert changed.float().mean().item() == pytest.approx(1 - 0.8**4, abs=0.04)


def test_blur_is_a_normalised_gaussian_of_each_image_its_own():
    point = torch.zeros(2, 2, 21, 23)
    point[:, :, 10, 11] = 1.0
    deviations = torch.tensor([0.6, 1.4])
    found = gaussian_blur(point, deviations)
    for b, deviation in enumerate(deviations.tolist()):
        line = np.array([math.exp(-0.5 * (i / deviation) ** 2) for i in range(-4, 5)])
        line /= line.sum()
        for channel in range(2):
            np.testing.assert_allclose(found[b, channel, 6:15, 7:16], np.outer(line, line), atol=1e-6)
    assert found.sum((2, 3)).flatten().tolist() == pytest.approx([1.0] * 4)
    constant = torch.full((2, 1, 9, 9), 3.0)
    torch.testing.assert_close(gaussian_blur(constant, deviations), constant)
