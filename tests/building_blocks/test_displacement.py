import itertools
import math
from collections import deque

import numpy as np
import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st

from nnunet_ssl.building_blocks.displacement import (
    Displacement,
    Search,
    cell_size,
    confidence_limit,
    displaced,
    displaced_shares,
    find_boxes,
    integral_image,
    largest_region,
    least_confident_window,
    maps_to_search,
    window_means,
)
from nnunet_ssl.building_blocks.label_space import SigmoidRegions, SoftmaxLabels

SPACES = {"softmax": SoftmaxLabels(3), "regions": SigmoidRegions(2)}
SHAPES = [(8, 12), (40, 9), (64, 20), (5, 8, 8), (4, 6, 64)]  # cells of two voxels along an axis of 64
EXACT = 64  # of which numbers are whole parts, so that no sum is rounded


def blocks(rng: np.random.Generator, shape: tuple[int, ...], most: int) -> np.ndarray:
    """Return whole numbers from 0 to `most` that are alike in blocks, as regions of images are."""
    side = int(rng.integers(1, 4))
    coarse = rng.integers(0, most + 1, [-(-length // side) for length in shape])
    return np.kron(coarse, np.ones([side] * len(shape), int))[tuple(map(slice, shape))]


def drawn_probabilities(rng: np.random.Generator, kind: str, batch_size: int, shape: tuple[int, ...]) -> torch.Tensor:
    """Return probabilities (B, C, *spatial) that are whole parts of `EXACT`."""
    if kind == "regions":
        maps = [[blocks(rng, shape, EXACT) for _ in range(2)] for _ in range(batch_size)]
        return torch.tensor(np.array(maps) / EXACT, dtype=torch.float32)
    samples = []
    for _ in range(batch_size):
        first = blocks(rng, shape, EXACT)
        second = (blocks(rng, shape, EXACT) * (EXACT - first)) // EXACT
        samples.append(rng.permutation([first, second, EXACT - first - second]))
    return torch.tensor(np.array(samples) / EXACT, dtype=torch.float32)


# ---- naive references, written as loops over voxels ----


def naive_confidence(kind: str, probs: np.ndarray) -> float:
    return max(probs) if kind == "softmax" else min(max(p, 1 - p) for p in probs)


def naive_is_foreground(kind: str, probs: np.ndarray) -> bool:
    return bool(np.argmax(probs) > 0) if kind == "softmax" else any(p > 0.5 for p in probs)


def naive_divergence(kind: str, p: np.ndarray, q: np.ndarray) -> float:
    def part(a: float, b: float) -> float:
        tiny = np.finfo(np.float64).tiny
        return a * (math.log(max(a, tiny)) - math.log(max(b, tiny)))

    inside = sum(part(a, b) for a, b in zip(p, q, strict=True))
    return inside if kind == "softmax" else inside + sum(part(1 - a, 1 - b) for a, b in zip(p, q, strict=True))


def naive_regions(is_inside: np.ndarray) -> list[list[tuple[int, ...]]]:
    """Return the voxels of each connected region, in the order of their first voxels."""
    left, regions = {tuple(map(int, voxel)) for voxel in np.argwhere(is_inside)}, []
    for voxel in map(tuple, np.argwhere(is_inside)):
        if voxel not in left:
            continue
        left.discard(voxel)
        pending, region = deque([voxel]), []
        while pending:
            here = pending.popleft()
            region.append(here)
            for step in itertools.product((-1, 0, 1), repeat=is_inside.ndim):
                there = tuple(int(a + b) for a, b in zip(here, step, strict=True))
                if there in left:
                    left.discard(there)
                    pending.append(there)
        regions.append(region)
    return regions


def box_of(start, size):
    return tuple(slice(a, a + length) for a, length in zip(start, size, strict=True))


def naive_boxes(kind: str, search: Search, is_unsure: np.ndarray, probs: np.ndarray, drawn: np.ndarray) -> list[tuple]:
    """Return for each displaced image (image, start, size, {(source, start): divergence}) over allowed sources.

    Only those of the four surest windows of the lowest divergence are in it; more than one where they are alike.
    """
    probs = probs.astype(np.float64)
    batch_size, _, *shape = probs.shape
    confidence = np.apply_along_axis(lambda p: naive_confidence(kind, p), 1, probs)
    foreground = np.apply_along_axis(lambda p: naive_is_foreground(kind, p), 1, probs)
    cell, found = cell_size(shape), []
    for image in range(batch_size):
        regions = naive_regions(is_unsure[image, 0])
        if not drawn[image, 0] < search.probability or not regions:
            continue
        region = np.array(max(regions, key=len))
        if len(region) < math.prod(search.smallest_side * side for side in shape):
            continue
        first = [int(a) // c * c for a, c in zip(region.min(0), cell, strict=True)]
        last = [-(-(int(b) + 1) // c) * c for b, c in zip(region.max(0), cell, strict=True)]
        size = []
        for a, b, c, side in zip(first, last, cell, shape, strict=True):
            longest = max(1, math.floor(search.largest_side * side / c)) * c
            size.append(min(b - a, longest))
        if search.at_random:
            places = zip(drawn[image, 1:], shape, size, cell, strict=True)
            start = [int(share * ((side - length) // c + 1)) * c for share, side, length, c in places]
        else:
            along = [range(a, b - n + 1, c) for a, b, n, c in zip(first, last, size, cell, strict=True)]
            start = min(itertools.product(*along), key=lambda at: confidence[image][box_of(at, size)].mean())
        wanted = [probs[image, k][box_of(start, size)].mean() for k in range(probs.shape[1])]
        least = max(0.5 * foreground[image][box_of(start, size)].mean(), 1e-9)
        for other in [(image + i) % batch_size for i in range(1, batch_size)] or [image]:
            windows = []
            for at in itertools.product(*(naive_starts(*one) for one in zip(shape, size, cell, strict=True))):
                box = box_of(at, size)
                overlaps = all(abs(a - b) < n for a, b, n in zip(at, start, size, strict=True))
                is_sure = confidence[other][box].mean() >= search.threshold
                if is_sure and foreground[other][box].mean() >= least and not (other == image and overlaps):
                    windows.append((-confidence[other][box].mean(), at))
            surest = [at for _, at in sorted(windows)[:4]]
            if surest:
                means = [[probs[other, k][box_of(at, size)].mean() for k in range(len(wanted))] for at in surest]
                divergences = [naive_divergence(kind, wanted, mean) for mean in means]
                best = {(other, at) for at, d in zip(surest, divergences, strict=True) if d <= min(divergences) + 1e-12}
                found.append((image, tuple(start), tuple(size), best))
                break
    return found


def naive_starts(side: int, length: int, cell: int) -> list[int]:
    step = max(1, length // cell // 2) * cell
    return [*range(0, side - length, step), side - length]


# ---- the parts ----


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 10**6), st.sampled_from([(7, 9), (3, 3), (1, 12), (4, 5, 6), (1, 1, 9)]), st.floats(0.0, 0.6))
def test_largest_region_is_that_of_a_flood_fill(seed, shape, share):
    is_inside = np.random.default_rng(seed).random(shape) < share
    regions = naive_regions(is_inside)
    found = largest_region(is_inside)
    if not regions:
        assert found is None
        return
    box, voxels = found
    longest = [np.array(one) for one in regions if len(one) == max(map(len, regions))]
    assert voxels == len(longest[0])
    boxes = [tuple(slice(a, b + 1) for a, b in zip(one.min(0), one.max(0), strict=True)) for one in longest]
    assert box in boxes


def test_voxels_that_touch_at_a_corner_are_connected():
    assert largest_region(np.eye(5, dtype=bool)) == ((slice(0, 5), slice(0, 5)), 5)
    assert largest_region(np.zeros((3, 3, 3), bool)) is None
    assert largest_region(np.ones((3, 4, 5), bool)) == ((slice(0, 3), slice(0, 4), slice(0, 5)), 60)


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 10**6), st.lists(st.integers(1, 7), min_size=2, max_size=3))
def test_means_of_windows_are_those_of_their_voxels(seed, shape):
    rng = np.random.default_rng(seed)
    maps = rng.random((2, *shape), np.float32)
    size = tuple(int(rng.integers(1, side + 1)) for side in shape)
    starts = [np.sort(rng.integers(0, side - length + 1, 3)) for side, length in zip(shape, size, strict=True)]
    means = window_means(integral_image(maps, len(shape)), starts, size)
    assert means.shape == (2, *[3] * len(shape))
    for i, place in enumerate(itertools.product(*starts)):
        expected = maps[(slice(None), *box_of(place, size))].astype(np.float64).mean(tuple(range(1, maps.ndim)))
        np.testing.assert_allclose(means.reshape(2, -1)[:, i], expected, rtol=1e-12)


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 10**6), st.lists(st.integers(2, 8), min_size=2, max_size=3))
def test_the_least_confident_window_lies_in_the_box(seed, shape):
    rng = np.random.default_rng(seed)
    confidence = rng.integers(0, EXACT, shape) / EXACT
    first = [int(rng.integers(0, side)) for side in shape]
    last = [int(rng.integers(a + 1, side + 1)) for a, side in zip(first, shape, strict=True)]
    size = tuple(int(rng.integers(1, b - a + 1)) for a, b in zip(first, last, strict=True))
    found = least_confident_window(integral_image(confidence, len(shape)), first, last, size)
    along = [range(a, b - length + 1) for a, b, length in zip(first, last, size, strict=True)]
    assert found == min(itertools.product(*along), key=lambda at: confidence[box_of(at, size)].mean())


@pytest.mark.parametrize(
    ("spatial", "cells"),
    [
        ((256, 224), (8, 4)),  # 224 has no eighth of at least 32 voxels
        ((56, 40), (1, 1)),
        ((112, 160, 128), (2, 4, 4)),
        ((64, 63, 66), (2, 1, 2)),
        ((4, 16, 16), (1, 1, 1)),
    ],
)
def test_cells_by_hand(spatial, cells):
    assert cell_size(spatial) == cells


@given(st.integers(1, 600))
def test_cells_divide_a_side_and_are_many(side):
    (length,) = cell_size((side,))
    assert side % length == 0
    assert math.log2(length).is_integer()
    assert length == 1 or side // length >= 32
    assert side % (2 * length) or side // (2 * length) < 32


# ---- what is unsure ----


def test_quantile_finds_unsure_voxels_of_a_network_that_is_sure_of_all_and_a_constant_finds_none():
    torch.manual_seed(0)
    confidence = 1.0 - 0.04 * torch.rand(3, 1, 20, 20)
    constant = confidence_limit(confidence, 0.95, 0.0)
    assert not (confidence < constant).any()
    both = confidence_limit(confidence, 0.95, 0.1)
    assert both.shape == (3, 1, 1, 1)
    assert (confidence < both).sum((1, 2, 3)).tolist() == [39, 39, 39]  # of 400
    unsure = confidence - 0.5
    assert (confidence_limit(unsure, 0.95, 0.1) == 0.95).all(), "the larger one of both counts"


def test_quantile_is_of_each_image():
    confidence = torch.linspace(0.5, 1.0, 101).repeat(2, 1).view(2, 1, 101, 1)
    confidence[1] = 0.9 + confidence[1] / 10
    limits = confidence_limit(confidence, 0.0, 0.1).flatten()
    torch.testing.assert_close(limits, torch.tensor([0.55, 0.955]))


@pytest.mark.parametrize("fraction", [0.0, 0.02, 0.5, 1.0])
def test_quantile_is_that_of_numpy(fraction):
    confidence = np.random.default_rng(0).random((2, 1, 7, 9), np.float32)
    expected = np.quantile(confidence.reshape(2, -1), fraction, axis=1, method="lower")
    found = confidence_limit(torch.from_numpy(confidence), 0.0, fraction)
    np.testing.assert_array_equal(found.flatten().numpy(), expected)


def test_of_a_network_that_is_equally_sure_of_all_nothing_is_unsure():
    confidence = torch.ones(1, 1, 8, 8)
    assert not (confidence < confidence_limit(confidence, 0.95, 0.5)).any()


@pytest.mark.parametrize("kind", SPACES)
@pytest.mark.parametrize("shape", [(64, 8), (4, 6, 64)])
def test_maps_are_those_of_the_mean_of_both_networks(kind, shape):
    rng = np.random.default_rng(3)
    probs = [drawn_probabilities(rng, kind, 2, shape).requires_grad_() for _ in range(2)]
    search = Search(0.7, 0.3, 0.5, 0.1)
    torch.manual_seed(5)
    is_unsure, cells, drawn = maps_to_search(SPACES[kind], search, probs)
    assert not cells.requires_grad
    mean = (0.5 * (probs[0] + probs[1])).detach().numpy()
    confidence = np.apply_along_axis(lambda p: naive_confidence(kind, p), 1, mean)
    foreground = np.apply_along_axis(lambda p: naive_is_foreground(kind, p), 1, mean)
    for i in range(2):
        limit = max(0.7, np.quantile(confidence[i], 0.3, method="lower"))
        np.testing.assert_array_equal(is_unsure[i, 0].numpy(), confidence[i] < np.float32(limit))
        maps = np.concatenate([confidence[i, None], foreground[i, None], mean[i]])
        size = cell_size(shape)
        assert cells.shape == (2, 2 + mean.shape[1], *(a // b for a, b in zip(shape, size, strict=True)))
        for place in np.ndindex(*cells.shape[2:]):
            box = box_of([a * b for a, b in zip(place, size, strict=True)], size)
            expected = maps[(slice(None), *box)].mean(tuple(range(1, maps.ndim)))
            np.testing.assert_allclose(cells[(i, slice(None), *place)].numpy(), expected, rtol=1e-6)
    torch.manual_seed(5)
    assert torch.equal(drawn, torch.rand(2, 1 + len(shape)))


# ---- the search ----


def drawn_search(seed: int, kind: str, shape: tuple[int, ...], batch_size: int, **fixed):
    """Return a search and what it is given, on the device and as arrays."""
    rng = np.random.default_rng(seed)
    probs = drawn_probabilities(rng, kind, batch_size, shape)
    settings = {
        "threshold": rng.choice([0.0, 0.5, 0.7]),
        "fraction": rng.choice([0.05, 0.3]),
        "largest_side": rng.choice([1 / 8, 1 / 3, 1 / 2, 1.0]),
        "smallest_side": rng.choice([1 / 32, 1 / 8, 1 / 3]),
        "probability": rng.choice([0.5, 1.0]),
        "at_random": bool(rng.random() < 0.3),
    }
    search = Search(**settings | fixed)
    torch.manual_seed(seed)
    return search, probs, [maps.numpy() for maps in maps_to_search(SPACES[kind], search, [probs])]


CASES = (st.integers(0, 10**6), st.sampled_from(sorted(SPACES)), st.sampled_from(SHAPES), st.integers(1, 3))


@settings(max_examples=80, deadline=None)
@example(5242, "regions", (40, 9), 3)  # five regions of one voxel, the first of which is meant
@given(*CASES)
def test_boxes_and_sources_are_those_of_a_search_by_brute_force(seed, kind, shape, batch_size):
    search, probs, given_ = drawn_search(seed, kind, shape, batch_size)
    found = find_boxes(SPACES[kind], search, *given_)
    expected = naive_boxes(kind, search, given_[0], probs.numpy(), given_[2])
    assert [(one.image, one.start, one.size) for one in found] == [one[:3] for one in expected]
    for one, (*_, sources) in zip(found, expected, strict=True):
        assert (one.source, one.source_start) in sources


def test_brute_force_meets_all_that_may_happen():
    """The test above compares displacements of many kinds, not empty lists."""
    images = boxes = fell_through = 0
    for seed in range(60):
        search, probs, given_ = drawn_search(seed, "softmax", SHAPES[seed % len(SHAPES)], 3)
        found = find_boxes(SPACES["softmax"], search, *given_)
        images, boxes = images + 3, boxes + len(found)
        fell_through += sum(one.source == (one.image + 2) % 3 for one in found)
    assert 0.2 < boxes / images < 0.95
    assert fell_through


@settings(max_examples=60, deadline=None)
@given(*CASES)
def test_sources_are_sure_of_foreground_elsewhere_and_boxes_are_small(seed, kind, shape, batch_size):
    search, probs, given_ = drawn_search(seed, kind, shape, batch_size, threshold=0.5, probability=1.0)
    for one in find_boxes(SPACES[kind], search, *given_):
        for length, side, cell in zip(one.size, shape, cell_size(shape), strict=True):
            assert length <= max(search.largest_side * side, cell)
        for place in (one.start, one.source_start):
            assert all(0 <= at <= side - n for at, side, n in zip(place, shape, one.size, strict=True))
        source = probs[one.source][(slice(None), *one.source_box)].flatten(1).numpy()
        own = probs[one.image][(slice(None), *one.box)].flatten(1).numpy()
        held, needed = (sum(naive_is_foreground(kind, voxel) for voxel in box.T) for box in (source, own))
        assert held >= max(1, needed / 2)
        assert np.mean([naive_confidence(kind, voxel) for voxel in source.T]) >= 0.5
        assert (one.source != one.image) == (batch_size > 1)
        if batch_size == 1:
            touched = torch.zeros(shape, dtype=torch.int)
            touched[one.box] += 1
            touched[one.source_box] += 1
            assert touched.max() == 1
        elif not search.at_random:
            assert given_[0][one.image, 0][one.box].any(), "a box is where voxels are unsure"


def two_images(unsure: tuple[slice, slice], sure_foreground: tuple[slice, slice]) -> torch.Tensor:
    """Return probabilities (2, 2, 32, 32) of sure background; in the first a place is unsure, in the second of a class.

    The second image is unsure of one voxel alone, which is too few.
    """
    probs = torch.zeros(2, 2, 32, 32)
    probs[:, 0], probs[:, 1] = 0.98, 0.02
    probs[(0, slice(None), *unsure)] = 0.5
    probs[(1, 0, *sure_foreground)], probs[(1, 1, *sure_foreground)] = 0.01, 0.99
    probs[1, :, 0, 0] = 0.5
    return probs


def found_in(probs: torch.Tensor, drawn: list | None = None, space=SPACES["softmax"], **options) -> list[Displacement]:
    search = Search(**{"threshold": 0.9, "fraction": 0.0, "largest_side": 0.5, "smallest_side": 1 / 16} | options)
    is_unsure, cells, random = maps_to_search(space, search, [probs])
    return find_boxes(space, search, is_unsure.numpy(), cells.numpy(), np.array(drawn or random.numpy()))


def test_a_box_by_hand():
    """The unsure place is 5 x 8; the first of the surest windows that hold some of the class lies wholly in it."""
    probs = two_images((slice(4, 9), slice(10, 18)), (slice(12, 26), slice(8, 32)))
    (one,) = found_in(probs, space=SoftmaxLabels(2))
    assert (one.image, one.start, one.size) == (0, (4, 10), (5, 8))
    assert one.source == 1
    assert probs[1, 1][one.source_box].min() == pytest.approx(0.99)


def test_a_large_region_is_cut_down_to_its_least_sure_window():
    probs = two_images((slice(2, 30), slice(2, 30)), (slice(12, 26), slice(8, 32)))
    probs[0, 0, 20:24, 3:7], probs[0, 1, 20:24, 3:7] = 0.45, 0.55  # not less sure than 0.5: the window avoids it
    probs[0, 0, 2:20, 2:30], probs[0, 1, 2:20, 2:30] = 0.4, 0.6
    (one,) = found_in(probs, space=SoftmaxLabels(2), largest_side=0.25)
    assert one.size == (8, 8)
    assert (probs[0, 0][one.box] == 0.5).all()
    assert 20 <= one.start[0] <= 22


@pytest.mark.parametrize(("foreground", "expected"), [(0.5, (8, 0)), (0.875, (12, 0))])
def test_of_sure_windows_the_one_whose_classes_are_nearest_is_the_source(foreground, expected):
    """The rows 12 to 19 are foreground: windows that begin at 8 hold half of them, at 12 all; both are as sure."""
    probs = torch.full((2, 2, 32, 32), 1 / EXACT)
    probs[:, 0] = 1.0 - 1 / EXACT
    probs[0, 1, 0:8, 0:8], probs[0, 0, 0:8, 0:8] = foreground, 1.0 - foreground
    probs[1, 1, 12:20, 0:8], probs[1, 0, 12:20, 0:8] = 1.0 - 1 / EXACT, 1 / EXACT
    (one,) = found_in(probs, space=SoftmaxLabels(2))
    assert one.source_start == expected


def test_without_sure_foreground_elsewhere_an_image_is_left_alone():
    unsure = (slice(4, 9), slice(10, 18))
    probs = two_images(unsure, (slice(0, 0), slice(0, 0)))
    assert not found_in(probs, space=SoftmaxLabels(2))
    probs = two_images(unsure, (slice(12, 26), slice(8, 32)))
    assert found_in(probs, space=SoftmaxLabels(2), threshold=0.98)
    assert not found_in(probs, space=SoftmaxLabels(2), threshold=0.995)


def test_small_regions_are_left_alone():
    """A region needs as many voxels as a box of the smallest side has, 2 x 2."""
    for voxels, is_displaced in ((3, False), (4, True)):
        probs = two_images((slice(4, 5), slice(10, 10 + voxels)), (slice(12, 26), slice(8, 32)))
        assert bool(found_in(probs, space=SoftmaxLabels(2))) == is_displaced


def test_an_image_is_displaced_with_the_given_probability():
    probs = two_images((slice(4, 9), slice(10, 18)), (slice(12, 26), slice(8, 32)))
    for drawn, probability, is_displaced in (
        (0.0, 0.0, False),
        (0.3, 0.3, False),
        (0.29, 0.3, True),
        (0.999, 1.0, True),
    ):
        found = found_in(probs, [[drawn, 0, 0]] * 2, SoftmaxLabels(2), probability=probability)
        assert bool(found) == is_displaced


def test_random_places_have_the_sizes_that_unsure_ones_have_and_reach_every_voxel():
    probs = two_images((slice(4, 9), slice(10, 18)), (slice(12, 26), slice(8, 32)))
    covered = torch.zeros(32, 32, dtype=torch.int)
    torch.manual_seed(0)
    for _ in range(400):
        (one,) = found_in(probs, space=SoftmaxLabels(2), at_random=True)
        assert one.size == (5, 8)
        covered[one.box] += 1
    assert covered[1:-1, 1:-1].min() > 0
    assert covered[0].max() > 0
    assert covered[-1].max() > 0


@pytest.mark.parametrize("kind", SPACES)
def test_an_image_alone_takes_its_box_from_another_place_of_itself(kind):
    probs = two_images((slice(4, 9), slice(10, 18)), (slice(12, 26), slice(8, 32)))
    probs[0, :, 12:26, 8:32] = torch.tensor([0.01, 0.99])[:, None, None]
    space = SoftmaxLabels(2) if kind == "softmax" else SigmoidRegions(2)
    (one,) = found_in(probs[:1], space=space)
    assert (one.image, one.source) == (0, 0)
    assert one.source_start[0] + one.size[0] > 9


# ---- pasting ----


def test_boxes_hold_what_their_sources_held_before():
    """A ring: each image takes a box of the next one, at a place that is itself replaced."""
    image = torch.arange(3 * 2 * 4 * 5).view(3, 2, 4, 5)
    label = image[:, :1] > 60
    ring = [Displacement(i, (1, 2), (i + 1) % 3, (1, 1), (2, 3)) for i in range(3)]
    before = image.clone()
    pasted, pasted_label = displaced((image, label), ring)
    assert torch.equal(image, before)
    for i in range(3):
        inside = torch.zeros(4, 5, dtype=torch.bool)
        inside[1:3, 2:5] = True
        assert torch.equal(pasted[i][:, ~inside], image[i][:, ~inside])
        assert torch.equal(pasted[i][:, 1:3, 2:5], image[(i + 1) % 3][:, 1:3, 1:4])
        assert torch.equal(pasted_label[i], pasted[i][:1] > 60)


def test_without_boxes_maps_are_as_they_were():
    maps = (torch.rand(2, 3, 4, 4, 4), torch.rand(2, 1, 4, 4, 4) > 0.5)
    assert all(torch.equal(a, b) for a, b in zip(displaced(maps, []), maps, strict=True))


def test_shares_by_hand():
    boxes = [Displacement(0, (0, 0, 0), 1, (0, 0, 0), (2, 3, 4)), Displacement(2, (0, 0, 0), 1, (0, 0, 0), (1, 1, 1))]
    assert displaced_shares(boxes, (4, 1, 5, 5, 5)) == {"displaced/images": 0.5, "displaced/voxels": 25 / 500}
    assert displaced_shares([], (4, 1, 5, 5)) == {"displaced/images": 0.0, "displaced/voxels": 0.0}
