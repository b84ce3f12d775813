"""Loading files of torch so that a damaged one is noticed, and that none can run code, whoever made it."""

import os
import pickle
import zipfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from shlex import quote
from typing import Any

import numpy as np
import torch

from nnunet_ssl.data.image_files import fault_of_the_machine

# nnU-Net's logs hold numpy's numbers. Their classes, and the function that makes them by its names in numpy 1 and 2.
MAKE_SCALAR = np.float64(0).__reduce__()[0]
KINDS_OF_NUMBERS = "?" + np.typecodes["AllInteger"] + np.typecodes["AllFloat"]
NUMPY_SCALARS = [
    (MAKE_SCALAR, "numpy._core.multiarray.scalar"),
    (MAKE_SCALAR, "numpy.core.multiarray.scalar"),
    np.dtype,
    *sorted({type(np.dtype(kind)) for kind in KINDS_OF_NUMBERS}, key=lambda kind: kind.__name__),
]
FOLDER = 0x10  # attribute of a part of a zip; torch returns memory as it is in place of the content of such a part
TENSORS = "/data/"  # in the names of parts that hold the numbers of tensors
CHUNK = 2**20  # bytes
TORCH_VARIABLE = "TORCH_FORCE_WEIGHTS_ONLY_LOAD"  # of torch: no call of torch.load runs code, whatever it asks for
TORCH_OPPOSITE = "TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD"


class DamagedFileError(ValueError):
    """A file is cut off or altered, or none of torch's."""


class CodeInFileError(ValueError):
    """A file holds more than tensors and plain values, so that code would run if it were read as others are."""


def load_without_code(
    file: str | Path, map_location: torch.device, mmap: bool = False, reads_tensors: bool = True
) -> Any:  # noqa: ANN401 - whatever was saved
    """Return what `torch.save` wrote into a file, if it is tensors, plain values and numpy's numbers.

    Args:
        file: whose checksums are compared first.
        map_location: where its tensors go.
        mmap: whether its tensors are read when they are used.
        reads_tensors: false, with `mmap`, where they are not used: nothing of them is read, not even to be checked.

    Raises:
        FileNotFoundError: there is no such file, or it is a folder, pipe or device.
        DamagedFileError: its checksums do not fit, or it is none of torch's.
        CodeInFileError: it holds something else.
    """
    file = Path(file)
    if not file.is_file():
        raise FileNotFoundError(f"{file} is not a file")
    refuse_altered(file, reads_tensors)
    try:
        with torch.serialization.safe_globals(NUMPY_SCALARS):
            return torch.load(file, map_location=map_location, weights_only=True, mmap=mmap)
    except pickle.UnpicklingError:  # the checksums are those of its writer: it is not damaged
        raise CodeInFileError(refusal(file)) from None
    except Exception as error:
        if is_of_the_machine(error):
            raise
        raise DamagedFileError(f"{file} is none of torch's files ({type(error).__name__})") from error


def refuse_altered(file: Path, reads_tensors: bool = True) -> None:
    """Compare the checksums in a file of torch, which is a zip, with its content; torch itself does not.

    Args:
        file: which is read for it.
        reads_tensors: false leaves out what only tensors are made of.

    Raises:
        DamagedFileError: they differ, it is no zip, or a part of it is marked as a folder.
    """
    try:
        with zipfile.ZipFile(file) as opened:
            as_folder = [one.filename for one in opened.infolist() if one.external_attr & FOLDER]
            kept = [one for one in opened.infolist() if reads_tensors or TENSORS not in one.filename]
            damaged = as_folder[0] if as_folder else first_damaged(opened, kept)
    except Exception as error:
        if is_of_the_machine(error):
            raise
        raise DamagedFileError(f"{file} is cut off, or none of torch's files") from error
    if damaged is not None:
        raise DamagedFileError(f"{file} is damaged: {damaged} in it is not what was written")


def first_damaged(opened: zipfile.ZipFile, parts: Iterable[zipfile.ZipInfo]) -> str | None:
    """Return the name of the first of some parts of a zip whose content does not fit its checksum."""
    for part in parts:
        try:
            with opened.open(part) as content:
                while content.read(CHUNK):
                    pass
        except zipfile.BadZipFile:
            return part.filename
    return None


def is_of_the_machine(error: Exception) -> bool:
    """Return whether an error is none of a file's content. One in seeking to where nothing is names no file."""
    return fault_of_the_machine(error) or (isinstance(error, OSError) and error.filename is not None)


def refusal(file: Path) -> str:
    """Return what there is to say of a file that holds more than it may."""
    held = ", ".join(names_of_code(file)) or "unknown operations"
    code = (
        f"import torch; torch.save({{'network_weights': torch.load({str(file)!r}, weights_only=False)"
        f"['network_weights']}}, {str(file.with_name(f'{file.stem}_weights{file.suffix}'))!r})"
    )
    return (
        f"{file} holds more than weights and plain values ({held}), which could run any program on this machine, and "
        f"is not loaded: get a file from somebody you trust; only if you trust this one, its weights alone are taken "
        f"out with python -c {quote(code)}"
    )


def names_of_code(file: Path) -> list[str]:
    """Return the names of the functions and classes that a file would call, as far as they can be told."""
    try:
        with torch.serialization.safe_globals(NUMPY_SCALARS):
            return sorted(torch.serialization.get_unsafe_globals_in_checkpoint(file))
    except Exception:  # noqa: BLE001 - what is odd enough to be refused may be too odd to be described
        return []


@contextmanager
def nnunet_loads_without_code() -> Iterator[None]:
    """Let nnU-Net's own functions load checkpoints as `load_without_code` does; left alone, they run what is inside."""
    before = {name: os.environ.pop(name, None) for name in (TORCH_VARIABLE, TORCH_OPPOSITE)}
    os.environ[TORCH_VARIABLE] = "1"
    try:
        with torch.serialization.safe_globals(NUMPY_SCALARS):
            yield
    finally:
        del os.environ[TORCH_VARIABLE]
        os.environ |= {name: value for name, value in before.items() if value is not None}
