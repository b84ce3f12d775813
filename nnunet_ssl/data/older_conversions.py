"""Data sets that an older version of a converter made: what is wrong with them, and how to fix it."""

from collections.abc import Mapping
from typing import Any

CONVERTED_BY = "nnunet_ssl"
FAULTS = {  # by data set: what was wrong with its version 1, 2, ...; the converter's version is one more than there are
    "PSFHS": ("neighbouring images, often of one patient, stand on two sides of random splits",),
    "HC18": ("the masks cover the whole drawn line, so that circumferences are 1.1 mm too long on average",),
}


def current_version(name: str) -> int:
    """Return the version of the converter of a data set, named as in its dataset.json."""
    return 1 + len(FAULTS.get(name, ()))


def older_conversion(dataset_json: Mapping[str, Any]) -> str | None:
    """Return a sentence about a data set that an older version of our converter made; None about any other.

    Args:
        dataset_json: its content; without `converter_version` it is of version 1.
    """
    name, version = dataset_json.get("name"), dataset_json.get("converter_version", 1)
    if dataset_json.get("converted_by") != CONVERTED_BY or name not in [*FAULTS]:
        return None
    version = version if type(version) is int and version > 0 else 1
    if version >= current_version(name):
        return None
    faults, now = "; ".join(FAULTS[name][version - 1 :]), current_version(name)
    return (
        f"{name} was converted by an older version of the converter ({version}, now {now}): {faults}; "
        f"fix it with nnunet_ssl convert {name} -i FOLDER --overwrite, then preprocess and train again"
    )
