"""Reading what a converter wrote, and writing trees in the layouts of the sources."""

from pathlib import Path

import numpy as np
import pytest
import SimpleITK
from nnunetv2.experiment_planning.verify_dataset_integrity import verify_dataset_integrity


@pytest.fixture
def raw(tmp_path, monkeypatch) -> Path:
    """Return an empty nnUNet_raw."""
    for name in ("raw", "preprocessed", "results"):
        (tmp_path / name).mkdir()
        monkeypatch.setenv(f"nnUNet_{name}", str(tmp_path / name))
    return tmp_path / "raw"


@pytest.fixture
def source(tmp_path) -> Path:
    """Return an empty folder for a source."""
    (tmp_path / "source").mkdir()
    return tmp_path / "source"


def write(array: np.ndarray, file: Path, spacing: tuple[float, ...] | None = None) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    image = SimpleITK.GetImageFromArray(array)
    if spacing:
        image.SetSpacing(spacing)
    SimpleITK.WriteImage(image, str(file))


def read(file: Path) -> np.ndarray:
    return SimpleITK.GetArrayFromImage(SimpleITK.ReadImage(str(file)))


def spacing_of(file: Path) -> tuple[float, ...]:
    return SimpleITK.ReadImage(str(file)).GetSpacing()


def names(folder: Path) -> list[str]:
    return sorted(file.name.removesuffix(".nii.gz") for file in folder.iterdir()) if folder.is_dir() else []


def random_volume(seed: int, shape: tuple[int, ...] = (4, 12, 10)) -> np.ndarray:
    return np.random.default_rng(seed).normal(100, 20, shape).astype(np.float32)


def random_labels(seed: int, values: tuple[int, ...], shape: tuple[int, ...] = (4, 12, 10)) -> np.ndarray:
    return np.random.default_rng(seed).choice(np.array(values, np.uint8), shape)


def check_integrity(folder: Path) -> None:
    """Let nnU-Net look at the data set."""
    verify_dataset_integrity(str(folder), num_processes=1)


def assert_nothing_left(raw: Path) -> None:
    """A failed conversion leaves neither a data set nor a temporary folder."""
    assert list(raw.iterdir()) == []
