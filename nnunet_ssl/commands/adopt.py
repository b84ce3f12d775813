"""Take cases that an expert has labeled by now out of the unlabeled ones, and train with them from here on.

  nnunet_ssl adopt -d 27 CASE ...                     labels lie in nnUNet_raw/DatasetXXX/labelsUn as CASE.nii.gz
  nnunet_ssl adopt -d 27 CASE ... --labels FOLDER     or in another folder, which stays as it is

A label is looked at first: it must lie where its image lies, and hold only values that dataset.json knows; the ignore
label is one. Then label and image go to labelsTr and imagesTr, numTraining follows, the cases go into train of each
fold in which their patient does not validate and out of its unlabeled cases, and they are preprocessed where the others
are, before anything moves. Plans and validation cases stay. Interrupted, the same command finishes it.

Trainings of the data set have to be finished: one that goes on, with other cases than it began with, is refused.
"""

import argparse
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from nnunetv2.utilities.plans_handling.plans_handler import PlansManager

    from nnunet_ssl.data.labeled_cases import LabeledPreprocessing
    from nnunet_ssl.splits.adopting import Adoption


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments."""
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("-d", required=True, metavar="DATASET", help="data set: id or name")
    parser.add_argument("cases", nargs="+", metavar="CASE", help="cases of imagesUn, without channel and ending")
    parser.add_argument("--labels", metavar="FOLDER", help="their labels (default: labelsUn in the raw data set)")
    parser.add_argument(
        "--allow-unfinished",
        action="store_true",
        help="give up trainings that are not finished: they could not go on with more cases",
    )


def run(options: argparse.Namespace) -> int:
    """Check everything, move the cases, and say how to go on from the trained model."""
    from nnunet_ssl.commands.going_on import how_to_go_on
    from nnunet_ssl.commands.preprocess import check_environment
    from nnunet_ssl.data.dataset_names import dataset_name
    from nnunet_ssl.data.raw_files import RawDataset, some
    from nnunet_ssl.splits.adopting import LABELS, Adoption, refuse_bad_labels, refuse_unadoptable

    check_environment()
    name = dataset_name(options.d)
    raw = RawDataset.open(Path(os.environ["nnUNet_raw"], name))
    preprocessed = Path(os.environ["nnUNet_preprocessed"], name)
    labels = Path(options.labels) if options.labels is not None else raw.folder / LABELS
    adoption = Adoption(raw, list(dict.fromkeys(options.cases)), labels)
    are_moved = all(adoption.label_of(case).is_file() for case in adoption.cases)  # an emptied labelsHidden is gone
    if options.labels is not None and not labels.is_dir() and not are_moved:
        raise ValueError(f"--labels takes a folder that exists, got {options.labels!r}")
    # In the raw data set, too: nnU-Net's planner compares the two, where there are two.
    files = [folder / "splits_final.json" for folder in (preprocessed, raw.folder)]
    splits = {file: folds_in(file) for file in files if file.exists()}
    folds = next(iter(splits.values()), [])
    refuse_unadoptable(adoption, folds, preprocessed)
    refuse_unfinished_trainings(name, options.allow_unfinished)
    refuse_bad_labels(adoption)
    adoption.moves()
    preprocessings, lines = preprocessings_of(preprocessed)
    with prepared(adoption, preprocessings):  # what cannot be preprocessed is found before anything moves
        adoption.begin()
        adoption.carry_out()
        lines = [*change_splits(adoption, splits), *lines]
        take_over(adoption, preprocessings, preprocessed)
    lines += note_of_cascades(adoption, preprocessed) if folds else []
    adoption.finish()
    pool = len(raw.images("imagesUn"))
    print(f"adopted: {some(adoption.cases)}; {len(raw.labels())} labeled cases, {pool} in imagesUn")
    print(*lines, *how_to_go_on(name, preprocessed), sep="\n")
    return 0


def refuse_unfinished_trainings(dataset: str, are_given_up: bool) -> None:
    """Raise a ValueError if a training of the data set runs, or, unless these are given up, waits to go on."""
    from nnunet_ssl.commands.going_on import FINAL, folders_of_trainings
    from nnunet_ssl.data.raw_files import some
    from nnunet_ssl.training.run_lock import is_held

    folders = folders_of_trainings(dataset)
    if running := [folder for folder in folders if is_held(folder)]:
        raise ValueError(f"a training runs in {running[0]} and reads what would move: wait for its end, or end it")
    waiting = [one for one in folders if (one / "checkpoint_latest.pth").is_file() and not (one / FINAL).is_file()]
    if waiting and not are_given_up:
        names = some([f"{folder.parent.name}/{folder.name}" for folder in waiting])
        raise ValueError(
            f"not finished, and could not go on with more labeled cases than it began with: {names}. Finish it first "
            "(nnUNetv2_train ... --c), or give it up with --allow-unfinished"
        )


def folds_in(file: Path) -> list[dict]:
    """Return the folds of a splits_final.json; a ValueError if it is damaged."""
    from nnunet_ssl.data.split_file import read_splits

    return read_splits(file)


def change_splits(adoption: "Adoption", splits: dict[Path, list[dict]]) -> Iterator[str]:
    """Let the folds train with the cases, and say which do not, and where the split before is kept."""
    from nnunet_ssl.splits.adopting import folds_that_train, with_adopted
    from nnunet_ssl.splits.make_splits import replace_folds

    for file, folds in splits.items():
        copy = replace_folds(file, with_adopted(folds, adoption.cases, adoption.raw))
        if copy is not None:
            yield f"split: {file}; the one before: {copy.name}"
    for case in adoption.cases if splits else ():
        folds = next(iter(splits.values()))
        used = folds_that_train(folds, case, adoption.raw)
        if left := [str(fold) for fold in range(len(folds)) if fold not in used]:
            yield f"{case} is not in train of fold {', '.join(left)}, where its patient validates"


def preprocessings_of(preprocessed: Path) -> "tuple[list[LabeledPreprocessing], list[str]]":
    """Return what preprocesses further cases wherever others are, and lines that say so, and where only nnU-Net can."""
    from nnunet_ssl.data.labeled_cases import LabeledPreprocessing, can_take_a_case, preprocessing_command
    from nnunet_ssl.data.raw_files import read_dataset_json

    found, lines = [], []
    for plans, configuration, folder in preprocessed_configurations(preprocessed):
        if can_take_a_case(folder):
            dataset_json = read_dataset_json(preprocessed / "dataset.json")
            found.append(LabeledPreprocessing(folder, plans, configuration, dataset_json))
        else:
            command = preprocessing_command(preprocessed.name, plans.plans_name, configuration)
            lines.append(f"{configuration} is preprocessed in an older format; preprocess it anew: {command}")
    if found:
        lines.insert(
            0, f"preprocessed for {', '.join(f'{one.configuration} ({one.plans.plans_name})' for one in found)}"
        )
    return found, lines


@contextmanager
def prepared(adoption: "Adoption", preprocessings: "list[LabeledPreprocessing]") -> Iterator[None]:
    """Hold the cases preprocessed beside the folders in which the others are."""
    try:
        for one in preprocessings:
            one.clear()
            for case in adoption.cases:
                one.prepare(case, adoption.images_of(case), adoption.label_of(case))
        yield
    finally:
        for one in preprocessings:
            one.clear()


def take_over(adoption: "Adoption", preprocessings: "list[LabeledPreprocessing]", preprocessed: Path) -> None:
    """Let the cases be preprocessed as labeled ones, and no more as unlabeled ones."""
    from nnunet_ssl.data.unlabeled_preprocessing import forget_cases
    from nnunet_ssl.data.whole_files import copy

    for folder in preprocessed.glob("*_unlabeled"):
        forget_cases(folder, adoption.cases)
    for one in preprocessings:
        one.take_over(adoption.cases)
    references = preprocessed / "gt_segmentations"
    for case in adoption.cases if references.is_dir() else ():
        copy(adoption.label_of(case), references / f"{case}{adoption.raw.ending}")


def note_of_cascades(adoption: "Adoption", preprocessed: Path) -> list[str]:
    """Say which configurations cannot be trained with the cases: second stages, whose cases a fold has to validate."""
    from nnunet_ssl.data.plans_file import configurations_of, plans_in, read_plans
    from nnunet_ssl.data.raw_files import some

    all_of_them = [pair for file in plans_in(preprocessed) for pair in configurations_of(read_plans(file)).items()]
    names = [name for name, configuration in all_of_them if configuration.previous_stage_name is not None]
    return [
        f"{name} cannot be trained with {some(adoption.cases)}: no fold validates them, so that no first stage "
        "segments them; other configurations can"
        for name in dict.fromkeys(names)
    ]


def preprocessed_configurations(preprocessed: Path) -> "Iterator[tuple[PlansManager, str, Path]]":
    """Give plans, configuration and folder of whatever a data set was preprocessed for, each folder once."""
    from nnunet_ssl.data.plans_file import plans_in, read_plans

    seen = set()
    for plans in map(read_plans, plans_in(preprocessed)):
        for name in plans.available_configurations:
            folder = preprocessed / plans.get_configuration(name).data_identifier
            if folder not in seen and folder.is_dir():
                seen.add(folder)
                yield plans, name, folder
