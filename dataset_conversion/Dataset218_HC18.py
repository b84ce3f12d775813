"""HC18: fetal head in ultrasound, 2-D, with the pixel size of each image.

Understood is the challenge's layout: `training_set/{000_HC.png, 000_HC_Annotation.png, ...}`, `test_set/*.png` and the
two CSV files with pixel sizes. The annotations are thin ellipse outlines: they are filled, and those that are not
closed, because the head leaves the image, are filled with the ellipse fitted to them. The mask covers the outline. An
outline whose circumference differs from the CSV's by more than 3 % is reported.

`test_set` has no annotations: it goes to imagesUn, as `011_HC_test` because training_set has its own `011_HC`, or with
--test-as-test to imagesTs. `010_HC` and `010_2HC` are of one patient: the number is the patient.
"""

import csv
import sys
from functools import partial
from pathlib import Path

import numpy as np
import SimpleITK
from scipy.ndimage import binary_fill_holes

from nnunet_ssl.building_blocks.ellipses import fit_ellipse
from nnunet_ssl.conversion.command_line import conversion_parser, run_conversion
from nnunet_ssl.conversion.raw_dataset import Case, Description, Role, Scan, write_raw_dataset
from nnunet_ssl.data.image_files import read_image

DESCRIPTION = Description(
    name="HC18",
    channel_names={0: "ultrasound"},
    labels={"background": 0, "fetal_head": 1},
    reference="https://doi.org/10.5281/zenodo.1327317",
    license="CC BY 4.0; cite van den Heuvel et al. 2018",
    patient_pattern=r"^(\d+(?=_\d*HC$)|.+_test$)",
)
TRAINING_CSV, TEST_CSV = "training_set_pixel_size_and_HC.csv", "test_set_pixel_size.csv"
CLOSED_SHARE = 0.9  # of the fitted ellipse's area; an outline that is not closed fills to its line alone, about 0.02
CIRCUMFERENCE_TOLERANCE = 0.03


def convert(
    source: Path, dataset_id: int = 218, test_as_test: bool = False, num_processes: int = 2, overwrite: bool = False
) -> Path:
    """Convert HC18 and return the data set's folder.

    Args:
        source: the folder with training_set, test_set and the CSV files.
        dataset_id: number of the data set.
        test_as_test: whether test_set goes to imagesTs instead of imagesUn.
        num_processes: how many convert at once.
        overwrite: whether a data set converted before is replaced.

    Raises:
        ValueError: an unknown layout; an image without annotation or without a line in the CSV; a damaged file.
    """
    images = [file for file in sorted((source / "training_set").glob("*.png")) if "_Annotation" not in file.name]
    if not images:
        raise ValueError(f"{source} has no known layout of HC18, expected training_set/000_HC.png and {TRAINING_CSV}")
    lines = read_csv(source / TRAINING_CSV, 2)
    cases = []
    for file in images:
        annotation = file.with_name(f"{file.stem}_Annotation.png")
        if not annotation.exists():
            raise ValueError(f"{annotation} is missing, the annotation of {file.name}")
        pixel_size, circumference = line_of(file, lines, source / TRAINING_CSV)
        read = partial(read_annotated, file, annotation, pixel_size, circumference)
        cases.append(Case(file.stem, Role.LABELED, file, read, annotation))
    tests = sorted((source / "test_set").glob("*.png"))
    test_lines = read_csv(source / TEST_CSV, 1) if tests else {}
    role = Role.TEST if test_as_test else Role.UNLABELED
    for file in tests:
        (pixel_size,) = line_of(file, test_lines, source / TEST_CSV)
        name = file.stem if test_as_test else f"{file.stem}_test"
        cases.append(Case(name, role, file, partial(read_plain, file, pixel_size)))
    return write_raw_dataset(DESCRIPTION, dataset_id, cases, num_processes, overwrite)


def read_csv(file: Path, count: int) -> dict[str, list[float]]:
    """Return the numbers of each line by file name: pixel size in mm and, in training, circumference in mm.

    Raises:
        ValueError: the file is missing, or a line has not `count` numbers above 0 after its name.
    """
    if not file.is_file():
        raise ValueError(f"{file} is missing")
    with file.open(newline="") as opened:
        rows = [row for row in csv.reader(opened) if row][1:]
    lines = {}
    for name, *texts in rows:
        try:
            numbers = [float(text) for text in texts]
        except ValueError:
            numbers = []
        if len(numbers) != count or min(numbers) <= 0:
            raise ValueError(f"{file}: the line of {name} has not {count} number(s) above 0 after the name")
        lines[name.strip()] = numbers
    return lines


def line_of(file: Path, lines: dict[str, list[float]], csv_file: Path) -> list[float]:
    """Return an image's line of the CSV; a ValueError if it has none."""
    if file.name not in lines:
        raise ValueError(f"{csv_file} has no line for {file.name}")
    return lines[file.name]


def read_plain(file: Path, pixel_size: float) -> Scan:
    """Read an image `(Y, X)` of one channel."""
    image = read_gray(file)
    image.SetSpacing((pixel_size, pixel_size))
    return Scan([image])


def read_gray(file: Path) -> SimpleITK.Image:
    """Read a 2-D image; a ValueError if it has several channels."""
    image = read_image(file)
    if image.GetDimension() != 2 or image.GetNumberOfComponentsPerPixel() != 1:
        raise ValueError(f"{file} is no gray image")
    return image


def read_annotated(file: Path, annotation: Path, pixel_size: float, circumference: float) -> Scan:
    """Read an image and fill its outline."""
    scan = read_plain(file, pixel_size)
    outline = SimpleITK.GetArrayFromImage(read_gray(annotation)) > 0
    try:
        mask, measured = fill_outline(outline)
    except ValueError as error:
        raise ValueError(f"{annotation} holds no outline of a head: {error}") from error
    if abs(measured * pixel_size / circumference - 1) > CIRCUMFERENCE_TOLERANCE:
        print(
            f"{annotation.name}: its outline measures {measured * pixel_size:.1f} mm, the CSV says {circumference} mm"
        )
    labels = SimpleITK.GetImageFromArray(mask.astype(np.uint8))
    labels.SetSpacing((pixel_size, pixel_size))
    return Scan(scan.channels, labels)


def fill_outline(outline: np.ndarray) -> tuple[np.ndarray, float]:
    """Return the mask `(Y, X)` inside an outline, with it, and the outline's circumference in pixels."""
    rows, columns = np.nonzero(outline)
    ellipse = fit_ellipse(columns, rows)
    inside = ellipse.filled(outline.shape)
    mask = binary_fill_holes(outline)
    if mask.sum() < CLOSED_SHARE * inside.sum():
        mask = outline | inside
    return mask, ellipse.circumference()


def main(arguments: list[str] | None = None) -> int:
    """Convert as the command line says."""
    parser = conversion_parser("HC18", __doc__, 218)
    parser.add_argument("--test-as-test", action="store_true", help="test_set goes to imagesTs instead of imagesUn")
    return run_conversion(convert, parser, arguments)


if __name__ == "__main__":
    sys.exit(main())
