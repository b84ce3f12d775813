"""The JSON files of finished runs, one for each, from which every table of results is made.

    RESULTS/EXPERIMENT/TRAINER__VARIANT__seedN.json

They hold no path and no name of a machine. A result is stale once the file of its trainer, or the training step that
all trainers of this package share, is another one than that which it was made with.
"""

import ast
import hashlib
import importlib.util
import json
import os
import platform
import re
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import nnunet_ssl

PACKAGE = Path(nnunet_ssl.__file__).resolve().parent
ROOT = PACKAGE.parent  # of the checkout, if the package is installed from one that can be edited
TRAINERS = Path(*importlib.util.find_spec("nnunet_ssl.trainers").submodule_search_locations)
STEP = PACKAGE / "training" / "step.py"
CODE = ("nnunet_ssl", "trainers", "benchmarks", ":(exclude)benchmarks/results")  # what a result may depend on
BASELINE = "nnUNetTrainer"
DEFAULT, ALL_LABELED = "default", "all"  # variants: no option given; a training with every label

Result = dict[str, Any]


@dataclass(frozen=True)
class Run:
    """One training of an experiment.

    Attributes:
        experiment: what all of its runs share: data, network, steps, validation cases.
        trainer: its name.
        variant: `default`, `all`, the options in words, or which cases were added (which_to_label.py).
        seed: of the training, and of the labeled cases where they are drawn.
    """

    experiment: str
    trainer: str
    variant: str
    seed: int

    @property
    def name(self) -> str:
        """The name of its files."""
        return f"{self.trainer}__{self.variant}__seed{self.seed}"

    def file(self, results: Path) -> Path:
        """Return where its result lies once it is finished."""
        return results / self.experiment / f"{self.name}.json"


def variant_of(options: Mapping[str, str]) -> str:
    """Return the options in words, in order of their names, such as "box_side=0.5,ema_decay=0.9"."""
    words = ",".join(f"{name}={options[name]}" for name in sorted(options))
    return re.sub(r"[^\w.=,+-]", "-", words) or DEFAULT


def read_results(experiment: str, results: Path) -> dict[Run, Result]:
    """Return what the finished runs of an experiment left, by the names of their files.

    Raises:
        ValueError: a file that is no result, or has the name of another one.
    """
    found = {}
    for file in sorted((results / experiment).glob("*.json")):
        try:
            content = json.loads(file.read_text())
            run = Run(experiment, content["trainer"], content["variant"], content["seed"])
        except (ValueError, KeyError, TypeError) as error:
            raise ValueError(f"{file} is no result of nnunet_ssl benchmark: {error!r}") from None
        if run.name != file.stem:
            raise ValueError(f"{file} holds the result of {run.name}")
        found[run] = content
    return found


def is_stale(result: Result) -> bool:
    """Return whether the file of the trainer or of the training step has changed since, or is found no more."""
    return any(result["code"][name] != digest for name, digest in digests(result["trainer"]).items())


def digests(trainer: str) -> dict[str, str | None]:
    """Return the SHA-256 of the files that a trainer's results depend on most; None where there is no such file.

    nnU-Net's own trainers do not use our training step.
    """
    source, is_hosts = source_of(trainer)
    return {"trainer": sha256(source), "step": None if is_hosts else sha256(STEP)}


def source_of(trainer: str) -> tuple[Path | None, bool]:
    """Return the file called as a trainer, in this package, nnU-Net or the user's folders, and if it is nnU-Net's."""
    if (ours := TRAINERS / f"{trainer}.py").exists():
        return ours, False
    (host,) = importlib.util.find_spec("nnunetv2").submodule_search_locations
    for file in Path(host, "training", "nnUNetTrainer").rglob(f"{trainer}.py"):
        return file, True
    for folder in filter(None, os.environ.get("nnUNet_extTrainer", "").split(os.pathsep)):
        for file in Path(folder).rglob(f"{trainer}.py"):
            return file, False
    return None, False


def sha256(file: Path | None) -> str | None:
    """Return the digest of a file's code, docstrings and comments left out; None if there is no file."""
    if file is None or not file.exists():
        return None
    tree = ast.parse(file.read_text())
    for node in ast.walk(tree):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef) and ast.get_docstring(node) is not None:
            del node.body[0]
    return hashlib.sha256(repr(_outline(tree)).encode()).hexdigest()


def _outline(node: Any) -> Any:  # noqa: ANN401 - a syntax tree, or a part of one
    """Return a syntax tree in plain types, without what is empty: every version of Python gives the same one.

    `ast.unparse` and `ast.dump` do not.
    """
    if isinstance(node, ast.AST):
        fields = {name: _outline(value) for name, value in ast.iter_fields(node) if value is not None and value != []}
        return type(node).__name__, fields
    return [_outline(item) for item in node] if isinstance(node, list) else node


def code_of(trainer: str) -> dict[str, Any]:
    """Return the commit of the code, whether it was changed since ("dirty"), and the digests of `digests`.

    Without git, or where the package is not installed from a checkout, its version stands instead of the commit.
    """
    commit = commit_of_checkout()
    dirty = commit is not None and bool(_git("status", "--porcelain", "--", *CODE))
    return {"commit": commit or f"nnunet_ssl {version('nnunet_ssl')}", "dirty": dirty} | digests(trainer)


def commit_of_checkout() -> str | None:
    """Return the commit of the checkout that the package is installed from; None if it is from none.

    A folder of packages may lie in a repository of something else.
    """
    top = _git("rev-parse", "--show-toplevel")
    return _git("rev-parse", "--short=12", "HEAD") if top is not None and Path(top).resolve() == ROOT else None


def versions() -> dict[str, str]:
    """Return the versions that a result may depend on."""
    packages = {name: version(name) for name in ("nnunet_ssl", "nnunetv2", "torch", "numpy")}
    return packages | {"python": platform.python_version()}


def _git(*words: str) -> str | None:
    try:
        return subprocess.run(["git", *words], cwd=ROOT, check=True, capture_output=True, text=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return None
