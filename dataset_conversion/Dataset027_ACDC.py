"""ACDC: cardiac cine-MRI with right ventricle (1), myocardium (2) and left ventricle (3).

Two layouts are understood:

* the challenge's folders: `training/patient001/{Info.cfg, patient001_4d.nii.gz, patient001_frame01.nii.gz,
  patient001_frame01_gt.nii.gz, ...}` and `testing/` in the same form;
* the `.h5` files of the semi-supervised literature, in `data/` and `data/slices/`: `patient001_frame01.h5` are volumes,
  `patient001_frame01_slice_1.h5` slices, which are stacked. They hold no spacing (it is written as 1 mm unless given),
  and frame01 and frame02 mean end-diastole and end-systole there. Slices that a list beside `data` names, such as
  `train_slices.list`, must be there if any of their stack is.

The 20 test patients of the published split, and all of `testing/`, go to imagesTs and labelsTs.
"""

import math
import re
import sys
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import numpy as np
import SimpleITK

from nnunet_ssl.conversion.cases import Case, Fault, Role, Scan, case_or_fault
from nnunet_ssl.conversion.checks import read_checked
from nnunet_ssl.conversion.command_line import conversion_parser, run_conversion
from nnunet_ssl.conversion.hdf5_files import read_image_and_label, scan_of_arrays
from nnunet_ssl.conversion.layouts import below, find_layout
from nnunet_ssl.conversion.name_lists import names_in_lists, note_absent
from nnunet_ssl.conversion.raw_dataset import Description, write_raw_dataset
from nnunet_ssl.data.raw_files import some
from nnunet_ssl.splits.protocols import load_benchmark

DESCRIPTION = Description(
    name="ACDC",
    channel_names={0: "cineMRI"},
    labels={"background": 0, "RV": 1, "MYO": 2, "LV": 3},
    reference="https://www.creatis.insa-lyon.fr/Challenge/acdc/",
    license="CC BY-NC-SA 4.0; cite Bernard et al. 2018",
    patient_pattern=r"^(patient\d+)",
)
HDF5 = re.compile(r"(?P<case>patient\d{3}_frame\d{2})(_slice_(?P<number>\d+))?")
FRAME = re.compile(r"(?P<case>patient\d{3}_frame\d{2})(?P<annotation>_gt)?\.nii(\.gz)?")
LAYOUTS = "training/patientXXX/patientXXX_frameYY.nii.gz, or data/patientXXX_frameYY[_slice_Z].h5"


def convert(
    source: Path,
    dataset_id: int = 27,
    unlabeled_frames: str | None = None,
    spacing: tuple[float, float, float] | None = None,
    num_processes: int = 2,
    overwrite: bool = False,
    allow_missing: bool = False,
) -> Path:
    """Convert ACDC and return the data set's folder.

    Args:
        source: the challenge's folder, or that of the .h5 files.
        dataset_id: number of the data set.
        unlabeled_frames: "train" puts the other phases of the training patients' 4-D sequences into imagesUn, "all"
            also those of validation and test patients.
        spacing: of the .h5 form, x, y, z in mm.
        num_processes: how many convert at once.
        overwrite: whether a data set converted before is replaced.
        allow_missing: whether cases that cannot be converted are left out.

    Raises:
        ValueError: an unknown layout; a file that is missing or damaged; an option that the layout does not have.
    """
    patients, files = find_layout(source, find_patients_or_files, "ACDC", LAYOUTS)
    if patients:
        if spacing:
            raise ValueError("--spacing is for the .h5 form; the NIfTI files have their own")
        listing = [item for folder in patients for item in cases_of_patient(folder, unlabeled_frames)]
    else:
        if unlabeled_frames:
            raise ValueError("--unlabeled-frames needs the challenge's 4-D sequences; the .h5 files have none")
        if spacing and not all(0 < length < math.inf for length in spacing):
            raise ValueError(f"--spacing is three lengths above 0 mm, got {' '.join(map(str, spacing))}")
        listing = cases_of_hdf5(files, source, spacing or (1.0, 1.0, 1.0))
    return write_raw_dataset(DESCRIPTION, dataset_id, listing, num_processes, overwrite, allow_missing)


def find_patients_or_files(source: Path, levels: int | None = None) -> tuple[list[Path], list[Path]] | None:
    """Return the challenge's folders and the .h5 files; None where there are neither."""
    patients = sorted(path for path in below(source, "patient[0-9][0-9][0-9]", levels) if path.is_dir())
    places = [source / place for place in ("", "data", "slices", "data/slices")]
    files = sorted(file for place in places for file in place.glob("*.h5") if HDF5.fullmatch(file.stem))
    return (patients, files) if patients or files else None


def role_of(patient: str, in_testing_folder: bool = False) -> Role:
    """Return what a patient is for in the published split."""
    is_test = in_testing_folder or patient in load_benchmark("acdc").test
    return Role.TEST if is_test else Role.LABELED


def cases_of_patient(folder: Path, unlabeled_frames: str | None) -> Iterator[Case | Fault]:
    """Yield the two annotated frames of a patient and, if asked for, the other phases."""
    role = role_of(folder.name, folder.parent.name == "testing")
    found = [match for path in sorted(folder.iterdir()) if (match := FRAME.fullmatch(path.name))]
    frames = {match["case"]: folder / match[0] for match in found if not match["annotation"]}
    named = {match["case"]: match[0] for match in found if match["annotation"]}
    named |= dict.fromkeys(annotated_frames(folder), "Info.cfg")
    if not frames and not named:
        yield Fault(folder.name, f"{folder} has no {folder.name}_frameYY.nii.gz")
    for name in sorted({*frames, *named}):
        if name in frames:
            yield case_or_fault(name, partial(annotated_case, name, frames[name], role))
        else:
            yield Fault(name, f"{folder / name}.nii.gz is missing, which {named[name]} names")
    is_train = role == Role.LABELED and folder.name not in load_benchmark("acdc").validation
    if unlabeled_frames == "all" or (unlabeled_frames == "train" and is_train):
        try:
            yield from other_phases(folder, {*frames, *named})
        except ValueError as error:
            yield Fault(f"{folder.name}_4d", str(error))


def annotated_case(name: str, file: Path, role: Role) -> Case:
    """Return an annotated frame; a ValueError says that the annotation is missing."""
    annotation = file.with_name(file.name.replace(".nii", "_gt.nii"))
    if annotation.exists():
        return Case(name, role, file, partial(read_frame, file, annotation), annotation)
    if file.parent.parent.name == "testing":  # the challenge once kept the annotations of its test patients back
        return Case(name, role, file, partial(read_frame, file, None))
    raise ValueError(f"{annotation} is missing, the annotation of {file.name}")


def annotated_frames(folder: Path) -> list[str]:
    """Return the case ids of end-diastole and end-systole as Info.cfg has them; none where there is no such file."""
    return [f"{folder.name}_frame{number:02d}" for number in numbers_in_info(folder, "E[DS]")]


def numbers_in_info(folder: Path, key: str) -> list[int]:
    """Return the numbers that Info.cfg has under the keys that a pattern matches; none where there is no such file."""
    info = folder / "Info.cfg"
    text = info.read_text(errors="replace") if info.is_file() else ""
    return [int(number) for number in re.findall(rf"^{key}: *(\d+)", text, re.MULTILINE)]


def other_phases(folder: Path, annotated: set[str]) -> list[Case]:
    """Return the phases of the 4-D sequence that are not annotated; their numbers count from 1, as the source's.

    Raises:
        ValueError: the sequence is missing, damaged, or has fewer phases than Info.cfg says.
    """
    file = folder / f"{folder.name}_4d.nii.gz"
    if not file.exists() and file.with_suffix("").exists():
        file = file.with_suffix("")
    count = read_checked(file, 4).GetSize()[3]
    for expected in numbers_in_info(folder, "NbFrame"):
        if count < expected:
            raise ValueError(f"{file} has {count} phases, Info.cfg says {expected}")
    phases = [(f"{folder.name}_frame{phase + 1:02d}", phase) for phase in range(count)]
    return [
        Case(name, Role.UNLABELED, file, partial(read_phase, file, phase))
        for name, phase in phases
        if name not in annotated
    ]


def read_frame(file: Path, annotation: Path | None) -> Scan:
    """Read an annotated frame."""
    return Scan([read_checked(file, 3)], read_checked(annotation, 3) if annotation else None)


def read_phase(file: Path, phase: int) -> Scan:
    """Read one phase of a 4-D sequence that was found whole."""
    reader = SimpleITK.ImageFileReader()
    reader.SetFileName(str(file))
    reader.ReadImageInformation()
    reader.SetExtractSize([*reader.GetSize()[:3], 0])
    reader.SetExtractIndex([0, 0, 0, phase])
    return Scan([reader.Execute()])


def cases_of_hdf5(files: list[Path], source: Path, spacing: tuple[float, float, float]) -> Iterator[Case | Fault]:
    """Yield the volumes and the stacks of slices; where there are both, the volume."""
    volumes: dict[str, Path] = {}
    stacks: dict[str, dict[int, Path]] = {}
    for file in files:
        match = HDF5.fullmatch(file.stem)
        if match["number"]:
            stacks.setdefault(match["case"], {})[int(match["number"])] = file
        else:
            volumes[match["case"]] = file
    cases, slices = named_in_lists(source)
    note_absent(cases, {*volumes, *stacks})
    for name in sorted({*volumes, *stacks}):
        stack, named = stacks.get(name, {}), slices.get(name, {})
        if name in volumes:
            read = partial(read_volume, volumes[name], spacing, len({*stack, *named}))
            yield Case(name, role_of(name[:10]), volumes[name], read)
        else:
            yield case_or_fault(name, partial(case_of_stack, name, stack, named, spacing))


def named_in_lists(source: Path) -> tuple[dict[str, Path], dict[str, dict[int, Path]]]:
    """Return the cases that the lists beside `data` name, and the numbers of their slices, each with its list."""
    root = source.absolute()
    while root.name in ("data", "slices"):
        root = root.parent
    cases: dict[str, Path] = {}
    slices: dict[str, dict[int, Path]] = {}
    for name, file in names_in_lists({root, root / "data", source.absolute()}, HDF5).items():
        match = HDF5.fullmatch(name)
        cases.setdefault(match["case"], file)
        if match["number"]:
            slices.setdefault(match["case"], {})[int(match["number"])] = file
    return cases, slices


def case_of_stack(
    name: str, stack: dict[int, Path], named: dict[int, Path], spacing: tuple[float, float, float]
) -> Case:
    """Return the slices as a case; a ValueError names those that are missing: gaps, and what a list names."""
    numbers = sorted(stack)
    first = stack[numbers[0]]
    missing = sorted({*named, *range(1, numbers[-1] + 1)} - {*numbers})
    if missing:
        files = some([f"{name}_slice_{number}.h5" for number in missing], 10)
        of_list = (
            f" of {len(missing) + len(stack)} that {named[missing[-1]].name} names" if missing[-1] in named else ""
        )
        are = "is" if len(missing) == 1 else "are"
        raise ValueError(f"{first.parent}/{files} {are} missing, there are {len(stack)}{of_list}")
    return Case(name, role_of(name[:10]), first, partial(read_stack, [stack[number] for number in numbers], spacing))


def read_volume(file: Path, spacing: tuple[float, float, float], least: int) -> Scan:
    """Read a volume `(Z, Y, X)` that has at least so many slices."""
    scan = scan_of_arrays(*read_image_and_label(file), spacing, file)
    if (count := scan.channels[0].GetDepth()) < least:
        raise ValueError(f"{file} has {count} slices, by the lists or slices beside it there are {least}")
    return scan


def read_stack(files: list[Path], spacing: tuple[float, float, float]) -> Scan:
    """Read slices `(Y, X)` in order and stack them."""
    images, labels = zip(*map(read_image_and_label, files), strict=True)
    for file, image in zip(files, images, strict=True):
        if image.shape != images[0].shape:
            raise ValueError(f"{file} has the shape {image.shape}, {files[0].name} {images[0].shape}")
    return scan_of_arrays(np.stack(images), np.stack(labels), spacing, files[0])


def main(arguments: list[str] | None = None) -> int:
    """Convert as the command line says."""
    parser = conversion_parser("ACDC", __doc__, 27)
    parser.add_argument(
        "--unlabeled-frames",
        nargs="?",
        const="train",
        choices=("train", "all"),
        help="put the phases without annotation into imagesUn: of training patients, or of all",
    )
    parser.add_argument("--spacing", nargs=3, type=float, metavar=("X", "Y", "Z"), help="mm, of the .h5 form")
    return run_conversion(convert, parser, arguments)


if __name__ == "__main__":
    sys.exit(main())
