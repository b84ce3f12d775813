"""Measure the head circumference in predicted masks of fetal ultrasound, by a least-squares ellipse for each.

The CSV has the columns of the HC18 challenge's submission and, after them, the circumference, whether the image's
border cuts the head, and of how many parts the mask is; lengths are in mm. Of several parts the largest is measured.
Measured is the border of the mask, and nothing is corrected: the masks of `nnunet_ssl convert HC18` end in the middle
of the drawn line, as the challenge's circumferences do. Of a head that the image's border cuts, the arc that is left is
measured, if at least half of its ellipse is in the image.
"""

import argparse
import csv
from pathlib import Path
from typing import TYPE_CHECKING

from nnunet_ssl.commands.outputs import output_file

if TYPE_CHECKING:
    from nnunet_ssl.evaluation.heads import Head

COLUMNS = (
    "filename",
    "center_x_mm",
    "center_y_mm",
    "semi_axes_a_mm",
    "semi_axes_b_mm",
    "angle_rad",
    "head_circumference_mm",
    "cut_by_border",
    "parts",
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments."""
    parser.add_argument("-i", required=True, metavar="FOLDER", help="predicted masks, one file for each case")
    parser.add_argument("-o", required=True, metavar="FILE", help="the CSV to write")
    parser.add_argument("-l", type=int, default=1, metavar="LABEL", help="value of the head in the masks (default: 1)")


def run(options: argparse.Namespace) -> int:
    """Measure every mask; return 1 if there is one without an ellipse, which is named."""
    from nnunet_ssl.data.dataset_reader import DatasetReader, ending_in
    from nnunet_ssl.data.raw_files import files_in, some
    from nnunet_ssl.data.whole_files import replacing
    from nnunet_ssl.evaluation.cells import csv_row
    from nnunet_ssl.evaluation.heads import Head, measure

    folder = Path(options.i)
    if not folder.is_dir():
        raise ValueError(f"{folder} is no folder")
    if not Path(options.o).parent.is_dir():
        raise ValueError(f"there is no folder {Path(options.o).parent} for {options.o}")
    output_file(options.o)
    ending = ending_in(folder, "mask")
    files = files_in(folder, ending)
    reader = DatasetReader.of_dataset({"file_ending": ending}, files)

    warn_of_older_conversion(folder)
    problems, rows, faults, divided = [], [], [], []
    names = [file.name.removesuffix(ending) for file in files]
    for file, case in zip(files, names, strict=True):
        of_test_set = case.removesuffix("_test")  # the challenge knows them by this name
        name = f"{case if of_test_set in names else of_test_set}.png"
        try:
            head = measure(reader, file, options.l)
        except ValueError as error:
            faults.append(error)
            head = Head(problem=str(error))
        if head.problem:
            problems.append(head.problem if file.name in head.problem else f"{file.name}: {head.problem}")
        if head.ellipse is not None and head.parts > 1:
            divided.append(file.name)
        rows.append([name, *columns_of(head)])
    if len(faults) == len(files):
        raise faults[0]
    with replacing(Path(options.o)) as unfinished, unfinished.open("w", newline="") as opened:
        csv.writer(opened).writerows(map(csv_row, [COLUMNS, *rows]))
    print(f"{options.o}: {len(files) - len(problems)} of {len(files)} masks measured")
    if divided:
        print(f"of {len(divided)} masks with several parts the largest is measured (column parts): {some(divided)}")
    print(*problems, sep="\n", end="\n" if problems else "")
    return 1 if problems else 0


def warn_of_older_conversion(folder: Path) -> None:
    """Print what is wrong with the data set of the masks, if an older converter made it.

    Its dataset.json lies beside predictions, above labelsTr, and two folders above a fold's validation.

    Raises:
        ValueError: the file is damaged.
    """
    from nnunet_ssl.data.older_conversions import older_conversion
    from nnunet_ssl.data.raw_files import read_json_file

    for place in [folder.absolute(), *folder.absolute().parents][:3]:
        if (file := place / "dataset.json").is_file():
            if sentence := older_conversion(read_json_file(file)):
                print(f"warning: {sentence}")
            return


def columns_of(head: "Head") -> list[str]:
    """Return what stands in the CSV after the name."""
    cut = "" if head.cut_by_border is None else "yes" if head.cut_by_border else "no"
    parts = str(head.parts or "")
    if head.ellipse is None:
        return [""] * (len(COLUMNS) - 3) + [cut, parts]
    ellipse = head.ellipse
    lengths = (ellipse.center_x, ellipse.center_y, ellipse.semi_axis_a, ellipse.semi_axis_b)
    return [*(f"{value:.4f}" for value in (*lengths, ellipse.angle_rad, ellipse.circumference())), cut, parts]
