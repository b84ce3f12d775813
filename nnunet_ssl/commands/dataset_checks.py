"""What the doctor looks at in one data set: whether it can be trained, and what fixes it."""

import os
from collections.abc import Iterator
from pathlib import Path
from shlex import quote

from nnunet_ssl.commands.findings import Finding
from nnunet_ssl.commands.leak_checks import check_leaks
from nnunet_ssl.commands.preprocessed_checks import (
    Cases,
    Planned,
    check_copies,
    check_labeled,
    check_unlabeled,
    look_at_plans,
)
from nnunet_ssl.commands.raw_checks import (
    FORMAT,
    check_dataset_json,
    check_headers,
    check_orientations,
    check_raw_files,
)
from nnunet_ssl.commands.split_checks import check_number, check_split
from nnunet_ssl.data.dataset_names import dataset_name, id_of, known_datasets, names_of_id
from nnunet_ssl.data.patients import patients_of
from nnunet_ssl.data.raw_files import RawDataset, files_in
from nnunet_ssl.data.stamps import folder_of


def check_dataset(dataset: str, configuration: str | None, plans: str) -> Iterator[Finding]:
    """Look at a data set, given by id or name: its files, plans, preprocessed cases and split. No voxel is read."""
    places = [os.environ.get(f"nnUNet_{place}", "") for place in ("raw", "preprocessed")]
    if not all(places):
        yield Finding("data set", "not looked at", "set nnUNet_raw and nnUNet_preprocessed first", is_problem=True)
        return
    yield from _check_id(dataset)
    try:
        name = dataset_name(dataset)
    except ValueError as error:
        if not dataset.isdecimal() or not names_of_id(int(dataset)):
            known = ", ".join(known_datasets()) or "none"
            yield Finding("data set", str(error), f"choose with -d; there are: {known}", is_problem=True)
        return
    folder, preprocessed = (Path(place, name) for place in places)
    try:
        raw = RawDataset.open(folder) if folder.is_dir() else None
        if raw is not None:
            raw.labels()  # which may lie where dataset.json says
    except ValueError as error:
        yield Finding("dataset.json", str(error), f"write it as {FORMAT} says", is_problem=True)
        return
    if raw is None:
        yield Finding("raw data", f"there is no {folder}: what is preprocessed is trusted")
    else:
        yield from check_dataset_json(raw)
        yield from check_raw_files(raw, (preprocessed / f"{plans}.json").is_file())
    planned = yield from look_at_plans(preprocessed, plans, configuration)
    if raw is not None:
        first = next(iter(planned.configurations.values())) if planned else None
        yield from check_headers(raw, planned.plans if planned else None, first)
        if planned is None or "Reorient" not in planned.plans.plans["image_reader_writer"]:
            yield from check_orientations(raw)
    cases = cases_of(raw, planned)
    yield from check_number(cases)
    folders = []
    if planned is not None:
        folders = [*planned.folders.values()]
        yield from check_copies(planned, raw.dataset_json if raw else None)
        yield from check_labeled(planned, cases)
        if raw is not None:
            yield from check_unlabeled(planned, cases, folder / "imagesUn")
    if cases.labeled:
        yield from check_split(preprocessed, folders, cases)
        if raw is not None:
            yield from check_leaks(raw, preprocessed, plans, folders)
    elif raw is None and planned is not None:
        state = f"there is no label in {preprocessed / 'gt_segmentations'}"
        yield Finding("labeled cases", state, planned.preprocessing(*planned.folders), is_problem=True)


def _check_id(dataset: str) -> Iterator[Finding]:
    """Look for several data sets of one id: nnU-Net then takes the id for none of them."""
    known = known_datasets()
    number = int(dataset) if dataset.isdecimal() else id_of(dataset) if dataset in known else None
    names = [] if number is None else names_of_id(number)
    if len(names) > 1:
        state = f"{len(names)} have the id {number}: " + ", ".join(f"{n} in {' and '.join(known[n])}" for n in names)
        other = next(name for name in reversed(names) if name != dataset)
        source = quote(str(Path(os.environ[known[other][0]], other)))
        yield Finding("data set", state, f"mv {source} /elsewhere   # if it is the wrong one", is_problem=True)


def cases_of(raw: RawDataset | None, planned: Planned | None) -> Cases:
    """Return the cases of a data set; where the raw one is not, those that nnU-Net has preprocessed."""
    if raw is not None:
        images = raw.images()
        labeled = [case for case in raw.labels() if case in images]
        hidden, unlabeled = sorted(raw.labels("labelsHidden")), sorted(raw.images("imagesUn"))
        pattern = raw.dataset_json.get("patient_pattern")
        return Cases(labeled, hidden, unlabeled, patients_of(labeled, pattern))
    if planned is None:
        return Cases([], [], [], {})
    ending = planned.dataset_json["file_ending"]
    labeled = [file.name.removesuffix(ending) for file in files_in(planned.folder / "gt_segmentations", ending)]
    folders = [folder_of(planned.folder, folder.name) for folder in planned.folders.values()]
    unlabeled = sorted({file.stem for folder in folders for file in folder.glob("*.pkl")})
    return Cases(labeled, [], unlabeled, patients_of(labeled, planned.dataset_json.get("patient_pattern")))
