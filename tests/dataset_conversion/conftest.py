"""Reading what a converter wrote, and writing trees in the layouts of the sources."""

import gzip
import json
import struct
from pathlib import Path

import nibabel
import numpy as np
import pytest
import SimpleITK
from nnunetv2.experiment_planning.verify_dataset_integrity import verify_dataset_integrity

from nnunet_ssl.commands.cli import main

PIXDIM_Z, SROW_X_Y, QOFFSET_X = 88, 284, 268  # where they stand in a NIfTI header


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


def patch_nifti(file: Path, offset: int, value: float) -> None:
    """Put a number into a NIfTI header, which no library would write."""
    is_packed = file.suffix == ".gz"
    content = bytearray(gzip.decompress(file.read_bytes()) if is_packed else file.read_bytes())
    struct.pack_into("<f", content, offset, value)
    file.write_bytes(gzip.compress(bytes(content)) if is_packed else content)


def shear_nifti(file: Path) -> None:
    """Write a file again with axes that are not perpendicular."""
    affine = np.diag([1.5, 1.5, 8.0, 1.0])
    affine[0, 1] = 0.5
    nibabel.save(nibabel.Nifti1Image(np.asanyarray(nibabel.load(file).dataobj), affine), file)


def shear(file: Path) -> None:
    """Write a .nrrd or .mha file again with axes that are not perpendicular."""
    image = SimpleITK.ReadImage(str(file))
    direction = np.eye(image.GetDimension())
    direction[0, 1] = 0.3
    image.SetDirection(direction.ravel().tolist())
    SimpleITK.WriteImage(image, str(file))


def assert_left_out(converter: str, source: Path, raw: Path, capsys, left_out: dict[str, str]) -> Path:
    """Refused without the option, with the first case named; with it the rest is converted, and the cases are named.

    Args:
        left_out: by case, part of the reason.
    """
    command = ["convert", converter, "-i", str(source), "-np", "1"]
    first = next(iter(left_out))
    assert main(command) == 2
    error = capsys.readouterr().err.splitlines()[-1]
    assert f"nnunet_ssl convert {converter}: {first}: " in error
    assert left_out[first] in error
    assert error.endswith("; --allow-missing leaves such cases out")
    assert_nothing_left(raw)
    assert main([*command, "--allow-missing"]) == 1
    said = capsys.readouterr().out.partition(f"left out, {len(left_out)} that cannot be converted:\n")[2].splitlines()
    assert len(said) == len(left_out)
    for line, (case, reason) in zip(said, left_out.items(), strict=True):
        assert line.startswith(f"  {case}: ")
        assert reason in line
    (folder,) = raw.iterdir()
    labeled = names(folder / "labelsTr")
    assert json.loads((folder / "dataset.json").read_text())["numTraining"] == len(labeled)
    for role in ("Tr", "Ts", "Un"):
        there = {name[:-5] for name in names(folder / f"images{role}")}
        assert not there & set(left_out)
        assert role == "Un" or set(names(folder / f"labels{role}")) <= there
    assert set(labeled) == {name[:-5] for name in names(folder / "imagesTr")}
    return folder
