"""PSFHS: transperineal ultrasound with pubic symphysis (1) and fetal head (2), 2-D.

Understood is `image_mha/NNNNN.mha` with `label_mha/NNNNN.mha`. The images have three equal channels, of which one is
kept. Neighbouring numbers are often the same patient.
"""

import sys
from functools import partial
from pathlib import Path

import numpy as np
import SimpleITK

from nnunet_ssl.conversion.command_line import conversion_parser, run_conversion
from nnunet_ssl.conversion.raw_dataset import Case, Description, Role, Scan, write_raw_dataset
from nnunet_ssl.data.image_files import read_image

DESCRIPTION = Description(
    name="PSFHS",
    channel_names={0: "ultrasound"},
    labels={"background": 0, "pubic_symphysis": 1, "fetal_head": 2},
    reference="https://doi.org/10.5281/zenodo.10969427",
    license="CC BY 4.0; cite Chen et al. 2024",
    patient_pattern=r"^(\d{4})\d$",  # ten consecutive numbers; no list of patients was published
)


def convert(source: Path, dataset_id: int = 219, num_processes: int = 2, overwrite: bool = False) -> Path:
    """Convert PSFHS and return the data set's folder.

    Raises:
        ValueError: an unknown layout; an image without labels or the reverse; channels that differ.
    """
    images = {file.stem: file for file in sorted((source / "image_mha").glob("*.mha"))}
    labels = {file.stem: file for file in sorted((source / "label_mha").glob("*.mha"))}
    if not images:
        raise ValueError(f"{source} has no known layout of PSFHS, expected image_mha/NNNNN.mha and label_mha/NNNNN.mha")
    for name in sorted(set(images) ^ set(labels)):
        folder = "label_mha" if name in images else "image_mha"
        raise ValueError(f"{source / folder / name}.mha is missing, the other half of a pair")
    cases = []
    for name, file in images.items():
        read = partial(read_pair, file, labels[name])
        cases.append(Case(name, Role.LABELED, file, read, labels[name]))
    return write_raw_dataset(DESCRIPTION, dataset_id, cases, num_processes, overwrite)


def read_pair(file: Path, label_file: Path) -> Scan:
    """Read an image, `(3, Y, X)` in the file, and its labels `(Y, X)`."""
    channels, labels = read_image(file), read_image(label_file)
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
