"""Divide the cases of a data set into labeled, unlabeled and validation, and write splits_final.json.

  nnunet_ssl split 27 --protocol acdc-7            a published split
  nnunet_ssl split 27 --labeled 10% --folds 5      a seeded one, patient by patient
  nnunet_ssl split 27 --unhide                     bring hidden labels back
  nnunet_ssl split 27 --move-unlabeled             move the images of imagesTr that have no label to imagesUn

With --hide the labels of the unlabeled cases move to labelsHidden and their images to imagesUn, so that planning and
preprocessing cannot see them; run nnUNetv2_plan_and_preprocess afterwards.
"""

import argparse
import os
from pathlib import Path
from shlex import quote
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from nnunet_ssl.data.raw_files import RawDataset
    from nnunet_ssl.splits.hiding import Move
    from nnunet_ssl.splits.make_splits import Split

PATIENT = "patient"
SEED, FOLDS = 0, 5


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments."""
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("dataset", metavar="DATASET", help="data set: id or name")
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument("--protocol", metavar="NAME", help="a published split, for example acdc-7")
    what.add_argument("--labeled", metavar="N|P%", help="patients labeled in each fold, or a share of them")
    what.add_argument("--unhide", action="store_true", help="bring hidden labels back")
    what.add_argument(
        "--move-unlabeled", action="store_true", help="move images of imagesTr that have no label to imagesUn"
    )
    parser.add_argument("--allow-missing", action="store_true", help="with --protocol: of a partial copy of the data")
    parser.add_argument("--add-imagesUn", action="store_true", help="with --protocol: also all other cases of imagesUn")
    parser.add_argument("--seed", type=int, help=f"with --labeled (default: {SEED})")
    parser.add_argument(
        "--folds", type=int, help=f"with --labeled; 1 is the first of five (default: {FOLDS}, or fewer)"
    )
    parser.add_argument(
        "--group-by",
        metavar="REGEX|patient",
        help="with --labeled: what stays together, the first group of a regular expression in the case id (default: "
        "patient, as dataset.json's patient_pattern says; without that every case for itself)",
    )
    parser.add_argument(
        "--hide",
        action="store_true",
        help="hide the labels of the unlabeled cases; with --protocol, or with --labeled and --folds 1",
    )
    parser.add_argument("--overwrite", action="store_true", help="replace another split; a dated copy is kept")


def run(options: argparse.Namespace) -> int:
    """Make the split, write it, hide what is to be hidden, and say what each fold holds."""
    from nnunet_ssl.commands.preprocess import check_environment
    from nnunet_ssl.data.dataset_names import dataset_name, planning_command
    from nnunet_ssl.data.older_conversions import older_conversion
    from nnunet_ssl.data.raw_files import RawDataset, some, unused_files
    from nnunet_ssl.splits.hiding import carry_out
    from nnunet_ssl.splits.make_splits import check_disjoint, write_splits

    refuse_what_does_not_apply(options)
    check_environment()
    name = dataset_name(options.dataset)
    raw = RawDataset.open(Path(os.environ["nnUNet_raw"], name))
    if sentence := older_conversion(raw.dataset_json):
        print(f"WARNING: {sentence}")
    if unused := unused_files(raw.folder / "imagesUn", raw.ending):
        print(unused)
    preprocessed = Path(os.environ["nnUNet_preprocessed"], name)
    again = f"next: {planning_command(name)}"
    if options.unhide or options.move_unlabeled:
        print(f"{bring_back(raw)}\n{again}" if options.unhide else f"{move_to_pool(raw)}\n{again}")
        return 0
    if without_label := images_without_label(raw):
        print(
            f"in no split, because they lie in imagesTr without a label: {some(without_label)}; to take them for "
            f"unlabeled: nnunet_ssl split {quote(name)} --move-unlabeled"
        )
    splits, group_of, unit = (at_random if options.protocol is None else by_protocol)(raw, preprocessed, options)
    if options.hide and any(split.unlabeled != splits[0].unlabeled for split in splits):
        raise ValueError("--hide needs the same unlabeled cases in every fold: take --folds 1, or a --protocol")
    for split in splits:
        check_disjoint(split, group_of)
    moves = moves_of(raw, splits, options.hide)  # what cannot be moved is found out before anything is written
    file = preprocessed / "splits_final.json"
    copy = write_splits(file, splits, options.overwrite)
    print(*describe(splits, group_of, unit), sep="\n")
    print(f"split: {file}" + (f"; the one before: {copy.name}" if copy else ""))
    if options.hide:
        needed = {case for split in splits for case in (*split.train, *split.val)}
        moved = carry_out(raw, moves)
        back = [case for case in moved if case in needed]
        if back:
            print(
                f"{len(back)} labels are back in {raw.folder / 'labelsTr'}, because this split needs them: {some(back)}"
            )
        print(f"{len(moved) - len(back)} labels hidden in {raw.folder / 'labelsHidden'}\n{again}")
    return 0


def bring_back(raw: "RawDataset") -> str:
    """Bring all hidden labels back, and return a sentence about it."""
    from nnunet_ssl.splits.hiding import unhide

    back = unhide(raw)
    return f"{len(back)} labels are back in {raw.folder / 'labelsTr'}" if back else "no label was hidden"


def move_to_pool(raw: "RawDataset") -> str:
    """Move the images of imagesTr without a label to imagesUn, and return a sentence about it."""
    from nnunet_ssl.splits.hiding import carry_out, moves_to_pool

    moved = carry_out(raw, moves_to_pool(raw))
    what = f"the images of {len(moved)} cases are in {raw.folder / 'imagesUn'} now"
    nothing = f"every image in {raw.folder / 'imagesTr'} has a label"
    return f"{what if moved else nothing}; {len(raw.labels())} labeled cases"


def images_without_label(raw: "RawDataset") -> list[str]:
    """Return the cases of imagesTr that have no label, hidden or not."""
    return sorted({*raw.images()} - {*raw.labels(), *raw.labels("labelsHidden"), *raw.images("imagesUn")})


def moves_of(raw: "RawDataset", splits: list["Split"], hide: bool) -> "list[Move]":
    """Return what has to move for splits.

    Raises:
        ValueError: a case that has to be labeled has no label, or a hidden one and nothing is to be hidden; a file has
            the place of another.
    """
    from nnunet_ssl.data.raw_files import some
    from nnunet_ssl.splits.hiding import moves_to_hide, moves_to_show
    from nnunet_ssl.splits.raw_cases import RawCases

    here = RawCases.of(raw)
    with_label, hidden = set(here.with_label), set(here.hidden)
    needed = sorted({case for split in splits for case in (*split.train, *split.val)})
    without_label = [case for case in needed if case not in with_label]
    if without_label:
        raise ValueError(f"{some(without_label)}: needed with a label, but there is none in labelsTr or labelsHidden")
    images = {*raw.images("imagesTr"), *raw.images("imagesUn")}
    if without_image := [case for case in here.with_label if case not in images]:
        raise ValueError(f"{some(without_image)}: with a label, but no image in imagesTr or imagesUn")
    back = [case for case in needed if case in hidden]
    if hide:
        return [*moves_to_show(raw, back), *moves_to_hide(raw, splits[0].unlabeled)]
    if back:
        raise ValueError(
            f"{some(back)}: needed with a label, but there is none in labelsTr: --unhide brings all hidden ones back, "
            "--hide these"
        )
    if on_the_way := sorted(hidden & {*raw.images("imagesTr")} - {*here.labeled}):
        raise ValueError(f"{some(on_the_way)}: --hide was interrupted: its words again finish it, --unhide undoes it")
    return []


def refuse_what_does_not_apply(options: argparse.Namespace) -> None:
    """Raise a ValueError for an option that the chosen way of splitting does not have."""
    of_protocol, of_labeled = ("allow_missing", "add_imagesUn"), ("seed", "folds", "group_by")
    way, others = (
        ("--protocol", of_labeled)
        if options.protocol is not None
        else ("--labeled", of_protocol)
        if options.labeled is not None
        else ("--unhide" if options.unhide else "--move-unlabeled", (*of_protocol, *of_labeled, "hide", "overwrite"))
    )
    for name in others:
        if getattr(options, name) not in (None, False):
            raise ValueError(f"--{name.replace('_', '-')} does not apply to {way}: leave it out")
    if options.seed is not None and not 0 <= options.seed < 2**32:
        raise ValueError(f"--seed is from 0 to {2**32 - 1}, got {options.seed}")


def by_protocol(
    raw: "RawDataset", preprocessed: Path, options: argparse.Namespace
) -> tuple[list["Split"], dict[str, str], str]:
    """Return the published split, the unit of each case, and what the unit is called."""
    from nnunet_ssl.data.identical_images import twins_of_dataset
    from nnunet_ssl.data.raw_files import some
    from nnunet_ssl.splits.make_splits import Split, missing_units, split_by_protocol
    from nnunet_ssl.splits.protocols import benchmark_of
    from nnunet_ssl.splits.raw_cases import RawCases

    benchmark = benchmark_of(options.protocol)
    here = RawCases.of(raw)
    group_of = {case: benchmark.unit_of(case) or case for case in here.all()}
    # Further images of a unit with annotated cases, such as other cardiac phases, are no part of the published split.
    units = {*(group_of[case] for case in here.with_label), *benchmark.test}
    further = {case for case in here.unlabeled if group_of[case] in units} - set(here.with_label)
    cases = [case for case in here.all() if case not in further]
    if options.allow_missing and (missing := missing_units(benchmark, cases)):
        print(f"missing here, {len(missing)} of {options.protocol}: {', '.join(missing)}")
    split = split_by_protocol(cases, benchmark, options.protocol, options.allow_missing)
    if options.add_imagesUn:
        kept_apart = {*(group_of[case] for case in split.val), *benchmark.test}
        added = [case for case in here.unlabeled if group_of[case] not in kept_apart and case not in split.train]
        added = [case for case in added if benchmark.reason_left_out(case) is None]
        split = Split(split.train, split.val, sorted({*split.unlabeled, *added}))
    print(f"{options.protocol}: {benchmark.source}")
    if split.val == split.train:
        print("This benchmark has no validation set: val is the labeled cases, so score on imagesTs only.")
    (split,) = leave_out_twins([split], twins_of_dataset(raw, preprocessed), here.test, raw.folder.name)
    on_purpose = {case: reason for case in here.all() if (reason := benchmark.reason_left_out(case))}
    for reason in dict.fromkeys(on_purpose.values()):
        cases = [case for case in on_purpose if on_purpose[case] == reason]
        print(f"left out of {options.protocol}, {len(cases)}, {reason}: {some(cases)}")
    if unused := sorted(set(here.all()) - {*split.train, *split.val, *split.unlabeled, *on_purpose}):
        more = "" if options.add_imagesUn else "; --add-imagesUn takes those of imagesUn too"
        print(f"not in this split, {len(unused)} cases: {some(unused)}{more}")
    return [split], group_of, benchmark.unit


def at_random(
    raw: "RawDataset", preprocessed: Path, options: argparse.Namespace
) -> tuple[list["Split"], dict[str, str], str]:
    """Return a seeded split, the group of each case, and what a group is called."""
    from nnunet_ssl.data.identical_images import as_test_case, twins_of_dataset, united
    from nnunet_ssl.data.patients import patients_of
    from nnunet_ssl.data.raw_files import some, unused_files
    from nnunet_ssl.data.split_file import NO_ESTIMATE
    from nnunet_ssl.splits.make_splits import number_or_share, split_at_random, split_of_one_group
    from nnunet_ssl.splits.raw_cases import RawCases, classes_of_cases

    labeled, unit = number_or_share(options.labeled), raw.dataset_json.get("unit", "patients")
    here = RawCases.of(raw)
    if not here.with_label:
        unused = unused_files(raw.folder / "labelsTr", raw.ending)
        raise ValueError(
            f"there is no label CASE{raw.ending} in {raw.folder / 'labelsTr'}" + (f" ({unused})" if unused else "")
        )
    pattern = options.group_by or PATIENT
    if pattern == PATIENT:
        pattern = raw.dataset_json.get("patient_pattern", r"^(.+)$")
        print(f"grouped by the pattern {pattern} in the case ids")
    by_name = labeled_groups(here.with_label, pattern, options.group_by is None)
    without_label = [case for case in here.unlabeled if case not in by_name]
    by_name |= patients_of(without_label, pattern)
    by_name |= {as_test_case(case): group for case, group in patients_of(here.test, pattern).items()}
    twins = twins_of_dataset(raw, preprocessed)
    labeled_twins = [sorted({*names} & {*here.with_label}) for names in twins]
    group_of = united(by_name, labeled_twins)
    if joined := [" = ".join(names) for names in labeled_twins if len({by_name[name] for name in names}) > 1]:
        print(f"kept on one side, because they hold identical images: the {unit} of {some(joined)}")
    tested = {group_of[as_test_case(case)] for case in here.test}
    extra = [case for case in without_label if group_of[case] not in tested]
    seed = SEED if options.seed is None else options.seed
    groups = {group_of[case] for case in here.with_label}
    folds = min(FOLDS, len(groups)) if options.folds is None else options.folds
    classes = classes_of_cases(raw)
    if len(groups) == 1 and not options.group_by:
        others = [case for case in extra if group_of[case] not in groups]
        splits = [split_of_one_group(list(classes), labeled, folds, others)]
        print(f"WARNING: {NO_ESTIMATE}")
    else:
        splits = split_at_random(group_of, classes, labeled, folds, seed, extra)
    splits = leave_out_twins(splits, twins, here.test, raw.folder.name)
    splits = leave_out_borders(raw, splits, here.with_label)
    if not all(split.unlabeled for split in splits):
        print("There is a fold without unlabeled cases: only nnUNetTrainer can train on it.")
    return splits, group_of, unit


def labeled_groups(cases: list[str], pattern: str, is_of_dataset_json: bool) -> dict[str, str]:
    """Return the group of each case that has a label; a ValueError says what to do where there is none."""
    from nnunet_ssl.data.patients import groups_of

    try:
        return groups_of(cases, pattern)
    except ValueError as error:
        remedy = " (patient_pattern of dataset.json): correct it there, or give another with --group-by REGEX"
        raise ValueError(f"{error}{remedy if is_of_dataset_json else ''}") from error


def leave_out_borders(raw: "RawDataset", splits: list["Split"], with_label: list[str]) -> list["Split"]:
    """Return the splits without neighbours across a border, where dataset.json asks for it, and say which these are."""
    from nnunet_ssl.data.raw_files import some
    from nnunet_ssl.splits.near_duplicates import without_borders

    width = raw.dataset_json.get("border_images", 0)
    if type(width) is not int or width < 0:
        raise ValueError(f"{raw.folder / 'dataset.json'}: border_images is a number of images, got {width!r}")
    if width:
        splits, near = without_borders(splits, width, with_label)
        print(f"left out, {len(near)} cases, {width} on each side of a border of validation and training: {some(near)}")
    return splits


def leave_out_twins(splits: list["Split"], twins: list[list[str]], test: list[str], dataset: str) -> list["Split"]:
    """Return the splits without unlabeled twins of other cases, and say which these are and which twins stay."""
    from nnunet_ssl.data.identical_images import across, as_test_case
    from nnunet_ssl.data.raw_files import some
    from nnunet_ssl.data.unlabeled_pool import twins_warning
    from nnunet_ssl.splits.near_duplicates import without_twins

    tests = list(map(as_test_case, test))
    splits, left_out = without_twins(splits, twins, tests)
    if left_out:
        print(f"left out, {len(left_out)} unlabeled cases that are the same image as another case: {some(left_out)}")
    for number, split in enumerate(splits):
        if both := across(twins, split.train, split.val):
            print(f"WARNING: fold {number}: {twins_warning(both, dataset)}")
    known = {case for split in splits for case in (*split.train, *split.val)}
    if both := across(twins, known, tests):
        print(f"WARNING: test cases are the same image as a training or validation case: {some(both)}")
    return splits


def describe(splits: list["Split"], group_of: dict[str, str], unit: str) -> list[str]:
    """Return one line for each fold: cases and units, and the hash that a training's log shows too."""
    from nnunet_ssl.data.split_file import split_digest

    lines = []
    for fold, split in enumerate(splits):
        parts = {"labeled": split.train, "validation": split.val, "unlabeled": split.unlabeled}
        cases = ", ".join(f"{len(cases)} {name}" for name, cases in parts.items())
        patients = ", ".join(str(len({group_of[case] for case in cases})) for cases in parts.values())
        lines.append(f"fold {fold}: {cases} cases of {patients} {unit}; hash {split_digest(*parts.values())}")
    return lines
