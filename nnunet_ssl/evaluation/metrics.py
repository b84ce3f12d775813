"""Overlap and surface distances of two masks, in mm.

The surface of a mask is the mask minus its erosion with the 6- (in 2-D, and in a volume of one slice, 4-)
neighbourhood; what lies at the border of the image is on it. Distances are between the middles of surface voxels.
"""

import math
from dataclasses import dataclass, replace
from enum import StrEnum

import numpy as np
from scipy.ndimage import binary_erosion, distance_transform_edt


class Hausdorff95(StrEnum):
    """Which 95 % Hausdorff distance: the literature has both."""

    POOLED = "pooled"  # 95th percentile of the distances of both directions together
    MAX_DIRECTED = "max-directed"  # the larger of the two directions' 95th percentiles


@dataclass(frozen=True)
class Metrics:
    """How a prediction compares with its reference.

    Attributes:
        dice: 2 |A ∩ B| / (|A| + |B|), in [0, 1]; 0 if one mask is empty, 1 if both are.
        jaccard: |A ∩ B| / |A ∪ B|, with the same limits.
        hd95: 95 % Hausdorff distance in mm, see `Hausdorff95`; NaN if a mask is empty, as all distances.
        asd: mean distance from the prediction's surface to the reference's, in mm.
        assd: mean of the distances of both directions together, in mm.
        nsd: surface Dice: the share of both surfaces within the tolerance of the other; limits as for Dice.
        volume_gt_ml: volume of the reference in ml; NaN in 2-D.
        volume_pred_ml: volume of the prediction in ml; NaN in 2-D.
        voxels_gt: of the reference.
        voxels_pred: of the prediction.
    """

    dice: float
    jaccard: float
    hd95: float
    asd: float
    assd: float
    nsd: float
    volume_gt_ml: float
    volume_pred_ml: float
    voxels_gt: int
    voxels_pred: int

    def of_overlap_alone(self) -> "Metrics":
        """Return them with NaN for what depends on surfaces, or on the voxels that are not counted."""
        names = ("hd95", "asd", "assd", "nsd", "volume_gt_ml", "volume_pred_ml")
        return replace(self, **dict.fromkeys(names, math.nan))


def compute_metrics(
    reference: np.ndarray,
    prediction: np.ndarray,
    spacing: tuple[float, ...],
    tolerance: float = 1.0,
    hd95: Hausdorff95 = Hausdorff95.POOLED,
    voxel_ml: float | None = None,
) -> Metrics:
    """Compare two masks.

    Args:
        reference: `(*spatial)`, bool.
        prediction: of the same shape, bool.
        spacing: of the voxels in mm, in the order of the axes.
        tolerance: of the surface Dice, in mm.
        hd95: which 95 % Hausdorff distance.
        voxel_ml: the volume of a voxel in ml, NaN where it is not known; None takes it from the spacing.

    Raises:
        ValueError: the shapes differ, or do not fit the spacing.
    """
    if reference.shape != prediction.shape or reference.ndim != len(spacing):
        raise ValueError(f"reference {reference.shape}, prediction {prediction.shape}, {len(spacing)} spacings")
    sizes = int(reference.sum()), int(prediction.sum())
    if voxel_ml is None:
        voxel_ml = math.prod(spacing) / 1000 if len(spacing) == 3 else math.nan
    volumes = (sizes[0] * voxel_ml, sizes[1] * voxel_ml)
    if not all(sizes):
        overlap = float(not any(sizes))
        return Metrics(overlap, overlap, math.nan, math.nan, math.nan, overlap, *volumes, *sizes)
    common = int((reference & prediction).sum())
    to_reference, to_prediction = surface_distances(reference, prediction, spacing)
    both = np.concatenate([to_reference, to_prediction])
    if hd95 == Hausdorff95.POOLED:
        distance = np.percentile(both, 95)
    else:
        distance = max(np.percentile(to_reference, 95), np.percentile(to_prediction, 95))
    return Metrics(
        dice=2 * common / sum(sizes),
        jaccard=common / (sum(sizes) - common),
        hd95=float(distance),
        asd=float(to_reference.mean()),
        assd=float(both.mean()),
        nsd=float((both <= tolerance).mean()),
        volume_gt_ml=volumes[0],
        volume_pred_ml=volumes[1],
        voxels_gt=sizes[0],
        voxels_pred=sizes[1],
    )


def surface_distances(
    reference: np.ndarray, prediction: np.ndarray, spacing: tuple[float, ...]
) -> tuple[np.ndarray, np.ndarray]:
    """Return the distances in mm from the prediction's surface to the reference's, and back; no mask is empty."""
    long_axes = [axis for axis, length in enumerate(reference.shape) if length > 1] or [0]  # a slice is no surface
    masks = [mask.reshape([mask.shape[axis] for axis in long_axes]) for mask in (reference, prediction)]
    spacing = tuple(spacing[axis] for axis in long_axes)
    box = bounding_box(masks[0] | masks[1])
    surfaces = [surface(mask[box]) for mask in masks]
    to_reference, to_prediction = (distance_transform_edt(~s, sampling=spacing) for s in surfaces)
    return to_reference[surfaces[1]], to_prediction[surfaces[0]]


def surface(mask: np.ndarray) -> np.ndarray:
    """Return the voxels of a mask `(*spatial)`, bool, that have a neighbour outside of it."""
    return mask & ~binary_erosion(mask)


def bounding_box(mask: np.ndarray) -> tuple[slice, ...]:
    """Return the smallest box that holds a mask which is not empty, with one voxel around it where there is one."""
    box = []
    for axis in range(mask.ndim):
        others = tuple(i for i in range(mask.ndim) if i != axis)
        inside = np.flatnonzero(mask.any(axis=others))
        box.append(slice(max(0, inside[0] - 1), inside[-1] + 2))
    return tuple(box)
