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

from nnunet_ssl.commands.split_ways import FOLDS, SEED, at_random, by_protocol

if TYPE_CHECKING:
    from nnunet_ssl.data.raw_files import RawDataset
    from nnunet_ssl.splits.hiding import Move
    from nnunet_ssl.splits.make_splits import Split


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments."""
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    named = parser.add_mutually_exclusive_group(required=True)
    named.add_argument("dataset", nargs="?", metavar="DATASET", help="data set: id or name")
    named.add_argument("-d", metavar="DATASET", help="the same, as the other verbs have it")
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
    name = dataset_name(options.dataset or options.d)
    raw = RawDataset.open(Path(os.environ["nnUNet_raw"], name))
    if sentence := older_conversion(raw.dataset_json):
        print(f"WARNING: {sentence}")
    if unused := unused_files(raw.folder / "imagesUn", raw.ending):
        print(unused)
    preprocessed = Path(os.environ["nnUNet_preprocessed"], name)
    is_planned = (preprocessed / "dataset_fingerprint.json").is_file()  # which nnU-Net keeps, hidden labels included
    again = f"next: {planning_command(name, anew=is_planned)}"
    if options.unhide or options.move_unlabeled:
        moved, sentence = bring_back(raw) if options.unhide else move_to_pool(raw)
        print(f"{sentence}\n{again}" if moved else sentence)
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


def bring_back(raw: "RawDataset") -> tuple[int, str]:
    """Bring all hidden labels back, and return how many these are and a sentence about it."""
    from nnunet_ssl.splits.hiding import unhide

    back = unhide(raw)
    sentence = f"{len(back)} labels are back in {raw.folder / 'labelsTr'}" if back else "no label was hidden"
    return len(back), sentence


def move_to_pool(raw: "RawDataset") -> tuple[int, str]:
    """Move the images of imagesTr without a label to imagesUn, and return how many cases, and a sentence about it."""
    from nnunet_ssl.splits.hiding import carry_out, moves_to_pool

    moved = carry_out(raw, moves_to_pool(raw))
    what = f"the images of {len(moved)} cases are in {raw.folder / 'imagesUn'} now"
    nothing = f"every image in {raw.folder / 'imagesTr'} has a label"
    return len(moved), f"{what if moved else nothing}; {len(raw.labels())} labeled cases"


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
