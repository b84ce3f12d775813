"""Cells of tables that other programs read: names in them, which come from files, stay text there."""

from collections.abc import Iterable, Mapping
from typing import Any

FORMULA = ("=", "+", "-", "@", "\t", "\r")  # what a spreadsheet takes for the beginning of one
LATEX = {character: f"\\{character}" for character in "_%&#${}"} | {
    "\\": r"\textbackslash{}",
    "^": r"\textasciicircum{}",
    "~": r"\textasciitilde{}",
    "[": "{[}",  # at the beginning of a row it would belong to the end of the one before
    "±": r"$\pm$",
    "–": "--",
}
FOR_LATEX = str.maketrans(LATEX)


def csv_cell(value: Any) -> Any:  # noqa: ANN401 - whatever csv writes
    """Return a value of a CSV; a text that a spreadsheet would calculate gets an apostrophe before it."""
    if isinstance(value, str) and value.startswith(FORMULA) and not is_number(value):
        return f"'{value}"
    return value


def csv_row(row: Iterable[Any]) -> list[Any]:
    """Return a row for `csv.writer`."""
    return [csv_cell(value) for value in row]


def csv_cells(row: Mapping[str, Any]) -> dict[str, Any]:
    """Return a row for `csv.DictWriter`."""
    return {column: csv_cell(value) for column, value in row.items()}


def latex_cell(text: str) -> str:
    """Return a text that LaTeX prints as it is, on one line."""
    return " ".join(text.split()).translate(FOR_LATEX)


def is_number(text: str) -> bool:
    """Return whether a text is a number, a negative one too."""
    try:
        float(text)
    except ValueError:
        return False
    return True
