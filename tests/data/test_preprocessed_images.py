import os
import tracemalloc
from multiprocessing.pool import ThreadPool

import numpy as np
import pytest
import SimpleITK

from nnunet_ssl.data import preprocessed_images
from nnunet_ssl.data.preprocessed_images import UnlabeledDataset, content_of, contents_of, open_image
from nnunet_ssl.data.unlabeled_preprocessing import UnlabeledPreprocessing


def test_outside_of_a_resampled_image_comes_from_its_own_preprocessing(tiny_dataset):
    """Cubic resampling leaves hardly a voxel outside the image at exactly zero; the map marks them all."""
    dataset = tiny_dataset(masked=True)
    plans = dataset.case.plans()
    plans["configurations"]["3d_fullres"]["resampling_fn_data_kwargs"]["order"] = 3
    voxels = np.random.default_rng(0).normal(100, 20, (16, 18, 20)).astype(np.float32)
    voxels[:, :8, :8] = 0
    image = SimpleITK.GetImageFromArray(voxels)
    image.SetSpacing((1.3, 1.3, 1.3))
    dataset.images_un.mkdir(parents=True)
    SimpleITK.WriteImage(image, str(dataset.images_un / "scan_0000.nii.gz"))
    folder = dataset.unlabeled_folder
    job = UnlabeledPreprocessing(plans, "3d_fullres", dataset.case.dataset_json(), dataset.images_un, folder)
    assert job.run(1) == {}
    loaded, outside, _, properties = UnlabeledDataset({"scan": folder}, folder).load_case("scan")
    corner = (slice(0, 1), slice(None), slice(0, 8), slice(0, 8))
    assert (np.asarray(loaded[:])[corner] == 0).mean() < 0.5
    assert (np.asarray(outside[:])[corner] == -1).all()
    assert (np.asarray(outside[:]) == 0).mean() > 0.5
    assert properties == {"class_locations": {}}


def test_of_a_case_with_a_label_on_disk_only_the_image_is_opened(tiny_dataset):
    dataset = tiny_dataset()
    for ending in ("_seg.b2nd", ".pkl"):
        (dataset.labeled_folder / f"labeled0{ending}").unlink()
    images = UnlabeledDataset({"labeled0": dataset.labeled_folder}, dataset.unlabeled_folder)
    image, outside, previous, _ = images.load_case("labeled0")
    assert outside.shape == image.shape
    assert not outside.any()
    assert previous is None


def test_content_tells_voxels_apart_not_names(tiny_dataset):
    dataset = tiny_dataset()
    first, second = (content_of(open_image(dataset.labeled_folder, f"labeled{i}")) for i in (0, 1))
    assert first != second
    assert first == content_of(open_image(dataset.labeled_folder, "labeled0"))


@pytest.mark.parametrize("ending", [".npy", ".npz"])
def test_other_formats_of_nnunet(tmp_path, ending):
    voxels = np.arange(8.0, dtype=np.float32).reshape(1, 2, 2, 2)
    if ending == ".npy":
        np.save(tmp_path / "case.npy", voxels)
    else:
        np.savez(tmp_path / "case.npz", data=voxels, seg=voxels)
    np.testing.assert_array_equal(open_image(tmp_path, "case"), voxels)


def write_image(file, voxels, nanoseconds):
    np.save(file, voxels)
    os.utime(file, ns=(nanoseconds, nanoseconds))


@pytest.mark.parametrize(
    ("shape", "later"), [((1, 2, 2), 10**9), ((1, 2, 2), -(10**9)), ((1, 2, 2), 1000), ((1, 2, 3), 0)]
)
def test_remembered_content_of_a_changed_image_is_read_again(tmp_path, shape, later):
    """Changed is what has another time of change, to less than a second, or another size."""
    image, cache, now = tmp_path / "case.npy", tmp_path / "state" / "contents.json", 10**18
    write_image(image, np.zeros((1, 2, 2)), now)
    assert contents_of(tmp_path, ["case"], cache) == {"case": content_of(np.zeros((1, 2, 2)))}
    write_image(image, np.ones(shape), now + later)
    for _ in range(2):
        assert contents_of(tmp_path, ["case"], cache) == {"case": content_of(np.ones(shape))}


def test_content_of_an_unchanged_image_is_read_once(tmp_path, monkeypatch):
    cache, read = tmp_path / "contents.json", []
    monkeypatch.setattr(preprocessed_images, "content_of", lambda image: read.append(image) or content_of(image))
    for i in range(3):
        write_image(tmp_path / f"case{i}.npy", np.full((1, 2, 2), i), 10**18)
    few = contents_of(tmp_path, ["case0", "case1"], cache)
    assert contents_of(tmp_path, ["case0", "case1", "case2"], cache).items() >= few.items()
    assert contents_of(tmp_path, ["case0"], cache) == {"case0": few["case0"]}
    assert len(read) == 3


def test_images_of_other_shapes_are_left_out_unread(tmp_path, monkeypatch):
    monkeypatch.setattr(preprocessed_images, "content_of", None)
    write_image(tmp_path / "case.npy", np.zeros((1, 2, 2)), 10**18)
    assert contents_of(tmp_path, ["case"], tmp_path / "contents.json", shapes={(1, 2, 3)}) == {}


def test_what_is_known_is_not_opened(tmp_path, monkeypatch):
    for i in range(3):
        np.save(tmp_path / f"case{i}.npy", np.full((1, 2, 2), i))
    cache, cases = tmp_path / "contents.json", [f"case{i}" for i in range(3)]
    expected = contents_of(tmp_path, cases, cache)
    monkeypatch.setattr(preprocessed_images, "open_image", None)
    assert contents_of(tmp_path, cases, cache) == expected
    assert contents_of(tmp_path, cases, cache, shapes={(1, 2, 3)}) == {}


def test_five_folds_that_start_at_once_hash_each_image_once(tmp_path, monkeypatch):
    cases = [f"case{i}" for i in range(20)]
    for i, case in enumerate(cases):
        np.save(tmp_path / f"{case}.npy", np.full((1, 2, 2), i))
    hashed = []
    monkeypatch.setattr(preprocessed_images, "content_of", lambda image: hashed.append(1) or content_of(image))
    with ThreadPool(5) as pool:
        found = pool.map(lambda _: contents_of(tmp_path, cases, tmp_path / "contents.json"), range(5))
    assert all(one == found[0] for one in found)
    assert len(hashed) == len(cases)


def test_an_image_in_memory_is_hashed_without_a_copy():
    image = np.ones((1, 64, 128, 128), np.float32)
    tracemalloc.start()
    content_of(image)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < image.nbytes / 100
