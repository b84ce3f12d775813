"""What all trainings of an experiment share: data set, network, length, and how labeled cases are chosen."""

import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer
from nnunetv2.utilities.plans_handling.plans_handler import PlansManager

from nnunet_ssl.benchmarking.splits import (
    REPORT_FOLD,
    TUNE_FOLD,
    Split,
    draw_split,
    images_without_label,
    own_split,
    pattern_of,
)
from nnunet_ssl.data.patients import PATIENTS, unit_of
from nnunet_ssl.data.raw_files import read_json_file
from nnunet_ssl.data.stamps import folder_of, state_folder
from nnunet_ssl.training.options import host_defaults

EPOCHS = 20  # into which steps are divided: nnU-Net validates and lowers its learning rate once in each
VALIDATION_STEPS = 5  # of such an epoch; its scores stand in the curves only
SAVE_EVERY = 2  # of these epochs, so that little is lost in an interruption
SAVE_EVERY_OF_SCHEDULE = 10  # epochs of nnU-Net's own schedule


@dataclass(frozen=True)
class Experiment:
    """What all trainings of an experiment share.

    Attributes:
        source: the data set's folder in nnUNet_preprocessed.
        configuration: of the plans.
        plans: their identifier.
        labeled: number of labeled cases, or patients of a data set that knows them; None: those of its own split.
        fold: whose validation cases are taken, of nnU-Net's own 5-fold split, or of the data set's.
        steps: of each training; None: nnU-Net's schedule.
        features: of each stage, instead of those of the plans.
        batch_size: instead of that of the plans.
        given_name: None: it says data set, configuration and number of labeled cases.
    """

    source: Path
    configuration: str
    plans: str = "nnUNetPlans"
    labeled: int | None = None
    fold: int = 0
    steps: int | None = None
    features: tuple[int, ...] = ()
    batch_size: int | None = None
    given_name: str | None = None

    @property
    def name(self) -> str:
        """For example hippocampus_2d_2labeled."""
        if self.given_name is not None:
            return self.given_name
        words = [re.sub(r"Dataset\d+_", "", self.source.name).lower(), self.configuration]
        words += [self.plans] if self.plans != "nnUNetPlans" else []
        unit = "patients" if self.labeled is not None and pattern_of(self.source) else "labeled"
        number = len(self.split(0)["train"]) if self.labeled is None else self.labeled
        tune = ["tune"] if self.labeled is not None and self.fold == TUNE_FOLD else []
        return "_".join([*words, f"{number}{unit}", *tune])

    def split(self, seed: int, with_all_labels: bool = False) -> Split:
        """Return the cases of a seed."""
        if self.labeled is None:
            return own_split(self.source, with_all_labels, self.fold)
        return draw_split(self.source, None if with_all_labels else self.labeled, seed, self.fold)

    def setting(self) -> dict[str, Any]:
        """Return what the results of all of its trainings have in common."""
        configuration = self.smaller_plans()["configurations"][self.configuration]
        architecture = configuration["architecture"]
        setting = {
            "dataset": self.source.name,
            "patient_pattern": pattern_of(self.source),
            "configuration": self.configuration,
            "network": architecture["network_class_name"].rpartition(".")[2],
            "features": architecture["arch_kwargs"]["features_per_stage"],
            "patch_size": configuration["patch_size"],
            "spacing": configuration["spacing"],
            "batch_size": configuration["batch_size"],
            "steps": self.steps,
            "fold": self.words_of_fold(),
        }
        if self.steps is None:
            schedule = schedule_of_nnunet()
            setting |= {"steps": schedule["num_epochs"] * schedule["num_iterations_per_epoch"]}
            setting |= {"epochs": schedule["num_epochs"]}
        unusual = {"plans": self.plans} if self.plans != "nnUNetPlans" else {}
        unit = unit_of(read_json_file(self.source / "dataset.json"))
        if setting["patient_pattern"] is not None and unit != PATIENTS:
            unusual["unit"] = unit
        return setting | unusual

    def words_of_fold(self) -> str:
        """Return which validation cases it has."""
        if self.labeled is None:
            return f"own split, fold {self.fold}" if self.fold else "own split"
        return {REPORT_FOLD: "report", TUNE_FOLD: "tune"}[self.fold]

    def smaller_plans(self) -> dict[str, Any]:
        """Return nnU-Net's plans with the features, of as many stages, and the batch size asked for."""
        plans = read_json_file(self.source / f"{self.plans}.json")
        configuration = PlansManager(plans).get_configuration(self.configuration).configuration  # with what it inherits
        configuration.pop("inherits_from", None)
        plans["configurations"] = {self.configuration: configuration}
        if self.features:
            arguments, stages = configuration["architecture"]["arch_kwargs"], len(self.features)
            for name, value in arguments.items():
                if isinstance(value, list):
                    arguments[name] = value[: stages - 1 if name.endswith("decoder") else stages]
            arguments |= {"features_per_stage": list(self.features), "n_stages": stages}
        if self.batch_size:
            configuration["batch_size"] = self.batch_size
        return plans

    def lay_preprocessed(self, target: Path, split: Split) -> None:
        """Lay a folder that shares the cases with the data set's own and has its own plans and split."""
        target.mkdir(parents=True, exist_ok=True)
        plans = self.smaller_plans()
        if images_without_label(self.source):  # which are preprocessed once for all trainings
            unlabeled = folder_of(self.source, plans["configurations"][self.configuration]["data_identifier"])
            for folder in (unlabeled, state_folder(unlabeled)):
                folder.mkdir(exist_ok=True)
        for item in self.source.iterdir():
            if item.is_dir() and not (target / item.name).exists():
                (target / item.name).symlink_to(item.resolve())
        for name in ("dataset.json", "dataset_fingerprint.json"):
            (target / name).write_bytes((self.source / name).read_bytes())
        (target / f"{self.plans}.json").write_text(json.dumps(plans))
        (target / "splits_final.json").write_text(json.dumps([split], indent=1))


def schedule_of_nnunet() -> dict[str, Any]:
    """Return the settings of the length of nnU-Net's own trainer."""
    return host_defaults(nnUNetTrainer)


def length(setting: dict[str, Any]) -> dict[str, int]:
    """Return nnU-Net's settings for a training as long as its experiment's setting says."""
    if "epochs" in setting:
        return {"save_every": SAVE_EVERY_OF_SCHEDULE}
    return {
        "num_epochs": EPOCHS,
        "num_iterations_per_epoch": setting["steps"] // EPOCHS,
        "num_val_iterations_per_epoch": VALIDATION_STEPS,
        "save_every": SAVE_EVERY,
    }
