"""The head in a mask of fetal ultrasound: its ellipse, whether the image's border cuts it, and its parts."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from nnunet_ssl.building_blocks.ellipses import Ellipse, ellipse_of_mask, is_cut_by_border, number_of_parts
from nnunet_ssl.data.dataset_reader import DatasetReader

SMALLEST_HALF_AXIS = 2.0  # pixels


@dataclass(frozen=True)
class Head:
    """What a mask holds.

    Attributes:
        ellipse: in mm; None where there is a problem.
        cut_by_border: by the image's; None where the mask is empty.
        parts: of the mask, of which the largest is the head.
        problem: why there is no ellipse.
    """

    ellipse: Ellipse | None = None
    cut_by_border: bool | None = None
    parts: int = 0
    problem: str = ""


def measure(reader: DatasetReader, file: Path, label: int) -> Head:
    """Return the head in a mask.

    Raises:
        ValueError: the file is damaged, not of one slice, does not say how large a pixel is, or its pixels are not
            square.
    """
    labels = reader.read_labels(file)
    mask = labels.array == label
    if mask.ndim == 3 and len(mask) == 1:
        mask = mask[0]
    height, width = labels.spacing[-2:]
    if mask.ndim != 2:
        raise ValueError(f"{file} has more than one slice")
    if not labels.has_spacing:
        raise ValueError(f"{file} does not say how large a pixel is: masks in .nii.gz or .mha do")
    if abs(width / height - 1) > 1e-3:
        raise ValueError(f"{file}: its pixels are {width:.4g} by {height:.4g} mm, expected square ones")
    if not mask.any():
        values = ", ".join(str(value) for value in np.unique(labels.array).tolist() if value)
        return Head(problem="the mask is empty" + (f": it holds {values} and no {label}, see -l" if values else ""))
    cut, parts = is_cut_by_border(mask), number_of_parts(mask)
    try:
        ellipse = ellipse_of_mask(mask)
    except ValueError as error:
        return Head(None, cut, parts, str(error))
    if ellipse.semi_axis_b < SMALLEST_HALF_AXIS:
        return Head(None, cut, parts, "the mask is too small for an ellipse")
    return Head(ellipse.scaled(width), cut, parts)
