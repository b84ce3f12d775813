"""Synthetic 3-D scans: a deformed organ with a second structure at its end, in noise and uneven illumination."""

import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import SimpleITK
from scipy.ndimage import gaussian_filter

from nnunet_ssl.data.image_writing import write_image
from nnunet_ssl.data.whole_files import replacing

SHAPE = (16, 40, 40)
SPACING_MM = (3.0, 1.5, 1.5)
LABELS = {"background": 0, "organ": 1, "second": 2}


@dataclass(frozen=True)
class Counts:
    """How many scans a data set has of each kind."""

    labeled: int
    unlabeled: int
    held_out: int


def synthetic_scan(rng: np.random.Generator, shape: tuple[int, int, int] = SHAPE) -> tuple[np.ndarray, np.ndarray]:
    """Return an image, float32 `(Z, Y, X)` in arbitrary units, and its labels, uint8: 0 background, 1 organ, 2 second.

    The organ is an ellipsoid of random place, size and turn, warped smoothly; the second structure is a smaller one at
    its end, about twice as bright. Contrasts differ from scan to scan.
    """
    along = (np.linspace(-1, 1, n) for n in shape)
    z, y, x = (axis + 0.1 * smooth_noise(rng, shape, 6) for axis in np.meshgrid(*along, indexing="ij"))
    z, y, x = (axis - shift for axis, shift in zip((z, y, x), rng.uniform(-0.2, 0.2, 3), strict=True))
    turn = rng.uniform(-0.5, 0.5)
    y, x = np.cos(turn) * y - np.sin(turn) * x, np.sin(turn) * y + np.cos(turn) * x
    radius_z, radius_y, radius_x = rng.uniform(0.45, 0.65, 3)

    labels = np.zeros(shape, np.uint8)
    labels[(z / radius_z) ** 2 + (y / radius_y) ** 2 + (x / radius_x) ** 2 < 1] = 1
    labels[(z / radius_z) ** 2 + (y / radius_y) ** 2 + (x / radius_x - 0.75) ** 2 < 0.6**2] = 2

    contrast = rng.uniform(0.8, 1.4)
    brightness = np.array([0, contrast, contrast * rng.uniform(1.8, 2.2)])[labels]
    image = gaussian_filter(brightness, 0.8) + 0.4 * smooth_noise(rng, shape, 3) + 0.4 * smooth_noise(rng, shape, 12)
    return (image + rng.uniform(0.4, 0.6) * rng.standard_normal(shape)).astype(np.float32), labels


def smooth_noise(rng: np.random.Generator, shape: tuple[int, int, int], sigma: float) -> np.ndarray:
    """Return Gaussian noise `(Z, Y, X)` smoothed by `sigma` voxels, of standard deviation 1."""
    noise = gaussian_filter(rng.standard_normal(shape), sigma)
    return noise / noise.std()


def write_dataset(folder: Path, counts: Counts, seed: int) -> None:
    """Write a data set in nnU-Net's raw format: `imagesUn` unlabeled, `imagesTs` and `labelsTs` held out."""
    rng = np.random.default_rng(seed)
    for kind, number, images, labels in (
        ("labeled", counts.labeled, "imagesTr", "labelsTr"),
        ("unlabeled", counts.unlabeled, "imagesUn", None),
        ("heldout", counts.held_out, "imagesTs", "labelsTs"),
    ):
        for index in range(number):
            image, reference = synthetic_scan(rng)
            case = f"{kind}_{index:03d}"
            write_nifti(image, folder / images / f"{case}_0000.nii.gz")
            if labels:
                write_nifti(reference, folder / labels / f"{case}.nii.gz")
    description = {
        "channel_names": {"0": "synthetic"},
        "labels": LABELS,
        "numTraining": counts.labeled,
        "file_ending": ".nii.gz",
        "description": f"Synthetic scans written by nnunet_ssl demo, seed {seed}",
    }
    with replacing(folder / "dataset.json") as unfinished:
        unfinished.write_text(json.dumps(description, indent=1))


def write_nifti(voxels: np.ndarray, file: Path) -> None:
    """Write voxels `(Z, Y, X)` with the spacing of these scans."""
    image = SimpleITK.GetImageFromArray(voxels)
    image.SetSpacing(SPACING_MM[::-1])
    write_image(image, file)
