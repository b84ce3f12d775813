"""List the trainers: what each does, the paper, what a step costs, and its options with their defaults."""

import argparse


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments."""
    parser.add_argument("name", nargs="?", metavar="NAME", help="only this one, with the whole description")


def run(options: argparse.Namespace) -> int:
    """Print the catalogue, or one trainer's description."""
    import inspect

    from nnunet_ssl.training.catalog import COMMON_OPTIONS, all_trainers, describe
    from nnunet_ssl.training.options import HOST_SETTINGS

    catalog = {trainer.__name__: trainer for trainer in all_trainers()}
    if options.name:
        if options.name not in catalog:
            raise ValueError(f"there is no trainer {options.name!r}, there are {', '.join(catalog)}")
        print(f"{options.name}\n\n{inspect.getdoc(catalog[options.name])}\n")
        catalog = {options.name: catalog[options.name]}
    for name, trainer in catalog.items():
        entry = describe(trainer)
        print(f"{name}\n  {entry.sentence}")
        print(f"  paper:   {entry.paper}\n  kind:    {entry.kind}\n  cost:    {entry.cost:.2f} of nnU-Net's step")
        defaults = {key: f"{value:.4g}" if isinstance(value, float) else value for key, value in entry.options.items()}
        print(f"  options: {' '.join(f'{key}={value}' for key, value in defaults.items())}")
    print(f"options of all:\n  {' '.join(COMMON_OPTIONS)}\n  {' '.join(HOST_SETTINGS)}")
    return 0
