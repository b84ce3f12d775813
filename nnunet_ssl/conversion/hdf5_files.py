"""Reading the `.h5` files in which the semi-supervised literature passes its data on."""

from pathlib import Path

import h5py
import numpy as np
import SimpleITK

from nnunet_ssl.conversion.cases import Scan

NUMBERS = "iuf"  # numpy's kinds: signed, unsigned, floating


def read_image_and_label(file: Path) -> tuple[np.ndarray, np.ndarray]:
    """Return the arrays `image` and `label` of a file, in the file's own order of axes.

    Raises:
        ValueError: the file is missing, damaged, has not both arrays of numbers, or they differ in shape.
    """
    if not file.is_file():
        raise ValueError(f"{file} is missing")
    try:
        with h5py.File(file) as opened:
            for name in ("image", "label"):
                if not isinstance(opened.get(name), h5py.Dataset) or opened[name].dtype.kind not in NUMBERS:
                    raise ValueError(f"{file} has no array {name!r} of numbers, expected 'image' and 'label'")
            image, label = opened["image"][()], opened["label"][()]
    except (OSError, RuntimeError, KeyError) as error:
        raise ValueError(f"{file} is damaged, or no HDF5 file: {error}") from error
    if image.shape != label.shape:
        raise ValueError(f"{file}: image of shape {image.shape}, label of shape {label.shape}")
    return image, label


def scan_of_arrays(image: np.ndarray, label: np.ndarray, spacing: tuple[float, float, float], file: Path) -> Scan:
    """Return an image and its label, `(Z, Y, X)`, as a scan.

    Args:
        image: of one channel.
        label: of the image's shape.
        spacing: x, y, z in mm.
        file: where they come from.

    Raises:
        ValueError: they have not three dimensions.
    """
    if image.ndim != 3:
        raise ValueError(f"{file} has {image.ndim} dimensions, expected 3 of a volume, or 2 of a slice")
    both = [SimpleITK.GetImageFromArray(known_to_itk(array)) for array in (image, label)]
    for item in both:
        item.SetSpacing(spacing)
    return Scan([both[0]], both[1])


def known_to_itk(array: np.ndarray) -> np.ndarray:
    """Return an array in the machine's order of bytes, half precision as single."""
    return array.astype(np.float32 if array.dtype.str[1:] == "f2" else array.dtype.newbyteorder("="), copy=False)
