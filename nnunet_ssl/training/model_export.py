"""Models that a nnU-Net without this package predicts with."""

import io
import json
import zipfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from nnunet_ssl.training.checkpoints import load_checkpoint_file

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
    return ExportedNames(HOST_TRAINER, f"{plans}_{trainer.removeprefix(HOST_TRAINER)}")


def export_model(
    model: Path, folds: Sequence[str], checkpoint_name: str, dataset: str, names: ExportedNames, target: Path
) -> None:
    """Write a zip in the form of nnU-Net's own exports.

    Args:
        model: the folder of a trained model in nnUNet_results.
        folds: which folds.
        checkpoint_name: which checkpoint of each.
        dataset: the data set's name.
        names: by which the model will be found.
        target: the zip; it appears whole or not at all.

    Raises:
        ValueError: a fold has no such checkpoint, or the checkpoint is damaged.
    """
    files = {fold: model / f"fold_{fold}" / checkpoint_name for fold in folds}
    for fold, file in files.items():
        if not file.is_file():
            raise ValueError(f"fold {fold} has no {file}: is its training finished?")
    plans = json.loads((model / "plans.json").read_text()) | {"plans_name": names.plans}
    content = json.loads((model / "dataset.json").read_text())
    description = {key: content[key] for key in DATASET_KEYS if key in content}

    configuration = model.name.rpartition("__")[2]
    folder = f"{dataset}/{names.trainer}__{names.plans}__{configuration}"
    target.parent.mkdir(parents=True, exist_ok=True)
    unfinished = target.with_name(f"{target.name}.tmp")
    try:
        with zipfile.ZipFile(unfinished, "w", zipfile.ZIP_DEFLATED) as opened:
            opened.writestr(f"{folder}/plans.json", json.dumps(plans, indent=1))
            opened.writestr(f"{folder}/dataset.json", json.dumps(description, indent=1))
            for fold, file in files.items():
                checkpoint = load_checkpoint_file(file, torch.device("cpu"))
                opened.writestr(
                    f"{folder}/fold_{fold}/{names.checkpoint}", to_bytes(plain_checkpoint(checkpoint, fold, names))
                )
        unfinished.replace(target)
    finally:
        unfinished.unlink(missing_ok=True)


def plain_checkpoint(checkpoint: dict[str, Any], fold: str, names: ExportedNames) -> dict[str, Any]:
    """Return of a checkpoint what nnU-Net's prediction, and training that starts from it, read."""
    return {
        "network_weights": {name: weight.detach().cpu() for name, weight in checkpoint["network_weights"].items()},
        "trainer_name": names.trainer,
        "init_args": {"configuration": checkpoint["init_args"]["configuration"], "fold": fold},
        "inference_allowed_mirroring_axes": checkpoint["inference_allowed_mirroring_axes"],
    }


def to_bytes(checkpoint: dict[str, Any]) -> bytes:
    """Return the content of a checkpoint file."""
    buffer = io.BytesIO()
    torch.save(checkpoint, buffer)
    return buffer.getvalue()
