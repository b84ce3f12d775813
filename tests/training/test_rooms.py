"""The rooms of training/ stay small, know what they may know, and do not go round in circles."""

import ast
import importlib
import inspect
from pathlib import Path

import pytest
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer

import nnunet_ssl

PACKAGE = Path(nnunet_ssl.__file__).parent
ROOMS = sorted(file for file in (PACKAGE / "training").glob("*.py") if file.stem != "__init__")
MOST_LINES, MOST_METHODS, MOST_METHODS_OF_THE_PAGE = 300, 25, 35
# Hooks of nnU-Net and what is made of them; every other room is handed what it needs.
KNOW_TRAINERS = {
    "semi_supervised_trainer",
    "resumable_trainer",
    "pool_trainer",
    "cascade_trainer",
    "two_stream_trainer",
    "mirroring_trainer",
    "teacher_student_trainer",
    "dual_network_trainer",
    "catalog",
    "run_state",  # nnU-Net's class alone, for the names of its settings
}


def imports_of(file: Path) -> set[str]:
    tree, found = ast.parse(file.read_text()), set()
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and node.module:
            found |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
        elif isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
    return found


@pytest.mark.parametrize("file", sorted(PACKAGE.rglob("*.py")), ids=lambda file: str(file.relative_to(PACKAGE)))
def test_no_file_is_long(file):
    assert len(file.read_text().splitlines()) <= MOST_LINES


def test_imports_do_not_go_round_in_circles():
    names = {f"nnunet_ssl.training.{file.stem}": file for file in ROOMS}
    needed = {name: imports_of(file) & names.keys() for name, file in names.items()}
    while needed:
        free = [name for name, others in needed.items() if not others & needed.keys()]
        assert free, f"a circle among {sorted(needed)}"
        needed = {name: others for name, others in needed.items() if name not in free}


@pytest.mark.parametrize("file", ROOMS, ids=lambda file: file.stem)
def test_rooms_know_no_trainer(file):
    if file.stem not in KNOW_TRAINERS:
        assert not [name for name in imports_of(file) if "rainer" in name.rpartition("training.")[2]]


def test_page_of_the_author_knows_no_nnunet():
    assert not [name for name in imports_of(PACKAGE / "training" / "method.py") if name.startswith("nnunetv2")]


def test_no_class_has_many_methods():
    for file in PACKAGE.rglob("*.py"):
        module = importlib.import_module(".".join(("nnunet_ssl", *file.relative_to(PACKAGE).with_suffix("").parts)))
        for name, cls in vars(module).items():
            if inspect.isclass(cls) and cls.__module__ == module.__name__:
                own = [
                    member
                    for member, value in vars(cls).items()
                    if inspect.isfunction(value) and not member.startswith("_") and not hasattr(nnUNetTrainer, member)
                ]
                most = MOST_METHODS_OF_THE_PAGE if name == "Method" else MOST_METHODS
                assert len(own) <= most, (name, own)
