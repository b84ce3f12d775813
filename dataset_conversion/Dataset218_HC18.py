"""HC18: fetal head in ultrasound, 2-D, with the pixel size of each image.

Understood is the challenge's layout: `training_set/{000_HC.png, 000_HC_Annotation.png, ...}`, `test_set/*.png` and the
two CSV files with pixel sizes. The annotations are thin ellipse outlines, some of them not closed, because the head
leaves the image. The mask is the ellipse fitted to the outline: it ends in the middle of the drawn line, as the CSV's
circumferences do. An outline whose circumference differs from the CSV's by more than 1 % is reported.

`test_set` has no annotations: it goes to imagesUn, or with --test-as-test to imagesTs, as `011_HC_test` because
training_set has its own `011_HC`, of another patient. `010_HC` and `010_2HC` are of one patient: the number is the
patient.
"""

import csv
import math
import sys
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import numpy as np
import SimpleITK

from nnunet_ssl.building_blocks.ellipses import fit_ellipse
from nnunet_ssl.conversion.cases import Case, Fault, Role, Scan, case_or_fault
from nnunet_ssl.conversion.command_line import conversion_parser, run_conversion
from nnunet_ssl.conversion.layouts import find_layout
from nnunet_ssl.conversion.name_lists import note_absent
from nnunet_ssl.conversion.raw_dataset import Description, write_raw_dataset
from nnunet_ssl.data.image_files import read_image

DESCRIPTION = Description(
    name="HC18",
    channel_names={0: "ultrasound"},
    labels={"background": 0, "fetal_head": 1},
    reference="https://doi.org/10.5281/zenodo.1327317",
    license="CC BY 4.0; cite van den Heuvel et al. 2018",
    patient_pattern=r"^(\d+(?=_\d*HC$)|.+_test$)",
    version=2,
    dimensions=2,
)
ANNOTATION = "_Annotation.png"
TRAINING_CSV, TEST_CSV = "training_set_pixel_size_and_HC.csv", "test_set_pixel_size.csv"
CIRCUMFERENCE_TOLERANCE = 0.01  # the 74 outlines at hand are within 0.0004
LARGEST_LINE = 0.5  # of the ellipse's area; a drawn line has about 0.02


def convert(
    source: Path,
    dataset_id: int = 218,
    test_as_test: bool = False,
    num_processes: int = 2,
    overwrite: bool = False,
    allow_missing: bool = False,
) -> Path:
    """Convert HC18 and return the data set's folder.

    Args:
        source: the folder with training_set, test_set and the CSV files.
        dataset_id: number of the data set.
        test_as_test: whether test_set goes to imagesTs instead of imagesUn.
        num_processes: how many convert at once.
        overwrite: whether a data set converted before is replaced.
        allow_missing: whether images that cannot be converted are left out.

    Raises:
        ValueError: an unknown layout; an image without annotation or without a line in the CSV; a damaged file.
    """
    find_layout(source, find_images, "HC18", f"training_set/000_HC.png and {TRAINING_CSV}")
    listing = [*annotated_cases(source), *plain_cases(source, test_as_test)]
    return write_raw_dataset(DESCRIPTION, dataset_id, listing, num_processes, overwrite, allow_missing)


def find_images(source: Path, _: int | None = None) -> list[Path]:
    """Return the training images."""
    return [file for file in sorted((source / "training_set").glob("*.png")) if ANNOTATION not in file.name]


def annotated_cases(source: Path) -> Iterator[Case | Fault]:
    """Yield the annotated images; what lacks an image, an annotation or a line in the CSV is a fault."""
    csv_file, annotations = source / TRAINING_CSV, (source / "training_set").glob(f"*{ANNOTATION}")
    files = {*find_images(source), *(file.with_name(file.name.replace(ANNOTATION, ".png")) for file in annotations)}
    lines = read_csv(csv_file, 2)
    note_absent(dict.fromkeys(lines, csv_file), {file.name for file in files})
    for file in sorted(files):
        yield case_or_fault(file.stem, partial(annotated_case, file, csv_file, lines))


def annotated_case(file: Path, csv_file: Path, lines: dict[str, list[float]]) -> Case:
    """Return an annotated image; a ValueError names what is missing."""
    annotation = file.with_name(f"{file.stem}{ANNOTATION}")
    for path, what in ((file, f"image of {annotation.name}"), (annotation, f"annotation of {file.name}")):
        if not path.exists():
            raise ValueError(f"{path} is missing, the {what}")
    pixel_size, circumference = line_of(file, csv_file, lines, 2)
    read = partial(read_annotated, file, annotation, pixel_size, circumference)
    return Case(file.stem, Role.LABELED, file, read, annotation)


def plain_cases(source: Path, test_as_test: bool) -> Iterator[Case | Fault]:
    """Yield the images of test_set; one without a line in the CSV is a fault."""
    csv_file, files = source / TEST_CSV, sorted((source / "test_set").glob("*.png"))
    lines = read_csv(csv_file, 1)
    note_absent(dict.fromkeys(lines, csv_file), {file.name for file in files})
    for file in files:
        name, role = f"{file.stem}_test", Role.TEST if test_as_test else Role.UNLABELED
        yield case_or_fault(name, partial(plain_case, name, role, file, csv_file, lines))


def plain_case(name: str, role: Role, file: Path, csv_file: Path, lines: dict[str, list[float]]) -> Case:
    """Return an image of test_set; a ValueError says that the CSV has no line for it."""
    (pixel_size,) = line_of(file, csv_file, lines, 1)
    return Case(name, role, file, partial(read_plain, file, pixel_size))


def read_csv(file: Path, count: int) -> dict[str, list[float]]:
    """Return the numbers of each line by file name: pixel size in mm and, in training, circumference in mm.

    None where a line has not `count` numbers above 0 after its name; no lines where there is no file.
    """
    if not file.is_file():
        return {}
    with file.open(newline="", errors="replace") as opened:
        rows = [row for row in csv.reader(opened) if row][1:]
    lines = {}
    for name, *texts in rows:
        try:
            numbers = [float(text) for text in texts]
        except ValueError:
            numbers = []
        is_good = len(numbers) == count and all(0 < number < math.inf for number in numbers)
        lines[name.strip()] = numbers if is_good else []
    return lines


def line_of(file: Path, csv_file: Path, lines: dict[str, list[float]], count: int) -> list[float]:
    """Return the numbers of an image in the CSV; a ValueError if it has not so many."""
    if not csv_file.is_file():
        raise ValueError(f"{csv_file} is missing, which holds the pixel sizes")
    if file.name not in lines:
        raise ValueError(f"{csv_file} has no line for {file.name}")
    if not lines[file.name]:
        raise ValueError(f"{csv_file}: the line of {file.name} has not {count} number(s) above 0 after the name")
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
    """Return the mask `(Y, X)` up to the middle of an outline's line, and its circumference in pixels.

    Raises:
        ValueError: the outline is no ellipse, or filled.
    """
    rows, columns = np.nonzero(outline)
    ellipse = fit_ellipse(columns, rows)
    if outline.sum() > LARGEST_LINE * ellipse.area():
        raise ValueError("it is filled, expected a thin line")
    return ellipse.filled(outline.shape), ellipse.circumference()


def main(arguments: list[str] | None = None) -> int:
    """Convert as the command line says."""
    parser = conversion_parser("HC18", __doc__, 218)
    parser.add_argument("--test-as-test", action="store_true", help="test_set goes to imagesTs instead of imagesUn")
    return run_conversion(convert, parser, arguments)


if __name__ == "__main__":
    sys.exit(main())
