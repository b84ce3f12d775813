"""The two streams of a semi-supervised training: nnU-Net's labeled batches, and unlabeled ones beside them."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from batchgenerators.dataloading.single_threaded_augmenter import SingleThreadedAugmenter
from nnunetv2.training.dataloading.data_loader import nnUNetDataLoader
from nnunetv2.utilities.label_handling.label_handling import LabelManager
from torch import Tensor

from nnunet_ssl.data.loader_processes import (
    BATCHES_WAITING,
    BATCHES_WAITING_FOR_VALIDATION,
    WORKER_SECONDS,
    WatchedAugmenter,
)
from nnunet_ssl.data.places import NotesPlaces, Place, SpreadDraws, number_of_places, places_of
from nnunet_ssl.data.pool_predictions import PoolPredictions
from nnunet_ssl.data.preprocessed_images import UnlabeledDataset
from nnunet_ssl.data.views import LABEL, VIEWS, ViewsTransform

Augmenter = WatchedAugmenter | SingleThreadedAugmenter


@dataclass(frozen=True)
class LabeledBatch:
    """A batch with labels.

    Attributes:
        image: (B, C, *spatial), normalised and augmented by nnU-Net.
        target: nnU-Net's target: (B, 1, *spatial) labels or (B, R, *spatial) regions; with deep supervision a list of
            them, full resolution first.
        keys: the case of each sample.
        places: where in its case each sample lies.
    """

    image: Tensor
    target: Tensor | list[Tensor]
    keys: tuple[str, ...]
    places: tuple[Place, ...] = ()

    @property
    def full_target(self) -> Tensor:
        """The target at full resolution."""
        return self.target[0] if isinstance(self.target, list) else self.target


@dataclass(frozen=True)
class UnlabeledBatch:
    """A batch without labels; there is no attribute from which to take a true one.

    In an epoch that is labeled-only it is empty: all views are None, and there is no key.

    Attributes:
        weak: (B, C, *spatial), nnU-Net's spatial and mirror transforms; None if the trainer does not ask for it.
        strong: the same patches with nnU-Net's intensity transforms; None if the trainer does not ask for it.
        second_strong: as `strong`, with other random numbers; None if the trainer does not ask for it.
        keys: the case of each sample.
        places: where in its case each sample lies.
        pseudo_label: what was predicted for the whole image, with the geometry of the views: integers (B, 1, *spatial),
            or 0/1 maps (B, R, *spatial); None if the trainer does not ask for it, or nothing is predicted yet.
    """

    weak: Tensor | None
    strong: Tensor | None
    second_strong: Tensor | None
    keys: tuple[str, ...]
    places: tuple[Place, ...] = ()
    pseudo_label: Tensor | None = None


class LabeledLoader(NotesPlaces):
    """The loader that nnU-Net has made of labeled cases, whose batches also say where each patch lies."""

    def __init__(self, loader: nnUNetDataLoader) -> None:
        """Become that loader."""
        vars(self).update(vars(loader), boxes=[])


def labeled_loader(loader: nnUNetDataLoader) -> LabeledLoader:
    """Return nnU-Net's loader, or that of a trainer which has a loader class of its own, as one that notes places."""
    its_own = type(loader)
    kind = LabeledLoader if its_own is nnUNetDataLoader else type(its_own.__name__, (LabeledLoader, its_own), {})
    return kind(loader)


class UnlabeledLoader(NotesPlaces):
    """nnU-Net's loader over images without labels, in several views.

    Patches come from anywhere in the image; some of them, once the images are predicted, from around foreground.
    """

    def __init__(
        self,
        dataset: UnlabeledDataset,
        labeled: nnUNetDataLoader,
        label_manager: LabelManager,
        views: tuple[str, ...],
        position_bins: int | None = None,
        foreground_probability: float = 0.0,
    ) -> None:
        """Take batch size, patch sizes and augmentation from the labeled loader.

        Args:
            dataset: the images.
            labeled: the labeled loader.
            label_manager: nnU-Net's.
            views: see data/views.py.
            position_bins: spreads each batch over so many bins of positions, see `SpreadDraws`; None: cases and patches
                are drawn as nnU-Net draws them.
            foreground_probability: of each patch, to be centred on a voxel of predicted foreground.
        """
        dim = 2 if labeled.patch_size_was_2d else 3
        super().__init__(
            dataset,
            labeled.batch_size,
            labeled.patch_size[-dim:],
            labeled.final_patch_size[-dim:],
            label_manager,
            foreground_probability,
            probabilistic_oversampling=foreground_probability > 0.0,  # nnU-Net draws no number for it otherwise
            transforms=ViewsTransform(labeled.transforms.transforms, views),
        )
        # nnU-Net would look for annotated voxels, and there are none.
        self.has_ignore = False
        self.images = dataset
        self.images.gives_labels = LABEL in views
        self.num_label_maps = label_manager.num_segmentation_heads  # without that of an ignore label
        self.draws = None if position_bins is None else SpreadDraws(position_bins)

    def use_predictions(self, predictions: PoolPredictions, cases: Sequence[str]) -> None:
        """Take labels and foreground from predictions, and draw from these cases alone; for batches that come later."""
        self.images.predictions = predictions
        self.indices = list(cases)

    def get_indices(self) -> Any:  # noqa: ANN401 - an array of names
        """Draw the cases of a batch."""
        return super().get_indices() if self.draws is None else self.draws.cases(self.indices, self.batch_size)

    def get_bbox(self, data_shape: Sequence[int], *args: Any, **kwargs: Any) -> tuple[list[int], list[int]]:  # noqa: ANN401
        """Draw the box of the next patch of a batch."""
        lower, upper = super().get_bbox(data_shape, *args, **kwargs)
        if self.draws is not None:
            start = self.draws.start(len(self.boxes) - 1, number_of_places(data_shape, self.final_patch_size))
            if start is not None:  # in place: it is the box that was noted
                lower[0] = start - self.margins()[0]
                upper[0] = lower[0] + int(self.patch_size[0])
        return lower, upper

    def generate_train_batch(self) -> dict[str, Any]:
        """Return {"weak": (B, C, *spatial), "strong": ..., "keys": ..., "places": ...} with the views asked for."""
        batch = super().generate_train_batch()
        views = {name: batch["data"][:, i].contiguous() for i, name in enumerate(self.transforms.images)}
        if self.images.gives_labels and self.images.predictions is not None:
            views[LABEL] = batch["target"][:, : self.num_label_maps].contiguous()
        return {**views, "keys": batch["keys"], "places": batch["places"]}


class TwoStreamLoader:
    """Yields nnU-Net's batch with one more key, `unlabeled`; without an unlabeled stream nnU-Net's batch alone."""

    def __init__(self, labeled: Augmenter, unlabeled: Augmenter | None) -> None:
        self.labeled = labeled
        self.unlabeled = unlabeled

    def __iter__(self) -> Iterator[dict[str, Any]]:
        return self

    def __next__(self) -> dict[str, Any]:
        batch = next(self.labeled)
        return batch if self.unlabeled is None else {**batch, "unlabeled": next(self.unlabeled)}

    def close(self) -> None:
        """Stop the worker processes of both streams."""
        close_loader(self.labeled)
        close_loader(self.unlabeled)


def divide_workers(num_workers: int) -> tuple[int, int]:
    """Return how many of nnU-Net's augmentation processes each stream gets: labeled, unlabeled. 0 means none at all."""
    if num_workers == 0:
        return 0, 0
    unlabeled = max(1, num_workers // 2)
    return max(1, num_workers - unlabeled), unlabeled


def start_loader(
    loader: nnUNetDataLoader,
    seeds: list[int],
    pin_memory: bool,
    worker_seconds: float = WORKER_SECONDS,
    validates: bool = False,
) -> Augmenter:
    """Start one worker process for each seed, of numpy and torch alike; none means: in this process.

    As many batches wait in memory as in nnU-Net, fewer of those that validate. A worker that does nothing for
    `worker_seconds` counts as failed; see loader_processes.py.
    """
    if not seeds:
        return SingleThreadedAugmenter(loader, None)
    fewest = BATCHES_WAITING_FOR_VALIDATION if validates else BATCHES_WAITING
    augmenter = WatchedAugmenter(loader, seeds, pin_memory, worker_seconds, max(fewest, len(seeds) // 2))
    try:
        next(augmenter)
    except BaseException:  # Ctrl-C, for example: nobody else has it yet
        augmenter.close(at_once=True)
        raise
    return augmenter


def close_loader(loader: Augmenter | TwoStreamLoader | None) -> None:
    """Stop a loader's worker processes; one that has none, or is stopped already, is left alone."""
    if isinstance(loader, TwoStreamLoader | WatchedAugmenter):
        loader.close()


def batches_on_device(batch: dict[str, Any], device: torch.device) -> tuple[LabeledBatch, UnlabeledBatch]:
    """Move both halves of a batch to the device, without waiting for it."""

    def move(tensor: Tensor | None) -> Tensor | None:
        return None if tensor is None else tensor.to(device, non_blocking=True)

    target = batch["target"]
    target = [move(level) for level in target] if isinstance(target, list) else move(target)
    unlabeled = batch.get("unlabeled", {"keys": ()})
    views = {name: move(unlabeled.get(name)) for name in VIEWS}
    return (
        LabeledBatch(move(batch["data"]), target, tuple(batch["keys"]), places_of(batch)),
        UnlabeledBatch(**views, keys=tuple(unlabeled["keys"]), places=places_of(unlabeled)),
    )
