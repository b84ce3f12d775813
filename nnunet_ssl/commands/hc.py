"""Measure the head circumference in predicted masks of fetal ultrasound, by a least-squares ellipse for each.

The CSV has the columns of the HC18 challenge's submission and, after them, the circumference; lengths are in mm. A mask
covers the whole line that the annotators drew, so that the circumference of HC18's own masks is about 1 mm too long.
"""

import argparse
import csv
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from nnunet_ssl.building_blocks.ellipses import Ellipse

COLUMNS = (
    "filename",
    "center_x_mm",
    "center_y_mm",
    "semi_axes_a_mm",
    "semi_axes_b_mm",
    "angle_rad",
    "head_circumference_mm",
)
ENDING = ".nii.gz"
SMALLEST_HALF_AXIS = 2.0  # pixels


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments."""
    parser.add_argument("-i", required=True, metavar="FOLDER", help="predicted masks, CASE.nii.gz")
    parser.add_argument("-o", required=True, metavar="FILE", help="the CSV to write")
    parser.add_argument("-l", type=int, default=1, metavar="LABEL", help="value of the head in the masks (default: 1)")


def run(options: argparse.Namespace) -> int:
    """Measure every mask; return 1 if there is one without an ellipse, which is named."""
    files = sorted(Path(options.i).glob(f"*{ENDING}"))
    if not files:
        raise ValueError(f"there is no mask CASE{ENDING} in {options.i}")
    if not Path(options.o).parent.is_dir():
        raise ValueError(f"there is no folder {Path(options.o).parent} for {options.o}")

    problems, rows = [], []
    names = [file.name.removesuffix(ENDING) for file in files]
    for file, case in zip(files, names, strict=True):
        of_test_set = case.removesuffix("_test")  # the challenge knows them by this name
        name = f"{case if of_test_set in names else of_test_set}.png"
        try:
            ellipse = measure(file, options.l)
        except EllipseError as error:
            problems.append(f"{file.name}: {error}")
            rows.append([name, *[""] * (len(COLUMNS) - 1)])
            continue
        lengths = (ellipse.center_x, ellipse.center_y, ellipse.semi_axis_a, ellipse.semi_axis_b)
        rows.append([name, *(f"{value:.4f}" for value in (*lengths, ellipse.angle_rad, ellipse.circumference()))])
    with open(options.o, "w", newline="") as opened:
        csv.writer(opened).writerows([COLUMNS, *rows])
    print(f"{options.o}: {len(files) - len(problems)} of {len(files)} masks measured")
    print(*problems, sep="\n", end="\n" if problems else "")
    return 1 if problems else 0


class EllipseError(ValueError):
    """A mask has no ellipse: it is empty, or its border none."""


def measure(file: Path, label: int) -> "Ellipse":
    """Return the ellipse of a mask, in mm.

    Raises:
        ValueError: the file is damaged, not of one slice, or its pixels are not square.
        EllipseError: the mask has no ellipse.
    """
    import SimpleITK

    from nnunet_ssl.building_blocks.ellipses import ellipse_of_mask
    from nnunet_ssl.data.image_files import read_image

    image = read_image(file)
    mask = SimpleITK.GetArrayFromImage(image).squeeze() == label
    width, height = image.GetSpacing()[:2]
    if mask.ndim != 2:
        raise ValueError(f"{file} has more than one slice")
    if abs(width / height - 1) > 1e-3:
        raise ValueError(f"{file}: its pixels are {width:.4g} by {height:.4g} mm, expected square ones")
    try:
        ellipse = ellipse_of_mask(mask)
    except ValueError as error:
        raise EllipseError(str(error)) from error
    if ellipse.semi_axis_b < SMALLEST_HALF_AXIS:
        raise EllipseError("the mask is too small for an ellipse")
    return ellipse.scaled(width)
