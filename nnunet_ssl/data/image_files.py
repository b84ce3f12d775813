"""Reading image files so that a damaged one is never taken for a good one."""

import errno
import locale
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path

import SimpleITK

from nnunet_ssl.data import disk_faults
from nnunet_ssl.data.hashed_files import HashedFile
from nnunet_ssl.data.image_bytes import in_plain_words, voxels_are_finite

FAULTS_OF_THE_MACHINE = (errno.ENOMEM, *disk_faults.FAULTS)


def refuse_damaged(file: Path, content: HashedFile | None = None) -> bool:
    """Look whether a file is whole, by its size and all checksums that it has, and whether its values are finite.

    Args:
        file: its name.
        content: the same file for whom its SHA-256 is wanted too, without reading it twice; nothing is read of it yet.

    Returns:
        Whether they are.

    Raises:
        ValueError: the file is cut off, damaged, or none.
    """
    if not file.is_file():
        raise ValueError(f"{file.name} is no file but a folder, a pipe, or a link that leads nowhere")
    try:
        with nullcontext(content) if content else HashedFile(file) as opened:
            return voxels_are_finite(opened)
    except Exception as error:
        if fault_of_the_machine(error) or getattr(error, "errno", None) is not None:
            raise
        raise ValueError(f"{file.name} is cut off or damaged ({in_plain_words(error)})") from error


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
