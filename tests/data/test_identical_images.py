import json
import os
from multiprocessing.pool import ThreadPool

import nibabel
import numpy as np
import pytest
import SimpleITK
from skimage import io

from nnunet_ssl.data.dataset_reader import DatasetReader
from nnunet_ssl.data.identical_images import _extent, identical_images, shape_in_header, united
from nnunet_ssl.data.preprocessed_images import content_of
from tests.data.test_unlabeled_preprocessing import write_image

NIFTI = DatasetReader.of_dataset({"file_ending": ".nii.gz"})


def reading(monkeypatch, reader=NIFTI) -> list[str]:
    """Return the names of the files that are read from now on."""
    read, original = [], DatasetReader.read_channels

    def noting(self, files):
        read.extend(file.name for file in files)
        return original(self, files)

    monkeypatch.setattr(DatasetReader, "read_channels", noting)
    return read


def of(folder, *names: str, ending=".nii.gz") -> dict:
    return {name: [folder / f"{name}_0000{ending}"] for name in names}


def test_same_voxels_under_other_names_and_bytes(tmp_path):
    write_image(tmp_path / "a_0000.nii.gz", seed=1)
    image = SimpleITK.ReadImage(str(tmp_path / "a_0000.nii.gz"))
    SimpleITK.WriteImage(image, str(tmp_path / "b_0000.nii.gz"), useCompression=True, compressionLevel=1)
    write_image(tmp_path / "c_0000.nii.gz", seed=2)
    assert identical_images(of(tmp_path, "c", "b", "a"), NIFTI, tmp_path / "cache.json") == [["a", "b"]]


def test_all_channels_count(tmp_path):
    for case, second in (("a", 5), ("b", 6), ("c", 5)):
        write_image(tmp_path / f"{case}_0000.nii.gz", seed=1)
        write_image(tmp_path / f"{case}_0001.nii.gz", seed=second)
    files = {case: [tmp_path / f"{case}_{channel:04d}.nii.gz" for channel in (0, 1)] for case in "abc"}
    assert identical_images(files, NIFTI, tmp_path / "cache.json") == [["a", "c"]]


@pytest.mark.parametrize("ending", [".png", ".nrrd", ".tif"])
def test_other_formats(tmp_path, ending):
    rng = np.random.default_rng(0)
    pictures = [rng.integers(0, 200, (9, 12), np.uint8) for _ in range(2)]
    for case, picture in zip("abc", (pictures[0], pictures[1], pictures[0]), strict=True):
        if ending == ".nrrd":
            SimpleITK.WriteImage(SimpleITK.GetImageFromArray(picture), str(tmp_path / f"{case}_0000.nrrd"))
        else:
            io.imsave(tmp_path / f"{case}_0000{ending}", picture, check_contrast=False)
    reader = DatasetReader.of_dataset({"file_ending": ending}, [tmp_path / f"a_0000{ending}"])
    files = of(tmp_path, *"abc", ending=ending)
    assert identical_images(files, reader, tmp_path / "cache.json") == [["a", "c"]]


def test_only_images_of_equal_shape_are_read(tmp_path, monkeypatch):
    write_image(tmp_path / "a_0000.nii.gz", seed=1)
    write_image(tmp_path / "b_0000.nii.gz", seed=1, shape=(12, 14, 17))
    write_image(tmp_path / "c_0000.nii.gz", seed=2)
    read = reading(monkeypatch)
    assert identical_images(of(tmp_path, *"abc"), NIFTI, tmp_path / "cache.json") == []
    assert read == ["a_0000.nii.gz", "c_0000.nii.gz"]


def test_unchanged_images_are_read_once(tmp_path, monkeypatch):
    for case, seed in (("a", 1), ("b", 1), ("c", 2)):
        write_image(tmp_path / f"{case}_0000.nii.gz", seed=seed)
    files = of(tmp_path, *"abc")
    assert identical_images(files, NIFTI, tmp_path / "cache.json") == [["a", "b"]]
    read = reading(monkeypatch)
    assert identical_images(files, NIFTI, tmp_path / "cache.json") == [["a", "b"]]
    assert read == []
    # Another image of the same size in bytes, by its time of change alone.
    uncompressed = {case: [tmp_path / f"{case}_0000.nii"] for case in "ab"}
    for file in (file for files in uncompressed.values() for file in files):
        nibabel.save(nibabel.Nifti1Image(np.zeros((4, 4, 4), np.float32), np.eye(4)), file)
    reader = DatasetReader.of_dataset({"file_ending": ".nii"})
    assert identical_images(uncompressed, reader, tmp_path / "cache.json") == [["a", "b"]]
    size = uncompressed["a"][0].stat().st_size
    nibabel.save(nibabel.Nifti1Image(np.ones((4, 4, 4), np.float32), np.eye(4)), uncompressed["a"][0])
    os.utime(uncompressed["a"][0], ns=(1, 1))
    assert uncompressed["a"][0].stat().st_size == size
    assert identical_images(uncompressed, reader, tmp_path / "cache.json") == []


def test_an_unreadable_image_is_no_twin(tmp_path):
    for case in "abc":
        write_image(tmp_path / f"{case}_0000.nii.gz", seed=1)
    for case in "ab":  # cut off alike: the header is whole
        file = tmp_path / f"{case}_0000.nii.gz"
        file.write_bytes(file.read_bytes()[:-50])
    (tmp_path / "d_0000.nii.gz").write_bytes(b"")
    files = of(tmp_path, *"abcd", "missing")
    assert identical_images(files, NIFTI, tmp_path / "cache.json") == []


def test_what_is_known_is_not_read_and_groups_that_nobody_wants_are_not_looked_for(tmp_path, monkeypatch):
    """Two of one image, of two sizes; of the larger ones the voxels are known, and no smaller one is wanted."""
    for case, seed, depth in (("a", 1, 17), ("b", 1, 17), ("c", 2, 17), ("d", 1, 16), ("e", 1, 16)):
        write_image(tmp_path / f"{case}_0000.nii.gz", seed=seed, shape=(12, 14, depth))
    files = of(tmp_path, *"abcde")
    contents = {case: content_of(NIFTI.read_channels(files[case])[0]) for case in "bc"}
    read = reading(monkeypatch)
    assert identical_images(files, NIFTI, tmp_path / "cache.json", contents, {"a"}) == [["a", "b"]]
    assert read == ["a_0000.nii.gz"]
    assert not {"imagesTr/b_0000.nii.gz"} & json.loads((tmp_path / "cache.json").read_text()).keys()
    assert identical_images(files, NIFTI, tmp_path / "other.json", contents) == [["a", "b"], ["d", "e"]]


@pytest.mark.parametrize("kind", ["one channel", "two files", "one file", ".png", "colour", ".nrrd", ".tif", "slice"])
def test_headers_and_readers_agree_on_the_extent(tmp_path, kind):
    ending = {".png": ".png", "colour": ".png", ".nrrd": ".nrrd", ".tif": ".tif"}.get(kind, ".nii.gz")
    shape = {"one file": (2, 5, 6, 7), ".png": (9, 12), "colour": (9, 12, 3), "slice": (1, 9, 12)}.get(kind, (5, 6, 7))
    voxels, files = np.random.default_rng(0).integers(0, 200, shape, np.uint8), []
    for channel in range(2 if kind == "two files" else 1):
        files.append(tmp_path / f"a_{channel:04d}{ending}")
        if ending in (".png", ".tif"):
            io.imsave(files[-1], voxels, check_contrast=False)
        else:
            SimpleITK.WriteImage(SimpleITK.GetImageFromArray(voxels, isVector=False), str(files[-1]))
    reader = DatasetReader.of_dataset({"file_ending": ending}, files)
    shapes = [shape_in_header(file) for file in files]
    assert _extent(shapes) == _extent([reader.read_channels(files)[0].shape])


def test_patients_with_one_image_are_one_group():
    groups = {"a1": "a", "a2": "a", "b1": "b", "c1": "c", "d1": "d"}
    assert united(groups, [["b1", "c1"]]) == groups | {"c1": "b"}
    assert united(groups, [["b1", "c1"], ["a2", "c1"]]) == {"a1": "a", "a2": "a", "b1": "a", "c1": "a", "d1": "d"}
    assert united(groups, [["b1", "somewhere else"]]) == groups
    assert united(groups, []) == groups


def test_five_folds_that_start_at_once_read_each_image_once(tmp_path, monkeypatch):
    for i in range(6):
        write_image(tmp_path / f"{i}_0000.nii.gz", seed=i // 2)
    read = reading(monkeypatch)
    with ThreadPool(5) as pool:
        found = pool.map(lambda _: identical_images(of(tmp_path, *"012345"), NIFTI, tmp_path / "cache.json"), range(5))
    assert found == [[["0", "1"], ["2", "3"], ["4", "5"]]] * 5
    assert sorted(read) == [f"{i}_0000.nii.gz" for i in range(6)]
