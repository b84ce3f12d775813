"""Which files of a raw data set belong to which case."""

import copy
import difflib
import os
import re
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from nnunetv2.utilities.utils import get_filenames_of_train_images_and_targets

from nnunet_ssl.data.json_schemas import DatasetJson, parsed, refuse_misspelled, refuse_unfit

TIFF_ENDINGS = (".tif", ".tiff")  # beside an image of these nnU-Net reads the spacing from CASE.json
WRITTEN_BY_NNUNET = ("dataset.json", "plans.json", "predict_from_raw_data_args.json", "summary.json")
FOLDERS = tuple(f"{what}{which}" for what in ("images", "labels") for which in ("Tr", "Ts", "Un", "Hidden"))
SEG = "_seg"  # ends the name of what nnU-Net preprocesses labels to
CHANNEL = re.compile(r"(?P<case>.+)_(?P<channel>\d{4})")


@dataclass(frozen=True)
class RawDataset:
    """A data set in `nnUNet_raw`: its folder, and what its dataset.json says.

    Its key `dataset`, by which nnU-Net lets the training cases lie elsewhere, is heeded in reading.
    """

    folder: Path
    dataset_json: dict

    @classmethod
    def open(cls, folder: Path) -> "RawDataset":
        """Read dataset.json.

        Raises:
            ValueError: it is not there, damaged, or lacks a key that nnU-Net needs.
        """
        content = read_dataset_json(folder / "dataset.json")
        channel_names(content, folder / "dataset.json")
        return cls(folder, content)

    @property
    def ending(self) -> str:
        """The ending of its files, for example ".nii.gz"."""
        return self.dataset_json["file_ending"]

    @property
    def lies_elsewhere(self) -> bool:
        """Whether the training cases lie where the key `dataset` says."""
        return "dataset" in self.dataset_json

    @cached_property
    def _elsewhere(self) -> dict[str, dict]:
        """The files of each case by the key `dataset`."""
        return get_filenames_of_train_images_and_targets(str(self.folder), copy.deepcopy(self.dataset_json))

    def labels(self, name: str = "labelsTr") -> dict[str, Path]:
        """Return the label file of every case of labelsTr, labelsTs or labelsHidden."""
        if name == "labelsTr" and self.lies_elsewhere:
            return {case: Path(files["label"]) for case, files in sorted(self._elsewhere.items())}
        return {file.name.removesuffix(self.ending): file for file in files_in(self.folder / name, self.ending)}

    def images(self, name: str = "imagesTr") -> dict[str, list[Path]]:
        """Return the image files of every case of imagesTr, imagesUn or imagesTs, channels in order."""
        if name == "imagesTr" and self.lies_elsewhere:
            return {case: list(map(Path, files["images"])) for case, files in sorted(self._elsewhere.items())}
        return images_in(self.folder / name, self.ending)

    def channel_problem(self, files: Sequence[Path]) -> str | None:
        """Return what is wrong with the channel numbers of a case, beside the cases of imagesTr; None if nothing is."""
        return channel_problem(files, self.dataset_json, not self._has_file_for_each_channel)

    @cached_property
    def _has_file_for_each_channel(self) -> bool:
        """Whether most cases have more files than one: a single odd case does not decide about all others."""
        several = [len(files) > 1 for files in self.images().values()]
        return sum(several) > len(several) / 2

    def image_of(self, case: str, places: Sequence[str]) -> list[Path]:
        """Return the image files of a case in the first of some folders that has it; empty if none has.

        A test case may be called as a training case is.
        """
        return next((found[case] for place in places if case in (found := self.images(place))), [])


def read_dataset_json(file: Path) -> dict:
    """Return what a dataset.json holds.

    Raises:
        ValueError: it is not there, no JSON, lacks a key that nnU-Net needs, or has something else under one.
    """
    content = read_json_file(file)
    refuse_bad_dataset_json(content, file)
    return content


def refuse_bad_dataset_json(content: dict, file: str | Path) -> None:
    """Raise a ValueError if what a dataset.json holds is not what nnU-Net and this package expect."""
    refuse_unfit(content, DatasetJson, file)
    refuse_misspelled(content, file)


def read_json_file(file: Path) -> dict:
    """Return what a json file holds.

    Raises:
        ValueError: it is not there, cannot be read, is no JSON, or no object.
    """
    try:
        content = parsed(file.read_text())
    except FileNotFoundError:
        raise ValueError(f"there is no {file}") from None
    except OSError as error:
        raise ValueError(f"{file} cannot be read: {error.strerror}") from None
    except ValueError as error:
        raise ValueError(f"{file} is no JSON ({error})") from None
    if not isinstance(content, dict):
        raise ValueError(f"{file} holds no JSON object but {content!r:.60}")
    return content


def channel_names(dataset_json: dict, file: str | Path = "dataset.json") -> list[str]:
    """Return the names of the channels; older data sets call them modality.

    Args:
        dataset_json: what the file holds.
        file: what messages call it.

    Raises:
        ValueError: there are none.
    """
    names = dataset_json.get("channel_names", dataset_json.get("modality"))
    if names is None:
        raise ValueError(f"{file} has no key 'channel_names', which nnU-Net needs: see nnU-Net's dataset format")
    if not isinstance(names, dict) or not names:
        raise ValueError(
            f'dataset.json: \'channel_names\' are numbers with names, such as {{"0": "CT"}}, got {names!r:.60}'
        )
    return list(names.values())


def files_in(folder: Path, ending: str) -> list[Path]:
    """Return the files of a folder that end so, sorted; none where there is no folder."""
    if not folder.is_dir():
        return []
    return [folder / name for name in sorted(os.listdir(folder)) if name.endswith(ending) and not name.startswith(".")]


def images_in(folder: Path, ending: str) -> dict[str, list[Path]]:
    """Return the image files of every case, CASE_0000 and so on, in order; what is named otherwise is left out."""
    return images_among(files_in(folder, ending), ending)


def images_among(files: Iterable[Path], ending: str) -> dict[str, list[Path]]:
    """Return as `images_in` the image files of every case, of a folder that is listed already."""
    images: dict[str, list[Path]] = {}
    for file in files:
        if match := CHANNEL.fullmatch(file.name.removesuffix(ending)):
            images.setdefault(match["case"], []).append(file)
    return images


def unlabeled_images(folder: Path, ending: str) -> dict[str, list[Path]]:
    """Return the image files of every case of imagesUn, channels in order.

    Raises:
        ValueError: a file with the data set's ending is not named CASE_0000, or a case CASE_seg is beside CASE.
    """
    files = files_in(folder, ending)
    images = images_among(files, ending)
    if sum(map(len, images.values())) < len(files):
        file = next(file for file in files if not CHANNEL.fullmatch(file.name.removesuffix(ending)))
        renamed = f"{file.name.removesuffix(ending)}_0000{ending}"
        raise ValueError(
            f"{file} is not named as nnU-Net names images: CASE_0000{ending} (channel 0 of CASE), here {renamed}"
        )
    if of_labels := [case for case in images if case.endswith(SEG) and case.removesuffix(SEG) in images]:
        file, case = images[of_labels[0]][0], of_labels[0].removesuffix(SEG)
        raise ValueError(
            f"{file} is called as nnU-Net calls the labels of {case}, which lies beside it: take it "
            "out of imagesUn if it holds labels, or name it otherwise"
        )
    return images


def channel_problem(files: Sequence[Path], dataset_json: dict, may_be_one_file: bool = True) -> str | None:
    """Return what is wrong with the channel numbers of a case; None if nothing is.

    A case has every channel of the data set once, or, where it may be one file, a single file 0000 that holds all of
    them, such as an RGB picture.
    """
    ending, names = dataset_json["file_ending"], channel_names(dataset_json)
    numbers = [int(CHANNEL.fullmatch(file.name.removesuffix(ending))["channel"]) for file in files]
    expected = range(len(names))
    if numbers == [*expected] or (may_be_one_file and numbers == [0]):
        return None
    has = f"it has {len(files)} channel(s), the data set has {len(names)} ({', '.join(names)}), numbered 0000 and so on"
    if 0 in numbers and {*numbers} < {*expected}:
        return f"{has}: no {', '.join(f'{number:04d}' for number in expected if number not in numbers)}"
    found = ", ".join(f"{number:04d}" for number in numbers)
    example = files[-1].name.removesuffix(ending)
    return f"{has}, not {found}; if {example}{ending} is a case of its own, name it {example}_0000{ending}"


def sidecar(file: Path, is_label: bool = False) -> Path | None:
    """Return the json file from which nnU-Net reads the spacing of a TIFF; None if there is none.

    Of the image CASE_0000.tif it is CASE.json, of the label CASE.tif too.
    """
    if file.suffix.lower() not in TIFF_ENDINGS:
        return None
    match = CHANNEL.fullmatch(file.stem)
    if not is_label and match is None:
        return None
    beside = file.with_name(f"{file.stem if is_label else match['case']}.json")
    return beside if beside.is_file() else None


def with_sidecars(images: Iterable[Path]) -> list[Path]:
    """Return all files of the images of a case: its channels, and what lies beside them."""
    images = list(images)
    return images + sorted({beside for file in images if (beside := sidecar(file)) is not None})


def unused_files(folder: Path, ending: str) -> str:
    """Return one sentence about what lies in a folder of images or labels and is not used; empty if all is.

    What nnU-Net writes beside its predictions is passed over. Where the folder is not there, one of nearly its name is
    said.
    """
    if not folder.is_dir():
        near = misspelled(folder)
        return f"there is no folder {folder.name}, is it {near.name}?" if near else ""
    used = set(with_sidecars(files_in(folder, ending)))
    kinds: Counter[str] = Counter()
    for path in folder.iterdir():
        if path.name.startswith(".") or path in used or path.name in WRITTEN_BY_NNUNET:
            continue
        kinds[_kind(path)] += 1
    found = ", ".join(f"{count} {kind}" for kind, count in sorted(kinds.items()))
    return f"not used in {folder}: {found}; the data set's files end in {ending}" if found else ""


def misspelled(folder: Path) -> Path | None:
    """Return the folder beside one that is not there whose name is nearly its; None if there is none."""
    there = [one.name for one in folder.parent.glob("*/") if one.name not in FOLDERS]
    near = difflib.get_close_matches(folder.name, there, n=1)
    return folder.with_name(near[0]) if near and not folder.is_dir() else None


def _kind(path: Path) -> str:
    if path.is_dir():
        return "sub-folder(s)"
    suffix = "".join(path.suffixes[-2:]) if path.name.lower().endswith(".gz") else path.suffix
    return f"file(s) with the ending {suffix}" if suffix else "file(s) without an ending"


def some(names: Sequence[str], most: int = 5) -> str:
    """Return the first names, and how many more there are."""
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(names[:most]) + more
