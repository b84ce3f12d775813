"""Leaving out what stands on both sides of a split: identical images, and neighbours of consecutive numbers."""

import re
from collections.abc import Iterable, Sequence
from dataclasses import replace

from nnunet_ssl.splits.make_splits import Split


def without_twins(
    splits: Sequence[Split], twins: Iterable[Sequence[str]], test: Iterable[str]
) -> tuple[list[Split], list[str]]:
    """Return the splits without unlabeled cases that are the same image as a labeled, validation or test case.

    Args:
        splits: the folds.
        twins: groups of cases whose images are identical.
        test: the test cases, by the names that they have in `twins`.

    Returns:
        The splits, and what was left out of any of them: "a = b".
    """
    groups, left_out, kept = [set(names) for names in twins], {}, []
    for split in splits:
        apart = {*split.train, *split.val, *test}
        found = {case: same for group in groups if (same := sorted(group & apart)) for case in group}
        left_out |= {f"{case} = {found[case][0]}": None for case in split.unlabeled if case in found}
        kept.append(replace(split, unlabeled=[case for case in split.unlabeled if case not in found]))
    return kept, list(left_out)


def without_borders(splits: Sequence[Split], width: int, with_label: Iterable[str]) -> tuple[list[Split], list[str]]:
    """Return the splits without cases near a border between validation and training, for consecutive numbers.

    Borders are between cases that have a label; an unlabeled image without one is left out where it is as near to
    validation.

    Args:
        splits: the folds; the digits at the end of a case's id are its number, what is before them its series.
        width: how many cases are left out on each side of a border.
        with_label: the cases that have a label, hidden or not.

    Returns:
        The splits, and the cases that were left out of any of them.

    Raises:
        ValueError: nothing would be left to train on, or to validate.
    """
    with_label, left_out, kept = set(with_label), set(), []
    for fold, split in enumerate(splits):
        training = {number_of(case) for case in (*split.train, *split.unlabeled) if case in with_label}
        validation = {number_of(case) for case in split.val}
        near = {(series, number + step) for series, number in validation for step in range(-2 * width, 2 * width + 1)}
        borders = {place for place in training if near_to(place, validation, width)}
        borders |= {place for place in validation if near_to(place, training, width)}
        parts = {
            "train": [case for case in split.train if number_of(case) not in borders],
            "val": [case for case in split.val if number_of(case) not in borders],
            "unlabeled": [
                case for case in split.unlabeled if number_of(case) not in (borders if case in with_label else near)
            ],
        }
        if not parts["train"] or not parts["val"]:
            raise ValueError(
                f"fold {fold}: without the {width} cases on each side of a border between validation and training none "
                "is left: keep longer runs of consecutive numbers together with --group-by"
            )
        kept.append(Split(**parts))
        left_out |= {*split.train, *split.val, *split.unlabeled} - {case for part in parts.values() for case in part}
    return kept, sorted(left_out)


def number_of(case: str) -> tuple[str, int]:
    """Return the series and the number of a case; one that has no number is a series of its own."""
    match = re.fullmatch(r"(.*?)(\d+)", case)
    return (match[1], int(match[2])) if match else (case, 0)


def near_to(place: tuple[str, int], others: set[tuple[str, int]], width: int) -> bool:
    """Return whether one of the others has a number at most `width` away in the same series."""
    return any((place[0], place[1] + step) in others for step in range(-width, width + 1) if step)
