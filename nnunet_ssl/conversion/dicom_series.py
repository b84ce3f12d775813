"""Reading a DICOM series so that a slice that is missing, or does not say where it lies, is noticed."""

from pathlib import Path

import numpy as np
import SimpleITK

from nnunet_ssl.conversion.checks import in_mm
from nnunet_ssl.data.image_files import kept_locale

POSITION, ORIENTATION, PIXEL_SPACING = "0020|0032", "0020|0037", "0028|0030"
LARGEST_STEP = 1.5  # of the smallest between two slices; one missing slice makes it 2


def read_series(folder: Path) -> SimpleITK.Image:
    """Return the one series below a folder; GDCM sorts its slices by position.

    Raises:
        ValueError: there is not one series; a file is damaged or no DICOM file; a slice does not say where it lies, or
            is missing.
    """
    files = sorted(folder.glob("**/*.dcm"))
    with kept_locale():
        reader = SimpleITK.ImageSeriesReader()
        places = sorted({file.parent for file in files})
        series = [(place, uid) for place in places for uid in reader.GetGDCMSeriesIDs(str(place))]
        if len(series) != 1:
            raise ValueError(f"{folder} holds {len(series)} DICOM series, expected 1")
        slices = [Path(name) for name in reader.GetGDCMSeriesFileNames(str(series[0][0]), series[0][1])]
        if unread := sorted(set(files) - set(slices)):
            raise ValueError(
                f"{unread[0]} is damaged, or no DICOM file, one of {len(unread)} beside {len(slices)} slices"
            )
        reader.SetFileNames([str(file) for file in slices])
        reader.MetaDataDictionaryArrayUpdateOn()
        try:
            image = reader.Execute()
        except RuntimeError as error:
            raise ValueError(f"{folder} holds a damaged DICOM file: {str(error).splitlines()[-1]}") from error
    check_slices(reader, slices)
    return image


def check_slices(reader: SimpleITK.ImageSeriesReader, slices: list[Path]) -> None:
    """Raise a ValueError for headers that ITK corrects without a word: a pixel of 0 mm would become 1 mm."""
    heights = []
    for number, file in enumerate(slices):
        pixel = numbers_of(reader, number, PIXEL_SPACING, file, 2)
        if min(pixel) <= 0:
            raise ValueError(f"{file}: its header gives the pixel size {in_mm(pixel)}, expected lengths above 0")
        row, column = np.split(numbers_of(reader, number, ORIENTATION, file, 6), 2)
        heights.append(np.cross(row, column) @ numbers_of(reader, number, POSITION, file, 3))
    steps = np.abs(np.diff(heights))
    if len(steps) and not 0 < steps.max() <= LARGEST_STEP * steps.min():
        where = int(steps.argmax())
        raise ValueError(
            f"{slices[where].parent}: its slices are {steps.min():g} to {steps.max():g} mm apart: one is missing, or "
            f"is there twice, near {slices[where].name} and {slices[where + 1].name}"
        )


def numbers_of(reader: SimpleITK.ImageSeriesReader, number: int, tag: str, file: Path, count: int) -> np.ndarray:
    """Return the numbers of a tag of a slice; a ValueError if they are not so many, or not finite."""
    text = reader.GetMetaData(number, tag) if reader.HasMetaDataKey(number, tag) else ""
    try:
        numbers = np.array([float(part) for part in text.split("\\")])
    except ValueError:
        numbers = np.zeros(0)
    if len(numbers) != count or not np.isfinite(numbers).all():
        raise ValueError(f"{file}: its tag ({tag.replace('|', ',')}) holds {text.strip()!r}, expected {count} numbers")
    return numbers
