"""Scans that look a little like scans: details of several sizes on an anatomy that all of them share."""

import json
from pathlib import Path

import numpy as np
import SimpleITK
from scipy.ndimage import gaussian_filter

NAME = "Dataset999_Tiny"
SHAPE = (18, 22, 20)
CONTENT = {"channel_names": {"0": "MRI"}, "labels": {"background": 0, "organ": 1}, "file_ending": ".nii.gz"}


def scan(seed: int, shape: tuple[int, ...] = SHAPE) -> np.ndarray:
    """Return an image (*spatial), float32."""
    rng = np.random.default_rng(seed)
    places = np.stack(np.meshgrid(*(np.linspace(-1, 1, size) for size in shape), indexing="ij"))
    anatomy = gaussian_filter((np.linalg.norm(places, axis=0) < 0.8).astype(float), 1)
    details = sum(
        gaussian_filter(rng.normal(size=shape), scale) * scale ** (len(shape) / 2) * weight
        for scale, weight in ((0.6, 0.3), (1.2, 0.6), (2.5, 1.0))
    )
    return (100 * (4 + anatomy + details)).astype(np.float32)


def write(voxels: np.ndarray, file: Path) -> None:
    """Write an image, of one channel, or a label map."""
    file.parent.mkdir(parents=True, exist_ok=True)
    SimpleITK.WriteImage(SimpleITK.GetImageFromArray(voxels), str(file))


class RawScans:
    """A raw data set that is written case by case, and its folder in nnUNet_preprocessed."""

    def __init__(self, root: Path) -> None:
        self.raw, self.preprocessed, self.results = (root / name / NAME for name in ("raw", "preprocessed", "results"))

    @classmethod
    def new(cls, root: Path, **content: object) -> "RawScans":
        """Make the folders."""
        dataset = cls(root)
        for folder in (dataset.raw, dataset.preprocessed, dataset.results):
            folder.mkdir(parents=True)
        dataset.describe(**content)
        return dataset

    def describe(self, **content: object) -> None:
        """Write dataset.json."""
        (self.raw / "dataset.json").write_text(json.dumps(CONTENT | content))

    def add(self, folder: str, case: str, voxels: np.ndarray) -> None:
        """Write a scan; of one in imagesTr the label too."""
        write(np.ascontiguousarray(voxels, np.float32), self.raw / folder / f"{case}_0000.nii.gz")
        if folder == "imagesTr":
            labels = (voxels > np.median(voxels)).astype(np.uint8)
            write(labels, self.raw / "labelsTr" / f"{case}.nii.gz")

    def split(self, *folds: dict) -> None:
        """Write splits_final.json."""
        (self.preprocessed / "splits_final.json").write_text(json.dumps(folds))
