"""BraTS 2019: brain tumours in MRI.

Understood are the folders `HGG/` and `LGG/` with `<ID>/<ID>_{flair,t1,t1ce,t2,seg}.nii[.gz]`, also inside
`MICCAI_BraTS_2019_Data_Training/`. As in the semi-supervised literature the image is FLAIR alone and the label the
whole tumour; with --regions nnU-Net's three regions, with --all-channels all four images. Labels are renumbered as
nnU-Net does for BraTS: edema 1 (2 in the source), necrosis and non-enhancing core 2 (1), enhancing tumour 3 (4).

The 60 test cases of the published split go to imagesTs and labelsTs.
"""

import sys
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import SimpleITK

from nnunet_ssl.conversion.cases import Case, Role, Scan, case_or_fault
from nnunet_ssl.conversion.checks import read_checked
from nnunet_ssl.conversion.command_line import conversion_parser, run_conversion
from nnunet_ssl.conversion.layouts import below, find_layout
from nnunet_ssl.conversion.raw_dataset import Description, write_raw_dataset
from nnunet_ssl.splits.protocols import load_benchmark

WHOLE_TUMOR = Description(
    name="BraTS19",
    channel_names={0: "FLAIR"},
    labels={"background": 0, "whole_tumor": 1},
    reference="https://www.med.upenn.edu/cbica/brats2019/data.html",
    license="challenge data; cite Menze et al. 2015 and Bakas et al. 2017",
    patient_pattern=r"^(.+)$",
)
REGIONS = replace(
    WHOLE_TUMOR,
    labels={"background": 0, "whole_tumor": (1, 2, 3), "tumor_core": (2, 3), "enhancing_tumor": (3,)},
    regions_class_order=(1, 2, 3),
)
WHOLE_TUMOR_OF_SOURCE = {0: 0, 1: 1, 2: 1, 4: 1}
NNUNET_OF_SOURCE = {0: 0, 2: 1, 1: 2, 4: 3}
FLAIR, ALL_CHANNELS = ("flair",), ("flair", "t1", "t1ce", "t2")
LAYOUT = "HGG/<ID>/<ID>_flair.nii.gz and LGG/..."
CHANNEL_NAMES = {"flair": "FLAIR", "t1": "T1", "t1ce": "T1ce", "t2": "T2"}


def convert(
    source: Path,
    dataset_id: int = 243,
    regions: bool = False,
    all_channels: bool = False,
    num_processes: int = 2,
    overwrite: bool = False,
    allow_missing: bool = False,
) -> Path:
    """Convert BraTS 2019 and return the data set's folder.

    Args:
        source: the folder that holds HGG and LGG.
        dataset_id: number of the data set.
        regions: nnU-Net's three regions instead of the whole tumour.
        all_channels: all four images instead of FLAIR.
        num_processes: how many convert at once.
        overwrite: whether a data set converted before is replaced.
        allow_missing: whether cases that cannot be converted are left out.

    Raises:
        ValueError: an unknown layout; a file that is missing or damaged; labels other than 0, 1, 2, 4.
    """
    folders = find_layout(source, find_cases, "BraTS 2019", LAYOUT)
    channels = ALL_CHANNELS if all_channels else FLAIR
    renumbering = NNUNET_OF_SOURCE if regions else WHOLE_TUMOR_OF_SOURCE
    listing = (case_or_fault(folder.name, partial(case_of, folder, channels, renumbering)) for folder in folders)
    names = {index: CHANNEL_NAMES[channel] for index, channel in enumerate(channels)}
    description = replace(REGIONS if regions else WHOLE_TUMOR, channel_names=names)
    return write_raw_dataset(description, dataset_id, listing, num_processes, overwrite, allow_missing)


def find_cases(source: Path, levels: int | None = None) -> list[Path]:
    """Return the folders of the cases."""
    return sorted(path for grade in ("HGG", "LGG") for path in below(source, f"{grade}/*", levels) if path.is_dir())


def case_of(folder: Path, channels: Sequence[str], renumbering: dict[int, int]) -> Case:
    """Return a case; a ValueError names a file that is missing."""
    files = [find_file(folder, channel) for channel in channels]
    labels = find_file(folder, "seg")
    role = Role.TEST if folder.name in load_benchmark("brats").test else Role.LABELED
    return Case(folder.name, role, folder, partial(read_case, files, labels, renumbering), labels)


def find_file(folder: Path, kind: str) -> Path:
    """Return a file of a case, compressed or not; a ValueError names what is missing."""
    for ending in (".nii.gz", ".nii"):
        file = folder / f"{folder.name}_{kind}{ending}"
        if file.is_file():
            return file
    raise ValueError(f"{folder / folder.name}_{kind}.nii.gz is missing")


def read_case(files: list[Path], label_file: Path, renumbering: dict[int, int]) -> Scan:
    """Read the channels and the renumbered labels."""
    source_labels = read_checked(label_file, 3)
    voxels = SimpleITK.GetArrayFromImage(source_labels)
    unknown = set(np.unique(voxels).tolist()) - set(renumbering)
    if unknown:
        raise ValueError(f"{label_file}: label value {min(unknown)} found, expected only {sorted(renumbering)}")
    labels = np.zeros_like(voxels)
    for source, target in renumbering.items():
        labels[voxels == source] = target
    image = SimpleITK.GetImageFromArray(labels)
    image.CopyInformation(source_labels)
    return Scan([read_checked(file, 3) for file in files], image)


def main(arguments: list[str] | None = None) -> int:
    """Convert as the command line says."""
    parser = conversion_parser("BraTS19", __doc__, 243)
    parser.add_argument("--regions", action="store_true", help="whole tumour, tumour core and enhancing tumour")
    parser.add_argument("--all-channels", action="store_true", help="FLAIR, T1, T1ce and T2 instead of FLAIR")
    return run_conversion(convert, parser, arguments)


if __name__ == "__main__":
    sys.exit(main())
