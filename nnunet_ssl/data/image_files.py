"""Reading image files so that a damaged one is never taken for a good one."""

import errno
import gzip
import locale
import math
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import nibabel
import SimpleITK

from nnunet_ssl.data import disk_faults

GIPL_HEADER_BYTES = 256
CHUNK_BYTES = 1 << 24  # that are unpacked at once
FAULTS_OF_THE_MACHINE = (errno.ENOMEM, *disk_faults.FAULTS)


def refuse_damaged(file: Path) -> None:
    """Look whether a file is whole where ITK would fill what is missing with zeros, without a word.

    These are NIfTI, which is read to the end of its compressed bytes, and GIPL.

    Raises:
        ValueError: the file is cut off or damaged.
    """
    try:
        if file.name.endswith((".nii", ".nii.gz")):
            voxels = nibabel.load(file).dataobj
            there, needed = bytes_in(file) - voxels.offset, math.prod(voxels.shape) * voxels.dtype.itemsize
        elif file.name.endswith(".gipl"):
            there, needed = bytes_in(file) - GIPL_HEADER_BYTES, bytes_of_voxels(file)
        else:
            return
    except (OSError, ValueError, EOFError, zlib.error, nibabel.filebasedimages.ImageFileError) as error:
        if getattr(error, "errno", None) is not None:
            raise
        raise ValueError(f"{file.name} is cut off or damaged ({' '.join(str(error).split())})") from error
    if there < needed:
        raise ValueError(f"{file.name} is cut off or damaged (Expected {needed} bytes, got {max(0, there)})")


def bytes_in(file: Path) -> int:
    """Return how many bytes a file holds, unpacked; gzip compares its check sum at the end."""
    if not file.name.endswith(".gz"):
        return file.stat().st_size
    with gzip.open(file) as opened:
        return sum(iter(lambda: len(opened.read(CHUNK_BYTES)), 0))


def bytes_of_voxels(file: Path) -> int:
    """Return how many bytes the header of a file that ITK reads promises."""
    header = SimpleITK.ImageFileReader()
    header.SetFileName(str(file))
    try:
        header.ReadImageInformation()
    except RuntimeError as error:
        raise ValueError(str(error).strip().splitlines()[-1]) from error
    one = SimpleITK.Image([1] * header.GetDimension(), header.GetPixelID(), header.GetNumberOfComponents())
    return math.prod(header.GetSize()) * SimpleITK.GetArrayViewFromImage(one).nbytes


def fault_of_the_machine(error: Exception) -> bool:
    """Return whether an error is no fault of the image that was being read: want of memory, disk, a library."""
    return isinstance(error, MemoryError | ImportError) or getattr(error, "errno", None) in FAULTS_OF_THE_MACHINE


@contextmanager
def kept_locale() -> Iterator[None]:
    """Keep the process's locale: GDCM, with which ITK reads and writes DICOM, sets "C".

    With that Python would take text files for ASCII from then on.
    """
    before = locale.setlocale(locale.LC_ALL)
    try:
        yield
    finally:
        locale.setlocale(locale.LC_ALL, before)


def read_image(file: Path) -> SimpleITK.Image:
    """Return an image of any format that ITK reads.

    Raises:
        ValueError: the file is not there, cut off, damaged or no image.
    """
    if not file.is_file():
        raise ValueError(f"{file} is missing")
    try:
        refuse_damaged(file)
        return SimpleITK.ReadImage(str(file))
    except (RuntimeError, ValueError) as error:
        raise ValueError(f"{file} is damaged, or no image: {str(error).strip().splitlines()[-1]}") from error
