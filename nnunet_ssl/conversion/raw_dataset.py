"""Writing a data set in nnU-Net's raw format: whole or not at all, every case checked."""

import json
import multiprocessing
import os
import shutil
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor, as_completed
from contextlib import contextmanager
from dataclasses import dataclass
from enum import StrEnum
from functools import partial
from pathlib import Path

import numpy as np
import SimpleITK
from nnunetv2.dataset_conversion.generate_dataset_json import generate_dataset_json
from tqdm import tqdm

ENDING = ".nii.gz"
CONVERTED_BY = "nnunet_ssl"


class Role(StrEnum):
    """What a case is for: the ending of nnU-Net's folder names."""

    LABELED = "Tr"
    TEST = "Ts"
    UNLABELED = "Un"


@dataclass(frozen=True)
class Scan:
    """A case in memory: one image per channel, and its labels if it has any, all of one size."""

    channels: list[SimpleITK.Image]
    labels: SimpleITK.Image | None = None


@dataclass(frozen=True)
class Case:
    """A case to be converted.

    Attributes:
        name: its id, the source's own.
        role: which of nnU-Net's folders it goes to.
        source: the file or folder of the image, which errors name.
        read: returns the case; picklable, because cases are converted by several processes.
        label_source: the file of the labels, which errors about them name; None where it is the image's.
    """

    name: str
    role: Role
    source: Path
    read: Callable[[], Scan]
    label_source: Path | None = None


@dataclass(frozen=True)
class Description:
    """What goes into dataset.json, beside what is counted.

    Attributes:
        name: the data set's name without its number.
        channel_names: nnU-Net chooses the normalisation by them.
        labels: names and values; a tuple of values is a region.
        reference: where the data come from.
        license: as far as it is stated there.
        patient_pattern: regular expression whose first group is the patient in a case id.
        regions_class_order: nnU-Net's, when there are regions.
    """

    name: str
    channel_names: dict[int, str]
    labels: dict[str, int | tuple[int, ...]]
    reference: str
    license: str
    patient_pattern: str
    regions_class_order: tuple[int, ...] | None = None

    @property
    def label_values(self) -> set[int]:
        """The values that may occur in the label files."""
        values = (value if isinstance(value, tuple) else (value,) for value in self.labels.values())
        return {item for group in values for item in group}


def write_raw_dataset(
    description: Description, dataset_id: int, cases: list[Case], num_processes: int = 2, overwrite: bool = False
) -> Path:
    """Write `nnUNet_raw/DatasetXXX_Name` and return it. On any error nothing is left behind.

    Args:
        description: of the data set.
        dataset_id: its number, 1 to 999.
        cases: what to convert.
        num_processes: how many convert at once.
        overwrite: whether a data set of this name is replaced.

    Raises:
        ValueError: the data set exists; its id is taken; two cases have one name; a case is damaged, has other label
            values than the data set, or labels of another size than its image.
    """
    for name, number in Counter((case.name, case.role == Role.TEST) for case in cases).items():
        if number > 1:
            raise ValueError(f"the source has more than one case {name[0]}")
    folder = dataset_folder(dataset_id, description.name, overwrite)
    inside = [case.source for case in cases if case.source.resolve().is_relative_to(folder.resolve())]
    if inside:
        raise ValueError(f"{inside[0]} lies in {folder}, which would be replaced: choose another id with -d")
    with staged(folder) as staging:
        for case in cases:
            (staging / f"images{case.role}").mkdir(parents=True, exist_ok=True)
        convert_all(cases, staging, description.label_values, num_processes)
        generate_dataset_json(
            str(staging),
            channel_names=dict(description.channel_names),
            labels=dict(description.labels),
            num_training_cases=sum(case.role == Role.LABELED for case in cases),
            file_ending=ENDING,
            regions_class_order=description.regions_class_order,
            dataset_name=description.name,
            reference=description.reference,
            license=description.license,
            converted_by=CONVERTED_BY,
            patient_pattern=description.patient_pattern,
        )
    return folder


def dataset_folder(dataset_id: int, name: str, overwrite: bool) -> Path:
    """Return where the data set goes.

    Raises:
        ValueError: nnUNet_raw is not set, the id is none, another data set has it, or the data set exists.
    """
    if not os.environ.get("nnUNet_raw"):
        raise ValueError("nnUNet_raw not set: export nnUNet_raw=/path/to/folder")
    if not 1 <= dataset_id <= 999:
        raise ValueError(f"-d is a data set id from 1 to 999, got {dataset_id}")
    folder = Path(os.environ["nnUNet_raw"], f"Dataset{dataset_id:03d}_{name}")
    for variable in ("nnUNet_raw", "nnUNet_preprocessed", "nnUNet_results"):
        place = os.environ.get(variable)
        others = Path(place).glob(f"Dataset{dataset_id:03d}_*") if place else ()
        for other in others:
            if other.name != folder.name:
                raise ValueError(f"the id {dataset_id} is taken by {other}: choose another with -d")
    if folder.exists() and not is_ours(folder):
        raise ValueError(f"{folder} exists and was not made by a conversion: choose another id with -d")
    if folder.exists() and not overwrite:
        raise ValueError(f"{folder} exists: replace it with --overwrite, or choose another id with -d")
    return folder


def is_ours(folder: Path) -> bool:
    """Return whether a conversion made a data set, so that it may be replaced."""
    file = folder / "dataset.json"
    return file.is_file() and json.loads(file.read_text()).get("converted_by") == CONVERTED_BY


@contextmanager
def staged(folder: Path) -> Iterator[Path]:
    """Give a folder to write into, which takes the place of `folder` at the end, and is removed on any error."""
    staging, old = folder.with_name(f".{folder.name}.unfinished"), folder.with_name(f".{folder.name}.old")
    shutil.rmtree(staging, ignore_errors=True)
    staging.mkdir(parents=True)
    try:
        yield staging
        if folder.exists():
            shutil.rmtree(old, ignore_errors=True)
            folder.rename(old)
        staging.rename(folder)
        shutil.rmtree(old, ignore_errors=True)
    finally:
        shutil.rmtree(staging, ignore_errors=True)


def convert_all(cases: list[Case], staging: Path, label_values: set[int], num_processes: int) -> None:
    """Convert all cases, with a progress bar; the first error stops the others."""
    convert = partial(convert_case, staging=staging, label_values=label_values)
    with tqdm(total=len(cases), desc="Converting") as bar:
        if num_processes == 1:
            for case in cases:
                convert(case)
                bar.update()
            return
        context = multiprocessing.get_context("spawn")
        with ProcessPoolExecutor(min(num_processes, len(cases)), mp_context=context) as executor:
            try:
                for job in as_completed([executor.submit(convert, case) for case in cases]):
                    job.result()
                    bar.update()
            finally:
                executor.shutdown(cancel_futures=True)


def convert_case(case: Case, staging: Path, label_values: set[int]) -> None:
    """Check a case and write its files."""
    scan = case.read()
    check_images(scan.channels, case.source)
    if scan.labels is not None:
        check_labels(scan.labels, scan.channels[0], case.label_source or case.source, label_values)
        labels = SimpleITK.Cast(scan.labels, SimpleITK.sitkUInt8)
        labels.CopyInformation(scan.channels[0])
        (staging / f"labels{case.role}").mkdir(exist_ok=True)
        SimpleITK.WriteImage(labels, str(staging / f"labels{case.role}" / f"{case.name}{ENDING}"))
    for channel, image in enumerate(scan.channels):
        SimpleITK.WriteImage(image, str(staging / f"images{case.role}" / f"{case.name}_{channel:04d}{ENDING}"))


def check_images(channels: list[SimpleITK.Image], source: Path) -> None:
    """Raise a ValueError when channels differ in size, or a value is not finite."""
    sizes = {image.GetSize() for image in channels}
    if len(sizes) > 1:
        raise ValueError(f"{source}: its channels differ in size, {' and '.join(map(str, sorted(sizes)))} voxels")
    if not all(np.isfinite(SimpleITK.GetArrayViewFromImage(image)).all() for image in channels):
        raise ValueError(f"{source}: the image holds values that are not finite (NaN or infinite)")


def check_labels(labels: SimpleITK.Image, image: SimpleITK.Image, source: Path, label_values: set[int]) -> None:
    """Raise a ValueError when labels are not on the image's grid, or hold other values than expected."""
    if labels.GetSize() != image.GetSize():
        raise ValueError(f"{source}: the labels have {labels.GetSize()} voxels, the image {image.GetSize()}")
    for name, found, expected in (
        ("spacing", labels.GetSpacing(), image.GetSpacing()),
        ("direction", labels.GetDirection(), image.GetDirection()),
    ):
        if not np.allclose(found, expected, rtol=1e-2, atol=1e-2):
            raise ValueError(f"{source}: the labels have the {name} {found}, the image {expected}")
    unexpected = set(np.unique(SimpleITK.GetArrayViewFromImage(labels)).tolist()) - label_values
    if unexpected:
        raise ValueError(f"{source}: label value {min(unexpected)} found, expected only {sorted(label_values)}")
