"""What is broken is left out and said, so that it never costs the rest."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
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


@dataclass(frozen=True)
class Problem:
    """What keeps cases from being compared; if it is of references, other predictions do not fix it."""

    text: str
    is_of_references: bool = False


def evaluate_available(
    references: Path, predictions: Path, cases: Sequence[str], structures: Structures, num_processes: int
) -> tuple[dict[str, list[Row]], list[Problem]]:
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

    unpredicted, lost = (
        [case for case in cases if not (folder / f"{case}{structures.ending}").is_file()]
        for folder in (predictions, references)
    )
    rows, broken = _evaluate_halves(evaluate, [case for case in cases if case not in {*unpredicted, *lost}])
    problems = [Problem(f"no prediction of {some(sorted(unpredicted))} in {predictions}")] if unpredicted else []
    problems += [Problem(f"no reference of {some(sorted(lost))} in {references}", True)] if lost else []
    for case, reason in broken.items():
        is_of_references = not _is_readable(references / f"{case}{structures.ending}", structures)
        problems.append(Problem(f"{case} cannot be compared ({reason})", is_of_references))
    of_case: dict[str, list[Row]] = {}
    for row in rows:
        of_case.setdefault(row.case, []).append(row)
    return of_case, problems


def _is_readable(file: Path, structures: Structures) -> bool:
    try:
        structures.read_labels(file)
    except BROKEN:
        return False
    return True


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
