"""Measure predictions against references: overlap, surface distances in mm, volumes.

dice, jaccard   0 if prediction or reference is empty, 1 if both are
hd95            95th percentile of the surface distances of both directions pooled, or, with --hd95 max-directed, the
                larger of the two directions' 95th percentiles
asd             mean distance from the prediction's surface to the reference's
assd            mean of the distances of both directions pooled
nsd             surface Dice: share of both surfaces within --tolerance of the other

A surface is the mask minus its erosion (6-, in 2-D and in a volume of one slice 4-neighbourhood). Where a mask is
empty, distances are nan; the summary counts these cases, and the mean is over the others. Volumes are nan in 2-D.
Where a reference holds the ignore label, Dice and Jaccard are those of its other voxels, and all else is nan: what lies
behind the ignored ones is not known.

Refused: a damaged file; values that are no whole numbers or, with -djfile, that dataset.json does not know; a
prediction of another size, spacing, direction or origin than its reference. Files are read by the data set's own
reader (dataset.json with -djfile, plans with -pfile).
"""

import argparse
import math
from pathlib import Path

from nnunet_ssl.commands.outputs import output_file


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments."""
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("-gt", required=True, metavar="FOLDER", help="references")
    parser.add_argument("-pred", required=True, metavar="FOLDER", help="predictions, of the same names")
    parser.add_argument("-o", metavar="FILE", help="the CSV to write, one line for each structure of each case")
    parser.add_argument("-djfile", metavar="FILE", help="dataset.json: names, regions, ignore label, file ending")
    parser.add_argument("-pfile", metavar="FILE", help="plans.json, which names the reader; with -djfile")
    parser.add_argument("--tolerance", type=float, default=1.0, metavar="MM", help="of nsd (default: 1)")
    parser.add_argument("--hd95", choices=("pooled", "max-directed"), default="pooled", help="default: pooled")
    parser.add_argument("--chill", action="store_true", help="leave out references without prediction, as nnU-Net's")
    parser.add_argument("-np", type=int, default=2, metavar="N", help="processes (default: 2)")


def run(options: argparse.Namespace) -> int:
    """Compare the folders, write the CSV and print the summary."""
    references, predictions = Path(options.gt), Path(options.pred)
    for folder in (references, predictions):
        if not folder.is_dir():
            raise ValueError(f"{folder} is no folder")
    target = output_file(options.o) if options.o is not None else None
    if options.np < 1:
        raise ValueError(f"-np is a number of processes, at least 1, got {options.np}")
    if options.pfile and not options.djfile:
        raise ValueError("-pfile goes with -djfile")
    if not 0 <= options.tolerance < math.inf:
        raise ValueError(f"--tolerance is a distance in mm, at least 0, got {options.tolerance}")

    from nnunet_ssl.data.dataset_reader import ending_in
    from nnunet_ssl.data.older_conversions import older_conversion
    from nnunet_ssl.data.raw_files import read_dataset_json, read_json_file, some
    from nnunet_ssl.evaluation.data_notes import note_about_unit
    from nnunet_ssl.evaluation.folders import cases_of, evaluate_folders, summary, write_csv
    from nnunet_ssl.evaluation.metrics import Hausdorff95
    from nnunet_ssl.evaluation.structures import Structures, structures_found_in

    dataset_json = Path(options.djfile) if options.djfile else None
    ending = read_dataset_json(dataset_json)["file_ending"] if dataset_json else ending_in(references, "reference")
    cases = None
    if options.chill:
        references_there = cases_of(references, ending)
        cases = sorted({*references_there} & {*cases_of(predictions, ending)})
        if not cases:
            raise ValueError(f"no reference of {references} has a prediction in {predictions}")
        print(
            f"{len(references_there) - len(cases)} of {len(references_there)} references have no prediction, left out"
        )
    if extra := sorted({*cases_of(predictions, ending)} - {*cases_of(references, ending)}):
        print(f"{len(extra)} predictions have no reference, left out: {some(extra)}")
    if dataset_json:
        plans = read_json_file(Path(options.pfile)) if options.pfile else None
        structures, note = Structures.of_dataset(dataset_json, plans, references), ""
    else:
        structures, note = structures_found_in(references, predictions, cases, options.np)
    conversion = older_conversion(read_dataset_json(dataset_json)) if dataset_json else None
    for sentence in filter(None, (conversion, note, note_about_unit([references, predictions], structures))):
        print(sentence)
    definition = Hausdorff95(options.hd95)
    rows = evaluate_folders(references, predictions, structures, options.tolerance, definition, options.np, cases)
    print_table(summary(rows))
    if target is not None:
        write_csv(rows, target)
        print(f"written: {target}")
    return 0


def print_table(lines: list[dict[str, str]]) -> None:
    """Print lines of equal columns under their names."""
    widths = {name: max(len(name), *(len(line[name]) for line in lines)) for name in lines[0]}
    for cells in ({name: name for name in widths}, *lines):
        print("  ".join(f"{cells[name]:>{width}}" for name, width in widths.items()))
