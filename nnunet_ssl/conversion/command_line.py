"""The command line that all converters have."""

import argparse
import sys
from collections.abc import Callable
from pathlib import Path

from nnunet_ssl.conversion.cases import Role
from nnunet_ssl.conversion.raw_dataset import left_out
from nnunet_ssl.data.disk_faults import is_fault_of_disk, words_of


def conversion_parser(name: str, description: str | None, dataset_id: int) -> argparse.ArgumentParser:
    """Return a parser with the arguments of every converter: -i, -d, -np, --overwrite, --allow-missing."""
    parser = argparse.ArgumentParser(
        prog=f"nnunet_ssl convert {name}", description=description, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("-i", required=True, type=Path, dest="source", metavar="FOLDER", help="as downloaded")
    parser.add_argument(
        "-d", type=int, default=dataset_id, dest="dataset_id", metavar="ID", help=f"default: {dataset_id}"
    )
    parser.add_argument("-np", type=int, default=2, dest="num_processes", metavar="N", help="processes (default: 2)")
    parser.add_argument("--overwrite", action="store_true", help="replace a data set converted before")
    parser.add_argument(
        "--allow-missing",
        action="store_true",
        help="leave out cases that cannot be converted (a file missing, damaged, with an odd header), and name them",
    )
    return parser


def run_conversion(
    convert: Callable[..., Path], parser: argparse.ArgumentParser, arguments: list[str] | None = None
) -> int:
    """Convert as the command line says and return the exit code.

    0 done, 1 done without cases that are named, 2 not done for a reason named, 130 stopped.
    """
    options = parser.parse_args(arguments)
    try:
        if not options.source.is_dir():
            raise ValueError(f"{options.source} is no folder")
        if options.num_processes < 1:
            raise ValueError(f"-np is a number of processes, at least 1, got {options.num_processes}")
        folder = convert(**vars(options))
    except (ValueError, OSError) as error:
        named = isinstance(error, OSError) and error.filename
        reason = (
            words_of(error) if is_fault_of_disk(error) else f"{error.filename}: {error.strerror}" if named else error
        )
        print(f"{parser.prog}: {reason}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print(f"{parser.prog}: interrupted, nothing was written", file=sys.stderr)
        return 130
    counts = {role: len({f.name[:-12] for f in folder.glob(f"images{role}/*")}) for role in Role}
    print(
        f"{folder}: {counts[Role.LABELED]} labeled cases, {counts[Role.TEST]} for testing, "
        f"{counts[Role.UNLABELED]} unlabeled\nnext: nnunet_ssl split {options.dataset_id} --help\n"
        f"      nnUNetv2_plan_and_preprocess -d {options.dataset_id} --verify_dataset_integrity"
    )
    faults = left_out(folder)
    if faults:
        print(f"left out, {len(faults)} that cannot be converted:")
        print(*(f"  {fault.name}: {fault.reason}" for fault in faults), sep="\n")
    return 1 if faults else 0
