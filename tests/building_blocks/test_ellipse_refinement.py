import math
from dataclasses import astuple

import numpy as np
import pytest
import torch

from nnunet_ssl.building_blocks.dual_score import case_numbers, contour_regularity
from nnunet_ssl.building_blocks.ellipse_refinement import (
    channel_of,
    elliptic_distance,
    examine_masks,
    fit_ellipses,
    inside_of,
    is_fitted,
    pseudo_labels,
    refined,
)
from nnunet_ssl.building_blocks.ellipses import Ellipse, ellipse_within
from nnunet_ssl.building_blocks.label_space import SigmoidRegions, SoftmaxLabels

SHAPE = (24, 30)
ELLIPSE = Ellipse(14.2, 11.3, 9.0, 6.5, 0.6)
ELLIPSES = torch.tensor([astuple(ELLIPSE), [0.0] * 5])
HEAD = slice(2, 3)


def naive_distance(ellipse: Ellipse, y: int, x: int) -> float:
    """In the ellipse's own axes, where it is a unit circle."""
    turned = complex(x - ellipse.center_x, y - ellipse.center_y) * np.exp(-1j * ellipse.angle_rad)
    return (turned.real / ellipse.semi_axis_a) ** 2 + (turned.imag / ellipse.semi_axis_b) ** 2


def naive_refined(p: np.ndarray, ellipse: Ellipse, threshold: float) -> np.ndarray:
    new = np.empty(p.shape)
    for y, x in np.ndindex(p.shape):
        d = naive_distance(ellipse, y, x)
        if d <= 1:
            new[y, x] = max(p[y, x], min(1.0, threshold + (1 - d) ** 2))
        else:
            new[y, x] = p[y, x] * math.exp(-0.5 * (d - 1))
    return new


def random_probs(channels: int = 4) -> torch.Tensor:
    torch.manual_seed(0)
    return torch.randn(2, channels, *SHAPE).mul(2).softmax(1)


# ---- which label ----


@pytest.mark.parametrize("wanted", [None, "head", "1"])
def test_the_only_label_is_the_elliptic_one(wanted):
    assert channel_of({"background": 0, "head": 1, "ignore": 2}, False, wanted) == slice(1, 2)


@pytest.mark.parametrize("wanted", ["head", "2", 2])
@pytest.mark.parametrize("head", [2, [2]])
def test_one_of_several_labels_by_name_or_number(wanted, head):
    assert channel_of({"background": 0, "symphysis": 1, "head": head}, False, wanted) == slice(2, 3)


def test_region_by_name_or_by_the_number_of_its_one_label():
    labels = {"background": 0, "whole": [1, 2], "core": 2}
    assert channel_of(labels, True, "whole") == slice(0, 1)
    assert channel_of(labels, True, "core") == channel_of(labels, True, "2") == slice(1, 2)


@pytest.mark.parametrize("wanted", [None, "skull", "0", "3", "background"])
def test_a_label_that_is_not_said_or_not_there_is_refused(wanted):
    with pytest.raises(ValueError, match=f"option elliptic_label says.*one of symphysis, head; got {wanted}"):
        channel_of({"background": 0, "symphysis": 1, "head": 2, "ignore": 3}, False, wanted)


# ---- on the host ----


def test_examined_are_the_ellipse_of_the_sure_mask_and_the_contour_of_the_predicted_one():
    sure = np.stack([Ellipse(15.0, 12.0, 8.0, 6.0, 0.4).filled(SHAPE), np.zeros(SHAPE, bool)])[:, None]
    predicted = np.stack([ELLIPSE.filled(SHAPE), np.zeros(SHAPE, bool)])[:, None].astype(np.float32)
    ellipses, regularities, numbers = examine_masks(("a", "b"), 0.8, predicted, sure)
    assert ellipses.dtype == regularities.dtype == np.float32
    assert ellipses[0] == pytest.approx(astuple(ellipse_within(sure[0, 0], 0.8)))
    assert not ellipses[1].any()
    assert regularities.tolist() == pytest.approx([contour_regularity(predicted[0, 0] > 0), math.inf])
    assert np.array_equal(numbers, case_numbers(["a", "b"]))


def test_a_bad_fit_is_no_ellipse():
    ring = ELLIPSE.filled(SHAPE) & ~Ellipse(17.0, 11.0, 8.0, 6.0, 0.6).filled(SHAPE)
    assert fit_ellipses(0.0, ring[None, None]).any()
    assert not fit_ellipses(0.8, ring[None, None]).any()


# ---- on the device ----


def test_distance_is_that_in_the_ellipses_own_axes_and_0_without_one():
    found = elliptic_distance(ELLIPSES, SHAPE)
    assert found.shape == (2, 1, *SHAPE)
    expected = [[naive_distance(ELLIPSE, y, x) for x in range(SHAPE[1])] for y in range(SHAPE[0])]
    np.testing.assert_allclose(found[0, 0], expected, rtol=1e-5, atol=1e-5)
    assert not found[1].any()
    assert is_fitted(ELLIPSES).flatten().tolist() == [True, False]


def test_distance_of_hand_values():
    upright = torch.tensor([[3.0, 5.0, 4.0, 2.0, math.pi / 2]])
    distance = elliptic_distance(upright, (11, 8))[0, 0]
    at = {(5, 3): 0.0, (9, 3): 1.0, (5, 5): 1.0, (7, 3): 0.25, (5, 7): 4.0}
    assert {place: distance[place].item() for place in at} == pytest.approx(at, abs=1e-5)


@pytest.mark.parametrize("threshold", [0.6, 0.3])
def test_refinement_is_that_of_its_formula(threshold):
    probs = random_probs()[:, :1]
    found = refined(probs, ELLIPSES, threshold)
    np.testing.assert_allclose(found[0, 0], naive_refined(probs[0, 0].double().numpy(), ELLIPSE, threshold), atol=1e-5)
    assert torch.equal(found[1], probs[1]), "without an ellipse"


def test_refinement_raises_inside_and_damps_outside():
    probs = random_probs()[:, :1]
    found, inside = refined(probs, ELLIPSES, 0.6)[0], elliptic_distance(ELLIPSES, SHAPE)[0] <= 1
    assert (found >= probs[0])[inside].all()
    assert (found[inside] >= 0.6).all()
    assert (found < probs[0])[~inside].all()
    y, x = round(ELLIPSE.center_y), round(ELLIPSE.center_x)
    assert found[0, y, x] == 1.0, "at the center"


@pytest.mark.parametrize("kind", [SoftmaxLabels, SigmoidRegions])
@pytest.mark.parametrize("refines", [True, False])
def test_pseudo_labels_are_those_of_a_naive_reference(kind, refines):
    space, probs = kind(4), random_probs()
    maps = pseudo_labels(space, probs, HEAD, ELLIPSES, 0.6, refines)
    p = probs.double().numpy()
    for sample, fitted in ((0, refines), (1, False)):
        head = naive_refined(p[sample, 2], ELLIPSE, 0.6) if fitted else p[sample, 2]
        for y, x in np.ndindex(SHAPE):
            if abs(head[y, x] - 0.6) < 1e-5:
                continue
            is_head, others = head[y, x] > 0.6, {c: p[sample, c, y, x] for c in (0, 1, 3)}
            if kind is SigmoidRegions:
                expected = {c: other > 0.5 for c, other in others.items()} | {2: is_head}
            else:
                best = 2 if is_head else max(others, key=others.get)
                expected = {c: c == best for c in range(4)}
            assert {c: bool(maps[sample, c, y, x]) for c in range(4)} == expected


def test_a_head_above_a_half_and_below_the_threshold_is_none():
    probs = torch.tensor([0.4, 0.01, 0.55, 0.04]).view(1, 4, 1, 1)
    for space, expected in ((SoftmaxLabels(4), [1, 0, 0, 0]), (SigmoidRegions(4), [0, 0, 0, 0])):
        maps = pseudo_labels(space, probs, HEAD, torch.zeros(1, 5), 0.6, True)
        assert maps.flatten().tolist() == expected


def test_pseudo_labels_have_no_gradient():
    probs = random_probs().requires_grad_()
    assert not pseudo_labels(SoftmaxLabels(4), probs, HEAD, ELLIPSES, 0.6, True).requires_grad


def test_pixels_inside_of_an_ellipse():
    found = inside_of(ELLIPSES, SHAPE)
    for y, x in np.ndindex(SHAPE):
        if abs((distance := naive_distance(ELLIPSE, y, x)) - 1.0) > 1e-5:
            assert found[0, 0, y, x] == (distance < 1.0)
    assert not found[1].any(), "without an ellipse"
