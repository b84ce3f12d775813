"""Dividing cases into labeled, unlabeled and validation, by patient, and writing nnU-Net's splits_final.json."""

import re
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

import numpy as np
from nnunetv2.utilities.crossval_split import generate_crossval_split

from nnunet_ssl.data.preprocessed_images import read_json, write_json_atomically
from nnunet_ssl.data.raw_files import some
from nnunet_ssl.data.whole_files import copy
from nnunet_ssl.splits.protocols import Benchmark

SINGLE_FOLD_OF = 5  # a split of one fold is the first of so many
MOST_COMBINATIONS = 5000  # of classes that are looked at for the smallest set of groups; takes well under a second


@dataclass(frozen=True)
class Split:
    """One fold, as it stands in splits_final.json: case ids, sorted."""

    train: list[str]
    val: list[str]
    unlabeled: list[str]


def split_by_protocol(cases: Sequence[str], benchmark: Benchmark, protocol: str, allow_missing: bool = False) -> Split:
    """Return the published split, for the cases that there are.

    Where the benchmark has no validation set, the labeled cases are validated on, because nnU-Net needs some.

    Args:
        cases: ids of all cases for training, labeled or not.
        benchmark: its lists.
        protocol: for example "acdc-7".
        allow_missing: whether units of the lists may have no case here.

    Raises:
        ValueError: units of the lists have no case here; a test unit has one; no labeled case is left.
    """
    of_unit = defaultdict(list)
    for case in cases:
        of_unit[benchmark.unit_of(case)].append(case)
    tests = [unit for unit in benchmark.test if unit in of_unit]
    if tests:
        raise ValueError(f"{some(tests)}: of the published test set, but in imagesTr or imagesUn: move to imagesTs")
    absent = missing_units(benchmark, cases)
    if absent and not allow_missing:
        raise ValueError(f"{len(absent)} of {protocol} are not here: {some(absent)}; --allow-missing goes on without")
    number = benchmark.labeled[protocol]
    labeled, unlabeled, validation = (
        sorted(case for unit in units for case in of_unit[unit])
        for units in (benchmark.train[:number], benchmark.train[number:], benchmark.validation)
    )
    if not labeled:
        raise ValueError(f"none of the labeled cases of {protocol} is here: {some(benchmark.train[:number])}")
    return Split(labeled, validation or labeled, unlabeled)


def missing_units(benchmark: Benchmark, cases: Sequence[str]) -> list[str]:
    """Return the units for training and validation of which there is no case."""
    here = set(map(benchmark.unit_of, cases))
    return [unit for unit in (*benchmark.train, *benchmark.validation) if unit not in here]


def split_at_random(
    group_of: Mapping[str, str],
    classes_of: Mapping[str, frozenset[int]],
    labeled: int | float,
    folds: int = 5,
    seed: int = 0,
    without_label: Iterable[str] = (),
) -> list[Split]:
    """Return a cross-validation whose training parts are divided into labeled and unlabeled, group by group.

    With the same seed the labeled groups of a smaller number are among those of a larger one, and all classes that
    occur in a fold's training part occur in its labeled part.

    Args:
        group_of: the group (patient) of every case, labeled or not.
        classes_of: the label values in every case that has labels.
        labeled: how many groups are labeled; a fraction below 1 is a share of the training groups.
        folds: of the cross-validation; 1 gives the first of five.
        seed: of every choice.
        without_label: cases without label file; those of validation patients are left out.

    Raises:
        ValueError: more folds than groups; a number of labeled groups that there are not, or that cannot hold all
            classes.
    """
    with_label: dict[str, list[str]] = defaultdict(list)
    for case in sorted(classes_of):
        with_label[group_of[case]].append(case)
    groups = sorted(with_label)
    if len(groups) < 2:
        raise ValueError(f"all cases with labels are of one group (patient), {some(groups)}: is --group-by right?")
    if not 1 <= folds <= len(groups):
        raise ValueError(f"--folds is from 1 to {len(groups)}, the groups (patients) with labels, got {folds}")
    parts = folds if folds > 1 else min(SINGLE_FOLD_OF, len(groups))
    halves = generate_crossval_split(groups, seed=seed, n_splits=parts)[:folds]
    splits = []
    for fold, half in enumerate(halves):
        training, validation = [str(g) for g in half["train"]], {str(g) for g in half["val"]}
        classes = {g: frozenset().union(*(classes_of[case] for case in with_label[g])) for g in training}
        chosen = groups_to_label(training, classes, labeled, np.random.default_rng((seed, fold)))
        unlabeled = [case for g in training if g not in chosen for case in with_label[g]]
        extra = [case for case in without_label if group_of[case] not in validation]
        train, val = (sorted(case for g in side for case in with_label[g]) for side in (chosen, validation))
        splits.append(Split(train, val, sorted(unlabeled + extra)))
    return splits


def groups_to_label(
    groups: Sequence[str], classes: Mapping[str, frozenset[int]], labeled: int | float, rng: np.random.Generator
) -> set[str]:
    """Return which groups of a training part are labeled.

    Raises:
        ValueError: a number of groups that there are not, or that cannot hold all classes.
    """
    number = count_of(labeled, len(groups))
    chosen = covering_order(groups, classes, rng)[:number]
    refuse_missing_classes(chosen, classes, number)
    return set(chosen)


def split_of_one_group(cases: Sequence[str], labeled: int | float, folds: int, without_label: Iterable[str]) -> Split:
    """Return the split of a single patient, whose cases are labeled and validated on: there is no other.

    Raises:
        ValueError: more than one labeled group or fold is asked for.
    """
    count_of(labeled, 1)
    if folds != 1:
        raise ValueError(f"--folds is 1 with a single labeled patient, got {folds}")
    return Split(sorted(cases), sorted(cases), sorted(without_label))


def number_or_share(text: str, what: str = "--labeled is a number of patients") -> int | float:
    """Return "7" as 7 and "10%" as 0.1; `what` is the beginning of the message.

    Raises:
        ValueError: it is neither a whole number from 1 on nor a share up to 100 %.
    """
    match = re.fullmatch(r"(\d+)|(\d+(?:\.\d+)?)%", text)
    value = int(match[1]) if match and match[1] else float(match[2]) / 100 if match else 0
    if not value or (isinstance(value, float) and value > 1):
        raise ValueError(f"{what} or a share such as 10%, got {text!r}")
    return value


def count_of(labeled: int | float, available: int) -> int:
    """Return a number of groups: itself, or that share of those available, rounded, at least 1.

    Raises:
        ValueError: not between 1 and all.
    """
    number = max(1, round(labeled * available)) if isinstance(labeled, float) else labeled
    if not 1 <= number <= available:
        raise ValueError(f"--labeled is from 1 to {available} groups (patients) of a training part, got {number}")
    return number


def covering_order(groups: Sequence[str], classes: Mapping[str, frozenset[int]], rng: np.random.Generator) -> list[str]:
    """Return the groups in random order, but with few that hold all classes first.

    They are the fewest possible, unless there are so many combinations of classes that a greedy choice has to do.
    """
    order = [groups[index] for index in rng.permutation(len(groups))]
    first_of = {held: group for group in reversed(order) if (held := classes[group])}
    wanted = frozenset().union(*first_of)
    cover = smallest_cover(first_of, wanted) or greedy_cover(first_of, wanted)
    return cover + [group for group in order if group not in set(cover)]


def greedy_cover(first_of: Mapping[frozenset[int], str], wanted: frozenset[int]) -> list[str]:
    """Return groups that hold all classes, always the one next that adds most."""
    cover, have = [], frozenset()
    while have != wanted:
        best = max(first_of, key=lambda held: len(held - have))
        cover.append(first_of[best])
        have |= best
    return cover


def smallest_cover(first_of: Mapping[frozenset[int], str], wanted: frozenset[int]) -> list[str] | None:
    """Return the fewest groups that hold all classes; None when there are too many combinations to look at."""
    reached: dict[frozenset[int], list[str]] = {frozenset(): []}
    front = [frozenset()]
    while wanted not in reached:  # breadth first: the first cover found has the fewest groups
        following = []
        for have in front:
            for held, group in first_of.items():
                if (more := have | held) not in reached:
                    reached[more] = [*reached[have], group]
                    following.append(more)
            if len(reached) > MOST_COMBINATIONS:
                return None
        front = following
    return reached[wanted]


def refuse_missing_classes(labeled: Sequence[str], classes: Mapping[str, frozenset[int]], number: int) -> None:
    """Raise a ValueError if the labeled groups lack a class that the training part has."""
    wanted = frozenset().union(*classes.values())
    lacking = wanted - frozenset().union(*(classes[group] for group in labeled))
    if lacking:
        raise ValueError(
            f"no {number} labeled groups (patients) hold all classes {sorted(wanted)}, {sorted(lacking)} would be "
            "missing: take more with --labeled"
        )


def check_disjoint(split: Split, group_of: Mapping[str, str]) -> None:
    """Raise a ValueError if a group stands both in validation and in labeled or unlabeled, or a case in two lists.

    Labeled cases that are all of the validation cases, as where a benchmark has none of its own, are let through.
    """
    unlabeled, validation = ({group_of[case] for case in cases} for cases in (split.unlabeled, split.val))
    labeled = {group_of[case] for case in split.train} if split.val != split.train else set()
    shared = sorted((labeled | unlabeled) & validation)
    if shared:
        raise ValueError(f"{some(shared)}: on the validation side and on the training side of one fold")
    both = sorted(set(split.train) & set(split.unlabeled))
    if both:
        raise ValueError(f"{some(both)}: both labeled and unlabeled in one fold")


def write_splits(file: Path, splits: Sequence[Split], overwrite: bool = False) -> Path | None:
    """Write splits_final.json; return where a copy of the one it replaces was put, if there was one.

    Raises:
        ValueError: there is one with other content, and `overwrite` is not set.
    """
    folds = [asdict(split) for split in splits]
    if file.exists() and not overwrite and read_json(file) != folds:
        raise ValueError(f"{file} exists with another split: replace it with --overwrite (a copy is kept)")
    return replace_folds(file, folds)


def replace_folds(file: Path, folds: Sequence[Mapping[str, Any]]) -> Path | None:
    """Write the folds of splits_final.json; return where a copy of other ones that it replaces was put, if any."""
    before = None
    if file.exists():
        if read_json(file) == folds:
            return None
        before = file.with_name(f"{file.stem}_until_{datetime.now():%Y-%m-%d_%H%M%S}.json")
        copy(file, before)
    try:
        write_json_atomically(list(folds), file)
    except OSError:
        if before is not None:
            before.unlink()
        raise
    return before
