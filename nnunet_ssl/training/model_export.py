"""Models that an nnU-Net without this package predicts with."""

import copy
import io
import json
import zipfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from nnunetv2.utilities.get_network_from_plans import get_network_from_plans
from nnunetv2.utilities.label_handling.label_handling import determine_num_input_channels
from nnunetv2.utilities.plans_handling.plans_handler import ConfigurationManager, PlansManager
from torch import Tensor, nn

from nnunet_ssl.building_blocks.second_network import other_architecture
from nnunet_ssl.data.raw_files import read_json_file
from nnunet_ssl.data.whole_files import replacing
from nnunet_ssl.training.checkpoints import load_model, networks_in
from nnunet_ssl.training.mirrored_folds import Axes, axes_of_all, mirrored_axes

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

Weights = Mapping[str, Tensor]


@dataclass(frozen=True)
class ExportedNames:
    """By which names nnU-Net finds an exported model."""

    trainer: str
    plans: str
    checkpoint: str = "checkpoint_final.pth"


@dataclass(frozen=True)
class TrainedModel:
    """What the checkpoints of a trained model have in common.

    Attributes:
        dataset: name of the data set.
        configuration: for example 3d_fullres.
        plans: content of plans.json.
        description: what nnU-Net's prediction reads of dataset.json.
        mirror_axes: along which all folds are mirrored: nnU-Net predicts every fold as the first one.
    """

    dataset: str
    configuration: str
    plans: dict[str, Any]
    description: dict[str, Any]
    mirror_axes: Axes


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
) -> dict[ExportedNames, list[str]]:
    """Write a zip in the form of nnU-Net's own exports.

    Args:
        model: the folder of a trained model in nnUNet_results.
        folds: which folds.
        checkpoint_name: which checkpoint of each.
        dataset: the data set's name.
        names: by which the model will be found.
        target: the zip; it appears whole or not at all.
        ensemble: write all networks of a method that trains several. Those of one architecture become folds, over which
            nnU-Net averages; where they differ each becomes a model of its own, whose plans have its architecture.

    Returns:
        The models in the zip, with the folds of each: those given, or of networks that became folds 0 to twice as many.

    Raises:
        ValueError: a fold has no such checkpoint, or a file is damaged; with `ensemble`, there is no second network,
            its architecture is not known here, or the folds differ in this.
    """
    files = {fold: model / f"fold_{fold}" / checkpoint_name for fold in folds}
    for fold, file in files.items():
        if not file.is_file():
            raise ValueError(f"fold {fold} has no {file}: is its training finished?")
    axes = axes_of_all({fold: mirrored_axes([file]) or () for fold, file in files.items()})
    trained = trained_model(model, dataset, axes)
    with replacing(target) as unfinished, zipfile.ZipFile(unfinished, "w", zipfile.ZIP_DEFLATED) as opened:
        return write_models(opened, trained, files, names, ensemble)


def trained_model(model: Path, dataset: str, axes: Axes) -> TrainedModel:
    """Return what the files beside the folds of a model say."""
    content = read_json_file(model / "dataset.json")
    description = {key: content[key] for key in DATASET_KEYS if key in content}
    return TrainedModel(
        dataset, model.name.rpartition("__")[2], read_json_file(model / "plans.json"), description, axes
    )


def write_models(
    opened: zipfile.ZipFile, trained: TrainedModel, files: Mapping[str, Path], names: ExportedNames, ensemble: bool
) -> dict[ExportedNames, list[str]]:
    """Write the checkpoints of all folds into a zip, with `ensemble` those of all networks; return models and folds."""
    written: dict[ExportedNames, list[str]] = {}
    differ = False
    for fold, file in files.items():
        checkpoint = load_model(file)
        networks = networks_of(checkpoint, file) if ensemble else {"": checkpoint["network_weights"]}
        differed, differ = differ, are_built_differently(networks)
        if written and differ != differed:
            raise ValueError(f"{file} has another second_architecture than the folds before it: name one fold with -f")
        for i, (network, weights) in enumerate(networks.items()):
            its_names = replace(names, plans=f"{names.plans}_{network}") if differ and i else names
            folder = f"{trained.dataset}/{its_names.trainer}__{its_names.plans}__{trained.configuration}"
            if its_names not in written:
                plans = plans_of(trained, weights, f"the network {network or 'that predicts'} of {file}")
                opened.writestr(f"{folder}/plans.json", json.dumps(plans | {"plans_name": its_names.plans}, indent=1))
                opened.writestr(f"{folder}/dataset.json", json.dumps(trained.description, indent=1))
            folds = written.setdefault(its_names, [])
            folds.append(str(len(folds)) if ensemble and not differ else fold)
            content = plain_checkpoint(checkpoint, weights, folds[-1], its_names, trained.mirror_axes)
            opened.writestr(f"{folder}/fold_{folds[-1]}/{its_names.checkpoint}", to_bytes(content))
    return written


def networks_of(checkpoint: dict[str, Any], file: Path) -> dict[str, Weights]:
    """Return the weights of all networks of a method that trains several; those of its teachers, if it has several."""
    found = networks_in(checkpoint)
    if len(found) < 2:
        raise ValueError(f"{checkpoint['trainer_name']} trains one network: export {file} without --ensemble")
    return found


def are_built_differently(networks: Mapping[str, Weights]) -> bool:
    """Return whether some networks have another architecture than the others."""
    first, *others = map(shapes_of, networks.values())
    return any(other != first for other in others)


def shapes_of(weights: Weights) -> dict[str, torch.Size]:
    """Return the shape of each weight."""
    return {name: value.shape for name, value in weights.items()}


def plans_of(trained: TrainedModel, weights: Weights, whose: str) -> dict[str, Any]:
    """Return plans by which nnU-Net builds a network that has these weights.

    Raises:
        ValueError: it has neither the architecture of the training's plans nor the other one.
    """
    if shapes_of(built_by(trained.plans, trained).state_dict()) == shapes_of(weights):
        return trained.plans
    manager = PlansManager(copy.deepcopy(trained.plans))
    own = manager.get_configuration(trained.configuration).configuration["architecture"]
    name, arguments = other_architecture(own["network_class_name"], own["arch_kwargs"])
    plans = copy.deepcopy(trained.plans)
    other = own | {"network_class_name": name, "arch_kwargs": arguments}
    plans["configurations"][trained.configuration]["architecture"] = other
    if shapes_of(built_by(plans, trained).state_dict()) == shapes_of(weights):
        return plans
    kinds = " nor ".join(f"a {one.rpartition('.')[2]}" for one in (own["network_class_name"], name))
    raise ValueError(f"{whose} is neither {kinds} of these plans, and plain nnU-Net could not build it")


def built_by(plans: Mapping[str, Any], trained: TrainedModel) -> nn.Module:
    """Return the network that plans describe, without weights: it takes no memory."""
    manager, configuration, channels, heads = arguments_of_network(plans, trained)
    with torch.device("meta"):
        return get_network_from_plans(
            configuration.network_arch_class_name,
            configuration.network_arch_init_kwargs,
            configuration.network_arch_init_kwargs_req_import,
            channels,
            heads,
            allow_init=False,
        )


def arguments_of_network(
    plans: Mapping[str, Any], trained: TrainedModel
) -> tuple[PlansManager, ConfigurationManager, int, int]:
    """Return what nnU-Net builds a network of: plans, configuration, and how many channels it has in and out."""
    manager = PlansManager(copy.deepcopy(plans))
    configuration = manager.get_configuration(trained.configuration)
    channels = determine_num_input_channels(manager, configuration, trained.description)
    return manager, configuration, channels, manager.get_label_manager(trained.description).num_segmentation_heads


def plain_checkpoint(
    checkpoint: dict[str, Any], weights: Weights, fold: str, names: ExportedNames, mirror_axes: Axes
) -> dict[str, Any]:
    """Return of a checkpoint, with these weights, what nnU-Net's prediction and a training that starts from it read."""
    return {
        "network_weights": {name: weight.detach().cpu() for name, weight in weights.items()},
        "trainer_name": names.trainer,
        "init_args": {"configuration": checkpoint["init_args"]["configuration"], "fold": fold},
        "inference_allowed_mirroring_axes": mirror_axes or None,
    }


def to_bytes(checkpoint: dict[str, Any]) -> bytes:
    """Return the content of a checkpoint file."""
    buffer = io.BytesIO()
    torch.save(checkpoint, buffer)
    return buffer.getvalue()
