"""Predicting all unlabeled cases with a network of the run, by nnU-Net's sliding window."""

import hashlib
import sys
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from nnunetv2.inference.predict_from_raw_data import nnUNetPredictor
from nnunetv2.inference.sliding_window_prediction import compute_gaussian
from torch import nn
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

    def predict(self, predictions: PoolPredictions, before: PoolPredictions | None) -> int:
        """Predict what is missing; each process does its share, and all are there when it returns.

        Args:
            predictions: of the round, some of whose cases may be finished.
            before: of the round before.

        Returns:
            How many cases this process has predicted.
        """
        cases, (rank, processes) = list(self.folders), distributed.place_among_processes()
        share, done, written = cases[rank::processes], 0, time.monotonic()
        for i, case in enumerate(tqdm(share, "Predicting", leave=False, disable=rank > 0 or not sys.stderr.isatty())):
            if not predictions.has(case, image_file(self.folders[case], case)):
                self._predict_case(case, predictions, before)
                done += 1
            if time.monotonic() - written >= SECONDS_BETWEEN_LINES:
                written = time.monotonic()
                self.write_line(f"predicting unlabeled cases: {i + 1} of {len(share)}")
            if (i + 1) % MEET_EVERY == 0 and i + 1 <= len(cases) // processes:
                distributed.wait_for_all()
        compute_gaussian.cache_clear()  # as nnU-Net after its validation
        distributed.wait_for_all()
        return done

    def _predict_case(self, case: str, predictions: PoolPredictions, before: PoolPredictions | None) -> None:
        self.images.check(case)
        file, image = image_file(self.folders[case], case), open_image(self.folders[case], case)[:]
        logits = self.predictor.predict_sliding_window_return_logits(torch.from_numpy(image)).cpu()
        labels = self.predictor.label_manager.convert_logits_to_segmentation(logits).numpy().astype(self.type)
        changes: list[float] = []
        if before is not None and before.has(case, file):
            changes = [*before.changes(case), change(labels, before.labels(case), self.classes)]
        patch_size = self.predictor.configuration_manager.patch_size
        predictions.write(case, labels, file, self.classes, patch_size, changes)


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
    device = trainer.device
    predictor = nnUNetPredictor(perform_everything_on_device=device.type == "cuda", device=device, allow_tqdm=False)
    plans, configuration = trainer.plans_manager, trainer.configuration_manager
    predictor.manual_initialization(
        trainer.network, plans, configuration, None, trainer.dataset_json, type(trainer).__name__, mirror_axes or None
    )
    return predictor
