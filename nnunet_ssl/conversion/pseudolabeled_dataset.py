"""Writing a data set for plain nnU-Net: labeled cases, and unlabeled ones with the labels that a model predicts.

Its one fold validates on the cases of the original's fold, whose labels are true. origin.json says of each case whose
its label is. The data set appears whole or not at all.
"""

import json
import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tqdm import tqdm

from nnunet_ssl.conversion.raw_dataset import set_aside, staged
from nnunet_ssl.data.dataset_names import NAME, names_of_id
from nnunet_ssl.data.identical_images import as_test_case, twins_of_dataset
from nnunet_ssl.data.json_schemas import Origins, refuse_unfit
from nnunet_ssl.data.preprocessed_images import read_json
from nnunet_ssl.data.raw_files import RawDataset, sidecar, some
from nnunet_ssl.data.split_file import read_splits
from nnunet_ssl.data.stamps import file_digest
from nnunet_ssl.data.whole_files import copy, link_or_copy
from nnunet_ssl.splits.make_splits import replace_folds

ORIGIN = "origin.json"
SUFFIX = "_Pseudolabeled"
WRITTEN_BY = "nnunet_ssl pseudolabel"
OF_OTHER_FILES = ("dataset", "training", "test", "numTest", "converted_by", "converter_version")  # keys of dataset.json


@dataclass(frozen=True)
class LabeledFold:
    """The cases of a fold that have a true label: those it trains with, and those it validates on."""

    train: Sequence[str]
    val: Sequence[str]


@dataclass(frozen=True)
class Scan:
    """An unlabeled scan with its predicted or corrected label: its files, and what origin.json says of it."""

    images: Sequence[Path]
    label: Path
    origin: Mapping[str, Any]


def labeled_fold(raw: RawDataset, splits_file: Path, fold: str) -> LabeledFold:
    """Return the labeled cases of a fold; fold all trains with and validates on all of them, but on true labels only.

    Raises:
        ValueError: there is no split, no such fold, or a case has no label or no image.
    """
    labels, images = raw.labels(), raw.images()
    if fold == "all":
        cases = [case for case in labels if case in images]
        return LabeledFold(cases, [case for case in cases if case not in predicted_before(raw)])
    if not splits_file.exists():
        raise ValueError(f"there is no {splits_file}, which says what validates: copy it from where the model was made")
    folds = read_splits(splits_file)
    if int(fold) >= len(folds):
        raise ValueError(f"there is no fold {fold}: {splits_file} has {len(folds)} fold(s), the first is 0")
    found = LabeledFold(folds[int(fold)]["train"], folds[int(fold)]["val"])
    for where, there in (("labelsTr", labels), ("imagesTr", images)):
        if missing := [case for case in (*found.train, *found.val) if case not in there]:
            raise ValueError(f"training or validation cases of fold {fold} are not in {where}: {some(missing)}")
    return found


def predicted_before(raw: RawDataset) -> dict[str, dict]:
    """Return the cases of a data set whose labels were predicted when it was written, with their origin.

    Raises:
        ValueError: origin.json holds something else.
    """
    content = read_json(raw.folder / ORIGIN) or {}
    refuse_unfit(content, Origins, raw.folder / ORIGIN)
    return {case: origin for case, origin in content.get("cases", {}).items() if origin["label"] == "predicted"}


def dataset_folder(number: int, original: str, words: Mapping[str, Any]) -> Path:
    """Return where the data set goes.

    Args:
        number: its id.
        original: name of the original.
        words: all that decides what is in it; it may be there already, if it was written with the same.

    Raises:
        ValueError: the id is none, another data set has it, or files of it were added or changed since.
    """
    if not 1 <= number <= 999:
        raise ValueError(f"--as-dataset takes an id from 1 to 999, got {number}")
    name = NAME.fullmatch(original)
    kind = original.removeprefix(f"Dataset{name['id']}").removesuffix(SUFFIX)
    folder = Path(os.environ["nnUNet_raw"], f"Dataset{number:03d}{kind}{SUFFIX}")
    if others := [other for other in names_of_id(number) if other != folder.name]:
        raise ValueError(f"the id {number} is that of {others[0]}: choose another with --as-dataset")
    if folder.name not in names_of_id(number):
        return folder
    before = read_json(folder / ORIGIN) or read_json(set_aside(folder) / ORIGIN) or {}
    remedy = "choose another id with --as-dataset, or remove it from all of nnU-Net's folders"
    if not isinstance(before, dict) or {key: before.get(key) for key in words} != words:
        raise ValueError(f"{folder.name} exists and was not written by this command with this model: {remedy}")
    if folder.exists() and (changed := changed_files(folder, before.get("files"))):
        raise ValueError(f"{folder.name} was changed since this command wrote it ({some(changed)}): {remedy}")
    return folder


def files_of(folder: Path) -> dict[str, str | None]:
    """Return the files of a data set but origin.json, with their SHA-256; without it images, which nobody changes."""
    files = sorted(file for file in folder.rglob("*") if file.is_file() and file != folder / ORIGIN)
    images = folder / "imagesTr"
    return {str(file.relative_to(folder)): None if file.parent == images else file_digest(file) for file in files}


def changed_files(folder: Path, before: object) -> list[str]:
    """Return the files that were added, changed or removed since a data set was written, of which that was noted."""
    now, then = files_of(folder), before if isinstance(before, dict) else {}
    return sorted(name for name in now.keys() | then.keys() if name not in now or now[name] != then.get(name, ()))


def refuse_labeled_scans(raw: RawDataset, preprocessed: Path, pool: Sequence[str], fold: LabeledFold) -> None:
    """Raise a ValueError if an unlabeled case is a labeled or a test case too, by name or by voxels."""
    predicted = predicted_before(raw)
    labeled = {*fold.train, *fold.val} - {*predicted}
    remedy = "take them out of imagesUn, or out of this fold's unlabeled cases in splits_final.json"
    if both := sorted(labeled & {*pool}):
        raise ValueError(f"unlabeled and at the same time a training or validation case: {some(both)}: {remedy}")
    known = labeled | {as_test_case(case) for case in raw.images("imagesTs")}
    groups = twins_of_dataset(raw, preprocessed)
    if same := [" = ".join(names) for names in groups if {*names} & {*pool} and {*names} & known]:
        raise ValueError(f"unlabeled cases are the same image as a labeled or test case: {some(same)}: {remedy}")


def accepted_scans(
    order: Sequence[str], entropy: Mapping[str, float], accept: int | float, needs_one: bool = True
) -> list[str]:
    """Return the scans that the model is surest about; never one in which nothing is predicted.

    Args:
        order: all ranked scans, the most uncertain one first.
        entropy: of each; NaN where nothing is predicted.
        accept: how many, or which share of them, rounded, at least 1.
        needs_one: whether there is nothing without them.

    Raises:
        ValueError: there are fewer, or none is left.
    """
    number = max(1, round(accept * len(order))) if isinstance(accept, float) else accept
    if number > len(order):
        raise ValueError(f"--accept {number}, but there are {len(order)} ranked scans")
    accepted = [case for case in reversed(order) if not math.isnan(entropy[case])][:number]
    if needs_one and not accepted:
        raise ValueError("the model predicts nothing in any scan: there is no pseudo-label to train with")
    return sorted(accepted)


def write_dataset(
    folder: Path,
    raw: RawDataset,
    fold: LabeledFold,
    accepted: Mapping[str, Scan],
    not_accepted: Mapping[str, Any],
    words: Mapping[str, Any],
) -> Path | None:
    """Write the data set and its split; return where a copy of a split that it replaces was put, if there was one.

    Args:
        folder: as `dataset_folder` gives it; an earlier one of the same words is replaced.
        raw: the original.
        fold: its labeled cases.
        accepted: unlabeled scans with their predicted labels.
        not_accepted: what origin.json says of the other scans.
        words: what it was written with.
    """
    predicted, images, labels = predicted_before(raw), raw.images(), raw.labels()
    # Of a data set that holds predicted labels itself, those that are predicted anew or not accepted go.
    train = [case for case in fold.train if case not in accepted and case not in not_accepted]
    true = list(dict.fromkeys((*train, *fold.val)))
    origins = {case: predicted.get(case, {"label": "true"}) for case in true}
    origins |= {case: scan.origin for case, scan in accepted.items()}
    folds = [{"train": sorted({*train, *accepted}), "val": list(fold.val)}]
    with staged(folder) as staging:
        for case in tqdm(true, desc="Labeled cases"):
            _put_case(staging, case, images[case], labels[case], raw.ending)
        for case, scan in tqdm(accepted.items(), desc="Pseudo-labeled cases"):
            _put_case(staging, case, scan.images, scan.label, raw.ending)
        origin = {"written_by": WRITTEN_BY, **words, "cases": origins, "not_accepted": not_accepted}
        for name, content in (
            ("dataset.json", _dataset_json(raw, folder.name, len(origins))),
            ("splits_final.json", folds),  # nnU-Net's planner copies it to where there is none
        ):
            (staging / name).write_text(json.dumps(content, indent=4))
        origin |= {"files": files_of(staging)}
        (staging / ORIGIN).write_text(json.dumps(origin, indent=4))
    return replace_folds(Path(os.environ["nnUNet_preprocessed"], folder.name, "splits_final.json"), folds)


def _put_case(staging: Path, case: str, images: Sequence[Path], label: Path, ending: str) -> None:
    """Link or copy the images of a case, which nobody changes in place, and copy its label, which somebody may."""
    if odd := [file for file in (*images, label) if not file.name.endswith(ending)]:
        raise ValueError(f"{odd[0]} does not end in {ending}, as dataset.json says")
    for channel, file in enumerate(images):
        link_or_copy(file, staging / "imagesTr" / f"{case}_{channel:04d}{ending}")
    copy(label, staging / "labelsTr" / f"{case}{ending}")
    for beside, name in ((sidecar(images[0]), "imagesTr"), (sidecar(label, is_label=True), "labelsTr")):
        if beside is not None:
            copy(beside, staging / name / f"{case}.json")


def _dataset_json(raw: RawDataset, name: str, number: int) -> dict[str, Any]:
    content = {key: value for key, value in raw.dataset_json.items() if key not in OF_OTHER_FILES}
    content.setdefault("channel_names", content.get("modality"))  # an older name of the key
    return content | {"name": name.partition("_")[2], "numTraining": number}
