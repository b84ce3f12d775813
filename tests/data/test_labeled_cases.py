import blosc2
import numpy as np
import pytest
from nnunetv2.training.dataloading.nnunet_dataset import nnUNetDatasetBlosc2, nnUNetDatasetNumpy

from nnunet_ssl.data.labeled_cases import unfinished_cases

FILES = {
    "blosc2": ("{}.b2nd", "{}_seg.b2nd", "{}.pkl"),
    "npz": ("{}.npz", "{}.pkl"),
    "npy": ("{}.npy", "{}_seg.npy", "{}.pkl"),
}


def preprocessed(folder, kind, cases=("first", "second", "third")):
    """Write whole cases as nnU-Net does; "npy" is what it makes of "npz", without these."""
    rng = np.random.default_rng(0)
    for case in cases:
        image, label = rng.normal(size=(1, 8, 8, 8)).astype(np.float32), np.ones((1, 8, 8, 8), np.int8)
        properties = {"spacing": [1.0, 1.0, 1.0], "class_locations": {1: np.argwhere(label)}}
        if kind == "blosc2":
            nnUNetDatasetBlosc2.save_case(
                image, label, properties, str(folder / case), chunks=image.shape, blocks=image.shape
            )
        else:
            nnUNetDatasetNumpy.save_case(image, label, properties, str(folder / case))
        if kind == "npy":
            (folder / f"{case}.npz").unlink()
            np.save(folder / f"{case}.npy", image)
            np.save(folder / f"{case}_seg.npy", label)
    return list(cases)


def damage(file, how):
    content = file.read_bytes()
    if how == "missing":
        file.unlink()
    elif how == "empty":
        file.write_bytes(b"")
    elif how == "cut off":
        file.write_bytes(content[:-5])
    elif how == "half":
        file.write_bytes(content[: len(content) // 2])
    else:
        file.write_bytes(bytes(len(content)))


@pytest.mark.parametrize("kind", FILES)
def test_whole_cases_are_finished_in_each_format(tmp_path, kind):
    assert unfinished_cases(tmp_path, preprocessed(tmp_path, kind)) == []


@pytest.mark.parametrize("how", ["missing", "empty", "cut off", "half", "zeros"])
@pytest.mark.parametrize(("kind", "name"), [(kind, name) for kind, names in FILES.items() for name in names])
def test_a_case_with_a_missing_or_damaged_file_is_unfinished(tmp_path, kind, name, how):
    cases = preprocessed(tmp_path, kind)
    damage(tmp_path / name.format("second"), how)
    assert unfinished_cases(tmp_path, cases) == ["second"]


def test_cases_that_are_nowhere_and_without_a_folder_are_unfinished(tmp_path):
    preprocessed(tmp_path, "blosc2", ["here"])
    assert unfinished_cases(tmp_path, ["nowhere", "here"]) == ["nowhere"]
    assert unfinished_cases(tmp_path / "missing", ["here", "there"]) == ["here", "there"]


def test_a_packed_case_without_label_is_unfinished(tmp_path):
    preprocessed(tmp_path, "npz", ["case"])
    np.savez(tmp_path / "case.npz", data=np.zeros((1, 2, 2, 2)))
    assert unfinished_cases(tmp_path, ["case"]) == ["case"]


def test_damaged_unpacked_files_do_not_matter_beside_the_packed_one(tmp_path):
    """nnU-Net unpacks them again at the start of a training."""
    preprocessed(tmp_path, "npz", ["case"])
    (tmp_path / "case.npy").write_bytes(b"")
    assert unfinished_cases(tmp_path, ["case"]) == []


def test_no_voxel_is_read(tmp_path, monkeypatch):
    cases = preprocessed(tmp_path, "blosc2")
    monkeypatch.setattr(blosc2.NDArray, "__getitem__", lambda *_: pytest.fail("voxels were read"))
    assert unfinished_cases(tmp_path, cases) == []
