import itertools
import multiprocessing

import numpy as np
import pytest
import torch
from nnunetv2.training.dataloading.data_loader import nnUNetDataLoader
from nnunetv2.training.dataloading.nnunet_dataset import nnUNetDatasetBlosc2
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer
from nnunetv2.utilities.plans_handling.plans_handler import PlansManager

from nnunet_ssl.data.loaders import (
    TwoStreamLoader,
    UnlabeledBatch,
    UnlabeledLoader,
    batches_on_device,
    close_loader,
    divide_workers,
    start_loader,
)
from nnunet_ssl.data.preprocessed_images import UnlabeledDataset


def loaders(dataset, views=("weak", "strong")):
    case = dataset.case
    label_manager = PlansManager(case.plans()).get_label_manager(case.dataset_json())
    transforms = nnUNetTrainer.get_training_transforms(
        case.patch_size, (-0.5, 0.5), None, tuple(range(case.dim)), False, use_mask_for_norm=[case.masked]
    )
    labeled = nnUNetDataLoader(
        nnUNetDatasetBlosc2(str(dataset.labeled_folder), ["labeled0", "labeled1"]),
        case.batch_size,
        [size + 4 for size in case.patch_size],
        case.patch_size,
        label_manager,
        0.33,
        transforms=transforms,
    )
    folders = dict.fromkeys(["unlabeled0", "unlabeled1", "unlabeled2"], dataset.unlabeled_folder)
    return labeled, UnlabeledLoader(UnlabeledDataset(folders, dataset.unlabeled_folder), labeled, label_manager, views)


@pytest.mark.parametrize("cell", [{"dim": 2, "batch_size": 4}, {"dim": 3, "ignore": True, "masked": True}])
def test_unlabeled_batch(tiny_dataset, cell):
    dataset = tiny_dataset(**cell)
    batch = next(loaders(dataset)[1])
    shape = (dataset.case.batch_size, 1, *dataset.case.patch_size)
    assert batch["weak"].shape == batch["strong"].shape == shape
    assert batch.keys() == {"weak", "strong", "keys", "places"}
    assert set(batch["keys"]) <= {"unlabeled0", "unlabeled1", "unlabeled2"}


def test_patches_come_from_everywhere(tiny_dataset):
    """Without a label there is no foreground to prefer: every voxel of the image is reached."""
    dataset = tiny_dataset(ignore=True)
    _, unlabeled = loaders(dataset)
    starts = {tuple(unlabeled.get_bbox((20, 20, 20), False, {})[0]) for _ in range(300)}
    for axis in range(3):
        assert {start[axis] for start in starts} == set(range(-2, 3))


def test_only_the_views_asked_for_are_made(tiny_dataset):
    assert next(loaders(tiny_dataset(), views=("weak",))[1]).keys() == {"weak", "keys", "places"}


def test_each_view_stands_under_its_own_name(tiny_dataset):
    dataset = tiny_dataset(batch_size=3)
    _, unlabeled = loaders(dataset, views=("second_strong", "weak", "strong"))
    added = itertools.cycle([1.0, 2.0])  # to the strong view, to the second one
    unlabeled.transforms.intensity = lambda image, **sample: {"image": image + next(added), **sample}
    batch = next(unlabeled)
    assert torch.equal(batch["strong"], batch["weak"] + 1.0)
    assert torch.equal(batch["second_strong"], batch["weak"] + 2.0)


def test_no_label_in_an_unlabeled_batch(tiny_dataset):
    labeled, unlabeled = loaders(tiny_dataset())
    two = TwoStreamLoader(start_loader(labeled, [], False), start_loader(unlabeled, [], False))
    batch = next(two)
    assert batch.keys() == {"data", "target", "keys", "unlabeled"}
    ours, others = batches_on_device(batch, torch.device("cpu"))
    assert set(vars(others)) == {"weak", "strong", "second_strong", "pseudo_label", "keys", "places"}
    assert isinstance(others, UnlabeledBatch)
    assert torch.equal(ours.image, batch["data"])


def test_without_unlabeled_stream_the_batch_is_nnunets_and_the_unlabeled_half_empty(tiny_dataset):
    batch = next(TwoStreamLoader(start_loader(loaders(tiny_dataset())[0], [], False), None))
    assert batch.keys() == {"data", "target", "keys"}
    _, unlabeled = batches_on_device(batch, torch.device("cpu"))
    assert unlabeled == UnlabeledBatch(weak=None, strong=None, second_strong=None, keys=())


@pytest.mark.parametrize(("workers", "expected"), [(0, (0, 0)), (1, (1, 1)), (2, (1, 1)), (5, (3, 2)), (12, (6, 6))])
def test_workers_are_divided(workers, expected):
    assert divide_workers(workers) == expected


def test_each_worker_draws_its_own_numbers_in_numpy_and_torch(tiny_dataset):
    """nnU-Net's workers share one torch stream: mirroring and noise are the same in all of them."""
    _, unlabeled = loaders(tiny_dataset())
    unlabeled.generate_train_batch = lambda: (float(torch.rand(1)), float(np.random.rand()))
    augmenter = start_loader(unlabeled, seeds=[1, 2, 3], pin_memory=False)
    drawn = [next(augmenter) for _ in range(40)]
    close_loader(augmenter)
    assert len(set(drawn)) == len(drawn)
    assert len({torch_number for torch_number, _ in drawn}) == len(drawn)


def test_closing_ends_all_worker_processes(tiny_dataset):
    labeled, unlabeled = loaders(tiny_dataset())
    before = set(multiprocessing.active_children())
    two = TwoStreamLoader(start_loader(labeled, [1], False), start_loader(unlabeled, [2], False))
    next(two)
    assert len(set(multiprocessing.active_children()) - before) == 2
    close_loader(two)
    close_loader(two)
    assert set(multiprocessing.active_children()) <= before
