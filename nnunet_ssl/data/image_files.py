"""Reading image files so that a damaged one is never taken for a good one."""

import locale
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import nibabel
import numpy as np
import SimpleITK


def refuse_damaged_nifti(file: Path) -> None:
    """Read a NIfTI file to its end: ITK fills what is missing with zeros, without a word.

    Raises:
        ValueError: the file is cut off or damaged.
    """
    if file.name.endswith((".nii", ".nii.gz")):
        try:
            np.asanyarray(nibabel.load(file).dataobj)
        except (OSError, ValueError, EOFError, zlib.error, nibabel.filebasedimages.ImageFileError) as error:
            if getattr(error, "errno", None) is not None:
                raise
            raise ValueError(f"{file.name} is cut off or damaged ({' '.join(str(error).split())})") from error


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
        refuse_damaged_nifti(file)
        return SimpleITK.ReadImage(str(file))
    except (RuntimeError, ValueError) as error:
        raise ValueError(f"{file} is damaged, or no image: {str(error).strip().splitlines()[-1]}") from error
