"""Which data sets there are in nnU-Net's three folders, by id and by name."""

import difflib
import os
import re
from pathlib import Path

PLACES = ("nnUNet_raw", "nnUNet_preprocessed", "nnUNet_results")
NAME = re.compile(r"Dataset(?P<id>\d{3,}).*")
RESIDUAL_ENCODER_PLANS = re.compile(r"nnUNetResEncUNet(?P<size>M|L|XL)Plans")


def dataset_name(dataset: str) -> str:
    """Return the name of a data set given by id or name.

    Raises:
        ValueError: it is neither, there is no such data set, or there are several of one id.
    """
    known = known_datasets()
    if dataset in known:
        return dataset
    folders = {place: os.environ[place] for place in PLACES if os.environ.get(place)}
    where = ", ".join(f"{p}={f}" + ("" if Path(f).is_dir() else " (no folder)") for p, f in folders.items())
    if dataset.isdecimal():
        names = names_of_id(int(dataset))
        if len(names) == 1:
            return names[0]
        if names:
            places = "; ".join(f"{name} in {' and '.join(known[name])}" for name in names)
            raise ValueError(
                f"several data sets have the id {dataset}: {places}. nnU-Net allows one: rename or remove the others, "
                "or give the name instead of the id"
            )
    elif not NAME.fullmatch(dataset):
        raise ValueError(f"a data set is given by id or name, 4 or Dataset004_Hippocampus, got {dataset!r}")
    near = difflib.get_close_matches(dataset, known, n=1)
    hint = f"is it {near[0]}?" if near else f"there are: {', '.join(known) or 'none'}"
    raise ValueError(f"there is no data set {dataset!r} in {where}; {hint}")


def known_datasets() -> dict[str, list[str]]:
    """Return in which of nnU-Net's folders each data set lies, by its variables; by name, sorted."""
    found: dict[str, list[str]] = {}
    for place in PLACES:
        folder = os.environ.get(place)
        if folder and Path(folder).is_dir():
            for path in Path(folder).iterdir():
                if NAME.fullmatch(path.name) and path.is_dir():
                    found.setdefault(path.name, []).append(place)
    return dict(sorted(found.items()))


def names_of_id(number: int) -> list[str]:
    """Return the data sets that nnU-Net takes for those of an id: one digit more makes no difference to it."""
    return [name for name in known_datasets() if name.startswith(f"Dataset{number:03d}")]


def id_of(name: str) -> int:
    """Return the id of a data set, by which nnU-Net's planning and preprocessing know it."""
    return int(NAME.fullmatch(name)["id"])


def planning_command(name: str, plans: str = "nnUNetPlans", anew: bool = False) -> str:
    """Return the command that plans and preprocesses a data set; it takes the id alone.

    Of nnU-Net's residual-encoder plans it names the planner that makes them. `anew` is without the fingerprint that is
    there, which nnU-Net would keep.
    """
    match = RESIDUAL_ENCODER_PLANS.fullmatch(plans)
    planner = f" -pl nnUNetPlannerResEnc{match['size']}" if match else ""
    command = f"nnUNetv2_plan_and_preprocess -d {id_of(name)}{planner} --verify_dataset_integrity"
    return f"{command} --clean" if anew else command
