"""What the doctor looks at in the plans and the preprocessed cases of a data set."""

import os
from collections.abc import Generator, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from shlex import quote

from nnunetv2.utilities.plans_handling.plans_handler import ConfigurationManager, PlansManager

from nnunet_ssl.commands.findings import Finding
from nnunet_ssl.data.dataset_names import id_of, planning_command
from nnunet_ssl.data.labeled_cases import unfinished_cases
from nnunet_ssl.data.plans_file import (
    configurations_of,
    configurations_to_preprocess,
    other_plans,
    plans_problem,
    read_plans,
)
from nnunet_ssl.data.pool_index import read_stamps
from nnunet_ssl.data.raw_files import channel_names, channel_problem, read_dataset_json, some
from nnunet_ssl.data.stamps import folder_of
from nnunet_ssl.data.unlabeled_preprocessing import UnlabeledPreprocessing

COPIED_KEYS = ("labels", "regions_class_order", "channel_names", "file_ending")  # which a training reads from the copy


@dataclass(frozen=True)
class Cases:
    """The cases of a data set, by the names of its files.

    Attributes:
        labeled: with a label that is not hidden, and an image.
        hidden: with a hidden label.
        unlabeled: of imagesUn.
        patient_of: whose each labeled case is.
    """

    labeled: Sequence[str]
    hidden: Sequence[str]
    unlabeled: Sequence[str]
    patient_of: dict[str, str]


@dataclass(frozen=True)
class Planned:
    """A data set that nnU-Net has planned: its folder in nnUNet_preprocessed, plans and chosen configurations."""

    folder: Path
    dataset_json: dict
    plans: PlansManager
    configurations: dict[str, ConfigurationManager]

    @property
    def folders(self) -> dict[str, Path]:
        """Where nnU-Net's preprocessed cases of each configuration lie."""
        return {name: self.folder / one.data_identifier for name, one in self.configurations.items()}

    def preprocessing(self, *configurations: str) -> str:
        """Return nnU-Net's command that preprocesses all labeled cases anew."""
        names = " ".join(map(quote, configurations))
        return f"nnUNetv2_preprocess -d {id_of(self.folder.name)} -plans_name {quote(self.plans.plans_name)} -c {names}"


def look_at_plans(folder: Path, plans: str, configuration: str | None) -> Generator[Finding, None, Planned | None]:
    """Give what is wrong with the plans of a data set, and return them if nothing is.

    Without a configuration those that have preprocessed cases are chosen, or all where there are none.
    """
    file, again = folder / f"{plans}.json", planning_command(folder.name, plans)
    if problem := plans_problem(file):
        others = [] if file.exists() else other_plans(file)
        instead = f"   # or choose with -p: {', '.join(others)}" if others else ""
        yield Finding("plans", problem, again + instead, is_problem=True)
        if os.environ.get("nnUNet_n_proc_DA", "").strip() == "0":
            state = "0, with which nnU-Net's planning ends in an error; a training takes it"
            yield Finding("nnUNet_n_proc_DA", state, "unset nnUNet_n_proc_DA   # while planning")
        return None
    try:
        dataset_json = read_dataset_json(folder / "dataset.json")
        channel_names(dataset_json)
    except ValueError as error:
        yield Finding("plans", str(error), again, is_problem=True)
        return None
    opened = read_plans(file)
    known = configurations_of(opened)
    if configuration is not None and configuration not in known:
        state = f"{file} has no configuration {configuration}"
        yield Finding("plans", state, f"choose with -c: {', '.join(known)}", is_problem=True)
        return None
    own = {name: known[name] for name in configurations_to_preprocess(opened)}
    there = {name: one for name, one in own.items() if (folder / one.data_identifier).is_dir()}
    chosen = there or own if configuration is None else {configuration: known[configuration]}
    return Planned(folder, dataset_json, opened, chosen)


def check_copies(planned: Planned, dataset_json: dict | None) -> Iterator[Finding]:
    """Look whether planning has left all that a training reads, of the dataset.json that there is now."""
    again = planning_command(planned.folder.name)
    if not (file := planned.folder / "dataset_fingerprint.json").is_file():
        yield Finding("plans", f"there is no {file}, which a training copies", again, is_problem=True)
    else:
        yield Finding("plans", f"{planned.plans.plans_name}: {', '.join(planned.plans.available_configurations)}")
    if dataset_json is not None:
        changed = [key for key in COPIED_KEYS if dataset_json.get(key) != planned.dataset_json.get(key)]
        if changed:
            state = f"other {' and '.join(changed)} than at planning, whose copy in {planned.folder} a training reads"
            yield Finding("dataset.json", state, again, is_problem=True)


def check_labeled(planned: Planned, cases: Cases) -> Iterator[Finding]:
    """Look whether each labeled case was preprocessed to its end, by the headers of its files."""
    missing = [name for name, folder in planned.folders.items() if not folder.is_dir()]
    if missing:
        state = f"not preprocessed for {', '.join(missing)}"
        yield Finding("labeled cases", state, planned.preprocessing(*missing), is_problem=True)
        return
    for name, folder in planned.folders.items():
        if unfinished := unfinished_cases(folder, cases.labeled):
            state = f"{len(unfinished)} of {len(cases.labeled)} not preprocessed, or not to the end: {some(unfinished)}"
            yield Finding(f"{name}, labeled cases", state, planned.preprocessing(name), is_problem=True)
        else:
            yield Finding(f"{name}, labeled cases", f"{len(cases.labeled)} preprocessed")
        if former := sorted({file.stem for file in folder.glob("*.pkl")} - {*cases.labeled}):
            state = f"{len(former)} preprocessed with a label that is not in labelsTr any more: {some(former)}"
            yield Finding(f"{name}, former labeled cases", state, planning_command(planned.folder.name))
    references = planned.folder / "gt_segmentations"
    ending = planned.dataset_json["file_ending"]
    if lost := [case for case in cases.labeled if not (references / f"{case}{ending}").is_file()]:
        state = f"{len(lost)} missing in {references}, with which a training ends: {some(lost)}"
        yield Finding("references", state, planned.preprocessing(*planned.folders), is_problem=True)


def check_unlabeled(planned: Planned, cases: Cases, images: Path) -> Iterator[Finding]:
    """Look at the stamps of unlabeled cases: a training preprocesses those that have none, and leaves out damaged."""
    for name, folder in planned.folders.items():
        target = folder_of(planned.folder, folder.name)
        job = UnlabeledPreprocessing(planned.plans.plans, name, planned.dataset_json, images, target)
        settings = job.settings()
        known = read_stamps(target)
        stamps = {case: known.get(case) for case in cases.unlabeled}
        missing = [case for case, stamp in stamps.items() if stamp is None or stamp.settings != settings]
        failed = {case: stamp for case, stamp in stamps.items() if stamp and stamp.problem}
        wrong = {case for case, stamp in failed.items() if stamp.wrong_channel_count}
        problems = [f"{case} ({stamp.problem})" for case, stamp in failed.items() if case not in wrong]
        files = job.image_files() if wrong else {}
        of_one_file = [case for case in sorted(wrong) if channel_problem(files[case], job.dataset_json) is None]
        if missing:
            state = f"{len(missing)} of {len(stamps)} not preprocessed yet: a training does it first"
            yield Finding(f"{name}, unlabeled cases", state, job.command)
        elif stamps:
            yield Finding(f"{name}, unlabeled cases", f"{len(stamps) - len(failed)} preprocessed")
        if problems:
            state = f"{len(problems)} could not be preprocessed, trainings leave them out: {some(problems, most=2)}"
            yield Finding(f"{name}, unlabeled images", state, f"{job.command}   # after fixing them")
        if of_one_file:  # what file names say of channels is a finding of the raw data
            state = (
                f"a training refuses other channels: {some([f'{one} ({failed[one].problem})' for one in of_one_file])}"
            )
            remedy = f"{job.command}   # after fixing them, or taking them out of imagesUn"
            yield Finding(f"{name}, unlabeled images", state, remedy, is_problem=True)
