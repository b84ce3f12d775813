"""Predictions of whole cases: what is stored, of which round it is, and what loaders make of it."""

import os
from pathlib import Path

import numpy as np
import pytest
import torch
from nnunetv2.training.dataloading.data_loader import nnUNetDataLoader
from nnunetv2.training.dataloading.nnunet_dataset import nnUNetDatasetBlosc2
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer
from nnunetv2.utilities.plans_handling.plans_handler import PlansManager

from nnunet_ssl.data import pool_predictions, whole_files
from nnunet_ssl.data.loaders import UnlabeledLoader, batches_on_device
from nnunet_ssl.data.pool_predictions import PoolPredictions, begin_round, change, open_round, stable_cases
from nnunet_ssl.data.preprocessed_images import UnlabeledDataset
from tests.data.test_places import cutting

CASES = ["unlabeled0", "unlabeled1", "unlabeled2"]


@pytest.fixture
def predictions(tmp_path) -> PoolPredictions:
    return begin_round(tmp_path / "rounds", {"epoch": 3, "model": "a"}, {})


@pytest.fixture
def image(tmp_path) -> Path:
    file = tmp_path / "image.b2nd"
    file.write_bytes(b"voxels")
    return file


def cube(value: int = 1, dtype: type = np.uint8) -> np.ndarray:
    labels = np.zeros((20, 24, 22), dtype)
    labels[5:9, 6:12, 7:10] = value
    return labels


# ---- a case ----


@pytest.mark.parametrize(("value", "dtype"), [(1, np.uint8), (700, np.uint16)])
def test_what_is_written_is_read_again_compressed(predictions, image, value, dtype):
    labels = cube(value, dtype)
    predictions.write("case", labels, image, [1, value], (16, 16, 16), [0.25])
    assert predictions.labels("case").dtype == dtype
    assert np.array_equal(predictions.labels("case")[:], labels)
    assert predictions.changes("case") == [0.25]
    assert predictions.has("case", image)
    assert not predictions.has("other", image)
    assert (predictions.folder / "case.b2nd").stat().st_size < labels.nbytes / 2


def test_case_of_an_image_that_changed_since_is_not_finished(predictions, image):
    predictions.write("case", cube(), image, [1], (16, 16, 16))
    os.utime(image, ns=(1, 1))
    assert not predictions.has("case", image)


def test_damaged_file_is_not_finished(predictions, image):
    predictions.write("case", cube(), image, [1], (16, 16, 16))
    file = predictions.folder / "case.b2nd"
    for damaged in (file.read_bytes()[:100], b""):
        file.write_bytes(damaged)
        assert not predictions.has("case", image)


@pytest.mark.parametrize("ending", [".b2nd", ".b2nd.json"])
def test_a_case_of_which_a_byte_has_changed_is_not_finished_and_not_opened(predictions, image, monkeypatch, ending):
    """Opening it might end the process."""
    labels = (np.random.default_rng(0).random((20, 24, 22)) < 0.5).astype(np.uint8)
    predictions.write("case", labels, image, [1], (16, 16, 16), [0.5])
    assert predictions.has("case", image)
    file = predictions.folder / f"case{ending}"
    content = file.read_bytes()
    monkeypatch.setattr(pool_predictions, "open_array", lambda *_: pytest.fail("it was opened"))
    for place in range(0, len(content), max(1, len(content) // 150)):
        file.write_bytes(content[:place] + bytes([content[place] ^ 255]) + content[place + 1 :])
        assert not predictions.has("case", image)
    file.write_bytes(content)
    assert predictions.has("case", image)


def test_interrupted_writing_leaves_no_case_and_the_next_round_no_rest(predictions, image, monkeypatch):
    def interrupt(_: int) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):
        patched.setattr(whole_files.os, "fsync", interrupt)
        predictions.write("case", cube(), image, [1], (16, 16, 16))
    (predictions.folder / ".other.b2nd.tmp").mkdir()  # of a run that was killed
    (predictions.folder / "round.json.4711.tmp").write_text("{")
    assert not predictions.has("case", image)
    begin_round(predictions.folder.parent, {"epoch": 3, "model": "a"}, {})
    assert {file.name for file in predictions.folder.iterdir()} == {"round.json"}


def test_locations_are_of_their_class_and_spread_over_it(predictions, image):
    labels = cube(2)
    labels[10:, 10:, 10:] = 1
    predictions.write("case", labels, image, [1, 2, 3, (1, 2)], (16, 16, 16))
    found = predictions.class_locations("case")
    assert [len(found[i]) for i in range(4)] == [1000, 4 * 6 * 3, 0, 1000]
    for index, values in enumerate([[1], [2], [3], [1, 2]]):
        assert np.isin(labels[tuple(found[index].T[1:])], values).all()
        assert (found[index][:, 0] == 0).all()
        assert (found[index] - 100 < 0).all(), "nnU-Net subtracts the patch's size from them"
    assert all(len(np.unique(found[0][:, axis])) == labels.shape[axis - 1] - 10 for axis in (1, 2, 3))


# ---- rounds ----


def test_a_round_is_found_again_and_no_other_one_is(tmp_path, image):
    first, second = ({"epoch": epoch, "model": "a"} for epoch in (3, 6))
    begin_round(tmp_path, first, {}).write("case", cube(), image, [1], (16, 16, 16))
    assert open_round(tmp_path, first).has("case", image)
    assert open_round(tmp_path, first | {"model": "b"}) is None
    assert open_round(tmp_path, second) is None
    assert open_round(tmp_path, {}) is None
    assert begin_round(tmp_path, first, {}).has("case", image)
    begin_round(tmp_path, second, first)
    assert open_round(tmp_path, first).has("case", image), "the round before stays"
    begin_round(tmp_path, {"epoch": 9, "model": "a"}, second)
    assert [folder.name for folder in sorted(tmp_path.glob("epoch_*"))] == ["epoch_0006", "epoch_0009"]


def test_cases_of_another_model_are_not_mixed_in(tmp_path, image):
    begin_round(tmp_path, {"epoch": 3, "model": "a"}, {}).write("case", cube(), image, [1], (16, 16, 16))
    assert not begin_round(tmp_path, {"epoch": 3, "model": "b"}, {}).has("case", image)


# ---- stability ----


def test_change_is_the_mean_over_classes_of_one_minus_dice():
    now, then = np.zeros((2, 2, 10, 10), np.uint8)
    now[0, 0], then[0, 0, :5] = 1, 1  # 10 voxels and 5 of them: Dice 2/3
    now[1, 1], then[1, 1] = 2, 2  # Dice 1
    assert change(now, then, [1, 2, 3]) == pytest.approx((1 / 3 + 0) / 2)
    assert change(now, then, [(1, 2), 1]) == pytest.approx((1 - 2 * 15 / 35 + 1 / 3) / 2)
    assert change(now, now, [1, 2, 3]) == 0.0
    assert change(now, np.roll(now, 3, axis=1), [1, 2]) == 1.0


def test_labels_that_are_swapped_within_a_region_do_not_change_it():
    now, then = cube(1), cube(2)
    assert change(now, then, [(1, 2)]) == 0.0
    assert change(now, then, [1, 2]) == 1.0


def test_nothing_predicted_is_not_stable():
    empty = np.zeros((4, 4, 4), np.uint8)
    assert change(empty, empty, [1, 2]) == 1.0


def test_the_cases_that_change_most_are_left_out():
    changes = {"a": [0.1, 0.5], "b": [0.2, 0.2], "c": [0.0, 0.9], "d": [0.1, 0.1]}
    assert stable_cases(changes, 0.0) == ["a", "b", "c", "d"]
    assert stable_cases(changes, 0.24) == ["a", "b", "c", "d"]
    assert stable_cases(changes, 0.25) == ["a", "b", "d"]
    assert stable_cases(changes, 0.5) == ["b", "d"]
    assert stable_cases(changes, 1.0) == ["d"]


def test_without_a_round_before_all_cases_stay():
    assert stable_cases({"a": [], "b": []}, 0.5) == ["a", "b"]
    assert stable_cases({"a": [], "b": [0.1], "c": [0.2]}, 0.34) == ["a", "b"]


# ---- batches ----


def loader(dataset, transforms, views=("weak", "pseudo_label"), probability=0.0, more: int = 4) -> UnlabeledLoader:
    """Return a loader of unlabeled patches, cut out of boxes that are larger by some voxels."""
    case = dataset.case
    manager = PlansManager(case.plans()).get_label_manager(case.dataset_json())
    labeled = nnUNetDataLoader(
        nnUNetDatasetBlosc2(str(dataset.labeled_folder), ["labeled0"]),
        case.batch_size,
        [size + more for size in case.patch_size],
        case.patch_size,
        manager,
        transforms=transforms,
    )
    images = UnlabeledDataset(dict.fromkeys(CASES, dataset.unlabeled_folder), dataset.unlabeled_folder)
    return UnlabeledLoader(images, labeled, manager, views, foreground_probability=probability)


def predicted(dataset, labels_of, shape=(20, 20, 20)) -> PoolPredictions:
    """Write the same prediction for all cases, and as their images the labels themselves."""
    case, (image, seg, _, properties) = dataset.case, _case(dataset)
    manager = PlansManager(case.plans()).get_label_manager(case.dataset_json())
    classes = manager.foreground_regions if manager.has_regions else manager.foreground_labels
    found = begin_round(dataset.root / "rounds", {"epoch": 0}, {})
    for name in CASES:
        labels = labels_of(np.random.default_rng(len(name)), shape).astype(np.uint8)
        file = dataset.unlabeled_folder / f"{name}.b2nd"
        file.unlink()
        (dataset.unlabeled_folder / f"{name}_seg.b2nd").unlink()
        whole = {"chunks": image.shape, "blocks": image.shape}
        nnUNetDatasetBlosc2.save_case(
            labels[None].astype(np.float32), seg[:], properties, str(file.with_suffix("")), **whole
        )
        found.write(name, labels, file, classes, case.patch_size)
    return found


def _case(dataset):
    return nnUNetDatasetBlosc2(str(dataset.unlabeled_folder), [CASES[0]]).load_case(CASES[0])


def augmentation(case, regions=None):
    return nnUNetTrainer.get_training_transforms(
        case.patch_size, (-0.5, 0.5), None, tuple(range(case.dim)), False, regions=regions, ignore_label=None
    )


def block(rng, shape):
    labels = np.zeros(shape)
    labels[3:17, 5:15, 6:13] = 1
    return labels


@pytest.mark.parametrize("dim", [2, 3])
def test_label_has_the_geometry_of_the_images(tiny_dataset, dim):
    """An image that is its own label stays so when it is rotated, scaled and mirrored, up to halves of a voxel."""
    dataset = tiny_dataset(dim=dim, batch_size=4)
    unlabeled = loader(dataset, augmentation(dataset.case), more=8)
    unlabeled.use_predictions(predicted(dataset, block), CASES)
    np.random.seed(0)
    torch.manual_seed(0)
    for _ in range(4):
        batch = next(unlabeled)
        is_clear = (batch["weak"] - 0.5).abs() > 0.01
        assert batch["pseudo_label"].shape == batch["weak"].shape
        assert torch.equal((batch["weak"] > 0.5)[is_clear], (batch["pseudo_label"] == 1)[is_clear])


def test_label_beyond_the_border_is_background(tiny_dataset):
    dataset = tiny_dataset()
    unlabeled = loader(dataset, cutting(3, [30, 30, 30]), more=0)
    unlabeled.transforms.of_labels = loader(dataset, augmentation(dataset.case)).transforms.of_labels
    unlabeled.final_patch_size = unlabeled.patch_size = np.array([30, 30, 30])
    unlabeled.use_predictions(predicted(dataset, lambda rng, shape: np.ones(shape)), CASES)
    assert next(unlabeled)["pseudo_label"].unique().tolist() == [0, 1]


@pytest.mark.parametrize("ignore", [False, True])
def test_regions_come_as_maps_one_for_each(tiny_dataset, ignore):
    """The whole is labels 1 to 3, the core 3; an ignore label is never predicted and has no map."""
    dataset = tiny_dataset(num_classes=4, regions=True, ignore=ignore)
    labels = {"regions": [(1, 2, 3), 3], "ignore_label": 4 if ignore else None}
    transforms = nnUNetTrainer.get_training_transforms(dataset.case.patch_size, (-0.5, 0.5), None, (), False, **labels)
    unlabeled = loader(dataset, transforms)
    unlabeled.transforms.geometric = cutting(3, dataset.case.patch_size)
    found = predicted(dataset, lambda rng, shape: rng.integers(0, 4, shape))
    unlabeled.use_predictions(found, CASES)
    batch = next(unlabeled)
    assert batch["pseudo_label"].shape == (2, 2, 16, 16, 16)
    labels = batch["weak"][:, 0]
    assert torch.equal(batch["pseudo_label"][:, 0], (labels > 0).short())
    assert torch.equal(batch["pseudo_label"][:, 1], (labels == 3).short())


def test_no_label_is_read_that_is_not_asked_for_or_not_there(tiny_dataset):
    dataset = tiny_dataset()
    assert "pseudo_label" not in next(loader(dataset, augmentation(dataset.case)))
    unlabeled = loader(dataset, augmentation(dataset.case), views=("weak",))
    unlabeled.use_predictions(predicted(dataset, block), CASES)
    assert next(unlabeled).keys() == {"weak", "keys", "places"}


def lesion(rng, shape):
    labels = np.zeros(shape)
    labels[-1, -1, -1] = 1
    return labels


@pytest.mark.parametrize("dim", [2, 3])
@pytest.mark.parametrize(("probability", "expected"), [(1.0, 1.0), (0.5, 0.5), (0.0, 0.1)])
def test_patches_are_drawn_around_a_small_structure(tiny_dataset, dim, probability, expected):
    """Of one voxel in the corner; of random patches few hold it."""
    dataset = tiny_dataset(dim=dim, batch_size=20)
    unlabeled = loader(dataset, cutting(dim, dataset.case.patch_size), probability=probability, more=0)
    unlabeled.use_predictions(predicted(dataset, lesion), CASES)
    np.random.seed(0)
    share = np.mean([next(unlabeled)["pseudo_label"].flatten(1).any(1).float().mean() for _ in range(10)])
    assert share == pytest.approx(expected, abs=0.11 if probability < 1 else 0)


def test_batches_of_one_patch_are_centred_as_often(tiny_dataset):
    """Where nnU-Net's labeled ones are centred always or never."""
    dataset = tiny_dataset(dim=2, batch_size=1)
    unlabeled = loader(dataset, cutting(2, dataset.case.patch_size), probability=0.4, more=0)
    unlabeled.use_predictions(predicted(dataset, lesion), CASES)
    np.random.seed(0)
    assert 20 < sum(bool(next(unlabeled)["pseudo_label"].any()) for _ in range(80)) < 50


def test_without_predicted_foreground_patches_come_from_everywhere(tiny_dataset):
    dataset = tiny_dataset(batch_size=30)
    unlabeled = loader(dataset, cutting(3, dataset.case.patch_size), probability=1.0, more=0)
    assert {place.start[0] for place in next(unlabeled)["places"]} == {0, 1, 2, 3, 4}
    unlabeled.use_predictions(predicted(dataset, lambda rng, shape: np.zeros(shape)), CASES)
    assert {place.start[0] for place in next(unlabeled)["places"]} == {0, 1, 2, 3, 4}


def test_only_the_cases_that_are_kept_are_drawn(tiny_dataset):
    dataset = tiny_dataset(batch_size=30)
    unlabeled = loader(dataset, cutting(3, dataset.case.patch_size))
    unlabeled.use_predictions(predicted(dataset, block), CASES[1:])
    assert set(next(unlabeled)["keys"]) == set(CASES[1:])


def test_label_travels_to_the_device_with_the_batch(tiny_dataset):
    dataset = tiny_dataset()
    unlabeled = loader(dataset, augmentation(dataset.case))
    unlabeled.use_predictions(predicted(dataset, block), CASES)
    batch = {"data": torch.zeros(1), "target": torch.zeros(1), "keys": ["a"], "unlabeled": next(unlabeled)}
    found = batches_on_device(batch, torch.device("cpu"))[1]
    assert torch.equal(found.pseudo_label, batch["unlabeled"]["pseudo_label"])
    assert not found.pseudo_label.is_floating_point()
