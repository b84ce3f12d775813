"""Which unlabeled cases a fold trains on, and the guards that keep labeled cases out of them."""

import hashlib
import json
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

from nnunetv2.training.dataloading.nnunet_dataset import infer_dataset_class

from nnunet_ssl.data.preprocessed_images import Content, contents_of, image_file
from nnunet_ssl.data.unlabeled_preprocessing import UnlabeledPreprocessing, read_stamp, state_folder

RETRY = "After mending them: nnunet_ssl preprocess"


@dataclass(frozen=True)
class UnlabeledPool:
    """The unlabeled cases of one fold.

    Attributes:
        folders: the preprocessed folder in which each case lies.
        left_out: cases that could not be preprocessed, with the reason.
    """

    folders: dict[str, Path]
    left_out: dict[str, str]


def collect_pool(
    preprocessing: UnlabeledPreprocessing,
    labeled_folder: Path,
    labeled: set[str],
    named: list[str] | None,
    preprocess_missing: Callable[[list[str]], None],
) -> UnlabeledPool:
    """Find the unlabeled cases of a fold, preprocess what is missing, and refuse what must not be trained on.

    Args:
        preprocessing: where images and preprocessed unlabeled cases lie.
        labeled_folder: nnU-Net's own preprocessed folder.
        labeled: the training and validation cases of the fold.
        named: the fold's `unlabeled` cases in splits_final.json; None means all of `imagesUn`.
        preprocess_missing: called with the cases of `imagesUn` that are missing or stale.

    Raises:
        ValueError: an empty pool, a case that is nowhere, a case that is also labeled (by name or content), a
            channel count that differs.
    """
    available = _available_cases(preprocessing)
    cases = available if named is None else named
    _refuse_shared_names(cases, labeled)
    with_image = set(available)
    from_images = [case for case in cases if case in with_image]
    hidden = [case for case in cases if case not in with_image]
    if preprocessing.images.is_dir() and (outdated := preprocessing.outdated(from_images)):
        preprocess_missing(outdated)

    stamps = {case: read_stamp(preprocessing.preprocessed, case) for case in from_images}
    problems = {case: stamp for case, stamp in stamps.items() if stamp is not None and stamp.problem}
    _refuse_wrong_channels([f"{case}: {s.problem}" for case, s in problems.items() if s.wrong_channel_count])
    left_out = {case: stamp.problem for case, stamp in problems.items()}
    usable = [case for case in from_images if case not in left_out]
    folders = dict.fromkeys(usable, preprocessing.preprocessed)
    folders |= _find_hidden_cases(hidden, labeled_folder, preprocessing.images)
    if not folders:
        raise ValueError(_empty_pool_message(preprocessing, named, left_out))

    state = state_folder(preprocessing.preprocessed)
    contents = {case: stamps[case].content for case in usable if stamps[case] is not None}
    unstamped = [case for case in usable if case not in contents]
    contents |= contents_of(preprocessing.preprocessed, unstamped, state / "unlabeled_contents.json")
    _refuse_shared_contents(contents, hidden, labeled_folder, labeled, state / "labeled_contents.json")
    return UnlabeledPool(folders, left_out)


def unlabeled_cases_of_fold(splits_file: Path, fold: int | str) -> list[str] | None:
    """Return the cases under `unlabeled` of a fold in splits_final.json; None when the fold names none."""
    if fold == "all" or not splits_file.exists():
        return None
    return json.loads(splits_file.read_text())[fold].get("unlabeled")


def split_digest(train: Iterable[str], validation: Iterable[str], unlabeled: Iterable[str]) -> str:
    """Return the first 12 hexadecimal digits of the SHA-256 of a fold's three lists of cases, whatever their order."""
    lists = json.dumps([sorted(cases) for cases in (train, validation, unlabeled)])
    return hashlib.sha256(lists.encode()).hexdigest()[:12]


def _available_cases(preprocessing: UnlabeledPreprocessing) -> list[str]:
    """Return the cases of imagesUn. Where the raw data set is not, what was preprocessed elsewhere is trusted."""
    if preprocessing.images.parent.is_dir():
        return list(preprocessing.image_files())
    folder = preprocessing.preprocessed
    if not folder.is_dir() or not any(folder.iterdir()):
        return []
    return sorted(infer_dataset_class(str(folder)).get_identifiers(str(folder)))


def _find_hidden_cases(cases: list[str], labeled_folder: Path, images: Path) -> dict[str, Path]:
    missing = [case for case in cases if image_file(labeled_folder, case) is None]
    if missing:
        raise ValueError(
            f"splits_final.json names unlabeled cases that are neither in {images} nor preprocessed in "
            f"{labeled_folder}: {_some(missing)}"
        )
    return dict.fromkeys(cases, labeled_folder)


def _refuse_shared_names(cases: list[str], labeled: set[str]) -> None:
    shared = sorted(labeled.intersection(cases))
    if shared:
        raise ValueError(
            f"{_some(shared)}: unlabeled and at the same time a training or validation case of this fold. Take "
            "them out of imagesUn, or out of this fold's lists in splits_final.json"
        )


def _refuse_wrong_channels(problems: list[str]) -> None:
    if problems:
        raise ValueError(
            f"unlabeled images do not fit the data set: {_some(problems)}. Take them out of imagesUn, or give them "
            "the data set's channels"
        )


def _refuse_shared_contents(
    contents: dict[str, Content], hidden: list[str], labeled_folder: Path, labeled: set[str], cache: Path
) -> None:
    """Compare the voxels of unlabeled and labeled cases: the same scan may stand there under two names."""
    contents = contents | contents_of(labeled_folder, hidden, cache)
    labeled_here = sorted(case for case in labeled if image_file(labeled_folder, case) is not None)
    shapes = {content.shape for content in contents.values()}
    case_of = {content: case for case, content in contents_of(labeled_folder, labeled_here, cache, shapes).items()}
    pairs = [f"{case} = {case_of[content]}" for case, content in contents.items() if content in case_of]
    if pairs:
        raise ValueError(
            f"unlabeled cases are the same image as a training or validation case of this fold: {_some(pairs)}. Take "
            "them out of imagesUn, or out of this fold's lists in splits_final.json"
        )


def _empty_pool_message(
    preprocessing: UnlabeledPreprocessing, named: list[str] | None, left_out: dict[str, str]
) -> str:
    if left_out:
        case, problem = next(iter(left_out.items()))
        return f"none of the {len(left_out)} unlabeled images can be used; {case}: {problem}. {RETRY}"
    if named is not None:
        return "splits_final.json lists no case under `unlabeled` for this fold: name some, or drop the key"
    ending = preprocessing.dataset_json["file_ending"]
    return (
        f"there are no unlabeled images: put them into {preprocessing.images} as CASE_0000{ending}, or name "
        "preprocessed cases under `unlabeled` in splits_final.json"
    )


def _some(names: list[str], most: int = 5) -> str:
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(names[:most]) + more
