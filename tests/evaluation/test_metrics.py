import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from monai.metrics import (
    compute_average_surface_distance,
    compute_dice,
    compute_hausdorff_distance,
    compute_iou,
    compute_surface_dice,
)

from nnunet_ssl.evaluation.metrics import Hausdorff95, bounding_box, compute_metrics, surface


@st.composite
def pairs(draw):
    """Return two masks that are not empty, 2-D or 3-D, blobs or noise, and a spacing."""
    shape = draw(st.sampled_from([(9, 11), (5, 7, 6), (1, 8, 8), (3, 12, 4)]))
    rng = np.random.default_rng(draw(st.integers(0, 10_000)))
    masks = []
    for _ in range(2):
        kind = draw(st.sampled_from(["noise", "box", "full", "voxel"]))
        mask = np.zeros(shape, bool)
        if kind == "noise":
            mask = rng.random(shape) < draw(st.floats(0.05, 0.9))
        elif kind == "box":
            mask[tuple(slice(a, a + int(rng.integers(1, n + 1))) for n in shape for a in [int(rng.integers(0, n))])] = (
                True
            )
        elif kind == "full":
            mask[:] = True
        mask[tuple(rng.integers(0, n) for n in shape)] = True
        masks.append(mask)
    spacing = tuple(draw(st.sampled_from([0.5, 1.0, 1.3, 5.0])) for _ in shape)
    return (*masks, spacing)


def brute_force(reference, prediction, spacing):
    """Return the distances of all surface voxels, by comparing every pair."""
    points = [np.argwhere(naive_surface(mask)) * spacing for mask in (reference, prediction)]
    between = np.linalg.norm(points[0][:, None] - points[1][None], axis=-1)
    return between.min(axis=0), between.min(axis=1)


def naive_surface(mask):
    """Return the voxels with a face neighbour, along an axis that is there, outside of the mask or of the image."""
    padded = np.pad(mask, 1)
    inside = np.ones_like(mask)
    for axis in (axis for axis in range(mask.ndim) if mask.shape[axis] > 1):
        for step in (-1, 1):
            moved = np.roll(padded, step, axis)
            inside &= moved[tuple(slice(1, -1) for _ in mask.shape)]
    return mask & ~inside


@settings(max_examples=150, deadline=None)
@given(pairs())
def test_everything_against_brute_force(pair):
    reference, prediction, spacing = pair
    to_reference, to_prediction = brute_force(reference, prediction, spacing)
    both = np.concatenate([to_reference, to_prediction])
    found = compute_metrics(reference, prediction, spacing, tolerance=1.1)
    assert found.dice == pytest.approx(2 * (reference & prediction).sum() / (reference.sum() + prediction.sum()))
    assert found.jaccard == pytest.approx((reference & prediction).sum() / (reference | prediction).sum())
    assert found.hd95 == pytest.approx(np.percentile(both, 95), abs=1e-6)
    assert found.asd == pytest.approx(to_reference.mean(), abs=1e-6)
    assert found.assd == pytest.approx(both.mean(), abs=1e-6)
    assert found.nsd == pytest.approx((both <= 1.1).mean(), abs=1e-6)
    voxel_ml = math.prod(spacing) / 1000 if len(spacing) == 3 else math.nan
    assert found.volume_gt_ml == pytest.approx(reference.sum() * voxel_ml, nan_ok=True)
    assert found.volume_pred_ml == pytest.approx(prediction.sum() * voxel_ml, nan_ok=True)
    directed = compute_metrics(reference, prediction, spacing, hd95=Hausdorff95.MAX_DIRECTED).hd95
    expected = max(np.percentile(to_reference, 95), np.percentile(to_prediction, 95))
    assert directed == pytest.approx(expected, abs=1e-6)


@settings(max_examples=60, deadline=None)
@given(pairs())
def test_against_monai_where_definitions_coincide(pair):
    reference, prediction, spacing = pair
    if 1 in reference.shape:
        return  # a slice of one voxel is eroded away here and not there
    y, y_pred = (torch.from_numpy(mask)[None, None].float() for mask in (reference, prediction))
    found = compute_metrics(reference, prediction, spacing, 1.1, Hausdorff95.MAX_DIRECTED)
    settings_ = {"include_background": True, "spacing": spacing}
    assert found.dice == pytest.approx(compute_dice(y_pred, y).item(), abs=1e-6)
    assert found.jaccard == pytest.approx(compute_iou(y_pred, y).item(), abs=1e-6)
    hd95 = compute_hausdorff_distance(y_pred, y, percentile=95, **settings_).item()
    assert found.hd95 == pytest.approx(hd95, abs=1e-5)  # MONAI's are in single precision
    assert found.asd == pytest.approx(compute_average_surface_distance(y_pred, y, **settings_).item(), abs=1e-5)
    assd = compute_average_surface_distance(y_pred, y, symmetric=True, **settings_).item()
    assert found.assd == pytest.approx(assd, abs=1e-5)
    nsd = compute_surface_dice(y_pred, y, class_thresholds=[1.1], **settings_).item()
    assert found.nsd == pytest.approx(nsd, abs=1e-5)


@settings(max_examples=60, deadline=None)
@given(pairs())
def test_limits_and_symmetry(pair):
    reference, prediction, spacing = pair
    same = compute_metrics(reference, reference, spacing)
    assert (same.dice, same.jaccard, same.hd95, same.asd, same.assd, same.nsd) == (1, 1, 0, 0, 0, 1)
    there, back = compute_metrics(reference, prediction, spacing), compute_metrics(prediction, reference, spacing)
    for name in ("dice", "jaccard", "hd95", "assd", "nsd"):
        assert getattr(there, name) == pytest.approx(getattr(back, name)), name
    doubled = compute_metrics(reference, prediction, tuple(2 * s for s in spacing), tolerance=2.0)
    assert doubled.hd95 == pytest.approx(2 * there.hd95)
    assert doubled.nsd == pytest.approx(there.nsd)


def test_two_voxels_by_hand():
    """Two voxels, 3 apart along an axis of 2 mm: every distance is 6 mm, and nothing overlaps."""
    masks = np.zeros((2, 5, 4), bool)
    masks[0, 0, 1] = masks[1, 3, 1] = True
    found = compute_metrics(*masks, (2.0, 1.0), tolerance=5.9)
    assert (found.dice, found.jaccard, found.hd95, found.asd, found.assd, found.nsd) == (0, 0, 6, 6, 6, 0)
    assert compute_metrics(*masks, (2.0, 1.0), tolerance=6.0).nsd == 1


@pytest.mark.parametrize(("filled", "overlap"), [((), 1.0), ((0,), 0.0), ((1,), 0.0)])
def test_empty_masks(filled, overlap):
    masks = np.zeros((2, 4, 4, 4), bool)
    for index in filled:
        masks[index, 1:3, 1:3, 1:3] = True
    found = compute_metrics(*masks, (1.0, 1.0, 10.0))
    assert (found.dice, found.jaccard, found.nsd) == (overlap,) * 3
    assert all(math.isnan(value) for value in (found.hd95, found.asd, found.assd))
    assert found.volume_gt_ml == (0.08 if filled == (0,) else 0)
    assert found.volume_pred_ml == (0.08 if filled == (1,) else 0)


def test_surface_of_a_cube_is_its_shell():
    cube = np.zeros((7, 7, 7), bool)
    cube[1:6, 1:6, 1:6] = True
    assert surface(cube).sum() == 5**3 - 3**3
    assert surface(np.ones((4, 4), bool)).sum() == 12  # the border of the image is a border


def test_box_has_a_margin_where_there_is_room():
    mask = np.zeros((6, 6), bool)
    mask[0:2, 3] = True
    assert bounding_box(mask) == (slice(0, 3), slice(2, 5))


def test_shapes_must_fit():
    with pytest.raises(ValueError, match=r"reference \(2, 2\), prediction \(2, 3\)"):
        compute_metrics(np.ones((2, 2), bool), np.ones((2, 3), bool), (1.0, 1.0))
    with pytest.raises(ValueError, match="3 spacings"):
        compute_metrics(np.ones((2, 2), bool), np.ones((2, 2), bool), (1.0, 1.0, 1.0))


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_a_volume_of_one_slice_is_measured_as_the_slice(axis):
    """Its surface is the slice's outline, whatever lies above and below."""
    reference, prediction = np.zeros((20, 20), bool), np.zeros((20, 20), bool)
    reference[4:14, 4:14], prediction[6:16, 4:14] = True, True
    flat = compute_metrics(reference, prediction, (1.0, 2.0))
    spacing = [1.0, 2.0]
    spacing.insert(axis, 5.0)
    volume = compute_metrics(*(np.expand_dims(mask, axis) for mask in (reference, prediction)), tuple(spacing))
    assert (volume.hd95, volume.asd, volume.assd, volume.nsd) == (flat.hd95, flat.asd, flat.assd, flat.nsd)
    assert flat.hd95 == 2
    assert volume.volume_gt_ml == pytest.approx(100 * 10 / 1000)


def test_a_picture_has_no_volume():
    found = compute_metrics(np.ones((4, 4), bool), np.zeros((4, 4), bool), (1.0, 1.0))
    assert math.isnan(found.volume_gt_ml)
    assert math.isnan(found.volume_pred_ml)
    assert (found.voxels_gt, found.voxels_pred) == (16, 0)
