"""List the trainers: what each does, the paper, what a step costs, and its options; or all about one of them.

Trainers in the folders that nnUNet_extTrainer names are listed after the package's.
"""

import argparse
from collections.abc import Iterable
from typing import TYPE_CHECKING

from nnunet_ssl.discovery.variants import LENGTH_VARIANT

if TYPE_CHECKING:
    from nnunet_ssl.training.semi_supervised_trainer import SemiSupervisedTrainer

BASELINE = "nnUNetTrainer"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments."""
    text = "only this one: idea, equations, differences from the paper, cost, and each option with type and default"
    parser.add_argument("name", nargs="?", metavar="NAME", help=text)


def run(options: argparse.Namespace) -> int:
    """Print the catalogue, or all about one trainer."""
    if options.name:
        print_one(options.name)
    else:
        print_all()
    return 0


def print_all() -> None:
    """Print an entry for each trainer of the package, then for each in the folders of nnUNet_extTrainer."""
    from nnunet_ssl.training.catalog import COMMON_OPTIONS, all_trainers, names_in_folders, trainer_in_folder
    from nnunet_ssl.training.options import HOST_SETTINGS

    for trainer in all_trainers():
        print_entry(trainer)
    if own := names_in_folders():
        print("in the folders of nnUNet_extTrainer:")
    for name, folder in own.items():
        try:
            print_entry(trainer_in_folder(name, folder))
        except ValueError as problem:
            print(f"left out: {problem}")
    print(f"options of all:\n  {' '.join(COMMON_OPTIONS)}\n  {' '.join(HOST_SETTINGS)}")


def print_entry(trainer: "type[SemiSupervisedTrainer]") -> None:
    """Print a trainer's name, sentence, paper if it names one, kind, cost and options."""
    from nnunet_ssl.training.catalog import describe

    entry = describe(trainer)
    print(f"{trainer.__name__}\n  {entry.sentence}")
    if entry.paper:
        print(f"  paper:   {entry.paper}")
    print(f"  kind:    {entry.kind}\n  cost:    {entry.cost:.2f} of nnU-Net's step")
    print(f"  options: {' '.join(f'{name}={in_words(value)}' for name, value in entry.options.items())}")


def print_one(name: str) -> None:
    """Print a trainer's description, its cost, and its options, the method's own before those of every trainer.

    Raises:
        ValueError: there is no such trainer.
    """
    import inspect

    from nnunet_ssl.training.catalog import (
        all_trainers,
        describe,
        names_in_folders,
        options_of_all,
        trainer_in_folder,
        types_of_options,
    )

    catalog, own = {trainer.__name__: trainer for trainer in all_trainers()}, names_in_folders()
    if (variant := LENGTH_VARIANT.fullmatch(name)) and variant["trainer"] in {*catalog, *own}:
        print(f"{name} is {variant['trainer']} with num_epochs={variant['epochs']}:\n")
        name = variant["trainer"]
    if name == BASELINE:
        raise ValueError(f"{BASELINE} is nnU-Net's own, which learns from the labeled cases alone: the baseline")
    if name not in {*catalog, *own}:
        raise ValueError(f"there is no trainer {name!r}, {nearest(name, [*catalog, *own])}")
    trainer = trainer_in_folder(name, own[name]) if name in own else catalog[name]
    entry, types = describe(trainer), types_of_options(trainer)
    print(f"{name}\n\n{inspect.getdoc(trainer)}\n")
    print(f"kind: {entry.kind}\ncost: {entry.cost:.2f} of nnU-Net's step\n")
    print_options("options of this method:", entry.options, types)
    print_options("options of every trainer:", options_of_all(trainer), types)


def nearest(name: str, known: Iterable[str]) -> str:
    """Return the part of a sentence that names the trainers most like a name, or all where none is."""
    import difflib

    short = {trainer.removeprefix("nnUNetTrainer").lower(): trainer for trainer in known}
    if variant := LENGTH_VARIANT.fullmatch(name):
        name = variant["trainer"]
    near = difflib.get_close_matches(name.lower().removeprefix("nnunettrainer"), short, n=2, cutoff=0.4)
    named = [short[key] for key in near]
    return f"the nearest: {', '.join(named)}" if named else f"there are {', '.join(short.values())}"


def print_options(title: str, options: dict[str, object], types: dict[str, type]) -> None:
    """Print one line for each option: its name, type and default."""
    width = max((len(name) for name in options), default=0)
    print(title)
    for name, value in options.items():
        print(f"  {name:<{width}}  {types[name].__name__:<5}  {in_words(value)}")


def in_words(value: object) -> str:
    """Return a default as it is written in `nnUNet_ssl_options`; an option without one is not set."""
    if value is None:
        return "not set"
    if isinstance(value, bool):
        return str(value).lower()
    return f"{value:.4g}" if isinstance(value, float) else str(value)
