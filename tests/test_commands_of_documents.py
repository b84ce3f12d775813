"""The commands that README.md and docs/ give are taken by the programs, and name trainers that there are."""

import importlib
import re
import shlex
import sys
from pathlib import Path

import pytest
import torch
from nnunetv2.run import run_training

from nnunet_ssl.commands import cli
from nnunet_ssl.discovery.variants import find_trainer

ROOT = Path(__file__).parent.parent
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]
ENVIRONMENT = r"(?:\w+=(?:\"[^\"]*\"|\S+) )*"
WITHOUT_WHAT_IT_NEEDS = ("nnunet_ssl COMMAND --help", "nnunet_ssl export --ensemble")
OF_A_PAGE = "nnUNetTrainerDroppedFeatures"  # which docs/architecture.md writes; another test trains it


def commands_of(program: str) -> list[str]:
    """Return all commands of a program, with arguments, in the pages; what follows `#` is a comment."""
    found = set()
    for page in PAGES:
        text = page.read_text()
        blocks = [line for block in re.findall(r"```\w*\n(.*?)```", text, re.DOTALL) for line in block.splitlines()]
        inline = [
            " ".join(one.split()) for one in re.findall(r"`([^`]+)`", re.sub(r"```.*?```", "", text, flags=re.DOTALL))
        ]
        for line in [*blocks, *inline]:
            for part in line.partition("#")[0].split("&&"):
                if match := re.fullmatch(rf"\s*{ENVIRONMENT}({program} \S.*?)\s*", part):
                    found.add(match[1])
    return sorted(found)


OURS = [one for one in commands_of("nnunet_ssl") if " -" in one and one not in WITHOUT_WHAT_IT_NEEDS]
TRAININGS = [command for command in commands_of("nnUNetv2_train") if "..." not in command]


@pytest.mark.parametrize("command", OURS)
def test_our_commands_are_taken(monkeypatch, command):
    taken = []
    for verb in cli.VERBS:
        monkeypatch.setattr(
            importlib.import_module(f"nnunet_ssl.commands.{verb}"), "run", lambda options: taken.append(options) or 0
        )
    words = [word for word in shlex.split(command)[1:] if word != "..."]
    assert cli.main(words) == 0
    if (name := getattr(taken[0], "tr", None)) is not None:
        find_trainer(name)


@pytest.mark.parametrize("command", TRAININGS)
def test_trainings_are_taken_by_nnunet(monkeypatch, command):
    taken = []
    monkeypatch.setattr(run_training, "run_training", lambda *arguments, **named: taken.append((arguments, named)))
    monkeypatch.setattr(torch, "set_num_threads", lambda _: None)
    monkeypatch.setattr(torch, "set_num_interop_threads", lambda _: None)  # which works once in a process
    monkeypatch.setattr(sys, "argv", shlex.split(command))
    run_training.run_training_entry()
    trainer = taken[0][0][3]
    if trainer not in (OF_A_PAGE, "nnUNetTrainer", "nnUNetTrainer_250epochs"):
        find_trainer(trainer)


def test_there_are_commands():
    assert len(OURS) > 20
    assert len(TRAININGS) >= 5
