"""Which unlabeled cases a fold trains on, and the guards that keep labeled cases out of them."""

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from shlex import quote

from nnunetv2.training.dataloading.nnunet_dataset import infer_dataset_class

from nnunet_ssl.data.dataset_reader import DatasetReader
from nnunet_ssl.data.identical_images import CACHE, as_test_case, identical_images
from nnunet_ssl.data.pool_index import read_stamps
from nnunet_ssl.data.preprocessed_images import Content, contents_of, image_file, open_image
from nnunet_ssl.data.raw_files import RawDataset, some
from nnunet_ssl.data.stamps import state_folder
from nnunet_ssl.data.unlabeled_preprocessing import UnlabeledPreprocessing


@dataclass(frozen=True)
class UnlabeledPool:
    """The unlabeled cases of one fold.

    Attributes:
        folders: the preprocessed folder in which each case lies.
        left_out: cases that could not be preprocessed, with the reason.
        twins: training cases that are the same image as a validation case: "a = b".
    """

    folders: dict[str, Path]
    left_out: dict[str, str]
    twins: list[str] = field(default_factory=list)


def collect_pool(
    preprocessing: UnlabeledPreprocessing,
    labeled_folder: Path,
    train: list[str],
    validation: list[str],
    named: list[str] | None,
    preprocess_missing: Callable[[list[str]], None],
) -> UnlabeledPool:
    """Find the unlabeled cases of a fold, preprocess what is missing, and refuse what must not be trained on.

    Args:
        preprocessing: where images and preprocessed unlabeled cases lie.
        labeled_folder: nnU-Net's own preprocessed folder.
        train: the training cases of the fold.
        validation: its validation cases.
        named: the fold's `unlabeled` cases in splits_final.json; None means all of `imagesUn`.
        preprocess_missing: called with the cases of `imagesUn` that are missing or stale.

    Raises:
        ValueError: an empty pool, a case that is nowhere, a case that is also labeled (by name or content) or a test
            case (by content), a channel count that differs.
    """
    labeled = {*train, *validation}
    available = _available_cases(preprocessing)
    cases = available if named is None else named
    _refuse_shared_names(cases, labeled)
    with_image = set(available)
    from_images = [case for case in cases if case in with_image]
    hidden = [case for case in cases if case not in with_image]
    stamps = read_stamps(preprocessing.preprocessed)
    if preprocessing.images.is_dir() and (outdated := preprocessing.outdated(from_images, stamps=stamps)):
        preprocess_missing(outdated)
        stamps = read_stamps(preprocessing.preprocessed)
    problems = {case: stamps[case] for case in from_images if case in stamps and stamps[case].problem}
    _refuse_wrong_channels([f"{case}: {s.problem}" for case, s in problems.items() if s.wrong_channel_count])
    left_out = {case: stamp.problem for case, stamp in problems.items()}
    usable = [case for case in from_images if case not in left_out]
    folders = dict.fromkeys(usable, preprocessing.preprocessed)
    folders |= _find_hidden_cases(hidden, labeled_folder, preprocessing.images)
    if not folders:
        raise ValueError(_empty_pool_message(preprocessing, named, left_out))

    state = state_folder(preprocessing.preprocessed)
    contents = {case: stamps[case].content for case in usable if case in stamps}
    unstamped = [case for case in usable if case not in contents]
    contents |= contents_of(preprocessing.preprocessed, unstamped, state / "unlabeled_contents.json")
    cache = state / "labeled_contents.json"
    _refuse_shared_contents(contents, hidden, labeled_folder, labeled, cache)
    voxels = {case: stamps[case].voxels for case in usable if case in stamps and stamps[case].voxels}
    _refuse_test_images(preprocessing, set(folders), voxels)
    return UnlabeledPool(folders, left_out, training_twins(labeled_folder, train, validation, cache))


def training_twins(labeled_folder: Path, train: list[str], validation: list[str], cache: Path) -> list[str]:
    """Return which training cases are, voxel for voxel, a validation case under another name: "a = b".

    Of preprocessed images; only those of equal shape are read.
    """
    sides = [
        {case for case in cases if image_file(labeled_folder, case) is not None}
        for cases in (set(train) - set(validation), set(validation) - set(train))
    ]
    shapes = [{case: tuple(open_image(labeled_folder, case).shape) for case in cases} for cases in sides]
    common = set(shapes[0].values()) & set(shapes[1].values())
    trained, validated = (contents_of(labeled_folder, sorted(cases), cache, common) for cases in sides)
    case_of = {content: case for case, content in validated.items()}
    return [f"{case} = {case_of[content]}" for case, content in trained.items() if content in case_of]


def twins_warning(twins: list[str], dataset: str) -> str:
    """Return what there is to say, and do, about training cases that are the same image as a validation case."""
    again = f"nnunet_ssl split {quote(dataset)} --labeled 100% --overwrite"
    return (
        f"training cases are the same image as a validation case, whose score is too good then: {some(twins)}. A split "
        f"by nnunet_ssl keeps them on one side: {again}, or with the number of labeled patients that you want"
    )


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
            f"{labeled_folder}: {some(missing)}"
        )
    return dict.fromkeys(cases, labeled_folder)


def _refuse_shared_names(cases: list[str], labeled: set[str]) -> None:
    shared = sorted(labeled.intersection(cases))
    if shared:
        raise ValueError(
            f"{some(shared)}: unlabeled and at the same time a training or validation case of this fold. Take "
            "them out of imagesUn, or out of this fold's lists in splits_final.json"
        )


def _refuse_wrong_channels(problems: list[str]) -> None:
    if problems:
        raise ValueError(
            f"unlabeled images do not fit the data set: {some(problems)}. Take them out of imagesUn, or give them "
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
            f"unlabeled cases are the same image as a training or validation case of this fold: {some(pairs)}. Take "
            "them out of imagesUn, or out of this fold's lists in splits_final.json"
        )


def _refuse_test_images(preprocessing: UnlabeledPreprocessing, cases: set[str], voxels: dict[str, Content]) -> None:
    """Compare the voxels of unlabeled and test images, where the raw data set is at hand.

    Those of `voxels` are known since their preprocessing, and not read.
    """
    folder = preprocessing.images.parent
    if not (folder / "dataset.json").is_file() or not (folder / "imagesTs").is_dir():
        return
    raw = RawDataset.open(folder)
    unlabeled = {case: files for name in ("imagesTr", "imagesUn") for case, files in raw.images(name).items()}
    files = {case: files for case, files in unlabeled.items() if case in cases}
    test = {as_test_case(case): files for case, files in raw.images("imagesTs").items()}
    reader, cache = DatasetReader.of_plans(preprocessing.plans), preprocessing.preprocessed.parent / CACHE
    groups = identical_images(files | test, reader, cache, voxels, test)
    pairs = [" = ".join(names) for names in groups if {*names} & {*files} and {*names} & {*test}]
    if pairs:
        raise ValueError(
            f"unlabeled cases are the same image as a test case: {some(pairs)}. Take them out of imagesUn, out of "
            "imagesTs, or out of this fold's unlabeled cases in splits_final.json"
        )


def _empty_pool_message(
    preprocessing: UnlabeledPreprocessing, named: list[str] | None, left_out: dict[str, str]
) -> str:
    if left_out:
        case, problem = next(iter(left_out.items()))
        retry = f"After fixing them: {preprocessing.command}"
        return f"none of the {len(left_out)} unlabeled images can be used; {case}: {problem}. {retry}"
    if named is not None:
        return "splits_final.json lists no case under `unlabeled` for this fold: name some, or drop the key"
    ending = preprocessing.dataset_json["file_ending"]
    unused = preprocessing.unused_files()
    return (
        f"there are no unlabeled images: put them into {preprocessing.images} as CASE_0000{ending}, or name "
        "preprocessed cases under `unlabeled` in splits_final.json" + (f" ({unused})" if unused else "")
    )
