"""Models that a nnU-Net without this package predicts with."""

import io
import json
import zipfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from nnunet_ssl.data.raw_files import read_json_file
from nnunet_ssl.training.checkpoints import load_model

# What nnU-Net's prediction reads of dataset.json. Anything else may name cases, people or places.
DATASET_KEYS = (
    "channel_names",
    "modality",
    "labels",
    "regions_class_order",
    "file_ending",
    "numTraining",
    "overwrite_image_reader_writer",
)
HOST_TRAINER = "nnUNetTrainer"


@dataclass(frozen=True)
class ExportedNames:
    """By which names nnU-Net finds an exported model."""

    trainer: str
    plans: str
    checkpoint: str = "checkpoint_final.pth"


def exported_names(trainer: str, plans: str) -> ExportedNames:
    """Return the names of a model: nnU-Net's trainer, and plans that say which trainer made it."""
    made_by = trainer.removeprefix(HOST_TRAINER)
    return ExportedNames(HOST_TRAINER, f"{plans}_{made_by}" if made_by else plans)


def export_model(
    model: Path,
    folds: Sequence[str],
    checkpoint_name: str,
    dataset: str,
    names: ExportedNames,
    target: Path,
    ensemble: bool = False,
) -> list[str]:
    """Write a zip in the form of nnU-Net's own exports.

    Args:
        model: the folder of a trained model in nnUNet_results.
        folds: which folds.
        checkpoint_name: which checkpoint of each.
        dataset: the data set's name.
        names: by which the model will be found.
        target: the zip; it appears whole or not at all.
        ensemble: write all networks of a method that trains several, each as a fold; nnU-Net averages over folds.

    Returns:
        The folds in the zip: those given, or with `ensemble` 0 to twice as many.

    Raises:
        ValueError: a fold has no such checkpoint, or a file is damaged; with `ensemble`, there is no second
            network, or it has another architecture, for which a model of nnU-Net has no place.
    """
    files = {fold: model / f"fold_{fold}" / checkpoint_name for fold in folds}
    for fold, file in files.items():
        if not file.is_file():
            raise ValueError(f"fold {fold} has no {file}: is its training finished?")
    plans = read_json_file(model / "plans.json") | {"plans_name": names.plans}
    content = read_json_file(model / "dataset.json")
    description = {key: content[key] for key in DATASET_KEYS if key in content}

    configuration = model.name.rpartition("__")[2]
    folder = f"{dataset}/{names.trainer}__{names.plans}__{configuration}"
    target.parent.mkdir(parents=True, exist_ok=True)
    unfinished = target.with_name(f"{target.name}.tmp")
    try:
        with zipfile.ZipFile(unfinished, "w", zipfile.ZIP_DEFLATED) as opened:
            opened.writestr(f"{folder}/plans.json", json.dumps(plans, indent=1))
            opened.writestr(f"{folder}/dataset.json", json.dumps(description, indent=1))
            written = write_folds(opened, folder, files, names, ensemble)
        unfinished.replace(target)
        return written
    finally:
        unfinished.unlink(missing_ok=True)


def write_folds(
    opened: zipfile.ZipFile, folder: str, files: Mapping[str, Path], names: ExportedNames, ensemble: bool
) -> list[str]:
    """Write the checkpoint of each fold into a zip, with `ensemble` those of all its networks; return their folds."""
    written: list[str] = []
    for fold, file in files.items():
        checkpoint = load_model(file)
        for weights in networks_of(checkpoint, file) if ensemble else [checkpoint["network_weights"]]:
            written.append(str(len(written)) if ensemble else fold)
            content = plain_checkpoint(checkpoint | {"network_weights": weights}, written[-1], names)
            opened.writestr(f"{folder}/fold_{written[-1]}/{names.checkpoint}", to_bytes(content))
    return written


def networks_of(checkpoint: dict[str, Any], file: Path) -> list[dict[str, Tensor]]:
    """Return the weights of all networks of a method that trains several; those of its teachers, if it has several."""
    ours = checkpoint.get("nnunet_ssl", {})
    earlier = {name: part for name, part in ours.get("parts", {}).items() if name in ("student", "second")}
    teachers, networks = ours.get("teachers", {}), ours.get("networks", earlier)
    first, *others = (teachers if len(teachers) > 1 else networks).values() or [None]
    if not others:
        raise ValueError(f"{checkpoint['trainer_name']} trains one network: export {file} without --ensemble")
    shapes = {name: value.shape for name, value in first.items()}
    if any({name: value.shape for name, value in other.items()} != shapes for other in others):
        raise ValueError(
            f"the second network of {file} has another architecture than its plans: export it without --ensemble"
        )
    return [first, *others]


def plain_checkpoint(checkpoint: dict[str, Any], fold: str, names: ExportedNames) -> dict[str, Any]:
    """Return of a checkpoint what nnU-Net's prediction, and training that starts from it, read."""
    return {
        "network_weights": {name: weight.detach().cpu() for name, weight in checkpoint["network_weights"].items()},
        "trainer_name": names.trainer,
        "init_args": {"configuration": checkpoint["init_args"]["configuration"], "fold": fold},
        "inference_allowed_mirroring_axes": checkpoint.get("inference_allowed_mirroring_axes"),
    }


def to_bytes(checkpoint: dict[str, Any]) -> bytes:
    """Return the content of a checkpoint file."""
    buffer = io.BytesIO()
    torch.save(checkpoint, buffer)
    return buffer.getvalue()
