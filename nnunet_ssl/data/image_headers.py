"""What the headers of image files say of size and space, and what of it makes an image of no use; no voxel is read."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import nibabel
import numpy as np
import SimpleITK
import tifffile

from nnunet_ssl.data.dataset_reader import refuse_bad_spacing
from nnunet_ssl.data.image_bytes import in_plain_words, text_header
from nnunet_ssl.data.image_files import fault_of_the_machine
from nnunet_ssl.data.raw_files import TIFF_ENDINGS, read_json_file, sidecar

NIFTI = (nibabel.Nifti1Header, nibabel.Nifti2Header)
NIFTI_UNITS = {1: 1000.0, 3: 0.001}  # in mm, of meters and micrometers
LONGEST_QUATERNION = 1.01  # of the three numbers of a rotation in NIfTI; 1, but for rounding
SMALLEST_DETERMINANT = 1e-6  # of three axes of length 1: with less they lie in a plane


@dataclass(frozen=True)
class Header:
    """What a file says of its image.

    Attributes:
        size: in voxels along x, y, z; more axes where there is more than one image along them.
        spacing: along x, y, z in mm, as it stands there.
        axes: directions of x, y, z as columns; None where there are none.
        values: of each voxel; 3 in a colour picture.
    """

    size: tuple[int, ...]
    spacing: tuple[float, ...]
    axes: np.ndarray | None = None
    values: int = 1

    def problem(self, channels: int = 1) -> str | None:
        """Return why the image is of no use, whatever the data set; None if it may be of use.

        Args:
            channels: of the data set; a file may hold all of them along a fourth axis.
        """
        if self.values > 1:
            return f"it is a colour picture, or has {self.values} values in each voxel: images have one grey value"
        if min(self.size) < 1:
            return f"its size is {times(self.size)} voxels"
        if len(self.size) > 3 and not (channels > 1 and self.size[3:] == (channels,)):
            number = math.prod(self.size[3:])
            return f"it holds {number} images in one file, as a series over time does: take the one that is wanted"
        if not all(0 < length < math.inf for length in self.spacing):
            return f"its header gives no voxel size, but {times(self.spacing)} mm"
        if self.axes is not None and not has_directions(self.axes):
            return "the orientation in its header is none: directions are missing, or not numbers"
        return None


def header_of(file: Path) -> Header | None:
    """Return what the header of an image file says; None for formats that say nothing of space.

    Raises:
        ValueError: it cannot be read.
    """
    try:
        if file.name.endswith((".nii", ".nii.gz")):
            return _header_of_nifti(file)
        if file.suffix.lower() in TIFF_ENDINGS:
            return _header_of_tiff(file)
        if file.name.endswith((".mha", ".nrrd", ".gipl")):
            return _header_by_itk(file)
    except Exception as error:
        if fault_of_the_machine(error) or getattr(error, "errno", None) is not None:
            raise
        raise ValueError(f"its header cannot be read ({in_plain_words(error)})") from error
    return None


def has_directions(axes: np.ndarray) -> bool:
    """Return whether three axes, or two, are finite and point in different directions."""
    if not np.isfinite(axes).all():
        return False
    lengths = np.linalg.norm(axes, axis=0)
    return bool((lengths > 0).all()) and abs(np.linalg.det(axes / lengths)) > SMALLEST_DETERMINANT


def times(numbers: Sequence[float]) -> str:
    """Return numbers as "12 x 14 x 16"."""
    return " x ".join(f"{number:g}" for number in numbers)


def _header_of_nifti(file: Path) -> Header:
    with nibabel.openers.ImageOpener(file) as opened:
        begins = opened.read(max(kind.sizeof_hdr for kind in NIFTI))
    kind = next((kind for kind in NIFTI if kind.may_contain_header(begins)), None)
    if kind is None:
        raise ValueError("it does not begin as a NIfTI file does")
    header = kind(begins[: kind.sizeof_hdr], check=False)  # nibabel's check would change what is wrong
    size = [int(length) for length in header["dim"][1 : 1 + int(header["dim"][0])]]
    while len(size) > 3 and size[-1] == 1:
        size.pop()
    values = len(header.get_data_dtype().names or ()) or (2 if header.get_data_dtype().kind == "c" else 1)
    unit = NIFTI_UNITS.get(int(header["xyzt_units"]) & 7, 1.0)
    spacing = tuple(float(length) * unit for length in header["pixdim"][1 : 1 + min(len(size), 3)])
    axes = np.eye(3)
    if header["qform_code"] > 0:
        rotation = np.array([header[f"quatern_{name}"] for name in "bcd"], float)
        axes = axes if float((rotation**2).sum()) <= LONGEST_QUATERNION else axes * math.nan
    if header["sform_code"] > 0 and np.isfinite(axes).all():
        axes = np.array([header[f"srow_{name}"][:3] for name in "xyz"], float)
    return Header(tuple(size), spacing, axes, values)


def _header_of_tiff(file: Path) -> Header:
    with tifffile.TiffFile(file) as opened:
        series = opened.series[0]
        lengths = dict(zip(series.axes, series.shape, strict=True))
    values, beside = lengths.pop("S", 1), sidecar(file)
    size = tuple(lengths.values())[::-1]
    if beside is not None:
        refuse_bad_spacing(beside)
    spacing = tuple(read_json_file(beside)["spacing"])[::-1] if beside else (1.0, 1.0, 1.0)  # as nnU-Net
    return Header(size, spacing[: len(size)], values=values)


def _header_by_itk(file: Path) -> Header:
    header = SimpleITK.ImageFileReader()
    header.SetFileName(str(file))
    header.ReadImageInformation()
    number, spacing = header.GetDimension(), header.GetSpacing()
    if file.name.endswith(".mha"):  # of which ITK takes the absolute value
        entries, _ = text_header(file)
        spacing = entries.get("elementspacing", entries.get("elementsize", times(spacing))).split()
    size = header.GetSize()
    while len(size) > 3 and size[-1] == 1:
        size = size[:-1]
    axes = np.reshape(header.GetDirection(), (number, number))[:3, :3]
    return Header(size, tuple(float(length) for length in spacing)[:3], axes, header.GetNumberOfComponents())
