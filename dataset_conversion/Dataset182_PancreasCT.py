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
from collections.abc import Iterable
from functools import partial
from pathlib import Path

import numpy as np
import SimpleITK

from nnunet_ssl.conversion.command_line import conversion_parser, run_conversion
from nnunet_ssl.conversion.raw_dataset import Case, Description, Role, Scan, write_raw_dataset
from nnunet_ssl.data.image_files import kept_locale, read_image
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
SOFT_TISSUE_HU = (-100, 300)
CLEARLY_MORE = 0.05  # share of the pancreas in soft tissue by which a turned label must be better
MINIMUM_SHARE = 0.5
AXES_TURNED = {"": (), "y": (1,), "z": (0,), "y and z": (0, 1)}


def convert(source: Path, dataset_id: int = 182, num_processes: int = 2, overwrite: bool = False) -> Path:
    """Convert Pancreas-CT and return the data set's folder.

    Raises:
        ValueError: an unknown layout; a scan without label; a damaged file; a label that fits in no direction.
    """
    labels = by_number((file.name[5:9], file) for file in source.glob("**/label[0-9][0-9][0-9][0-9].nii*"))
    images = [(m[1], file) for file in source.glob("**/*.nii*") if (m := IMAGE.fullmatch(file.name))]
    folders = [(path.name[-4:], path) for path in source.glob("**/PANCREAS_[0-9][0-9][0-9][0-9]") if path.is_dir()]
    scans = by_number([*images, *folders])
    if not scans:
        raise ValueError(
            f"{source} has no known layout of Pancreas-CT, expected PANCREAS_0001/.../*.dcm or PANCREAS_0001.nii.gz, "
            "and label0001.nii.gz"
        )
    for number in sorted(labels.keys() ^ scans.keys()):
        if number in scans:
            raise ValueError(f"label{number}.nii.gz is missing, the label of {scans[number]}")
        raise ValueError(f"PANCREAS_{number} is missing, the image of {labels[number]}")
    test = load_benchmark("pancreas").test
    cases = []
    for number, scan in scans.items():
        name = f"PANCREAS_{number}"
        read = partial(read_case, scan, labels[number])
        role = Role.TEST if name in test else Role.LABELED
        cases.append(Case(name, role, scan, read, labels[number]))
    return write_raw_dataset(DESCRIPTION, dataset_id, cases, num_processes, overwrite)


def by_number(found: Iterable[tuple[str, Path]]) -> dict[str, Path]:
    """Return paths by number, in order; a ValueError names two that have the same one."""
    paths: dict[str, Path] = {}
    for number, path in sorted(found):
        if number in paths:
            raise ValueError(f"{paths[number]} and {path} are both number {number}: keep one of them")
        paths[number] = path
    return paths


def read_case(scan: Path, label_file: Path) -> Scan:
    """Read a scan in Hounsfield units and its label, turned to fit."""
    image = read_dicom(scan) if scan.is_dir() else read_image(scan)
    label = SimpleITK.GetArrayFromImage(read_image(label_file))
    if label.shape != image.GetSize()[::-1]:
        raise ValueError(f"{label_file} has {label.shape[::-1]} voxels, its image {scan} {image.GetSize()}")
    turned = SimpleITK.GetImageFromArray(turn_to_fit(SimpleITK.GetArrayViewFromImage(image), label, label_file))
    turned.CopyInformation(image)
    return Scan([image], turned)


def read_dicom(folder: Path) -> SimpleITK.Image:
    """Read the one series below a folder; GDCM sorts its slices by position."""
    places = sorted({file.parent for file in folder.glob("**/*.dcm")})
    with kept_locale():
        reader = SimpleITK.ImageSeriesReader()
        series = [(place, uid) for place in places for uid in reader.GetGDCMSeriesIDs(str(place))]
        if len(series) != 1:
            raise ValueError(f"{folder} holds {len(series)} DICOM series, expected 1")
        place, uid = series[0]
        reader.SetFileNames(reader.GetGDCMSeriesFileNames(str(place), uid))
        try:
            return reader.Execute()
        except RuntimeError as error:
            raise ValueError(f"{place} holds a damaged DICOM file: {str(error).splitlines()[-1]}") from error


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
