"""Convert a public benchmark, as downloaded, to nnU-Net's raw format.

`nnunet_ssl convert NAME --help` says which layouts of it are understood. A case that cannot be converted is named and
nothing is written; with --allow-missing the rest is converted, and exit code 1 says that cases were left out.
"""

import argparse

CONVERTERS = {
    "ACDC": "Dataset027_ACDC",
    "LA": "Dataset128_LA",
    "PancreasCT": "Dataset182_PancreasCT",
    "HC18": "Dataset218_HC18",
    "PSFHS": "Dataset219_PSFHS",
    "BraTS19": "Dataset243_BraTS19",
}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the name; the rest is the converter's own."""
    parser.add_argument("name", choices=CONVERTERS, metavar="NAME", help=", ".join(CONVERTERS))
    parser.add_argument("rest", nargs=argparse.REMAINDER, metavar="-i FOLDER ...", help="see NAME --help")


def run(options: argparse.Namespace) -> int:
    """Run the converter with its own command line."""
    from importlib import import_module

    return import_module(f"nnunet_ssl.dataset_conversion.{CONVERTERS[options.name]}").main(options.rest)
