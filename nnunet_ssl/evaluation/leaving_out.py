"""What is broken is left out and said, so that it never costs the rest."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TypeVar

from nnunet_ssl.data.raw_files import some
from nnunet_ssl.evaluation.folders import Row, evaluate_folders
from nnunet_ssl.evaluation.structures import Structures

Drawing = TypeVar("Drawing")
BROKEN = (ValueError, OSError, RuntimeError)  # what reading, resampling and comparing files raise


def reason_of(error: Exception) -> str:
    """Return what an error says, on one line; its kind too where the message is not one of ours."""
    text = " ".join(str(error).split())
    return text if text and isinstance(error, ValueError) else f"{type(error).__name__}: {text}".removesuffix(": ")


def evaluate_available(
    references: Path, predictions: Path, cases: Sequence[str], structures: Structures, num_processes: int
) -> tuple[dict[str, list[Row]], list[str]]:
    """Return the rows of each case that can be compared with its reference, and what is missing or broken.

    Args:
        references: folder with a file for each case.
        predictions: folder with the same names.
        cases: those that are wanted.
        structures: what is compared.
        num_processes: how many cases at once.
    """

    def evaluate(wanted: Sequence[str]) -> list[Row]:
        return evaluate_folders(references, predictions, structures, num_processes=num_processes, cases=wanted)

    there = [case for case in cases if (predictions / f"{case}{structures.ending}").is_file()]
    missing = sorted(set(cases) - set(there))
    rows, broken = _evaluate_halves(evaluate, there)
    problems = [f"no prediction of {some(missing)} in {predictions}"] if missing else []
    problems += [f"{case} cannot be compared ({reason})" for case, reason in broken.items()]
    of_case: dict[str, list[Row]] = {}
    for row in rows:
        of_case.setdefault(row.case, []).append(row)
    return of_case, problems


def drawn(figures: Mapping[str, Callable[[], Drawing]]) -> tuple[list[Drawing], list[str]]:
    """Return the figures that can be drawn, and warnings that name, by title, those that cannot, and why."""
    done: list[Drawing] = []
    failed: dict[str, list[str]] = {}
    for title, draw in figures.items():
        try:
            done.append(draw())
        except Exception as error:  # no picture is worth the page
            failed.setdefault(reason_of(error), []).append(title)
    return done, [f"cannot be drawn, left out: {'; '.join(titles)} ({why})" for why, titles in failed.items()]


def _evaluate_halves(
    evaluate: Callable[[Sequence[str]], list[Row]], cases: Sequence[str]
) -> tuple[list[Row], dict[str, str]]:
    """Evaluate all cases at once; where that fails each half, until the broken ones stand alone."""
    if not cases:
        return [], {}
    try:
        return evaluate(cases), {}
    except BROKEN as error:
        if len(cases) == 1:
            return [], {cases[0]: reason_of(error)}
    middle = len(cases) // 2
    (rows, broken), (more_rows, more_broken) = (_evaluate_halves(evaluate, c) for c in (cases[:middle], cases[middle:]))
    return rows + more_rows, broken | more_broken
