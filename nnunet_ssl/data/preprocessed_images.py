"""Preprocessed images, opened without their labels."""

import hashlib
import json
import os
from collections.abc import Iterable, Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING

import blosc2
import numpy as np
from nnunetv2.training.dataloading.nnunet_dataset import nnUNetBaseDataset
from typing_extensions import TypedDict

from nnunet_ssl.data.disk_faults import naming
from nnunet_ssl.data.json_schemas import parsed, read_if_fit
from nnunet_ssl.data.locks import one_after_the_other

if TYPE_CHECKING:
    from nnunet_ssl.data.checksums import PreprocessedFiles
    from nnunet_ssl.data.pool_predictions import PoolPredictions

Image = np.ndarray | blosc2.NDArray


def image_file(folder: Path, case: str) -> Path | None:
    """Return the file that holds the image of a preprocessed case, in whichever of nnU-Net's formats; None if none."""
    candidates = [folder / f"{case}{ending}" for ending in (".b2nd", ".npy", ".npz")]
    return next((file for file in candidates if file.exists()), None)


def open_image(folder: Path, case: str) -> Image:
    """Open the image (C, *spatial) of a preprocessed case for reading in parts; label and properties stay closed.

    Raises:
        FileNotFoundError: the folder holds no such case.
    """
    return open_array(_existing_file(folder, case), "data")


def _existing_file(folder: Path, case: str) -> Path:
    if (file := image_file(folder, case)) is None:
        raise FileNotFoundError(f"{folder} holds no preprocessed case {case}")
    return file


def open_outside(folder: Path, case: str) -> Image:
    """Open the map (1, *spatial) that nnU-Net makes of an image without label: -1 outside of the image, 0 inside."""
    if (folder / f"{case}_seg.b2nd").exists():
        return open_array(folder / f"{case}_seg.b2nd", "seg")
    unpacked = folder / f"{case}_seg.npy"
    return open_array(unpacked if unpacked.exists() else folder / f"{case}.npz", "seg")


def open_array(file: Path, name: str = "data") -> Image:
    """Open an array for reading in parts, in whichever of nnU-Net's formats; `name` is that of one in an archive."""
    if file.suffix == ".b2nd":
        mapped = {} if os.name == "nt" else {"mmap_mode": "r"}  # as nnU-Net: memory mapping fails on Windows
        return blosc2.open(urlpath=str(file), mode="r", dparams={"nthreads": 1}, **mapped)
    return np.load(file, mmap_mode="r") if file.suffix == ".npy" else np.load(file)[name]


class Stacked:
    """Two arrays of one image, (1, *spatial) and (*spatial), as one (2, *spatial) that is read in parts."""

    def __init__(self, first: Image, second: Image) -> None:
        self.first, self.second = first, second
        self.shape = (2, *second.shape)

    def __getitem__(self, parts: tuple[slice, ...]) -> np.ndarray:
        """Return a part of both, given a slice for each axis, of the first one all."""
        return np.concatenate([self.first[parts], self.second[parts[1:]][None]])


class UnlabeledDataset(nnUNetBaseDataset):
    """Images of several preprocessed folders, presented to nnU-Net's loader without a label."""

    def __init__(
        self,
        folders: dict[str, Path],
        without_labels: Path,
        files: Mapping[Path, "PreprocessedFiles"] = MappingProxyType({}),
    ) -> None:
        """Take the cases.

        Args:
            folders: the folder in which each case lies.
            without_labels: the one whose cases were preprocessed without a label.
            files: of each folder, what compares its files with their checksums; none are compared without.
        """
        super().__init__(folder="", identifiers=sorted(folders))
        self.folders = folders
        self.without_labels = without_labels
        self.files = files
        self.predictions: PoolPredictions | None = None
        self.previous_stage: PoolPredictions | None = None  # of a cascade
        self.gives_labels = False

    def check(self, identifier: str) -> None:
        """Raise a DamagedCaseError if a file of a case that is about to be read has changed."""
        folder = self.folders[identifier]
        if folder in self.files:
            self.files[folder].check(identifier, image_only=folder != self.without_labels)

    def load_case(self, identifier: str) -> tuple[Image, Image | Stacked, Image | None, dict]:
        """Return image, outside of the image, a segmentation, and where predicted classes are: none before they are.

        Of a case that has a label on disk nothing but the image is opened; its outside is all zeros, without memory.
        The segmentation (*spatial) is that of the previous stage, as in nnU-Net. The predicted labels, if they are
        asked for, stand in its place, and then it is a second channel of the outside.

        Raises:
            DamagedCaseError: a file of the case is damaged.
        """
        self.check(identifier)
        folder = self.folders[identifier]
        image = open_image(folder, identifier)
        if folder == self.without_labels:
            outside = open_outside(folder, identifier)
        else:
            outside = np.broadcast_to(np.int8(0), (1, *image.shape[1:]))
        previous = None if self.previous_stage is None else self.previous_stage.labels(identifier)
        if self.predictions is None:
            return image, outside, previous, {"class_locations": {}}
        where = {"class_locations": self.predictions.class_locations(identifier)}
        if not self.gives_labels:
            return image, outside, previous, where
        outside = outside if previous is None else Stacked(outside, previous)
        return image, outside, self.predictions.labels(identifier), where

    @staticmethod
    def save_case(data: np.ndarray, seg: np.ndarray, properties: dict, output_filename_truncated: str) -> None:
        """Not offered: unlabeled cases are written by their preprocessing."""
        raise NotImplementedError("an unlabeled data set is only read")

    @staticmethod
    def get_identifiers(folder: str) -> list[str]:
        """Not offered: the cases are given, they are not a folder's listing."""
        raise NotImplementedError("an unlabeled data set is given its cases")


@dataclass(frozen=True)
class Content:
    """What tells two preprocessed images apart, whatever their names.

    Attributes:
        shape: (C, *spatial).
        digest: SHA-256 of the voxels, hexadecimal.
    """

    shape: tuple[int, ...]
    digest: str


def content_of(image: Image) -> Content:
    """Read an image's content; one that is in memory is not copied."""
    voxels = np.ascontiguousarray(image[:])
    return Content(tuple(voxels.shape), hashlib.sha256(voxels).hexdigest())


class KnownContent(TypedDict):
    """What a cache remembers of a preprocessed image: size and time of change of its file, and its content."""

    mark: list[int]
    shape: list[int]
    digest: str


def contents_of(
    folder: Path, cases: Iterable[str], cache: Path, shapes: set[tuple[int, ...]] | None = None
) -> dict[str, Content]:
    """Return the contents of preprocessed cases; those that are known are not opened.

    Args:
        folder: a preprocessed folder.
        cases: cases of that folder.
        cache: a json file that remembers contents by the image file's size and time of change.
        shapes: read only images of these shapes (C, *spatial) and leave the others out; None means all.
    """
    states = {case: _existing_file(folder, case).stat() for case in cases}
    contents = {}
    with one_after_the_other(cache.with_suffix(".lock"), "reads the same images"):
        known = read_if_fit(cache, dict[str, KnownContent]) or {}
        changed = False
        for case, there in states.items():
            mark = [there.st_size, there.st_mtime_ns]
            if known.get(case, {}).get("mark") != mark:
                image = open_image(folder, case)
                if shapes is not None and tuple(image.shape) not in shapes:
                    continue
                known[case] = {"mark": mark, **asdict(content_of(image))}
                changed = True
            content = Content(tuple(known[case]["shape"]), known[case]["digest"])
            if shapes is None or content.shape in shapes:
                contents[case] = content
        if changed:
            with suppress(OSError):  # in a folder that is only read, contents are read again each time
                write_json_atomically(known, cache)
    return contents


def read_json(file: Path) -> dict | None:
    """Return what a json file holds; None if there is none, or half of one after a power cut."""
    try:
        return parsed(file.read_text())
    except (FileNotFoundError, ValueError):
        return None


def write_json_atomically(content: Mapping | list, file: Path, indent: int | None = 1) -> None:
    """Write a json file so that a reader finds the old or the new one, after a power cut too."""
    unfinished = file.with_name(f"{file.name}.{os.getpid()}.tmp")
    with naming(file, instead_of=unfinished):
        file.parent.mkdir(parents=True, exist_ok=True)
        try:
            with unfinished.open("w") as opened:
                opened.write(json.dumps(content, indent=indent))
                opened.flush()
                os.fsync(opened.fileno())
            unfinished.replace(file)
        finally:
            unfinished.unlink(missing_ok=True)
