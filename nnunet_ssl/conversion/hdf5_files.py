"""Reading the `.h5` files in which the semi-supervised literature passes its data on."""

from pathlib import Path

import h5py
import numpy as np


def read_image_and_label(file: Path) -> tuple[np.ndarray, np.ndarray]:
    """Return the arrays `image` and `label` of a file, in the file's own order of axes.

    Raises:
        ValueError: the file is damaged, has not both arrays, or they differ in shape.
    """
    try:
        with h5py.File(file) as opened:
            missing = [name for name in ("image", "label") if name not in opened]
            if missing:
                raise ValueError(f"{file} has no array {missing[0]!r}, expected 'image' and 'label'")
            image, label = opened["image"][()], opened["label"][()]
    except OSError as error:
        raise ValueError(f"{file} is damaged, or no HDF5 file: {error}") from error
    if image.shape != label.shape:
        raise ValueError(f"{file}: image of shape {image.shape}, label of shape {label.shape}")
    return image, label
