"""Reading and writing the files of a data set as it says itself: by its own reader of nnU-Net's."""

import contextlib
import io
import itertools
import math
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from nnunetv2.imageio.base_reader_writer import BaseReaderWriter
from nnunetv2.imageio.natural_image_reader_writer import NaturalImage2DIO
from nnunetv2.imageio.reader_writer_registry import (
    LIST_OF_IO_CLASSES,
    determine_reader_writer_from_dataset_json,
    recursive_find_reader_writer_by_name,
)
from nnunetv2.imageio.tif_reader_writer import Tiff3DIO

from nnunet_ssl.data.image_bytes import in_plain_words
from nnunet_ssl.data.image_files import fault_of_the_machine, refuse_damaged
from nnunet_ssl.data.image_writing import whole_image
from nnunet_ssl.data.raw_files import RawDataset, channel_names, files_in, read_json_file, sidecar

FLAT = 1e-5  # the difference of values that counts as none, as a share of the largest value; ours
EXAMPLES = 3  # files that are looked at for the choice of a reader
NOT_FINITE = "the image holds values that are not finite (NaN or infinite)"
PLACEHOLDER = 998.0  # nnU-Net writes 999 times the largest spacing for an axis that an image does not have


@dataclass(frozen=True)
class Voxels:
    """An image or a label map, with what its file says of space.

    Attributes:
        array: `(*spatial)`, the axes that the file really has.
        spacing: of these axes in mm; 1 each where the file does not say.
        has_spacing: whether it does.
        affine: `(d + 1, d + 1)`, from voxel numbers x, y, z to mm; None for formats without orientation and place.
    """

    array: np.ndarray
    spacing: tuple[float, ...]
    has_spacing: bool
    affine: np.ndarray | None

    @property
    def voxel_ml(self) -> float:
        """The volume of a voxel in ml; NaN where there is none: in 2-D, and without a spacing."""
        known = self.has_spacing and len(self.spacing) == 3
        return float(np.prod(self.spacing)) / 1000 if known else float("nan")


class WrongChannelCountError(ValueError):
    """An image has another number of channels than the data set."""


class DatasetReader:
    """One of nnU-Net's readers; every fault of a file becomes a ValueError of one sentence that names it."""

    def __init__(self, reader: BaseReaderWriter) -> None:
        self.reader = reader

    @classmethod
    def of_plans(cls, plans: dict) -> "DatasetReader":
        """Return the reader that a data set was planned with.

        Raises:
            ValueError: the plans name none, or one that nnU-Net does not have.
        """
        if "image_reader_writer" not in plans:
            raise ValueError("the plans have no key 'image_reader_writer': they are none of nnU-Net's, or damaged")
        try:
            return cls(recursive_find_reader_writer_by_name(plans["image_reader_writer"])())
        except (RuntimeError, TypeError):
            name = plans["image_reader_writer"]
            raise ValueError(f"the plans name the reader {name!r}, which this nnU-Net does not have") from None

    @classmethod
    def of_dataset(cls, dataset_json: dict, examples: Iterable[Path] = ()) -> "DatasetReader":
        """Return the reader that nnU-Net chooses for a data set.

        Args:
            dataset_json: with `file_ending`, perhaps `overwrite_image_reader_writer`.
            examples: some of its files: for some endings the choice depends on what they hold. Most of the first few
                decide, so that a damaged one does not.

        Raises:
            ValueError: nnU-Net has no reader for these files.
        """
        ending = dataset_json["file_ending"]
        found: Counter[type] = Counter()
        for example in itertools.islice(examples, EXAMPLES):
            with contextlib.suppress(RuntimeError, ValueError, OSError), quiet():
                refuse_damaged(example)
                found[determine_reader_writer_from_dataset_json(dataset_json, str(example), verbose=False)] += 1
        if found:
            return cls(found.most_common(1)[0][0]())
        with contextlib.suppress(RuntimeError), quiet():
            return cls(determine_reader_writer_from_dataset_json(dataset_json, None, verbose=False)())
        raise ValueError(f"nnU-Net has no reader for files that end in {ending!r}: see file_ending in dataset.json")

    @classmethod
    def of_raw(cls, raw: RawDataset) -> "DatasetReader":
        """Return the reader that nnU-Net chooses for a raw data set."""
        names = ("imagesTr", "imagesUn", "imagesTs")
        examples = (files[0] for name in names for files in raw.images(name).values())
        return cls.of_dataset(raw.dataset_json, examples)

    def read_channels(self, files: Sequence[Path]) -> tuple[np.ndarray, dict]:
        """Return what nnU-Net reads: (C, *spatial) of three axes, float32, and its properties.

        Raises:
            ValueError: a file is missing, cut off, damaged, does not fit the others, or holds values that are not
                finite.
        """
        channels, properties, is_finite = self._read(
            files, lambda: self.reader.read_images([str(file) for file in files])
        )
        if not is_finite:
            raise ValueError(f"{files[0]}: {NOT_FINITE}")
        return channels, properties

    def read_image(self, file: Path) -> Voxels:
        """Return the first channel of an image file."""
        channels, properties = self.read_channels([file])
        return self._with_space(channels[0], properties, file)

    def read_labels(self, file: Path) -> Voxels:
        """Return a label map, int32.

        Raises:
            ValueError: as `read_channels`, or a value is no whole number.
        """
        channels, properties, is_finite = self._read([file], lambda: self.reader.read_seg(str(file)), is_label=True)
        if len(channels) != 1:
            raise ValueError(f"{file} has {len(channels)} channels: labels have one")
        if not is_finite:
            raise ValueError(f"{file} holds values that are not finite: labels are whole numbers")
        labels = self._with_space(channels[0], properties, file, is_label=True)
        with np.errstate(invalid="ignore"):
            whole = labels.array.astype(np.int32)
        if not np.array_equal(whole, labels.array):
            value = labels.array[whole != labels.array].flat[0]
            raise ValueError(f"{file} holds the value {value:.6g}: labels are whole numbers")
        return Voxels(whole, labels.spacing, labels.has_spacing, labels.affine)

    def _read(
        self, files: Sequence[Path], read: Callable[[], tuple[np.ndarray, dict]], is_label: bool = False
    ) -> tuple[np.ndarray, dict, bool]:
        """Return what nnU-Net reads, and whether the files hold finite values alone: ITK reads others as 0 in NIfTI."""
        for file in files:
            if not file.is_file():
                raise ValueError(f"{file} is missing")
            if isinstance(self.reader, Tiff3DIO) and (beside := sidecar(file, is_label)):
                refuse_bad_spacing(beside)
        try:
            are_finite = [refuse_damaged(file) for file in files]
            with quiet() as said:
                return *read(), all(are_finite)
        except Exception as error:
            if fault_of_the_machine(error):
                raise
            reason = in_plain_words(error) or said.getvalue().strip().partition("\n")[0] or type(error).__name__
            raise ValueError(f"{files[0]} is damaged, or no image: {reason}") from error

    def space_of_image(self, files: Sequence[Path], properties: dict, shape: tuple[int, ...]) -> Voxels:
        """Return the space of an image that `read_channels` has read, with an empty array of its shape."""
        return self._with_space(np.broadcast_to(np.int8(0), shape), properties, files[0])

    def write_labels(self, labels: np.ndarray, file: Path, properties: dict) -> None:
        """Write labels `(*spatial)` of three axes in the data set's format, as nnU-Net does, but whole or not at all.

        Raises:
            OSError: they cannot be written.
        """
        with whole_image(file) as unfinished:
            self.reader.write_seg(labels, str(unfinished), properties)

    def _with_space(self, array: np.ndarray, properties: dict, file: Path, is_label: bool = False) -> Voxels:
        spacing = tuple(float(value) for value in properties["spacing"])
        if array.shape[0] == 1 and spacing[0] > PLACEHOLDER * max(spacing[1:]):
            array, spacing = array[0], spacing[1:]
        has_spacing = not isinstance(self.reader, NaturalImage2DIO)
        if isinstance(self.reader, Tiff3DIO):
            has_spacing = sidecar(file, is_label) is not None
        return Voxels(array, spacing, has_spacing, affine_of(properties))


def refuse_bad_spacing(file: Path) -> None:
    """Raise a ValueError if the json file beside a TIFF holds no spacing of three axes."""
    spacing = read_json_file(file).get("spacing")
    if not isinstance(spacing, list) or len(spacing) != 3 or not all(is_length(one) for one in spacing):
        raise ValueError(f'{file} holds no "spacing" of three lengths above 0 in mm, got {spacing!r:.60}')


def is_length(value: object) -> bool:
    """Return whether a value of a json file is a number above 0."""
    return isinstance(value, int | float) and not isinstance(value, bool) and 0 < value < math.inf


def ending_in(folder: Path, what: str) -> str:
    """Return the ending of the label files of a folder, one that nnU-Net reads; `what` they are called in messages.

    Raises:
        ValueError: there is no such file, or there are files of several such endings.
    """
    endings = sorted({ending for reader in LIST_OF_IO_CLASSES for ending in reader.supported_file_endings})
    there = [ending for ending in endings if files_in(folder, ending)]
    if not there:
        raise ValueError(f"there is no {what} CASE.nii.gz in {folder}, nor one that ends in {', '.join(endings)}")
    if len(there) > 1:
        raise ValueError(f"{folder} holds files that end in {' and in '.join(there)}: keep one kind in a folder")
    return there[0]


def affine_of(properties: dict) -> np.ndarray | None:
    """Return the matrix from voxel numbers x, y, z to mm of what nnU-Net has read; None for formats that have none."""
    nifti = properties.get("nibabel_stuff")
    if nifti is not None:
        return np.asarray(nifti.get("reoriented_affine", nifti["original_affine"]), float)
    itk = properties.get("sitk_stuff")
    if itk is None:
        return None
    size = len(itk["spacing"])
    affine = np.eye(size + 1)
    affine[:size, :size] = np.reshape(itk["direction"], (-1, len(itk["origin"])))[:size, :size] * itk["spacing"]
    affine[:size, size] = itk["origin"][:size]
    return affine


def refuse_unusable(voxels: np.ndarray, dataset_json: dict) -> None:
    """Check an image `(C, *spatial)` that has been read, before a network sees it.

    Raises:
        WrongChannelCountError: it has another number of channels than the data set.
        ValueError: a value is not finite, or all are the same.
    """
    names = channel_names(dataset_json)
    if len(voxels) != len(names):
        raise WrongChannelCountError(
            f"it has {len(voxels)} channel(s), the data set has {len(names)} ({', '.join(names)})"
        )
    if not np.isfinite(voxels).all():
        raise ValueError(NOT_FINITE)
    if np.ptp(voxels.reshape(len(voxels), -1), axis=1).max() <= FLAT * np.abs(voxels).max():
        raise ValueError("all its voxels have the same value, at the latest once it is normalised")


@contextlib.contextmanager
def quiet() -> Iterator[io.StringIO]:
    """Keep what nnU-Net's readers print out of the way, and give it."""
    said = io.StringIO()
    with contextlib.redirect_stdout(said), contextlib.redirect_stderr(said):
        yield said
