"""Divide the cases of a data set into labeled, unlabeled and validation, and write splits_final.json.

  nnunet_ssl split 27 --protocol acdc-7            a published split
  nnunet_ssl split 27 --labeled 10% --folds 5      a seeded one, patient by patient
  nnunet_ssl split 27 --unhide                     bring hidden labels back

With --hide the labels of the unlabeled cases move to labelsHidden and their images to imagesUn, so that planning and
preprocessing cannot see them; run nnUNetv2_plan_and_preprocess afterwards.
"""

import argparse
import os
import re
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
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
    parser.add_argument("--allow-missing", action="store_true", help="with --protocol: of a partial copy of the data")
    parser.add_argument("--add-imagesUn", action="store_true", help="with --protocol: also all other cases of imagesUn")
    parser.add_argument("--seed", type=int, help=f"with --labeled (default: {SEED})")
    parser.add_argument("--folds", type=int, help=f"with --labeled; 1 is the first of five (default: {FOLDS})")
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
    from nnunet_ssl.commands.preprocess import check_environment, dataset_name
    from nnunet_ssl.splits.hiding import hide, unhide
    from nnunet_ssl.splits.make_splits import check_disjoint, write_splits

    refuse_what_does_not_apply(options)
    check_environment()
    name = dataset_name(options.dataset)
    raw = Path(os.environ["nnUNet_raw"], name)
    if not (raw / "dataset.json").exists():
        raise ValueError(f"there is no {raw / 'dataset.json'}")
    again = f"next: nnUNetv2_plan_and_preprocess -d {options.dataset} --verify_dataset_integrity"
    if options.unhide:
        print(f"{len(unhide(raw))} labels are back in {raw / 'labelsTr'}\n{again}")
        return 0
    splits, group_of = by_protocol(raw, options) if options.protocol else at_random(raw, options)
    if options.hide and any(split.unlabeled != splits[0].unlabeled for split in splits):
        raise ValueError("--hide needs the same unlabeled cases in every fold: take --folds 1, or a --protocol")
    for split in splits:
        check_disjoint(split, group_of)
    file = Path(os.environ["nnUNet_preprocessed"], name, "splits_final.json")
    copy = write_splits(file, splits, options.overwrite)
    print(*describe(splits, group_of), sep="\n")
    print(f"split: {file}" + (f"; the one before: {copy.name}" if copy else ""))
    if options.hide:
        print(f"{len(hide(raw, splits[0].unlabeled))} labels hidden in {raw / 'labelsHidden'}\n{again}")
    return 0


def refuse_what_does_not_apply(options: argparse.Namespace) -> None:
    """Raise a ValueError for an option that the chosen way of splitting does not have."""
    of_protocol, of_labeled = ("allow_missing", "add_imagesUn"), ("seed", "folds", "group_by")
    way, others = (
        ("--protocol", of_labeled)
        if options.protocol
        else ("--labeled", of_protocol)
        if options.labeled
        else ("--unhide", (*of_protocol, *of_labeled, "hide", "overwrite"))
    )
    for name in others:
        if getattr(options, name) not in (None, False):
            raise ValueError(f"--{name.replace('_', '-')} does not apply to {way}")
    if options.seed is not None and not 0 <= options.seed < 2**32:
        raise ValueError(f"--seed is from 0 to {2**32 - 1}, got {options.seed}")


def by_protocol(raw: Path, options: argparse.Namespace) -> tuple[list["Split"], dict[str, str]]:
    """Return the published split, and the unit of each case."""
    from nnunet_ssl.splits.make_splits import Split, missing_units, some, split_by_protocol
    from nnunet_ssl.splits.protocols import benchmark_of
    from nnunet_ssl.splits.raw_cases import RawCases

    benchmark = benchmark_of(options.protocol)
    here = RawCases.of(raw)
    group_of = {case: benchmark.unit_of(case) or case for case in here.all()}
    # Further images of a unit with annotated cases, such as other cardiac phases, are no part of the published split.
    units = {*(group_of[case] for case in (*here.labeled, *here.hidden)), *benchmark.test}
    further = {case for case in here.unlabeled if group_of[case] in units} - set(here.hidden)
    cases = [case for case in here.all() if case not in further]
    if options.allow_missing and (missing := missing_units(benchmark, cases)):
        print(f"missing here, {len(missing)} of {options.protocol}: {', '.join(missing)}")
    split = split_by_protocol(cases, benchmark, options.protocol, options.allow_missing)
    if options.add_imagesUn:
        kept_apart = {*(group_of[case] for case in split.val), *benchmark.test}
        added = [case for case in here.unlabeled if group_of[case] not in kept_apart and case not in split.train]
        split = Split(split.train, split.val, sorted({*split.unlabeled, *added}))
    if without_label := sorted({*split.train, *split.val} - set(here.labeled)):
        raise ValueError(f"{some(without_label)}: needed with a label, but there is none in labelsTr: --unhide")
    print(f"{options.protocol}: {benchmark.source}")
    if split.val == split.train:
        print("This benchmark has no validation set: val is the labeled cases, so score on imagesTs only.")
    if unused := sorted(set(here.all()) - {*split.train, *split.val, *split.unlabeled}):
        print(f"not in this split, {len(unused)} cases: {some(unused)}; --add-imagesUn takes those of imagesUn too")
    return [split], group_of


def at_random(raw: Path, options: argparse.Namespace) -> tuple[list["Split"], dict[str, str]]:
    """Return a seeded split, and the group of each case."""
    from nnunet_ssl.splits.make_splits import group_by, some, split_at_random
    from nnunet_ssl.splits.raw_cases import RawCases, classes_of_cases

    labeled = number_or_share(options.labeled)
    here = RawCases.of(raw)
    if not here.labeled:
        raise ValueError(f"there is no labeled case in {raw / 'labelsTr'}")
    if on_the_way := sorted(set(here.hidden) - set(here.unlabeled)):
        raise ValueError(f"{some(on_the_way)}: --hide was interrupted: --unhide brings the labels back")
    pattern = options.group_by or PATIENT
    if pattern == PATIENT:
        from batchgenerators.utilities.file_and_folder_operations import load_json

        pattern = load_json(str(raw / "dataset.json")).get("patient_pattern", r"^(.+)$")
        print(f"grouped by the pattern {pattern} in the case ids")
    group_of = group_by(here.all(), pattern)
    tested = {match[1] if match.re.groups else match[0] for case in here.test if (match := re.search(pattern, case))}
    extra = [case for case in here.unlabeled if group_of[case] not in tested]
    seed = SEED if options.seed is None else options.seed
    folds = FOLDS if options.folds is None else options.folds
    splits = split_at_random(group_of, classes_of_cases(raw), labeled, folds, seed, extra)
    if not all(split.unlabeled for split in splits):
        print("There is a fold without unlabeled cases: only nnUNetTrainer can train on it.")
    return splits, group_of


def number_or_share(text: str) -> int | float:
    """Return "7" as 7 and "10%" as 0.1.

    Raises:
        ValueError: it is neither a whole number from 1 on nor a share up to 100 %.
    """
    match = re.fullmatch(r"(\d+)|(\d+(?:\.\d+)?)%", text)
    value = int(match[1]) if match and match[1] else float(match[2]) / 100 if match else 0
    if not value or (isinstance(value, float) and value > 1):
        raise ValueError(f"--labeled is a number of patients or a share such as 10%, got {text!r}")
    return value


def describe(splits: list["Split"], group_of: dict[str, str]) -> list[str]:
    """Return one line for each fold: cases and patients, and the hash that a training's log shows too."""
    from nnunet_ssl.data.unlabeled_pool import split_digest

    lines = []
    for fold, split in enumerate(splits):
        parts = {"labeled": split.train, "validation": split.val, "unlabeled": split.unlabeled}
        cases = ", ".join(f"{len(cases)} {name}" for name, cases in parts.items())
        patients = ", ".join(str(len({group_of[case] for case in cases})) for cases in parts.values())
        lines.append(f"fold {fold}: {cases} cases of {patients} patients; hash {split_digest(*parts.values())}")
    return lines
