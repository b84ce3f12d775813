"""Writing a data set in nnU-Net's raw format: whole or not at all, every case checked."""

import multiprocessing
import os
import shutil
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor, as_completed
from contextlib import contextmanager
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path

import numpy as np
import SimpleITK
from nnunetv2.dataset_conversion.generate_dataset_json import generate_dataset_json
from tqdm import tqdm

ENDING = ".nii.gz"


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
        source: the file or folder that errors name.
        read: returns the case; picklable, because cases are converted by several processes.
    """

    name: str
    role: Role
    source: Path
    read: Callable[[], Scan]


@dataclass(frozen=True)
class Description:
    """What goes into dataset.json, beside what is counted.

    Attributes:
        name: the data set's name without its number.
        channel_names: nnU-Net chooses the normalisation by them.
        labels: names and values; a tuple of values is a region.
        reference: where the data come from.
        license: as far as it is stated there.
        label_values: values that occur in the label files.
        patient_pattern: regular expression whose first group is the patient in a case id.
        regions_class_order: nnU-Net's, when there are regions.
    """

    name: str
    channel_names: dict[int, str]
    labels: dict[str, int | tuple[int, ...]]
    reference: str
    license: str
    label_values: frozenset[int]
    patient_pattern: str
    regions_class_order: tuple[int, ...] | None = field(default=None)


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
            converted_by="nnunet_ssl",
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
    if folder.exists() and not overwrite:
        raise ValueError(f"{folder} exists: replace it with --overwrite, or choose another id with -d")
    return folder


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


def convert_all(cases: list[Case], staging: Path, label_values: frozenset[int], num_processes: int) -> None:
    """Convert all cases, with a progress bar; the first error stops the others."""
    with tqdm(total=len(cases), desc="Converting") as bar:
        for _ in _run(cases, staging, label_values, min(num_processes, len(cases))):
            bar.update()


def _run(cases: list[Case], staging: Path, label_values: frozenset[int], workers: int) -> Iterable[None]:
    if workers <= 1:
        for case in cases:
            yield convert_case(case, staging, label_values)
        return
    with ProcessPoolExecutor(workers, mp_context=multiprocessing.get_context("spawn")) as executor:
        jobs = [executor.submit(convert_case, case, staging, label_values) for case in cases]
        try:
            for job in as_completed(jobs):
                yield job.result()
        finally:
            executor.shutdown(cancel_futures=True)


def convert_case(case: Case, staging: Path, label_values: frozenset[int]) -> None:
    """Check a case and write its files."""
    scan = case.read()
    if scan.labels is not None:
        check_labels(scan, case.source, label_values)
        labels = SimpleITK.Cast(scan.labels, SimpleITK.sitkUInt8)
        labels.CopyInformation(scan.channels[0])
        (staging / f"labels{case.role}").mkdir(exist_ok=True)
        SimpleITK.WriteImage(labels, str(staging / f"labels{case.role}" / f"{case.name}{ENDING}"))
    for channel, image in enumerate(scan.channels):
        if not np.isfinite(SimpleITK.GetArrayViewFromImage(image)).all():
            raise ValueError(f"{case.source}: the image holds values that are not finite (NaN or infinite)")
        SimpleITK.WriteImage(image, str(staging / f"images{case.role}" / f"{case.name}_{channel:04d}{ENDING}"))


def check_labels(scan: Scan, source: Path, label_values: frozenset[int]) -> None:
    """Raise a ValueError when the labels are not on the image's grid, or hold other values than expected."""
    assert scan.labels is not None
    image = scan.channels[0]
    if scan.labels.GetSize() != image.GetSize():
        raise ValueError(f"{source}: the labels have {scan.labels.GetSize()} voxels, the image {image.GetSize()}")
    if not np.allclose(scan.labels.GetSpacing(), image.GetSpacing(), rtol=1e-2):
        raise ValueError(
            f"{source}: the labels have spacing {scan.labels.GetSpacing()}, the image {image.GetSpacing()}"
        )
    found = set(np.unique(SimpleITK.GetArrayViewFromImage(scan.labels)).tolist())
    if not found <= label_values:
        wrong = sorted(found - label_values)
        raise ValueError(f"{source}: label value {wrong[0]} found, expected only {sorted(label_values)}")
