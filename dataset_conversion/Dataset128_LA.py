"""LA: left atrium in late gadolinium-enhanced MRI, 0.625 mm isotropic (2018 Atrial Segmentation Challenge).

Two layouts are understood:

* the challenge's `Training Set/<ID>/{lgemri.nrrd, laendo.nrrd}`;
* `2018LA_Seg_Training Set/<ID>/mri_norm2.h5` of the semi-supervised literature, already z-scored. Where it lies beside
  `lgemri.nrrd`, the challenge's files are taken.

The published preprocessing crops every scan around its ground truth, those of the test cases too, so that all published
figures rest on a part of the answer. Nothing is cropped here; but the .h5 files are the result of that preprocessing.

The 20 test cases of the published split go to imagesTs and labelsTs.
"""

import sys
from functools import partial
from pathlib import Path

import numpy as np
import SimpleITK

from nnunet_ssl.conversion.command_line import conversion_parser, run_conversion
from nnunet_ssl.conversion.hdf5_files import read_image_and_label
from nnunet_ssl.conversion.raw_dataset import Case, Description, Role, Scan, write_raw_dataset
from nnunet_ssl.data.image_files import read_image
from nnunet_ssl.splits.protocols import load_benchmark

DESCRIPTION = Description(
    name="LA",
    channel_names={0: "LGE-MRI"},
    labels={"background": 0, "left_atrium": 1},
    reference="https://www.cardiacatlas.org/atriaseg2018-challenge/",
    license="challenge data; cite Xiong et al. 2020",
    patient_pattern=r"^(.+)$",
)
SPACING_MM = (0.625, 0.625, 0.625)
LAYOUTS = "Training Set/<ID>/lgemri.nrrd and laendo.nrrd, or <ID>/mri_norm2.h5"


def convert(source: Path, dataset_id: int = 128, num_processes: int = 2, overwrite: bool = False) -> Path:
    """Convert LA and return the data set's folder.

    Raises:
        ValueError: an unknown layout; a file that is missing or damaged; labels other than 0 and 255 (or 1).
    """
    files = [file for name in ("mri_norm2.h5", "lgemri.nrrd") for file in sorted(source.glob(f"**/{name}"))]
    of_case = {file.parent: file for file in files if "Testing Set" not in file.parts}  # the challenge's where both are
    if not of_case:
        raise ValueError(f"{source} has no known layout of LA, expected {LAYOUTS}")
    test = load_benchmark("la").test
    cases = []
    for folder, file in sorted(of_case.items()):
        is_nrrd = file.suffix == ".nrrd"
        role = Role.TEST if folder.name in test else Role.LABELED
        labels = folder / "laendo.nrrd" if is_nrrd else None
        cases.append(Case(folder.name, role, file, partial(read_nrrd if is_nrrd else read_hdf5, file), labels))
    return write_raw_dataset(DESCRIPTION, dataset_id, cases, num_processes, overwrite)


def read_nrrd(file: Path) -> Scan:
    """Read the challenge's pair; the cavity is 255 there."""
    image, labels = read_image(file), read_image(file.with_name("laendo.nrrd"))
    values = np.unique(SimpleITK.GetArrayViewFromImage(labels)).tolist()
    if not set(values) <= {0, 255}:
        raise ValueError(f"{file.with_name('laendo.nrrd')}: label values {values}, expected 0 and 255")
    labels = SimpleITK.Cast(labels > 0, SimpleITK.sitkUInt8)
    for item in (image, labels):
        item.SetSpacing(SPACING_MM)
    return Scan([image], labels)


def read_hdf5(file: Path) -> Scan:
    """Read the literature's file, whose axes are x, y, z."""
    both = [SimpleITK.GetImageFromArray(array.T) for array in read_image_and_label(file)]
    for item in both:
        item.SetSpacing(SPACING_MM)
    return Scan([both[0]], both[1])


def main(arguments: list[str] | None = None) -> int:
    """Convert as the command line says."""
    return run_conversion(convert, conversion_parser("LA", __doc__, 128), arguments)


if __name__ == "__main__":
    sys.exit(main())
