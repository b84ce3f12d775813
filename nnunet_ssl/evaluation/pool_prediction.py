"""Predicting unlabeled scans with a trained model, by nnU-Net's predictor, keeping the probabilities."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import torch
from nnunetv2.inference.predict_from_raw_data import nnUNetPredictor
from nnunetv2.utilities.find_objects import recursive_find_trainer_class_by_name
from nnunetv2.utilities.label_handling.label_handling import LabelManager

from nnunet_ssl.data.dataset_reader import DatasetReader, quiet, refuse_unusable
from nnunet_ssl.data.image_fit import refuse_unfit
from nnunet_ssl.data.plans_file import model_of_stage
from nnunet_ssl.data.raw_files import channel_problem
from nnunet_ssl.data.stamps import file_digest
from nnunet_ssl.evaluation.label_priority import Uncertainty, measure_uncertainty
from nnunet_ssl.training.checkpoints import load_model, networks_in
from nnunet_ssl.training.safe_loading import nnunet_loads_without_code


@dataclass(frozen=True)
class PoolPrediction:
    """One predicted scan: labels `(*spatial)`, what to write them with, how uncertain they are, and volumes in ml.

    A volume is NaN where a voxel has none: in 2-D, and in formats without spacing.
    """

    labels: np.ndarray
    properties: dict
    uncertainty: Uncertainty
    volumes_ml: dict[str, float]


class PoolPredictor:
    """A trained model, and the other network of its training if it has one; of a cascade the first stage's too."""

    def __init__(self, model: Path, fold: str, checkpoint_name: str, device: torch.device) -> None:
        """Load the model; a ValueError names what is damaged, missing or does not fit."""
        file = model / f"fold_{fold}" / checkpoint_name
        checkpoint = load_model(file)
        refuse_missing_trainer(checkpoint["trainer_name"], file)
        self.predictor = nnUNetPredictor(
            device=device, perform_everything_on_device=device.type == "cuda", allow_tqdm=False
        )
        try:
            with nnunet_loads_without_code():
                self.predictor.initialize_from_trained_model_folder(str(model), [fold], checkpoint_name)
        except (RuntimeError, KeyError, TypeError) as error:
            raise ValueError(
                f"{file} does not fit plans.json and dataset.json in {model}: copy the model anew"
            ) from error
        self.weights = checkpoint["network_weights"]
        self.other_weights = other_network(checkpoint, self.weights)
        self.reader = DatasetReader.of_plans(self.predictor.plans_manager.plans)
        self.structures = structures_of(self.predictor.label_manager, self.predictor.dataset_json)
        self.previous: PoolPredictor | None = None
        if first_stage := self.predictor.configuration_manager.previous_stage_name:
            self.previous = PoolPredictor(model_of_stage(model, first_stage), fold, "checkpoint_final.pth", device)

    def predict(self, files: Sequence[Path]) -> PoolPrediction:
        """Predict a scan, given the files of its channels.

        Raises:
            ValueError: the scan is one that preprocessing leaves out: damaged, unlike the data set, or not finite.
        """
        if problem := channel_problem(files, self.predictor.dataset_json):
            raise ValueError(problem)
        model = self.predictor
        refuse_unfit(files, model.plans_manager, model.configuration_manager, model.dataset_json)
        image, properties = self.reader.read_channels(files)
        refuse_unusable(image, self.predictor.dataset_json)
        before = None if self.previous is None else self.previous.labels(image, properties)[None].astype(np.int16)
        labels, probs = self._run(self.weights, image, properties, before)
        if not np.isfinite(probs).all():
            raise ValueError("the image holds values that are not finite once it is preprocessed")
        masks = self.masks(labels)
        others = None
        if self.other_weights is not None:
            others = self.masks(self._run(self.other_weights, image, properties, before)[0])
        is_softmax = not self.predictor.label_manager.has_regions
        uncertainty = measure_uncertainty(probs, masks, self.channels(), is_softmax, others)
        voxel_ml = self.reader.space_of_image(files, properties, image.shape[1:]).voxel_ml
        volumes = {name: float(mask.sum()) * voxel_ml for name, mask in masks.items()}
        return PoolPrediction(labels, properties, uncertainty, volumes)

    def write(self, prediction: PoolPrediction, file: Path) -> None:
        """Write the labels in the data set's format."""
        self.reader.write_labels(prediction.labels, file, prediction.properties)

    def has_written(self, prediction: PoolPrediction, file: Path) -> bool:
        """Return whether a file holds these labels as they are written here."""
        with TemporaryDirectory() as folder:
            again = Path(folder, file.name)
            self.write(prediction, again)
            return file_digest(again) == file_digest(file)

    def masks(self, labels: np.ndarray) -> dict[str, np.ndarray]:
        """Return the voxels of each structure."""
        return {name: np.isin(labels, values) for name, values in self.structures.items()}

    def channels(self) -> dict[str, int]:
        """Return each structure's channel in the probabilities: background has one only in a softmax."""
        first = 0 if self.predictor.label_manager.has_regions else 1
        return {name: index for index, name in enumerate(self.structures, start=first)}

    def labels(self, image: np.ndarray, properties: dict) -> np.ndarray:
        """Return the labels (*spatial) of a scan (C, *spatial) that was read already."""
        return self._run(self.weights, image, properties)[0]

    def _run(
        self, weights: dict, image: np.ndarray, properties: dict, before: np.ndarray | None = None
    ) -> tuple[np.ndarray, np.ndarray]:
        self.predictor.list_of_parameters = [weights]
        return self.predictor.predict_single_npy_array(image, properties, before, save_or_return_probabilities=True)


def refuse_missing_trainer(name: str, file: Path) -> None:
    """Raise a ValueError if nnU-Net does not find the class of the trainer that wrote a checkpoint."""
    try:
        with quiet():
            recursive_find_trainer_class_by_name(name)
    except RuntimeError:
        raise ValueError(
            f"{file} is of trainer {name}, which is not installed: install its package, or name its folder in "
            "nnUNet_extTrainer"
        ) from None


def other_network(checkpoint: dict, weights: dict) -> dict | None:
    """Return the weights of a second network that the training had, of the same architecture; None without one.

    A student and its teacher are one network.
    """
    networks = networks_in(checkpoint)
    for other in networks.values() if len(networks) > 1 else ():
        fits = other.keys() == weights.keys() and all(other[name].shape == weights[name].shape for name in weights)
        if fits and any(not torch.equal(other[name], weights[name]) for name in weights):
            return other
    return None


def structures_of(label_manager: LabelManager, dataset_json: dict) -> dict[str, tuple[int, ...]]:
    """Return labels or regions by name, in the order of the network's channels, without background."""
    named = {
        tuple(value) if isinstance(value, list | tuple) else (value,): name
        for name, value in dataset_json["labels"].items()
    }
    wanted = label_manager.foreground_regions if label_manager.has_regions else label_manager.foreground_labels
    values = [tuple(value) if isinstance(value, list | tuple) else (value,) for value in wanted]
    return {named[value]: value for value in values}
