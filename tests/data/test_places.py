"""Where patches lie, through the loaders, and how a batch is spread over positions."""

import pickle
from collections import Counter

import numpy as np
import pytest
import torch
from batchgenerators.dataloading.nondet_multi_threaded_augmenter import _pin_memory_recursive
from batchgeneratorsv2.transforms.spatial.spatial import SpatialTransform
from batchgeneratorsv2.transforms.utils.compose import ComposeTransforms
from nnunetv2.training.dataloading.data_loader import nnUNetDataLoader
from nnunetv2.training.dataloading.nnunet_dataset import nnUNetDatasetBlosc2
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer
from nnunetv2.utilities.plans_handling.plans_handler import PlansManager

from nnunet_ssl.data.loaders import (
    LabeledLoader,
    TwoStreamLoader,
    UnlabeledLoader,
    batches_on_device,
    close_loader,
    start_loader,
)
from nnunet_ssl.data.places import Place, SpreadDraws, number_of_places, position_bin
from nnunet_ssl.data.preprocessed_images import UnlabeledDataset
from nnunet_ssl.discovery.variants import find_trainer
from tests.conftest import make_trainer

UNLABELED = ["unlabeled0", "unlabeled1", "unlabeled2"]


def cutting(dim: int, patch: list[int]) -> ComposeTransforms:
    """Return nnU-Net's spatial transform, which cuts the patch out of a larger box, without rotation or scaling."""
    where = {"patch_center_dist_from_border": 0, "random_crop": False}
    never = {"p_elastic_deform": 0, "p_rotation": 0, "p_scaling": 0}
    return ComposeTransforms([SpatialTransform(tuple(patch), **where, **never)])


def nnunets_loader(dataset, more: int = 4, oversample: float = 0.33) -> nnUNetDataLoader:
    case = dataset.case
    patch = case.patch_size
    return nnUNetDataLoader(
        nnUNetDatasetBlosc2(str(dataset.labeled_folder), ["labeled0", "labeled1"]),
        case.batch_size,
        [size + more for size in patch],
        patch,
        PlansManager(case.plans()).get_label_manager(case.dataset_json()),
        oversample,
        transforms=cutting(case.dim, patch),
    )


def unlabeled_loader(dataset, bins: int | None = None, more: int = 4) -> UnlabeledLoader:
    manager = PlansManager(dataset.case.plans()).get_label_manager(dataset.case.dataset_json())
    images = UnlabeledDataset(dict.fromkeys(UNLABELED, dataset.unlabeled_folder), dataset.unlabeled_folder)
    return UnlabeledLoader(images, nnunets_loader(dataset, more), manager, ("weak",), bins)


def image_at(folder, place: Place) -> np.ndarray:
    """Return what a case's image shows at a place, zeros outside of it."""
    image = nnUNetDatasetBlosc2(str(folder), [place.case]).load_case(place.case)[0][:]
    reach = max(place.size)
    padded = np.pad(image[0], reach)
    return padded[tuple(slice(s + reach, s + reach + n) for s, n in zip(place.start, place.size, strict=True))]


@pytest.mark.parametrize(
    ("start", "size", "shape", "expected"),
    [
        (0, 1, 4, 0.125),  # slice 0 of 4
        (3, 1, 4, 0.875),
        (2, 4, 10, 2.5 / 7),  # one of seven places
        (-3, 4, 10, 0.5 / 7),  # over the border: as the first
        (9, 4, 10, 6.5 / 7),
        (-2, 16, 10, 0.5),  # larger than the image
        (0, 1, 1, 0.5),
    ],
)
def test_position_along_the_first_axis(start, size, shape, expected):
    assert Place("a", (start, 0, 0), (size, 8, 8), (shape, 20, 20)).position == pytest.approx(expected)


@pytest.mark.parametrize("slices", [9, 10, 11, 12])
def test_three_bins_of_slices_are_thirds(slices):
    counts = Counter(position_bin((i + 0.5) / slices, 3) for i in range(slices))
    assert set(counts) == {0, 1, 2}
    assert max(counts.values()) - min(counts.values()) <= 1


@pytest.mark.parametrize("cell", [{"dim": 2}, {"dim": 3}, {"dim": 3, "anisotropic": True}], ids=str)
@pytest.mark.parametrize("more", [4, 5])
@pytest.mark.parametrize("bins", [None, 2])
def test_place_is_where_the_patch_was_cut_from(tiny_dataset, cell, more, bins):
    """Labeled patches, some of them centred on foreground, and unlabeled ones: the image is the same there."""
    dataset = tiny_dataset(batch_size=4, **cell)
    labeled, unlabeled = LabeledLoader(nnunets_loader(dataset, more, 0.5)), unlabeled_loader(dataset, bins, more)
    for loader, folder, view in (
        (labeled, dataset.labeled_folder, "data"),
        (unlabeled, dataset.unlabeled_folder, "weak"),
    ):
        for _ in range(5):
            batch = next(loader)
            assert [place.case for place in batch["places"]] == list(batch["keys"])
            for patch, place in zip(batch[view], batch["places"], strict=True):
                expected = image_at(folder, place)
                assert np.array_equal(patch[0].numpy(), expected[0] if dataset.case.dim == 2 else expected)


@pytest.mark.parametrize("dim", [2, 3])
def test_noting_places_draws_what_nnunet_draws(tiny_dataset, dim):
    dataset, found = tiny_dataset(dim=dim, batch_size=4), []
    for loader in (nnunets_loader(dataset), LabeledLoader(nnunets_loader(dataset))):
        np.random.seed(3)
        torch.manual_seed(3)
        found.append([next(loader) for _ in range(3)])
    for plain, noted in zip(*found, strict=True):
        assert torch.equal(plain["data"], noted["data"])
        assert torch.equal(plain["target"], noted["target"])
        assert list(plain["keys"]) == list(noted["keys"])
        assert noted.keys() - plain.keys() == {"places"}


def test_places_travel_through_worker_processes_to_both_batches(tiny_dataset):
    dataset = tiny_dataset(dim=2, batch_size=3)
    labeled = LabeledLoader(nnunets_loader(dataset))
    two = TwoStreamLoader(
        start_loader(labeled, [1], False), start_loader(unlabeled_loader(dataset), [2], pin_memory=False)
    )
    try:
        for half in batches_on_device(next(two), torch.device("cpu")):
            assert [place.case for place in half.places] == list(half.keys)
            assert all(isinstance(place, Place) and place.shape == (20, 20, 20) for place in half.places)
    finally:
        close_loader(two)


def test_pinned_memory_leaves_a_place_as_it_is():
    """Nnu-Net's loader makes plain tuples of all tuples in a batch."""
    place = Place("a", (0, 0, 0), (1, 2, 2), (3, 4, 4))
    assert _pin_memory_recursive({"places": (place,)}) == {"places": (place,)}
    assert pickle.loads(pickle.dumps(place)) == place


def test_a_batch_without_places_has_none():
    batch = {"data": torch.zeros(1), "target": torch.zeros(1), "keys": ["a"]}
    assert [half.places for half in batches_on_device(batch, torch.device("cpu"))] == [(), ()]


# ---- spread over positions ----


def bins_of(batch, bins: int) -> list[int]:
    return [position_bin(place.position, bins) for place in batch["places"]]


@pytest.mark.parametrize("dim", [2, 3])
def test_large_batch_has_a_patch_in_each_bin_of_each_case(tiny_dataset, dim):
    """7 patches in 3 bins: two cases in all bins, a third in one; in 3d there are five places along the axis."""
    loader, orders, alone = unlabeled_loader(tiny_dataset(dim=dim, batch_size=7), bins=3), set(), set()
    for _ in range(12):
        batch = next(loader)
        cases, bins = list(batch["keys"]), bins_of(batch, 3)
        assert len(set(cases)) == 3
        assert cases[:3] == [cases[0]] * 3
        assert cases[3:6] == [cases[3]] * 3
        assert sorted(bins[:3]) == sorted(bins[3:6]) == [0, 1, 2]
        orders.add(tuple(bins[:3]))
        alone.add(bins[6])
    assert len(orders) > 1
    assert alone == {0, 1, 2}


def test_small_batch_draws_each_patch_for_itself_evenly_over_the_bins(tiny_dataset):
    loader, bins, equal = unlabeled_loader(tiny_dataset(dim=2, batch_size=5), bins=3), Counter(), 0
    for _ in range(60):
        batch = next(loader)
        found = bins_of(batch, 3)
        bins.update(found)
        equal += len({found[0], found[1]}) == 1
    assert all(70 < bins[one] < 130 for one in range(3))
    assert 5 < equal < 40


def test_all_places_of_a_bin_are_drawn(tiny_dataset):
    loader, starts = unlabeled_loader(tiny_dataset(dim=2, batch_size=6), bins=3), set()
    for _ in range(40):
        starts |= {place.start[0] for place in next(loader)["places"]}
    assert starts == set(range(20))


def test_more_cases_than_there_are_come_twice():
    draws = SpreadDraws(2)
    cases = draws.cases(["a", "b"], 8)
    assert len(cases) == 8
    assert set(cases[::2]) <= {"a", "b"}


def test_bin_without_a_place_leaves_nnunets_draw():
    """Two slices in five bins lie in bins 1 and 3; a patch as large as its image has one place."""
    draws = SpreadDraws(5)
    draws.of_batch = [0, 1, 2, 3, 4]
    assert [draws.start(sample, places=2) for sample in range(5)] == [None, 0, None, 1, None]
    assert draws.start(2, places=1) is None
    assert number_of_places((10, 8, 8), (16, 8, 8)) == 1


def test_patch_larger_than_its_image_stays_in_its_middle(tiny_dataset):
    """Of 6 voxels along the first axis; a patch of 10 is cut out of a box of 14."""
    loader = unlabeled_loader(tiny_dataset(batch_size=2), bins=3)
    loader.final_patch_size, loader.patch_size = np.array([10, 16, 16]), np.array([14, 20, 20])
    loader.draws.cases(UNLABELED, 2)
    assert {loader.get_bbox((6, 20, 20), False, {})[0][0] for _ in range(2)} == {-4}


@pytest.mark.parametrize("bins", [None, 4])
def test_trainers_draw_as_nnunet_unless_they_have_bins(tiny_dataset, monkeypatch, bins):
    trainer_class = find_trainer("nnUNetTrainerMeanTeacher")
    if bins:
        monkeypatch.setattr(trainer_class, "position_bins", bins, raising=False)
    trainer = make_trainer(tiny_dataset(dim=2), trainer_class)
    trainer.on_train_start()
    labeled, unlabeled = trainer.streams
    assert type(labeled) is LabeledLoader
    assert (unlabeled.draws and unlabeled.draws.bins) == bins


def test_a_loader_class_of_its_own_is_kept(tiny_dataset):
    """A variant of nnU-Net's trainer may draw other cases; its patches have places too."""

    class OneCase(nnUNetDataLoader):
        def get_indices(self):
            return ["labeled0"] * self.batch_size

    class Variant(nnUNetTrainer):
        def get_dataloaders(self):
            training, validation = super().get_dataloaders()
            training.data_loader.__class__ = OneCase
            return training, validation

    class Both(find_trainer("nnUNetTrainerMeanTeacher"), Variant):
        pass

    trainer = make_trainer(tiny_dataset(dim=2), Both)
    trainer.on_train_start()
    for _ in range(5):
        labeled, _ = batches_on_device(next(trainer.dataloader_train), trainer.device)
        assert {*labeled.keys} == {place.case for place in labeled.places} == {"labeled0"}
