"""Writing image files so that each is whole, or there is an error and none."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import SimpleITK

from nnunet_ssl.data.disk_faults import blaming_the_disk
from nnunet_ssl.data.image_files import refuse_damaged
from nnunet_ssl.data.whole_files import replacing


@contextmanager
def whole_image(file: Path) -> Iterator[Path]:
    """Give a path of the same name to write an image to, by whatever writer; it takes the place of the file when whole.

    On a full disk ITK writes NIfTI and GIPL that are cut off, and no error: these are read again.

    Raises:
        OSError: it cannot be written; the error names the file.
    """
    with replacing(file) as unfinished:
        try:
            with blaming_the_disk(unfinished.parent):
                yield unfinished
                refuse_damaged(unfinished)
        except RuntimeError as error:  # ITK's; the last line is the reason
            raise OSError(f"{file} cannot be written: {str(error).strip().splitlines()[-1]}") from error
        except ValueError as error:
            raise OSError(f"{file} cannot be written: {error}") from error


def write_image(image: SimpleITK.Image, file: Path) -> None:
    """Write an image whole, with its folder where there is none.

    Raises:
        OSError: it cannot be written; the error names the file.
    """
    with whole_image(file) as unfinished:
        SimpleITK.WriteImage(image, str(unfinished))
