"""ACDC: cardiac cine-MRI with right ventricle (1), myocardium (2) and left ventricle (3).

Two layouts are understood:

* the challenge's folders: `training/patient001/{Info.cfg, patient001_4d.nii.gz, patient001_frame01.nii.gz,
  patient001_frame01_gt.nii.gz, ...}` and `testing/` in the same form;
* the `.h5` files of the semi-supervised literature, in `data/` and `data/slices/`: `patient001_frame01.h5` are volumes,
  `patient001_frame01_slice_1.h5` slices, which are stacked. They hold no spacing (it is written as 1 mm unless given),
  and frame01 and frame02 mean end-diastole and end-systole there.

The 20 test patients of the published split, and all of `testing/`, go to imagesTs and labelsTs.
"""

import re
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
    name="ACDC",
    channel_names={0: "cineMRI"},
    labels={"background": 0, "RV": 1, "MYO": 2, "LV": 3},
    reference="https://www.creatis.insa-lyon.fr/Challenge/acdc/",
    license="CC BY-NC-SA 4.0; cite Bernard et al. 2018",
    patient_pattern=r"^(patient\d+)",
)
VOLUME = re.compile(r"(?P<case>patient\d{3}_frame\d{2})\.h5")
SLICE = re.compile(r"(?P<case>patient\d{3}_frame\d{2})_slice_(?P<number>\d+)\.h5")
FRAME = re.compile(r"(?P<case>patient\d{3}_frame\d{2})\.nii(\.gz)?")
LAYOUTS = "training/patientXXX/patientXXX_frameYY.nii.gz, or data/patientXXX_frameYY[_slice_Z].h5"


def convert(
    source: Path,
    dataset_id: int = 27,
    unlabeled_frames: str | None = None,
    spacing: tuple[float, float, float] | None = None,
    num_processes: int = 2,
    overwrite: bool = False,
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

    Raises:
        ValueError: an unknown layout; a file that is missing or damaged; an option that the layout does not have.
    """
    patients = sorted(path for path in source.glob("**/patient[0-9][0-9][0-9]") if path.is_dir())
    if patients:
        if spacing:
            raise ValueError("--spacing is for the .h5 form; the NIfTI files have their own")
        cases = [case for folder in patients for case in cases_of_patient(folder, unlabeled_frames)]
    else:
        if unlabeled_frames:
            raise ValueError("--unlabeled-frames needs the challenge's 4-D sequences; the .h5 files have none")
        cases = cases_of_hdf5(source, spacing or (1.0, 1.0, 1.0))
    if not cases:
        raise ValueError(f"{source} has no known layout of ACDC, expected {LAYOUTS}")
    return write_raw_dataset(DESCRIPTION, dataset_id, cases, num_processes, overwrite)


def role_of(patient: str, in_testing_folder: bool = False) -> Role:
    """Return what a patient is for in the published split."""
    is_test = in_testing_folder or patient in load_benchmark("acdc").test
    return Role.TEST if is_test else Role.LABELED


def cases_of_patient(folder: Path, unlabeled_frames: str | None) -> list[Case]:
    """Return the two annotated frames of a patient and, if asked for, the other phases."""
    role = role_of(folder.name, folder.parent.name == "testing")
    frames = {match["case"]: file for file in sorted(folder.iterdir()) if (match := FRAME.fullmatch(file.name))}
    if not frames:
        raise ValueError(f"{folder} has no {folder.name}_frameYY.nii.gz")
    for frame in annotated_frames(folder):
        if frame not in frames:
            raise ValueError(f"{folder / frame}.nii.gz is missing, which Info.cfg names")
    cases = []
    for name, file in frames.items():
        annotation: Path | None = file.with_name(file.name.replace(".nii", "_gt.nii"))
        if not annotation.exists():
            if folder.parent.name != "testing":  # the challenge once kept the annotations of its test patients back
                raise ValueError(f"{annotation} is missing, the annotation of {file.name}")
            annotation = None
        cases.append(Case(name, role, file, partial(read_frame, file, annotation), annotation))
    validation = load_benchmark("acdc").validation
    is_train = role == Role.LABELED and folder.name not in validation
    if unlabeled_frames == "all" or (unlabeled_frames == "train" and is_train):
        cases += other_phases(folder, set(frames))
    return cases


def annotated_frames(folder: Path) -> list[str]:
    """Return the case ids of end-diastole and end-systole as Info.cfg has them; none where there is no such file."""
    info = folder / "Info.cfg"
    numbers = re.findall(r"^E[DS]: *(\d+)", info.read_text(), re.MULTILINE) if info.is_file() else []
    return [f"{folder.name}_frame{int(number):02d}" for number in numbers]


def other_phases(folder: Path, annotated: set[str]) -> list[Case]:
    """Return the phases of the 4-D sequence that are not annotated; their numbers count from 1, as the source's."""
    file = folder / f"{folder.name}_4d.nii.gz"
    if not file.exists():
        file = file.with_suffix("")
    sequence = read_image(file)
    if sequence.GetDimension() != 4:
        raise ValueError(f"{file} has {sequence.GetDimension()} dimensions, expected 4")
    phases = [(f"{folder.name}_frame{phase + 1:02d}", phase) for phase in range(sequence.GetSize()[3])]
    return [
        Case(name, Role.UNLABELED, file, partial(read_phase, file, phase))
        for name, phase in phases
        if name not in annotated
    ]


def read_frame(file: Path, annotation: Path | None) -> Scan:
    """Read an annotated frame."""
    return Scan([read_image(file)], read_image(annotation) if annotation else None)


def read_phase(file: Path, phase: int) -> Scan:
    """Read one phase of a 4-D sequence that was found whole."""
    reader = SimpleITK.ImageFileReader()
    reader.SetFileName(str(file))
    reader.ReadImageInformation()
    reader.SetExtractSize([*reader.GetSize()[:3], 0])
    reader.SetExtractIndex([0, 0, 0, phase])
    return Scan([reader.Execute()])


def cases_of_hdf5(source: Path, spacing: tuple[float, float, float]) -> list[Case]:
    """Return the volumes and the stacks of slices; where there are both, the volume."""
    files = sorted(file for place in ("", "data", "slices", "data/slices") for file in (source / place).glob("*.h5"))
    volumes = {match["case"]: file for file in files if (match := VOLUME.fullmatch(file.name))}
    stacks: dict[str, dict[int, Path]] = {}
    for file in files:
        if match := SLICE.fullmatch(file.name):
            stacks.setdefault(match["case"], {})[int(match["number"])] = file
    cases = []
    for name in sorted({*volumes, *stacks}):
        if name in volumes:
            read = partial(read_volume, volumes[name], spacing)
            origin = volumes[name]
        else:
            numbers = sorted(stacks[name])
            missing = sorted(set(range(1, numbers[-1] + 1)) - set(numbers))
            origin = stacks[name][numbers[0]]
            if missing:
                raise ValueError(f"{origin.parent / name}_slice_{missing[0]}.h5 is missing, there are {len(numbers)}")
            read = partial(read_stack, [stacks[name][number] for number in numbers], spacing)
        cases.append(Case(name, role_of(name[:10]), origin, read))
    return cases


def read_volume(file: Path, spacing: tuple[float, float, float]) -> Scan:
    """Read a volume `(Z, Y, X)`."""
    return to_scan(*read_image_and_label(file), spacing, file)


def read_stack(files: list[Path], spacing: tuple[float, float, float]) -> Scan:
    """Read slices `(Y, X)` in order and stack them."""
    images, labels = zip(*map(read_image_and_label, files), strict=True)
    if len({image.shape for image in images}) > 1:
        raise ValueError(f"{files[0]} and the slices after it differ in shape")
    return to_scan(np.stack(images), np.stack(labels), spacing, files[0])


def to_scan(image: np.ndarray, label: np.ndarray, spacing: tuple[float, float, float], file: Path) -> Scan:
    """Return arrays `(Z, Y, X)` as a scan."""
    if image.ndim != 3:
        raise ValueError(f"{file} has {image.ndim} dimensions, expected 3 of a volume or 2 of a slice")
    both = [SimpleITK.GetImageFromArray(array) for array in (image, label)]
    for item in both:
        item.SetSpacing(spacing)
    return Scan([both[0]], both[1])


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
