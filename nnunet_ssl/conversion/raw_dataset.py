"""Writing a data set in nnU-Net's raw format: whole or not at all, every case checked.

Only where it is asked for, cases that cannot be converted are left out, and named.
"""

import json
import os
import shutil
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path

import SimpleITK
from nnunetv2.dataset_conversion.generate_dataset_json import generate_dataset_json

from nnunet_ssl.conversion.cases import Case, Fault, Role
from nnunet_ssl.conversion.checks import check_images, check_labels
from nnunet_ssl.data.disk_faults import naming
from nnunet_ssl.data.image_files import fault_of_the_machine
from nnunet_ssl.data.image_writing import write_image
from nnunet_ssl.data.in_processes import in_processes
from nnunet_ssl.data.json_schemas import read_if_fit
from nnunet_ssl.data.older_conversions import CONVERTED_BY
from nnunet_ssl.data.patients import PATIENTS
from nnunet_ssl.data.raw_files import read_json_file

ENDING = ".nii.gz"
LEFT_OUT = "left_out.json"


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
        unit: what takes the place of a patient, where it is known that the pattern gives none.
        border_images: how many images on each side of a border between validation and training a random split leaves
            out, because consecutive numbers are often one patient; 0 for none.
        version: of the conversion; a higher one replaces data sets that `older_conversions` names.
        dimensions: of every image.
    """

    name: str
    channel_names: dict[int, str]
    labels: dict[str, int | tuple[int, ...]]
    reference: str
    license: str
    patient_pattern: str
    regions_class_order: tuple[int, ...] | None = None
    unit: str = PATIENTS
    border_images: int = 0
    version: int = 1
    dimensions: int = 3

    @property
    def label_values(self) -> set[int]:
        """The values that may occur in the label files."""
        values = (value if isinstance(value, tuple) else (value,) for value in self.labels.values())
        return {item for group in values for item in group}


def write_raw_dataset(
    description: Description,
    dataset_id: int,
    listing: Iterable[Case | Fault],
    num_processes: int = 2,
    overwrite: bool = False,
    allow_missing: bool = False,
) -> Path:
    """Write `nnUNet_raw/DatasetXXX_Name` and return it. On any error nothing is left behind.

    Args:
        description: of the data set.
        dataset_id: its number, 1 to 999.
        listing: what the source holds.
        num_processes: how many convert at once.
        overwrite: whether a data set of this name is replaced.
        allow_missing: whether cases that cannot be converted are left out; `left_out` returns them then.

    Raises:
        ValueError: the data set exists; its id is taken; a case cannot be converted (two have its name, a file is
            missing or damaged, a header is odd, its labels have other values or another grid); none can be.
    """
    cases, faults = sort_out(listing)
    folder = dataset_folder(dataset_id, description.name, overwrite)
    inside = [case.source for case in cases if case.source.resolve().is_relative_to(folder.resolve())]
    if inside:
        raise ValueError(f"{inside[0]} lies in {folder}, which would be replaced: choose another id with -d")
    if faults and not allow_missing:
        raise refusal(faults[0])
    with staged(folder) as staging:
        converted, broken = convert_all(cases, staging, description, num_processes, allow_missing)
        faults += broken
        if not converted:
            raise ValueError(f"none of {len(faults)} cases can be converted; {faults[0].name}: {faults[0].reason}")
        if faults:
            (staging / LEFT_OUT).write_text(json.dumps([asdict(fault) for fault in faults], indent=2))
        num_labeled = sum(case.role == Role.LABELED for case in converted)
        write_dataset_json(staging, description, num_labeled)
    return folder


def sort_out(listing: Iterable[Case | Fault]) -> tuple[list[Case], list[Fault]]:
    """Return the cases of a listing, and its faults; two cases of one name are a fault."""
    of_name: dict[tuple[str, bool], list[Case]] = {}
    faults = []
    for item in listing:
        if isinstance(item, Fault):
            faults.append(item)
        else:
            of_name.setdefault((item.name, item.role == Role.TEST), []).append(item)
    for (name, _), same in of_name.items():
        if len(same) > 1:
            places = " and ".join(str(case.source) for case in same)
            faults.append(Fault(name, f"the source has more than one case {name}: {places}"))
    return [same[0] for same in of_name.values() if len(same) == 1], faults


def refusal(fault: Fault) -> ValueError:
    """Return the error for a case that cannot be converted and is not to be left out."""
    return ValueError(f"{fault.name}: {fault.reason}; --allow-missing leaves such cases out")


def left_out(folder: Path) -> list[Fault]:
    """Return the cases that are not in a data set because they could not be converted; none where nobody can tell."""
    return read_if_fit(folder / LEFT_OUT, list[Fault]) or []


def write_dataset_json(folder: Path, description: Description, num_labeled: int) -> None:
    """Write dataset.json."""
    generate_dataset_json(
        str(folder),
        channel_names=dict(description.channel_names),
        labels=dict(description.labels),
        num_training_cases=num_labeled,
        file_ending=ENDING,
        regions_class_order=description.regions_class_order,
        dataset_name=description.name,
        reference=description.reference,
        license=description.license,
        converted_by=CONVERTED_BY,
        converter_version=description.version,
        patient_pattern=description.patient_pattern,
        unit=description.unit,
        border_images=description.border_images,
    )


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
    return file.is_file() and read_json_file(file).get("converted_by") == CONVERTED_BY


def set_aside(folder: Path) -> Path:
    """Return where a data set lies in the moment in which another takes its place, and after a power cut then."""
    return folder.with_name(f".{folder.name}.old")


@contextmanager
def staged(folder: Path) -> Iterator[Path]:
    """Give a folder to write into, which takes the place of `folder` at the end, and is removed on any error."""
    staging, old = folder.with_name(f".{folder.name}.unfinished"), set_aside(folder)
    shutil.rmtree(staging, ignore_errors=True)
    with naming(folder):
        staging.mkdir(parents=True)
        try:
            yield staging
            if folder.exists():
                shutil.rmtree(old, ignore_errors=True)
                folder.rename(old)
            try:
                staging.rename(folder)
            except OSError:
                if old.exists() and not folder.exists():
                    old.rename(folder)
                raise
            shutil.rmtree(old, ignore_errors=True)
        finally:
            shutil.rmtree(staging, ignore_errors=True)


def convert_all(
    cases: list[Case], staging: Path, description: Description, num_processes: int, allow_missing: bool
) -> tuple[list[Case], list[Fault]]:
    """Convert all cases, with a progress bar, and return those that are, and the faults of the others.

    Raises:
        ValueError: the first fault, which stops the others; not with `allow_missing`.
    """
    convert = partial(convert_case, staging=staging, description=description)
    converted, faults = [], []
    for case, fault in zip(cases, in_processes(convert, cases, num_processes, "Converting"), strict=True):
        if fault is None:
            converted.append(case)
        elif allow_missing:
            faults.append(fault)
        else:
            raise refusal(fault)
    return converted, faults


def convert_case(case: Case, staging: Path, description: Description) -> Fault | None:
    """Write the files of a case; return what is wrong with it instead, if it is.

    Raises:
        OSError, RuntimeError: the machine's fault: a file cannot be written, memory does not suffice.
    """
    try:
        scan = case.read()
        check_images(scan.channels, case.source, description.dimensions)
        if scan.labels is not None:
            check_labels(scan.labels, scan.channels[0], case.label_source or case.source, description.label_values)
    except (ValueError, OSError, RuntimeError) as error:
        if fault_of_the_machine(error):
            raise
        return Fault(case.name, reason_of(error, case.source))
    for channel, image in enumerate(scan.channels):
        write_image(image, staging / f"images{case.role}" / f"{case.name}_{channel:04d}{ENDING}")
    if scan.labels is not None:
        labels = SimpleITK.Cast(scan.labels, SimpleITK.sitkUInt8)
        labels.CopyInformation(scan.channels[0])
        write_image(labels, staging / f"labels{case.role}" / f"{case.name}{ENDING}")
    return None


def reason_of(error: Exception, source: Path) -> str:
    """Return what an error says, on one line and with a file."""
    if isinstance(error, ValueError):
        return " ".join(str(error).split())
    if isinstance(error, OSError) and error.strerror:
        return f"{error.filename or source}: {error.strerror}"
    return f"{source}: {str(error).strip().splitlines()[-1]}"
