r"""`nnunet_ssl benchmark` for the tables of this project: results lie in benchmarks/results and name the commit.

    python benchmarks/label_efficiency.py --dataset 4 --configuration 2d --labeled 2 \
        --trainers nnUNetTrainerMeanTeacher --steps 2000 --seeds 1 2 --features 16 32 64 128 --batch-size 16

Everything else is as in nnunet_ssl/commands/benchmark.py. Settings are never tuned on what is reported: --tune-fold
takes other validation cases. Trainers of your own, which nnUNet_extTrainer names, take part like ours. tables.py makes
the tables of README.md and docs/ from the results.
"""

import argparse
import sys
from pathlib import Path

from nnunet_ssl.benchmarking.result_files import ROOT
from nnunet_ssl.commands import benchmark
from nnunet_ssl.commands.cli import sentence

CHECKOUT = Path(__file__).resolve().parent.parent


def main() -> int:
    """Run what is not done yet, and print the table of the experiment."""
    refuse_other_checkout()
    try:
        return benchmark.run(argument_parser(__doc__).parse_args())
    except (ValueError, OSError) as error:
        sys.exit(f"label_efficiency.py: {sentence(error)}")


def argument_parser(description: str) -> argparse.ArgumentParser:
    """Return what reads the command line."""
    parser = argparse.ArgumentParser(description=description)
    benchmark.add_arguments(parser)
    parser.set_defaults(
        configuration="2d", device="cuda", output="label_efficiency", results=CHECKOUT / "benchmarks" / "results"
    )
    return parser


def refuse_other_checkout() -> None:
    """Stop if the code that runs is not that whose commit the results would name."""
    if ROOT != CHECKOUT:
        sys.exit(
            f"results name the commit of {CHECKOUT}, but another nnunet_ssl is installed: pip install -e {CHECKOUT}"
        )


if __name__ == "__main__":
    sys.exit(main())
