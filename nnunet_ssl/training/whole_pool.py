"""Predicting all unlabeled cases with a network of the run, by nnU-Net's sliding window."""

import hashlib
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from nnunetv2.inference.predict_from_raw_data import nnUNetPredictor
from nnunetv2.inference.sliding_window_prediction import compute_gaussian
from nnunetv2.utilities.label_handling.label_handling import convert_labelmap_to_one_hot
from nnunetv2.utilities.plans_handling.plans_handler import ConfigurationManager
from torch import Tensor, nn
from tqdm import tqdm

from nnunet_ssl.data.pool_predictions import PoolPredictions, change
from nnunet_ssl.data.preprocessed_images import UnlabeledDataset, image_file, open_image
from nnunet_ssl.training import distributed

MEET_EVERY = 20  # cases of each process, as in nnU-Net's validation: the time-out of collectives is minutes
SECONDS_BETWEEN_LINES = 60.0


class WholePool:
    """All unlabeled cases of a run, and the network that predicts them."""

    def __init__(self, images: UnlabeledDataset, predictor: nnUNetPredictor, write_line: Callable[[str], None]) -> None:
        """Take the cases, nnU-Net's predictor, and what writes to the run's log."""
        self.images = images
        self.folders = dict(sorted(images.folders.items()))
        self.predictor = predictor
        self.write_line = write_line
        manager = predictor.label_manager
        self.classes = manager.foreground_regions if manager.has_regions else manager.foreground_labels
        self.type = np.uint8 if max(manager.all_labels) < 2**8 else np.uint16
        self.patch_size = predictor.configuration_manager.patch_size  # of those who read the predictions

    def predict(self, predictions: PoolPredictions, before: PoolPredictions | None) -> int:
        """Predict what is missing; each process does its share, and all are there when it returns.

        Args:
            predictions: of the round, some of whose cases may be finished.
            before: of the round before.

        Returns:
            How many cases all processes have predicted.
        """
        cases, (rank, processes) = list(self.folders), distributed.place_among_processes()
        share, done, written = cases[rank::processes], 0, time.monotonic()
        for i, case in enumerate(tqdm(share, "Predicting", leave=False, disable=rank > 0 or not sys.stderr.isatty())):
            if not self._is_done(case, predictions):
                self._predict_case(case, predictions, before)
                done += 1
            if time.monotonic() - written >= SECONDS_BETWEEN_LINES:
                written = time.monotonic()
                self.write_line(f"predicting unlabeled cases: {i + 1} of {len(share)}")
            if (i + 1) % MEET_EVERY == 0 and i + 1 <= len(cases) // processes:
                distributed.wait_for_all()
        compute_gaussian.cache_clear()  # as nnU-Net after its validation
        distributed.wait_for_all()
        return int(distributed.sum_array(np.array(done)))

    def _is_done(self, case: str, predictions: PoolPredictions) -> bool:
        return predictions.has(case, image_file(self.folders[case], case))

    def _predict_case(self, case: str, predictions: PoolPredictions, before: PoolPredictions | None) -> None:
        self.images.check(case)
        file, image = image_file(self.folders[case], case), torch.from_numpy(self._input(case))
        logits = self.predictor.predict_sliding_window_return_logits(image).cpu()
        labels = self._labels(case, logits)
        changes: list[float] = []
        if before is not None and before.has(case, file):
            changes = [*before.changes(case), change(labels, before.labels(case), self.classes)]
        predictions.write(case, labels, file, self.classes, self.patch_size, changes)

    def _input(self, case: str) -> np.ndarray:
        """Return what the network takes, (C, *spatial): the image, in a cascade with a map for each label."""
        image, previous = open_image(self.folders[case], case)[:], self.images.previous_stage
        if previous is None:
            return image
        labels = self.predictor.label_manager.foreground_labels
        return np.vstack([image, convert_labelmap_to_one_hot(previous.labels(case)[:], labels, image.dtype)])

    def _labels(self, _case: str, logits: Tensor) -> np.ndarray:
        """Return the segmentation (*spatial) that logits (C, *spatial) stand for."""
        return self.predictor.label_manager.convert_logits_to_segmentation(logits).numpy().astype(self.type)


class PoolForNextStage(WholePool):
    """All unlabeled cases of a cascade's first stage, segmented as the second stage takes them."""

    def __init__(
        self,
        images: UnlabeledDataset,
        predictor: nnUNetPredictor,
        write_line: Callable[[str], None],
        shapes: Mapping[str, Sequence[int]],
        patch_size: Sequence[int],
    ) -> None:
        """Take what `WholePool` takes, of the first stage.

        Args:
            images: of the first stage.
            predictor: of its model.
            write_line: writes to the run's log.
            shapes: of each case in the second stage, (*spatial).
            patch_size: of the second stage.
        """
        super().__init__(images, predictor, write_line)
        self.shapes, self.patch_size = shapes, patch_size

    def _is_done(self, case: str, predictions: PoolPredictions) -> bool:
        return super()._is_done(case, predictions) and predictions.labels(case).shape == tuple(self.shapes[case])

    def _labels(self, case: str, logits: Tensor) -> np.ndarray:
        """Return the segmentation in the second stage's voxels; logits are resampled as nnU-Net does it."""
        configuration = self.predictor.configuration_manager
        spacings = [configuration.spacing] * 2  # of no meaning in 3-D, but for which axes are resampled apart
        logits = configuration.resampling_fn_probabilities(logits, self.shapes[case], *spacings)
        return super()._labels(case, torch.as_tensor(logits))


def model_digest(network: nn.Module, predictor: nnUNetPredictor) -> str:
    """Return what tells a network's predictions from those of other weights or another sliding window: SHA-256."""
    axes, patch_size = predictor.allowed_mirroring_axes, predictor.configuration_manager.patch_size
    digest = hashlib.sha256(repr((axes, [*map(int, patch_size)])).encode())
    for name, tensor in network.state_dict().items():
        digest.update(name.encode())
        digest.update(tensor.cpu().numpy().tobytes())
    return digest.hexdigest()


def predictor_for(trainer: Any, mirror_axes: tuple[int, ...]) -> nnUNetPredictor:  # noqa: ANN401 - nnU-Net's trainer
    """Return nnU-Net's predictor, as its trainer validates, of the network that stands in a trainer."""
    return predictor_of(trainer, trainer.network, trainer.configuration_manager, mirror_axes)


def predictor_of(
    trainer: Any,  # noqa: ANN401 - nnU-Net's trainer
    network: nn.Module,
    configuration: ConfigurationManager,
    mirror_axes: Sequence[int],
) -> nnUNetPredictor:
    """Return nnU-Net's predictor of a network of a configuration, on the device and with the plans of a trainer."""
    device = trainer.device
    predictor = nnUNetPredictor(perform_everything_on_device=device.type == "cuda", device=device, allow_tqdm=False)
    arguments = (None, trainer.dataset_json, type(trainer).__name__, tuple(mirror_axes) or None)
    predictor.manual_initialization(network, trainer.plans_manager, configuration, *arguments)
    return predictor
