"""What `nnunet_ssl benchmark` is asked for, checked before anything is trained."""

import argparse
import contextlib
import io
import os
import shlex
from collections.abc import Sequence
from pathlib import Path

from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer
from nnunetv2.utilities.find_objects import recursive_find_trainer_class_by_name

from nnunet_ssl.benchmarking.experiment import EPOCHS, Experiment
from nnunet_ssl.benchmarking.outcome import is_ours
from nnunet_ssl.benchmarking.planning import Comparison
from nnunet_ssl.benchmarking.result_files import BASELINE
from nnunet_ssl.benchmarking.running import Places
from nnunet_ssl.benchmarking.splits import (
    REPORT_FOLD,
    TUNE_FOLD,
    images_without_label,
    labeled_cases,
    parts_of_fold,
    pattern_of,
    pool_of_fold,
)
from nnunet_ssl.commands.outputs import output_folder
from nnunet_ssl.commands.preprocess import check_environment
from nnunet_ssl.commands.trained_models import device_of
from nnunet_ssl.commands.trainers import nearest
from nnunet_ssl.data.dataset_names import dataset_name
from nnunet_ssl.data.labeled_cases import refuse_unfinished
from nnunet_ssl.data.plans_file import configurations_of, read_plans
from nnunet_ssl.data.raw_files import read_dataset_json
from nnunet_ssl.discovery.variants import LENGTH_VARIANT
from nnunet_ssl.training.author_checks import refuse_configuration
from nnunet_ssl.training.catalog import all_trainers, names_in_folders
from nnunet_ssl.training.options import allowed_options, check_ranges, parse_options

LENGTH = ("num_epochs", "num_iterations_per_epoch", "num_val_iterations_per_epoch", "save_every")
SAID_ELSEWHERE = {"seed": "--seeds", "replace": "--repeat-stale", **dict.fromkeys(LENGTH, "--steps")}


def comparison_of(options: argparse.Namespace) -> Comparison:
    """Return the comparison that the command line asks for.

    Raises:
        ValueError: something in it that cannot be trained, and what helps.
    """
    check_environment()
    refuse_what_does_not_fit(options)
    name = dataset_name(options.dataset)
    source = Path(os.environ["nnUNet_preprocessed"], name)
    patch_size = check_data(source, options)
    trainers = tuple(dict.fromkeys(one for one in options.trainers if one != BASELINE))
    variant = options_of(options.options, {one: find(one, options.configuration, patch_size) for one in trainers})
    experiments = tuple(experiment_of(source, number, options) for number in options.labeled or [None])
    for experiment in experiments:
        check_split(experiment, needs_unlabeled=bool(trainers))
    return Comparison(
        experiments,
        trainers,
        tuple(dict.fromkeys(options.seeds)),
        options.device or "cuda" if options.slurm else device_of(options),
        variant,
        not options.no_upper_bound,
        options.head,
    )


def places_of(options: argparse.Namespace, comparison: Comparison) -> Places:
    """Return where the benchmark writes.

    Raises:
        ValueError: nothing can be written there, or neither -o nor nnUNet_results says where.
    """
    given = options.output
    if given is None:
        if not os.environ.get("nnUNet_results"):
            raise ValueError("nnUNet_results not set: export nnUNet_results=/path/to/folder, or name a folder with -o")
        given = str(Path(os.environ["nnUNet_results"], comparison.experiments[0].source.name, "benchmark"))
    output = output_folder(given).absolute()
    return Places(output, Path(options.results).absolute() if options.results else output / "results")


def refuse_what_does_not_fit(options: argparse.Namespace) -> None:
    """Raise a ValueError for numbers that nothing can be trained with, and options that exclude each other."""
    if options.steps is not None and (options.steps < EPOCHS or options.steps % EPOCHS):
        raise ValueError(f"--steps is a multiple of {EPOCHS}, got {options.steps}")
    if options.own_split and options.tune_fold:
        raise ValueError("--tune-fold goes with --labeled: leave it out, --own-split has validation cases of its own")
    if options.fold and not options.own_split:
        raise ValueError("--fold goes with --own-split: leave it out")
    if options.experiment is not None and len(options.labeled or [None]) > 1:
        raise ValueError("--experiment names the results of one number of labeled cases: leave it out, or give one")
    for name, values in {"labeled": options.labeled or [], "features": options.features or []}.items():
        if any(value < 1 for value in values):
            raise ValueError(f"--{name} takes numbers from 1 on, got {min(values)}")
    for name in ("jobs", "batch_size"):
        if (value := getattr(options, name)) is not None and value < 1:
            raise ValueError(f"--{name.replace('_', '-')} is a number from 1 on, got {value}")
    if any(not 0 <= seed < 2**32 for seed in options.seeds):
        raise ValueError(f"--seeds are from 0 to {2**32 - 1}, got {' '.join(map(str, options.seeds))}")
    if options.slurm_options and not options.slurm:
        raise ValueError("--slurm-options goes with --slurm: add it, or leave them out")


def check_data(source: Path, options: argparse.Namespace) -> Sequence[int]:
    """Check that the data set is planned and preprocessed, and return the size of its patches.

    Raises:
        ValueError: it is not, or there is no such configuration, or it has fewer stages than --features says.
    """
    plans = read_plans(source / f"{options.p}.json")
    known = configurations_of(plans)
    if options.configuration not in known:
        can = f"that can be trained semi-supervised, it has {', '.join(known)}"
        raise ValueError(f"{source / options.p}.json has no configuration {options.configuration} {can}")
    configuration = known[options.configuration]
    if configuration.previous_stage_name is not None:
        raise ValueError(
            f"{options.configuration} is the second stage of a cascade, which needs the first one of each training: "
            "choose another configuration with -c"
        )
    read_dataset_json(source / "dataset.json")
    folder = source / configuration.data_identifier
    refuse_unfinished(folder, labeled_cases(source), source.name, options.p, options.configuration)
    stages = len(configuration.network_arch_init_kwargs["features_per_stage"])
    if options.features and not 2 <= len(options.features) <= stages:
        raise ValueError(f"--features has a number for each of 2 to {stages} stages, got {len(options.features)}")
    return configuration.patch_size


def find(name: str, configuration: str, patch_size: Sequence[int]) -> type:
    """Return a trainer by name, as nnU-Net finds it.

    Raises:
        ValueError: there is none, it says its length by its name, or it is not for these patches.
    """
    if variant := LENGTH_VARIANT.fullmatch(name):
        raise ValueError(f"--steps says how long all trainers train: write {variant['trainer']} instead of {name}")
    try:
        with contextlib.redirect_stdout(io.StringIO()):  # where it looks
            trainer = recursive_find_trainer_class_by_name(name)
    except (RuntimeError, AssertionError):
        known = [*(trainer.__name__ for trainer in all_trainers()), *names_in_folders()]
        raise ValueError(f"there is no trainer {name!r}, {nearest(name, known)}") from None
    if is_ours(trainer):
        try:
            refuse_configuration(trainer, configuration, patch_size)
        except NotImplementedError as error:
            raise ValueError(f"{error}: leave it out, or choose another configuration with -c") from None
    return trainer


def options_of(text: str, trainers: dict[str, type]) -> dict[str, str]:
    """Return the options of a variant, as they are written, if each trainer takes them.

    Raises:
        ValueError: one does not, or an option is said elsewhere: length and seed.
    """
    words = shlex.split(text)
    if not all("=" in word for word in words):
        raise ValueError(f"--options is written as name=value name=value, got {text!r}")
    options = dict(word.split("=", 1) for word in words)
    for name, elsewhere in SAID_ELSEWHERE.items():
        if name in options:
            raise ValueError(f"--options: {name} is said by {elsewhere}, leave it out")
    for name, trainer in trainers.items() if options else ():
        if not is_ours(trainer):
            raise ValueError(f"{name} is not of nnunet_ssl and takes no --options: leave it, or them, out")
        try:
            check_ranges(parse_options(text, allowed_options(trainer, nnUNetTrainer)))
        except ValueError as error:
            raise ValueError(f"--options of {name}: {error}") from None
    return options


def experiment_of(source: Path, labeled: int | None, options: argparse.Namespace) -> Experiment:
    """Return the experiment of a number of labeled cases."""
    drawn = TUNE_FOLD if options.tune_fold else REPORT_FOLD
    return Experiment(
        source,
        options.configuration,
        options.p,
        labeled,
        options.fold if labeled is None else drawn,
        options.steps,
        tuple(options.features or ()),
        options.batch_size,
        options.experiment,
    )


def check_split(experiment: Experiment, needs_unlabeled: bool) -> None:
    """Raise a ValueError if there are too few cases for the labeled ones asked for, or none is left without a label."""
    images = Path(os.environ["nnUNet_raw"], experiment.source.name, "imagesUn")
    if experiment.labeled is None:
        own = experiment.split(seed=0)
        if needs_unlabeled and not own.get("unlabeled", images_without_label(experiment.source)):
            raise ValueError(
                f"--own-split: fold {experiment.fold} names no unlabeled cases, and there are none in {images}: divide "
                f"the cases by nnunet_ssl split {experiment.source.name}"
            )
        return
    training, _ = parts_of_fold(experiment.source, experiment.fold)
    others = pool_of_fold(experiment.source, experiment.fold)
    most = len(training) - (needs_unlabeled and not others)
    if experiment.labeled > most:
        unit, of_others = ("patients", " of other patients") if pattern_of(experiment.source) else ("cases", "")
        reason = f", and {images} holds no unlabeled ones{of_others}" if most < len(training) else ""
        raise ValueError(
            f"--labeled is at most {most}, got {experiment.labeled}: fold {experiment.fold} of "
            f"{experiment.source.name} has {len(training)} training {unit}{reason}"
        )
