"""Where the verbs that take a trained model find it, and on which device they run it."""

import argparse
import os
import re
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from shlex import quote

FOLD = re.compile(r"0|[1-9]\d*|all")


def model_folder(options: argparse.Namespace) -> tuple[str, Path]:
    """Return the name of the data set, and the model that -d, -c, -tr and -p stand for.

    Raises:
        ValueError: nnUNet_results is not set, there is no such data set or model, or its files are damaged.
    """
    from nnunet_ssl.data.dataset_names import dataset_name

    if not os.environ.get("nnUNet_results"):
        raise ValueError("nnUNet_results not set: export nnUNet_results=/path/to/folder")
    name = dataset_name(options.d)
    results = Path(os.environ["nnUNet_results"], name)
    model = results / f"{options.tr}__{options.p}__{options.c}"
    if not any(model.glob("fold_*/*.pth")):
        parts = sorted({file.parent.parent.name for file in results.glob("*__*__*/fold_*/*.pth")})
        parts = [parts_of(name) for name in parts]
        there = "; ".join(f"-tr {trainer} -p {plans} -c {one}" for trainer, plans, one in parts)
        training = f"nnUNetv2_train {quote(name)} {quote(options.c)} 0 -tr {quote(options.tr)} -p {quote(options.p)}"
        what = f"there is no checkpoint in {model} yet" if model.is_dir() else f"there is no trained model {model}"
        raise ValueError(what + (f", there are: {there}" if there else f": {training}"))
    refuse_damaged_files(model, options.c)
    return name, model


def parts_of(model: str) -> tuple[str, str, str]:
    """Return trainer, plans and configuration of a model's folder TRAINER__PLANS__CONFIGURATION."""
    trainer, _, rest = model.partition("__")
    plans, _, configuration = rest.rpartition("__")
    return trainer, plans, configuration


def refuse_damaged_files(model: Path, configuration: str) -> None:
    """Raise a ValueError if plans.json or dataset.json of a trained model are missing or damaged."""
    from nnunet_ssl.data.architectures import refuse_other_than_modules
    from nnunet_ssl.data.raw_files import channel_names, read_dataset_json, read_json_file

    channel_names(read_dataset_json(model / "dataset.json"), model / "dataset.json")
    plans = read_json_file(model / "plans.json")
    configurations = plans.get("configurations")
    if not isinstance(configurations, dict) or configuration not in configurations:
        raise ValueError(f"{model / 'plans.json'} has no configuration {configuration}: copy the model anew")
    refuse_other_than_modules(plans, configuration, f"{model / 'plans.json'}")


def refuse_damaged_plans(name: str, plans: str) -> None:
    """Raise a ValueError if what planning left of a data set, which a trainer reads, is missing or damaged."""
    from nnunet_ssl.data.plans_file import read_plans
    from nnunet_ssl.data.raw_files import channel_names, read_dataset_json

    folder = Path(os.environ["nnUNet_preprocessed"], name)
    read_plans(folder / f"{plans}.json")
    channel_names(read_dataset_json(folder / "dataset.json"), folder / "dataset.json")


def model_checkpoint(options: argparse.Namespace) -> tuple[str, Path]:
    """Return the name of the data set, and the checkpoint that -f and -chk stand for besides.

    Raises:
        ValueError: as `model_folder`, or there is no such fold or checkpoint.
    """
    name, model = model_folder(options)
    return name, checkpoint_of(model, options.f, options.chk)


def checkpoint_of(model: Path, fold: str, checkpoint: str) -> Path:
    """Return a checkpoint of a model.

    Raises:
        ValueError: there is no such fold or checkpoint; which there are is said.
    """
    if not FOLD.fullmatch(fold):
        raise ValueError(f"-f is the number of a fold, or all, got {fold!r}")
    folder = model / f"fold_{fold}"
    if not folder.is_dir():
        folds = ", ".join(sorted(one.name.removeprefix("fold_") for one in model.glob("fold_*") if one.is_dir()))
        raise ValueError(f"{model} has no fold {fold}, it has: {folds or 'none'}")
    file = folder / checkpoint
    if not file.is_file():
        others = ", ".join(sorted(one.name for one in folder.glob("*.pth")))
        raise ValueError(f"there is no {file}: is the training finished? -chk chooses from: {others or 'none'}")
    return file


def with_first_stages(checkpoint: Path) -> list[Path]:
    """Return a checkpoint and, of a cascade, that of its first stage, by which its predictions are made too."""
    from nnunetv2.utilities.plans_handling.plans_handler import PlansManager

    from nnunet_ssl.data.plans_file import model_of_stage
    from nnunet_ssl.data.raw_files import read_json_file

    model = checkpoint.parent.parent
    plans = PlansManager(read_json_file(model / "plans.json"))
    previous = plans.get_configuration(model.name.rpartition("__")[2]).previous_stage_name
    if previous is None:
        return [checkpoint]
    return [checkpoint, model_of_stage(model, previous) / checkpoint.parent.name / "checkpoint_final.pth"]


@contextmanager
def away_from_results() -> Iterator[None]:
    """Let nnU-Net construct a trainer without a trace in the run's folder.

    It makes the output folder and a log there, and deletes the folder of Weights & Biases of a run that does not go on.
    """
    before = {name: os.environ.get(name) for name in ("nnUNet_results", "nnUNet_wandb_enabled")}
    with tempfile.TemporaryDirectory() as folder:
        os.environ |= {"nnUNet_results": folder, "nnUNet_wandb_enabled": "0"}
        try:
            yield
        finally:
            for name, value in before.items():
                if value is None:
                    del os.environ[name]
                else:
                    os.environ[name] = value


def add_device_argument(parser: argparse.ArgumentParser) -> None:
    """Declare nnU-Net's -device."""
    parser.add_argument("-device", choices=("cpu", "cuda", "mps"), help="default: cuda if there is one, otherwise cpu")


def device_of(options: argparse.Namespace) -> str:
    """Return the device asked for, or the best there is.

    Raises:
        ValueError: cuda was asked for, and torch can use none.
    """
    import torch

    if options.device == "cuda" and not torch.cuda.is_available():
        raise ValueError("there is no CUDA device that can be used (see nnunet_ssl doctor): take -device cpu")
    return options.device or ("cuda" if torch.cuda.is_available() else "cpu")
