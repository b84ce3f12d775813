"""What a benchmark trains on: splits, plans of a smaller network, and a preprocessed folder that has both."""

import json
import os
import re
from argparse import Namespace
from pathlib import Path
from typing import Any

import numpy as np

from nnunet_ssl.data.raw_files import unlabeled_images
from nnunet_ssl.data.split_file import read_splits, split_digest

REPORT_FOLD, TUNE_FOLD = 0, 1  # of nnU-Net's own 5-fold split

Split = dict[str, list[str]]


def folder_of(dataset: str) -> Path:
    """Return the preprocessed folder of a data set, an id or a name."""
    from nnunetv2.utilities.dataset_name_id_conversion import maybe_convert_to_dataset_name

    return Path(os.environ["nnUNet_preprocessed"], maybe_convert_to_dataset_name(dataset))


def draw_split(source: Path, labeled: int | None, seed: int, fold: int) -> Split:
    """Return a fold with the labeled cases of a seed, nested over their number; None is all of them."""
    from nnunetv2.utilities.crossval_split import generate_crossval_split

    parts = generate_crossval_split(labeled_cases(source), seed=12345, n_splits=5)[fold]
    training, validation = [str(case) for case in parts["train"]], [str(case) for case in parts["val"]]
    order = [training[i] for i in np.random.default_rng(seed).permutation(len(training))]
    split = {"train": sorted(order[:labeled]), "val": validation}
    if labeled is not None and not images_without_label(source):
        split["unlabeled"] = sorted(order[labeled:])
    return split


def own_split(source: Path, with_all_labels: bool, fold: int) -> Split:
    """Return a fold of the data set's own split, or with all of its labels: those of its unlabeled cases too.

    Raises:
        ValueError: there is no such fold.
    """
    folds = read_splits(source / "splits_final.json")
    if not 0 <= fold < len(folds):
        raise ValueError(f"there is no fold {fold}: {source / 'splits_final.json'} has {len(folds)}, the first is 0")
    own = folds[fold]
    if not with_all_labels:
        return own
    there = set(labeled_cases(source))
    return {"train": sorted({*own["train"], *own.get("unlabeled", [])} & there), "val": own["val"]}


def labeled_cases(source: Path) -> list[str]:
    """Return the cases with a label."""
    ending = json.loads((source / "dataset.json").read_text())["file_ending"]
    return sorted(file.name.removesuffix(ending) for file in (source / "gt_segmentations").glob(f"*{ending}"))


def images_without_label(source: Path) -> list[str]:
    """Return the cases of imagesUn."""
    ending = json.loads((source / "dataset.json").read_text())["file_ending"]
    images = Path(os.environ["nnUNet_raw"], source.name, "imagesUn")
    return sorted(unlabeled_images(images, ending)) if images.is_dir() else []


def facts_of_split(split: Split, source: Path, trains_unlabeled: bool) -> dict[str, Any]:
    """Return the numbers of cases of a split, and the digest that the log of our trainers has too."""
    unlabeled = split.get("unlabeled", images_without_label(source)) if trains_unlabeled else []
    return {
        "labeled": len(split["train"]),
        "unlabeled": len(unlabeled),
        "validation": len(split["val"]),
        "digest": split_digest(split["train"], split["val"], unlabeled),
    }


def smaller_plans(file: Path, options: Namespace) -> dict[str, Any]:
    """Return nnU-Net's plans with the features, of as many stages, and the batch size asked for."""
    from nnunetv2.utilities.plans_handling.plans_handler import PlansManager

    plans = json.loads(file.read_text())
    configuration = PlansManager(plans).get_configuration(options.configuration).configuration  # with what it inherits
    configuration.pop("inherits_from", None)
    plans["configurations"] = {options.configuration: configuration}
    if options.features:
        arguments, stages = configuration["architecture"]["arch_kwargs"], len(options.features)
        for name, value in arguments.items():
            if isinstance(value, list):
                arguments[name] = value[: stages - 1 if name.endswith("decoder") else stages]
        arguments |= {"features_per_stage": options.features, "n_stages": stages}
    if options.batch_size:
        configuration["batch_size"] = options.batch_size
    return plans


def facts_of_setting(source: Path, options: Namespace) -> dict[str, Any]:
    """Return what all runs of an experiment share."""
    plans = smaller_plans(source / "nnUNetPlans.json", options)["configurations"][options.configuration]
    architecture = plans["architecture"]
    return {
        "dataset": source.name,
        "patient_pattern": json.loads((source / "dataset.json").read_text()).get("patient_pattern"),
        "configuration": options.configuration,
        "network": architecture["network_class_name"].rpartition(".")[2],
        "features": architecture["arch_kwargs"]["features_per_stage"],
        "patch_size": plans["patch_size"],
        "spacing": plans["spacing"],
        "batch_size": plans["batch_size"],
        "steps": options.steps,
        "fold": name_of_fold(options),
    }


def name_of_fold(options: Namespace) -> str:
    """Return which validation cases an experiment has."""
    if options.own_split:
        return f"own split, fold {options.fold}" if options.fold else "own split"
    return "tune" if options.tune_fold else "report"


def name_of_experiment(setting: dict[str, Any], labeled: int) -> str:
    """Return for example hippocampus_2d_2labeled."""
    data = re.sub(r"Dataset\d+_", "", setting["dataset"]).lower()
    tune = "_tune" if setting["fold"] == "tune" else ""
    return f"{data}_{setting['configuration']}_{labeled}labeled{tune}"


def lay_preprocessed(source: Path, target: Path, split: Split, options: Namespace) -> None:
    """Lay a folder that shares the cases with the data set's own and has its own plans and split."""
    target.mkdir(parents=True, exist_ok=True)
    for item in source.iterdir():
        if item.is_dir() and not (target / item.name).exists():
            (target / item.name).symlink_to(item.resolve())
    for name in ("dataset.json", "dataset_fingerprint.json"):
        (target / name).write_bytes((source / name).read_bytes())
    (target / "nnUNetPlans.json").write_text(json.dumps(smaller_plans(source / "nnUNetPlans.json", options)))
    (target / "splits_final.json").write_text(json.dumps([split], indent=1))
