"""PSFHS: transperineal ultrasound with pubic symphysis (1) and fetal head (2), 2-D.

Understood is `image_mha/NNNNN.mha` with `label_mha/NNNNN.mha`. The images have three equal channels, of which one is
kept. Neighbouring numbers are often one patient; which, was not published. A random split therefore keeps blocks
of ten consecutive numbers together, the protocols blocks of 27, and both leave out two images on each side of a border
between validation and training.
"""

import sys
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import numpy as np
import SimpleITK

from nnunet_ssl.conversion.cases import Case, Fault, Role, Scan
from nnunet_ssl.conversion.checks import read_checked
from nnunet_ssl.conversion.command_line import conversion_parser, run_conversion
from nnunet_ssl.conversion.layouts import find_layout
from nnunet_ssl.conversion.raw_dataset import Description, write_raw_dataset

DESCRIPTION = Description(
    name="PSFHS",
    channel_names={0: "ultrasound"},
    labels={"background": 0, "pubic_symphysis": 1, "fetal_head": 2},
    reference="https://doi.org/10.5281/zenodo.10969427",
    license="CC BY 4.0; cite Chen et al. 2024",
    patient_pattern=r"^(\d{4})\d$",
    unit="blocks of ten consecutive images",
    border_images=2,
    version=2,
    dimensions=2,
)
LAYOUT = "image_mha/NNNNN.mha and label_mha/NNNNN.mha"


def convert(
    source: Path,
    dataset_id: int = 219,
    num_processes: int = 2,
    overwrite: bool = False,
    allow_missing: bool = False,
) -> Path:
    """Convert PSFHS and return the data set's folder.

    Raises:
        ValueError: an unknown layout; an image without labels or the reverse; channels that differ.
    """
    find_layout(source, find_images, "PSFHS", LAYOUT)
    return write_raw_dataset(DESCRIPTION, dataset_id, listing(source), num_processes, overwrite, allow_missing)


def find_images(source: Path, _: int | None = None) -> dict[str, Path]:
    """Return the images by name."""
    return {file.stem: file for file in sorted((source / "image_mha").glob("*.mha"))}


def listing(source: Path) -> Iterator[Case | Fault]:
    """Yield the pairs, and the halves of a pair as faults."""
    images = find_images(source)
    labels = {file.stem: file for file in sorted((source / "label_mha").glob("*.mha"))}
    for name in sorted({*images, *labels}):
        if name in images and name in labels:
            read = partial(read_pair, images[name], labels[name])
            yield Case(name, Role.LABELED, images[name], read, labels[name])
        else:
            folder = "label_mha" if name in images else "image_mha"
            yield Fault(name, f"{source / folder / name}.mha is missing, the other half of a pair")


def read_pair(file: Path, label_file: Path) -> Scan:
    """Read an image, `(3, Y, X)` in the file, and its labels `(Y, X)`."""
    channels, labels = read_checked(file), read_checked(label_file, 2)
    voxels = SimpleITK.GetArrayViewFromImage(channels)
    if voxels.ndim != 3 or voxels.shape[0] != 3:
        raise ValueError(f"{file} has the shape {voxels.shape}, expected three channels (3, Y, X)")
    if not (np.array_equal(voxels[0], voxels[1]) and np.array_equal(voxels[0], voxels[2])):
        raise ValueError(f"{file}: its three channels differ, expected three equal ones")
    image = channels[:, :, 0]
    return Scan([image], labels)


def main(arguments: list[str] | None = None) -> int:
    """Convert as the command line says."""
    return run_conversion(convert, conversion_parser("PSFHS", __doc__, 219), arguments)


if __name__ == "__main__":
    sys.exit(main())
