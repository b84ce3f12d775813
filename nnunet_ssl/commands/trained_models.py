"""Where the verbs that take a trained model find it, and on which device they run it."""

import argparse
import os
from pathlib import Path


def model_folder(options: argparse.Namespace) -> tuple[str, Path]:
    """Return the name of the data set, and the model that -d, -c, -tr and -p stand for.

    Raises:
        ValueError: nnUNet_results is not set, or there is no such data set or model.
    """
    from nnunet_ssl.commands.preprocess import dataset_name

    if not os.environ.get("nnUNet_results"):
        raise ValueError("nnUNet_results not set: export nnUNet_results=/path/to/folder")
    name = dataset_name(options.d)
    model = Path(os.environ["nnUNet_results"], name, f"{options.tr}__{options.p}__{options.c}")
    if not model.is_dir():
        raise ValueError(f"there is no trained model {model}")
    return name, model


def model_checkpoint(options: argparse.Namespace) -> tuple[str, Path]:
    """Return the name of the data set, and the checkpoint that -f and -chk stand for besides.

    Raises:
        ValueError: as `model_folder`, or there is no such checkpoint.
    """
    name, model = model_folder(options)
    checkpoint = model / f"fold_{options.f}" / options.chk
    if not checkpoint.is_file():
        raise ValueError(f"there is no {checkpoint}: is the training finished?")
    return name, checkpoint


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
        raise ValueError("there is no CUDA device that torch can use (nnunet_ssl doctor says why): -device cpu")
    return options.device or ("cuda" if torch.cuda.is_available() else "cpu")
