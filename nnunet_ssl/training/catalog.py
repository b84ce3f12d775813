"""What trainers there are, read from the classes themselves."""

import importlib
import inspect
import os
import pkgutil
import re
from dataclasses import dataclass
from pathlib import Path

from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer
from nnunetv2.utilities.find_class_by_name import recursive_find_python_class

from nnunet_ssl.discovery.startup import SHIM_FOLDER
from nnunet_ssl.training.options import HOST_SETTINGS, allowed_options, host_defaults
from nnunet_ssl.training.semi_supervised_trainer import SemiSupervisedTrainer
from nnunet_ssl.training.teacher_student_trainer import TeacherStudentTrainer

PACKAGE = "nnunet_ssl.trainers"
TWO_NETWORKS = "two networks"
KINDS = {TeacherStudentTrainer: "a student and its moving average", SemiSupervisedTrainer: "one network"}

COMMON_OPTIONS = tuple(
    name for name in allowed_options(SemiSupervisedTrainer, nnUNetTrainer) if name not in HOST_SETTINGS
)


@dataclass(frozen=True)
class Entry:
    """One trainer.

    Attributes:
        sentence: what it does.
        paper: address of the paper.
        kind: which networks take part.
        cost: of a step, nnU-Net's own being 1.
        options: names and defaults that are the method's; those of every trainer where the method's default is another.
    """

    sentence: str
    paper: str
    kind: str
    cost: float
    options: dict[str, object]


def all_trainers() -> list[type[SemiSupervisedTrainer]]:
    """Return the trainers of this package, by name."""
    package = importlib.import_module(PACKAGE)
    names = sorted(module.name for module in pkgutil.iter_modules(package.__path__))
    return [getattr(importlib.import_module(f"{PACKAGE}.{name}"), name) for name in names]


def names_in_folders() -> dict[str, str]:
    """Return the names of trainer classes in the folders that `nnUNet_extTrainer` names, and the folder of each.

    They are read from the text of the files; this package's own folder is left out.
    """
    found: dict[str, str] = {}
    for folder in filter(None, os.environ.get("nnUNet_extTrainer", "").split(os.pathsep)):
        for file in sorted(Path(folder).rglob("*.py")) if folder != SHIM_FOLDER else ():
            text = file.read_text(encoding="utf-8", errors="replace")
            for name in re.findall(r"^class (nnUNetTrainer\w+)", text, re.MULTILINE):
                found.setdefault(name, folder)
    return found


def trainer_in_folder(name: str, folder: str) -> type[SemiSupervisedTrainer]:
    """Import a trainer from a folder as nnU-Net does, which imports all of the folder's files before it too.

    Raises:
        ValueError: one of them cannot be imported, nnU-Net does not find the class, or it is not semi-supervised.
    """
    try:
        found = recursive_find_python_class(folder, name, None, folder, cleanup_imports_from_base_folder=True)
    except Exception as error:  # a file may raise anything
        raise ValueError(f"{name} of {folder} cannot be imported: {type(error).__name__}: {error}") from error
    if found is None:
        raise ValueError(f"nnU-Net does not find {name} in {folder}: a folder inside of it needs an __init__.py")
    if not (isinstance(found, type) and issubclass(found, SemiSupervisedTrainer)):
        raise ValueError(f"{name} of {folder} does not derive from SemiSupervisedTrainer")
    return found


def describe(trainer: type[SemiSupervisedTrainer]) -> Entry:
    """Return a trainer's entry; its docstring begins with one sentence and names the paper by its address."""
    text = inspect.getdoc(trainer) or ""
    address = re.search(r"https?://[^\s;)]+", text)
    options = {
        name: getattr(trainer, name)
        for name in allowed_options(trainer, nnUNetTrainer)
        if name not in HOST_SETTINGS and not _is_of_every_trainer(trainer, name)
    }
    has_two = trainer.build_other_networks is not SemiSupervisedTrainer.build_other_networks
    return Entry(
        sentence=text.partition("\n\n")[0].replace("\n", " "),
        paper=address[0].rstrip(".,") if address else "",
        kind=TWO_NETWORKS if has_two else next(kind for base, kind in KINDS.items() if issubclass(trainer, base)),
        cost=trainer.STEP_COST,
        options=options,
    )


def _is_of_every_trainer(trainer: type[SemiSupervisedTrainer], name: str) -> bool:
    return name in COMMON_OPTIONS and getattr(trainer, name) == getattr(SemiSupervisedTrainer, name)


def types_of_options(trainer: type[SemiSupervisedTrainer]) -> dict[str, type]:
    """Return the type of each option of a trainer."""
    return allowed_options(trainer, nnUNetTrainer)


def options_of_all(trainer: type[SemiSupervisedTrainer]) -> dict[str, object]:
    """Return the options that every trainer has, nnU-Net's settings last, without those that `describe` returns."""
    defaults = host_defaults(nnUNetTrainer)
    names = (*(name for name in COMMON_OPTIONS if _is_of_every_trainer(trainer, name)), *HOST_SETTINGS)
    return {name: getattr(trainer, name, defaults.get(name, "nnU-Net's")) for name in names}
