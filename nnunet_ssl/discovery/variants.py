"""Trainers by name, and the length variants `NAME_<N>epochs` that every trainer has."""

import importlib
import importlib.util
import re

LENGTH_VARIANT = re.compile(r"(?P<trainer>nnUNetTrainer\w+?)_(?P<epochs>[1-9]\d*)epochs?")


def find_trainer(name: str) -> type:
    """Return the trainer class called `name`, or its length variant: `nnUNetTrainerMeanTeacher_250epochs`.

    The same name gives the same class each time, here and in child processes.

    Raises:
        AttributeError: this package has no trainer of that name.
    """
    if name in globals():
        return globals()[name]
    variant = LENGTH_VARIANT.fullmatch(name)
    if variant is None:
        return _import_trainer(name)
    trainer = _import_trainer(variant["trainer"])
    epochs = int(variant["epochs"])
    body = {
        "num_epochs": epochs,
        "__module__": __name__,
        "__doc__": f"{trainer.__name__} with {epochs} epochs.\n\n{trainer.__doc__}",
    }
    globals()[name] = type(name, (trainer,), body)
    return globals()[name]


def _import_trainer(name: str) -> type:
    module = f"nnunet_ssl.trainers.{name}"
    if importlib.util.find_spec(module) is None:
        raise AttributeError(f"nnunet_ssl has no trainer {name!r}")
    return getattr(importlib.import_module(module), name)


def __getattr__(name: str) -> type:
    """Resolve a variant when an object of it is unpickled in a process that has not asked for it by name."""
    if LENGTH_VARIANT.fullmatch(name):
        return find_trainer(name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
