"""Measure predictions against references: overlap, surface distances in mm, volumes.

dice, jaccard   0 if prediction or reference is empty, 1 if both are
hd95            95th percentile of the surface distances of both directions pooled, or, with --hd95 max-directed, the
                larger of the two directions' 95th percentiles
asd             mean distance from the prediction's surface to the reference's
assd            mean of the distances of both directions pooled
nsd             surface Dice: share of both surfaces within --tolerance of the other

A surface is the mask minus its erosion (6-, in 2-D 4-neighbourhood). Where a mask is empty, distances are nan; the
summary counts these cases, and the mean is over the others.
"""

import argparse
from pathlib import Path


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments."""
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("-gt", required=True, metavar="FOLDER", help="references")
    parser.add_argument("-pred", required=True, metavar="FOLDER", help="predictions, of the same names")
    parser.add_argument("-o", metavar="FILE", help="the CSV to write, one line for each structure of each case")
    parser.add_argument("-djfile", metavar="FILE", help="dataset.json, for names, regions and the ignore label")
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
    if options.np < 1:
        raise ValueError(f"-np is a number of processes, at least 1, got {options.np}")
    if options.tolerance < 0:
        raise ValueError(f"--tolerance is a distance in mm, at least 0, got {options.tolerance}")

    from nnunet_ssl.evaluation.folders import Structures, cases_of, evaluate_folders, summary, write_csv
    from nnunet_ssl.evaluation.metrics import Hausdorff95

    if options.djfile:
        structures = Structures.of_dataset(Path(options.djfile))
    else:
        structures = Structures.found_in(sorted(references.glob("*.nii.gz")))
    cases = None
    if options.chill:
        references_there = cases_of(references, structures.ending)
        cases = sorted({*references_there} & {*cases_of(predictions, structures.ending)})
        if not cases:
            raise ValueError(f"no reference of {references} has a prediction in {predictions}")
        print(
            f"{len(references_there) - len(cases)} of {len(references_there)} references have no prediction, left out"
        )
    definition = Hausdorff95(options.hd95)
    rows = evaluate_folders(references, predictions, structures, options.tolerance, definition, options.np, cases)
    lines = summary(rows)
    widths = {name: max(len(name), *(len(line[name]) for line in lines)) for name in lines[0]}
    print("  ".join(f"{name:>{width}}" for name, width in widths.items()))
    for line in lines:
        print("  ".join(f"{line[name]:>{width}}" for name, width in widths.items()))
    if options.o:
        write_csv(rows, Path(options.o))
        print(f"written: {options.o}")
    return 0
