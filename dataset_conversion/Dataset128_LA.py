"""LA: left atrium in late gadolinium-enhanced MRI, 0.625 mm isotropic (2018 Atrial Segmentation Challenge).

Two layouts are understood:

* the challenge's `Training Set/<ID>/{lgemri.nrrd, laendo.nrrd}`;
* `2018LA_Seg_Training Set/<ID>/mri_norm2.h5` of the semi-supervised literature, already z-scored. Where it lies beside
  `lgemri.nrrd`, the challenge's files are taken.

The published preprocessing crops every scan around its ground truth, those of the test cases too, so that all published
figures rest on a part of the answer. Nothing is cropped here; but the .h5 files are the result of that preprocessing.

The 20 test cases of the published split go to imagesTs and labelsTs.
"""

import re
import sys
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import numpy as np
import SimpleITK

from nnunet_ssl.conversion.cases import Case, Fault, Role, Scan
from nnunet_ssl.conversion.checks import read_checked
from nnunet_ssl.conversion.command_line import conversion_parser, run_conversion
from nnunet_ssl.conversion.hdf5_files import read_image_and_label, scan_of_arrays
from nnunet_ssl.conversion.layouts import below, find_layout
from nnunet_ssl.conversion.name_lists import names_in_lists, note_absent
from nnunet_ssl.conversion.raw_dataset import Description, write_raw_dataset
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
UNKNOWN_MM = (1.0, 1.0, 1.0)  # of a header that says nothing
ID = re.compile("[0-9A-Z]{20}")
FILES = ("mri_norm2.h5", "lgemri.nrrd", "laendo.nrrd")
LAYOUTS = "Training Set/<ID>/lgemri.nrrd and laendo.nrrd, or <ID>/mri_norm2.h5"


def convert(
    source: Path,
    dataset_id: int = 128,
    num_processes: int = 2,
    overwrite: bool = False,
    allow_missing: bool = False,
) -> Path:
    """Convert LA and return the data set's folder.

    Raises:
        ValueError: an unknown layout; a file that is missing or damaged; labels other than 0 and 255 (or 1).
    """
    folders = find_layout(source, find_cases, "LA", LAYOUTS)
    note_absent(names_in_lists((source, source.parent), ID), (folder.name for folder in folders))
    return write_raw_dataset(DESCRIPTION, dataset_id, listing(folders), num_processes, overwrite, allow_missing)


def find_cases(source: Path, levels: int | None = None) -> list[Path]:
    """Return the folders of the cases, those beside them that have lost their files too."""
    found = {file.parent for name in FILES for file in below(source, name, levels)}
    found = {folder for folder in found if "Testing Set" not in folder.parts}
    beside = {path for folder in found - {source} for path in folder.parent.iterdir()}
    return sorted(found | {path for path in beside if path.is_dir() and ID.fullmatch(path.name)})


def listing(folders: list[Path]) -> Iterator[Case | Fault]:
    """Yield a case for each folder; the challenge's files where both are."""
    test = load_benchmark("la").test
    for folder in folders:
        hdf5, image, labels = (folder / name for name in FILES)
        role = Role.TEST if folder.name in test else Role.LABELED
        if image.exists() and labels.exists():
            yield Case(folder.name, role, image, partial(read_nrrd, image), labels)
        elif image.exists() or labels.exists():
            yield Fault(folder.name, f"{labels if image.exists() else image} is missing, the other half of a pair")
        elif hdf5.exists():
            yield Case(folder.name, role, hdf5, partial(read_hdf5, hdf5))
        else:
            yield Fault(folder.name, f"{folder} has neither {image.name} nor {hdf5.name}")


def read_nrrd(file: Path) -> Scan:
    """Read the challenge's pair; the cavity is 255 there."""
    image, labels = read_checked(file, 3), read_checked(file.with_name("laendo.nrrd"), 3)
    values = np.unique(SimpleITK.GetArrayViewFromImage(labels)).tolist()
    if not set(values) <= {0, 255}:
        raise ValueError(f"{file.with_name('laendo.nrrd')}: label values {values}, expected 0 and 255")
    labels = SimpleITK.Cast(labels > 0, SimpleITK.sitkUInt8)
    for item in (image, labels):
        if item.GetSpacing() == UNKNOWN_MM:
            item.SetSpacing(SPACING_MM)
    return Scan([image], labels)


def read_hdf5(file: Path) -> Scan:
    """Read the literature's file, whose axes are x, y, z."""
    image, label = read_image_and_label(file)
    return scan_of_arrays(image.T, label.T, SPACING_MM, file)


def main(arguments: list[str] | None = None) -> int:
    """Convert as the command line says."""
    return run_conversion(convert, conversion_parser("LA", __doc__, 128), arguments)


if __name__ == "__main__":
    sys.exit(main())
