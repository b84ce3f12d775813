"""Whose each case is: what a regular expression finds in the case ids."""

from collections.abc import Iterable, Mapping
from typing import Any

from nnunet_ssl.data.patterns import search_each

PATIENTS = "patients"


def unit_of(dataset_json: Mapping[str, Any]) -> str:
    """Return what the pattern of a data set finds: patients, or what its dataset.json says instead."""
    return dataset_json.get("unit", PATIENTS)


def groups_of(cases: Iterable[str], pattern: str) -> dict[str, str]:
    """Return the group of each case: what the pattern's first group (or, without one, its match) is in the id.

    Raises:
        ValueError: the pattern is no regular expression, takes too long, or does not occur in a case's id.
    """
    found = groups_where_they_occur(cases, pattern)
    for case, group in found.items():
        if group is None:
            raise ValueError(f"the pattern {pattern!r} does not occur in the case id {case}")
    return found


def patients_of(cases: Iterable[str], pattern: str | None) -> dict[str, str]:
    """Return the patient of each case as `groups_of` does; a case in which the pattern finds none is its own.

    Raises:
        ValueError: the pattern is no regular expression, or takes too long.
    """
    if pattern is None:
        return {case: case for case in cases}
    return {case: group or case for case, group in groups_where_they_occur(cases, pattern).items()}


def groups_where_they_occur(cases: Iterable[str], pattern: str) -> dict[str, str | None]:
    """Return the group of each case as `groups_of` does, None where the pattern does not occur."""
    matches = search_each(pattern, cases)
    return {case: match and match[1 if match.re.groups else 0] for case, match in matches.items()}
