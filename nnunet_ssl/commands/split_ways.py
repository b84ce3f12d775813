"""The two ways in which `nnunet_ssl split` divides cases: by a published protocol, or at random."""

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from nnunet_ssl.data.raw_files import RawDataset
    from nnunet_ssl.splits.make_splits import Split

PATIENT = "patient"
SEED, FOLDS = 0, 5
EACH_FOR_ITSELF = "every case counts as a patient of its own: dataset.json has no patient_pattern"


def by_protocol(
    raw: "RawDataset", preprocessed: Path, options: argparse.Namespace
) -> tuple[list["Split"], dict[str, str], str]:
    """Return the published split, the unit of each case, and what the unit is called."""
    from nnunet_ssl.data.raw_files import some
    from nnunet_ssl.leaks.copies import copies_for_split
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
    (split,) = leave_out_twins([split], copies_for_split(raw, preprocessed, group_of), here.test, raw.folder.name)
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
    from nnunet_ssl.data.identical_images import as_test_case, united
    from nnunet_ssl.data.patients import patients_of, unit_of
    from nnunet_ssl.data.raw_files import some, unused_files
    from nnunet_ssl.data.split_file import NO_ESTIMATE
    from nnunet_ssl.leaks.copies import copies_for_split
    from nnunet_ssl.splits.make_splits import number_or_share, split_at_random, split_of_one_group
    from nnunet_ssl.splits.raw_cases import RawCases, classes_of_cases

    labeled, unit = number_or_share(options.labeled), unit_of(raw.dataset_json)
    here = RawCases.of(raw)
    if not here.with_label:
        unused = unused_files(raw.folder / "labelsTr", raw.ending)
        raise ValueError(
            f"there is no label CASE{raw.ending} in {raw.folder / 'labelsTr'}" + (f" ({unused})" if unused else "")
        )
    pattern = options.group_by or PATIENT
    if pattern == PATIENT:
        pattern = raw.dataset_json.get("patient_pattern")
        print(f"grouped by the pattern {pattern} in the case ids" if pattern else EACH_FOR_ITSELF)
        pattern = pattern or r"^(.+)$"
    by_name = labeled_groups(here.with_label, pattern, options.group_by is None)
    without_label = [case for case in here.unlabeled if case not in by_name]
    by_name |= patients_of(without_label, pattern)
    by_name |= {as_test_case(case): group for case, group in patients_of(here.test, pattern).items()}
    twins = copies_for_split(raw, preprocessed, by_name)
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
