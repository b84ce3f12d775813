"""Reading image files so that a damaged one is never taken for a good one."""

import zlib
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
