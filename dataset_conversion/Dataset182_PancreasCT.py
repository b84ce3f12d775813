"""Pancreas-CT of the NIH: abdominal CT with the pancreas.

Two layouts are understood, both with `label0001.nii.gz` somewhere below the same folder:

* the archive's DICOM folders: `PANCREAS_0001/<study>/<series>/*.dcm`;
* NIfTI: `PANCREAS_0001.nii.gz` or `image0001.nii.gz`.

The published preprocessing crops every scan around its ground truth, those of the test cases too, so that all published
figures rest on a part of the answer. Nothing is cropped here.

The headers of labels and images need not agree on the directions of the axes. Labels are taken on the image's grid,
turned over along y or z where that puts clearly more of the pancreas into soft tissue; each one turned is named.

The 20 test cases of the published split with 62 for training go to imagesTs and labelsTs.
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
from nnunet_ssl.conversion.dicom_series import read_series
from nnunet_ssl.conversion.layouts import below, find_layout
from nnunet_ssl.conversion.raw_dataset import Description, write_raw_dataset
from nnunet_ssl.data.image_files import read_image
from nnunet_ssl.splits.protocols import load_benchmark

DESCRIPTION = Description(
    name="PancreasCT",
    channel_names={0: "CT"},
    labels={"background": 0, "pancreas": 1},
    reference="https://doi.org/10.7937/K9/TCIA.2016.tNB1kqBU",
    license="CC BY 3.0; cite Roth et al. 2015",
    patient_pattern=r"^(.+)$",
)
IMAGE = re.compile(r"(?:PANCREAS_|image)(\d{4})\.nii(\.gz)?", re.IGNORECASE)
LABEL = re.compile(r"label(\d{4})\.nii(\.gz)?")
LAYOUTS = "PANCREAS_0001/.../*.dcm or PANCREAS_0001.nii.gz, and label0001.nii.gz"
SOFT_TISSUE_HU = (-100, 300)
CLEARLY_MORE = 0.05  # share of the pancreas in soft tissue by which a turned label must be better
MINIMUM_SHARE = 0.5
AXES_TURNED = {"": (), "y": (1,), "z": (0,), "y and z": (0, 1)}
Found = dict[str, list[Path]]


def convert(
    source: Path,
    dataset_id: int = 182,
    num_processes: int = 2,
    overwrite: bool = False,
    allow_missing: bool = False,
) -> Path:
    """Convert Pancreas-CT and return the data set's folder.

    Raises:
        ValueError: an unknown layout; a scan without label; a damaged file; a label that fits in no direction.
    """
    found = find_layout(source, find_scans_and_labels, "Pancreas-CT", LAYOUTS)
    return write_raw_dataset(DESCRIPTION, dataset_id, listing(*found), num_processes, overwrite, allow_missing)


def find_scans_and_labels(source: Path, levels: int | None = None) -> tuple[Found, Found] | None:
    """Return scans and labels by number, as many as have it; None where there are not both."""
    scans: Found = {}
    labels: Found = {}
    for folder in below(source, "PANCREAS_[0-9][0-9][0-9][0-9]", levels):
        if folder.is_dir():
            scans.setdefault(folder.name[-4:], []).append(folder)
    for file in below(source, "*.nii*", levels):
        for pattern, found in ((IMAGE, scans), (LABEL, labels)):
            if match := pattern.fullmatch(file.name):
                found.setdefault(match[1], []).append(file)
    return (scans, labels) if scans and labels else None


def listing(scans: Found, labels: Found) -> Iterator[Case | Fault]:
    """Yield a case for each number that has one scan and one label, a fault for any other."""
    test = load_benchmark("pancreas").test
    for number in sorted({*scans, *labels}):
        name, of_number = f"PANCREAS_{number}", (scans.get(number, []), labels.get(number, []))
        double = next((sorted(paths) for paths in of_number if len(paths) > 1), None)
        if double:
            yield Fault(name, f"{double[0]} and {double[1]} are both number {number}: keep one of them")
        elif number not in labels:
            yield Fault(name, f"label{number}.nii.gz is missing, the label of {scans[number][0]}")
        elif number not in scans:
            yield Fault(name, f"{name} is missing, the image of {labels[number][0]}")
        else:
            scan, label = scans[number][0], labels[number][0]
            yield Case(name, Role.TEST if name in test else Role.LABELED, scan, partial(read_case, scan, label), label)


def read_case(scan: Path, label_file: Path) -> Scan:
    """Read a scan in Hounsfield units and its label, turned to fit."""
    image = read_series(scan) if scan.is_dir() else read_checked(scan, 3)
    label = SimpleITK.GetArrayFromImage(read_image(label_file))
    if label.shape != image.GetSize()[::-1]:
        raise ValueError(f"{label_file} has {label.shape[::-1]} voxels, its image {scan} {image.GetSize()}")
    turned = SimpleITK.GetImageFromArray(turn_to_fit(SimpleITK.GetArrayViewFromImage(image), label, label_file))
    turned.CopyInformation(image)
    return Scan([image], turned)


def turn_to_fit(image: np.ndarray, label: np.ndarray, label_file: Path) -> np.ndarray:
    """Return the label `(Z, Y, X)` in the direction in which most of it is soft tissue.

    Raises:
        ValueError: the label is empty, or fits in no direction.
    """
    if not label.any():
        raise ValueError(f"{label_file} is empty")
    soft = (image > SOFT_TISSUE_HU[0]) & (image < SOFT_TISSUE_HU[1])
    shares = {name: soft[np.flip(label, axes) > 0].mean() for name, axes in AXES_TURNED.items()}
    best = max(shares, key=shares.__getitem__)
    if shares[best] < shares[""] + CLEARLY_MORE:
        best = ""
    if shares[best] < MINIMUM_SHARE:
        raise ValueError(f"{label_file} fits its image in no direction: {shares[best]:.0%} of it is soft tissue")
    if best:
        print(f"{label_file.name}: turned over along {best} to fit its image")
    return np.ascontiguousarray(np.flip(label, AXES_TURNED[best]))


def main(arguments: list[str] | None = None) -> int:
    """Convert as the command line says."""
    return run_conversion(convert, conversion_parser("PancreasCT", __doc__, 182), arguments)


if __name__ == "__main__":
    sys.exit(main())
