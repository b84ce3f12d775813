r"""Dice against the number of labeled cases: trainers, the labeled-only nnU-Net and the fully labeled upper bound.

    python benchmarks/label_efficiency.py --dataset 4 --configuration 2d --labeled 2 4 \
        --trainers nnUNetTrainerMeanTeacher --steps 2000 --seeds 1 2 --features 16 32 64 128 --batch-size 16

The data set is planned and preprocessed by nnU-Net before. All runs share network, steps and validation cases: those
of nnU-Net's own fold 0, or with --tune-fold those of its fold 1, so that settings are never tuned on what is reported.
Each seed draws its own labeled cases, nested over their number, and seeds the training. The unlabeled cases are those
of imagesUn; without any, the training cases that are not labeled. With --own-split instead of --labeled all three are
those of fold 0 of the data set's splits_final.json (a published protocol, a split by patient), and a seed is one of the
training alone. Interrupted, the same command goes on where it stopped.
"""

import argparse
import csv
import json
import os
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from statistics import mean, stdev
from typing import Any

import numpy as np

BASELINE = "nnUNetTrainer"
EPOCHS = 20  # into which the steps are divided: nnU-Net validates and lowers its learning rate once in each
REPORT_FOLD, TUNE_FOLD = 0, 1  # of nnU-Net's own 5-fold split
COLUMNS = ("labeled", "trainer", "dice_mean", "dice_sd", "difference", "seeds", "minutes")

Drawn = tuple[int | None, int, dict[str, list[str]]]  # number of labeled cases (None: all), seed, split


@dataclass(frozen=True)
class Run:
    """One training: a trainer, a number of labeled cases (None: all), a seed, and its place in the splits file."""

    trainer: str
    labeled: int | None
    seed: int
    fold: int


def main() -> int:
    """Run what is not done yet, print the table and write the csv."""
    options = parse_arguments()
    if options.run is not None:
        train_and_validate(options)
        return 0
    place = Path(options.output, "tune" if options.tune_fold else "report").resolve()
    runs = prepare(options, place)
    pending = [run for run in runs if not result_file(place, options, run).exists()]
    print(f"{len(runs)} runs, {len(runs) - len(pending)} done before; logs in {place}")
    with ThreadPoolExecutor(options.jobs) as executor:
        list(executor.map(lambda run: start(run, options, place), pending))
    rows = table(runs, options, place)
    print_table(rows)
    with open(place / "label_efficiency.csv", "w", newline="") as opened:
        writer = csv.DictWriter(opened, COLUMNS)
        writer.writeheader()
        writer.writerows(rows)
    return 0


def parse_arguments() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dataset", required=True, help="data set: id or name")
    parser.add_argument("--configuration", default="2d", help="default: 2d")
    which = parser.add_mutually_exclusive_group(required=True)
    which.add_argument("--labeled", type=int, nargs="+", default=[], metavar="N", help="numbers of labeled cases")
    which.add_argument("--own-split", action="store_true", help="take the data set's own splits_final.json")
    parser.add_argument("--trainers", nargs="+", required=True, metavar="NAME")
    parser.add_argument("--steps", type=int, required=True, help=f"of each training, a multiple of {EPOCHS}")
    parser.add_argument("--seeds", type=int, nargs="+", default=[1], help="default: 1")
    parser.add_argument(
        "--features", type=int, nargs="+", metavar="N", help="features per stage, instead of the plans'"
    )
    parser.add_argument("--batch-size", type=int, metavar="B", help="instead of the plans'")
    parser.add_argument("--options", default="", help='further options of our trainers, for example "ema_decay=0.9"')
    parser.add_argument("--tune-fold", action="store_true", help="use the validation cases that are not reported")
    parser.add_argument("--device", default="cuda", choices=("cpu", "cuda"), help="default: cuda")
    parser.add_argument("--jobs", type=int, default=1, help="trainings at a time (default: 1)")
    parser.add_argument("-o", "--output", default="label_efficiency", help="default: label_efficiency")
    parser.add_argument("--run", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.steps % EPOCHS:
        parser.error(f"--steps is a multiple of {EPOCHS}, got {options.steps}")
    if options.own_split and options.tune_fold:
        parser.error("--tune-fold goes with --labeled")
    return options


def prepare(options: argparse.Namespace, place: Path) -> list[Run]:
    """Lay a preprocessed folder that shares the cases with the data set's own and has its own plans and splits."""
    from nnunetv2.utilities.dataset_name_id_conversion import maybe_convert_to_dataset_name

    dataset = maybe_convert_to_dataset_name(options.dataset)
    source, target = Path(os.environ["nnUNet_preprocessed"], dataset), place / "preprocessed" / dataset
    target.mkdir(parents=True, exist_ok=True)
    for item in source.iterdir():
        if item.is_dir() and not (target / item.name).exists():
            (target / item.name).symlink_to(item.resolve())
    for name in ("dataset.json", "dataset_fingerprint.json"):
        (target / name).write_bytes((source / name).read_bytes())
    (target / "nnUNetPlans.json").write_text(json.dumps(smaller_plans(source / "nnUNetPlans.json", options)))

    drawn = own_splits(source, options) if options.own_split else draw_splits(source, dataset, options)
    runs = []
    for fold, (labeled, seed, _) in enumerate(drawn):
        names = [BASELINE] if labeled is None else [BASELINE, *options.trainers]
        runs += [Run(name, labeled, seed, fold) for name in names]
    keep_splits(target / "splits_final.json", [split for _, _, split in drawn])
    return runs


def draw_splits(source: Path, dataset: str, options: argparse.Namespace) -> list[Drawn]:
    """Draw the labeled cases of each seed, nested over their number; None is all of them."""
    from nnunetv2.utilities.crossval_split import generate_crossval_split

    cases = sorted(path.name.split(".")[0] for path in (source / "gt_segmentations").iterdir())
    fold = generate_crossval_split(cases, seed=12345, n_splits=5)[TUNE_FOLD if options.tune_fold else REPORT_FOLD]
    training, validation = [str(case) for case in fold["train"]], [str(case) for case in fold["val"]]
    has_images = any(Path(os.environ["nnUNet_raw"], dataset).glob("imagesUn/*"))
    drawn = []
    for labeled in (*options.labeled, None):
        for seed in options.seeds:
            order = [training[i] for i in np.random.default_rng(seed).permutation(len(training))]
            split = {"train": sorted(order[:labeled]), "val": validation}
            if not has_images and labeled is not None:
                split["unlabeled"] = sorted(order[labeled:])
            drawn.append((labeled, seed, split))
    return drawn


def own_splits(source: Path, options: argparse.Namespace) -> list[Drawn]:
    """Return the data set's own split for each seed, and all of its labels: those of its unlabeled cases too."""
    own = json.loads((source / "splits_final.json").read_text())[REPORT_FOLD]
    there = {path.name.split(".")[0] for path in (source / "gt_segmentations").iterdir()}
    everything = {"train": sorted({*own["train"], *own.get("unlabeled", [])} & there), "val": own["val"]}
    labeled = len(own["train"])
    return [(labeled, seed, own) for seed in options.seeds] + [(None, seed, everything) for seed in options.seeds]


def smaller_plans(file: Path, options: argparse.Namespace) -> dict[str, Any]:
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


def keep_splits(file: Path, splits: list[dict[str, Any]]) -> None:
    """Write the splits; refuse others than those that results in this place were made with."""
    if file.exists() and json.loads(file.read_text()) != splits:
        sys.exit(f"{file} was made with other --labeled or --seeds: take another --output")
    file.write_text(json.dumps(splits, indent=1))


def result_file(place: Path, options: argparse.Namespace, run: Run) -> Path:
    """Return where a finished run leaves its result."""
    return place / "runs" / f"{run.trainer}__{options.configuration}__fold{run.fold}.json"


def start(run: Run, options: argparse.Namespace, place: Path) -> None:
    """Run one training in a process of its own; its output goes to a file."""
    result = result_file(place, options, run)
    result.parent.mkdir(exist_ok=True)
    environment = os.environ | {
        "nnUNet_preprocessed": str(place / "preprocessed"),
        "nnUNet_results": str(place / "results"),
        "OMP_NUM_THREADS": str(max(1, (os.cpu_count() or 1) // options.jobs)),
    }
    environment.pop("nnUNet_ssl_options", None)
    if run.trainer != BASELINE:
        length = f"num_epochs={EPOCHS} num_iterations_per_epoch={options.steps // EPOCHS}"
        environment["nnUNet_ssl_options"] = f"{length} num_val_iterations_per_epoch=5 seed={run.seed} {options.options}"
    command = [sys.executable, __file__, *sys.argv[1:], "--run", f"{run.trainer},{run.fold},{run.seed},{result}"]
    with result.with_suffix(".log").open("w") as log:
        code = subprocess.call(command, stdout=log, stderr=subprocess.STDOUT, env=environment)
    outcome = "done" if code == 0 else f"FAILED, see {log.name}"
    print(f"{run.trainer}, {run.labeled or 'all'} labeled, seed {run.seed}: {outcome}", flush=True)


def train_and_validate(options: argparse.Namespace) -> None:
    """Train as nnUNetv2_train does, going on from a checkpoint if there is one, and leave the Dice in a file."""
    import torch
    from nnunetv2.run.run_training import get_trainer_from_args, maybe_load_checkpoint

    name, fold, seed, result = options.run.split(",", 3)
    torch.set_num_threads(int(os.environ["OMP_NUM_THREADS"]))
    np.random.seed(int(seed))
    torch.manual_seed(int(seed))
    device = torch.device(options.device)
    start_time = time.time()
    trainer = get_trainer_from_args(options.dataset, options.configuration, int(fold), name, device=device)
    if name == BASELINE:
        trainer.num_epochs, trainer.num_iterations_per_epoch = EPOCHS, options.steps // EPOCHS
        trainer.num_val_iterations_per_epoch = 5
    if any(Path(trainer.output_folder).glob("checkpoint_*.pth")):
        maybe_load_checkpoint(trainer, continue_training=True, validation_only=False)
    trainer.run_training()
    trainer.perform_actual_validation()
    summary = json.loads(Path(trainer.output_folder, "validation", "summary.json").read_text())
    content = {"dice": summary["foreground_mean"]["Dice"], "minutes": (time.time() - start_time) / 60}
    Path(result).write_text(json.dumps(content))


def table(runs: list[Run], options: argparse.Namespace, place: Path) -> list[dict[str, Any]]:
    """Return one row for each number of labeled cases and trainer, over the seeds that are done."""
    results = {run: json.loads(file.read_text()) for run in runs if (file := result_file(place, options, run)).exists()}
    rows = []
    for labeled, trainer in dict.fromkeys((run.labeled, run.trainer) for run in runs):
        of_seed = {run.seed: results[run] for run in results if (run.labeled, run.trainer) == (labeled, trainer)}
        plain = {run.seed: results[run] for run in results if (run.labeled, run.trainer) == (labeled, BASELINE)}
        dice = [result["dice"] for result in of_seed.values()]
        differences = [of_seed[seed]["dice"] - plain[seed]["dice"] for seed in of_seed if seed in plain]
        values = (
            labeled or "all",
            trainer,
            f"{mean(dice):.4f}" if dice else "",
            f"{stdev(dice):.4f}" if len(dice) > 1 else "",
            f"{mean(differences):+.4f}" if differences and trainer != BASELINE else "",
            len(dice),
            f"{mean(result['minutes'] for result in of_seed.values()):.1f}" if dice else "",
        )
        rows.append(dict(zip(COLUMNS, values, strict=True)))
    return rows


def print_table(rows: list[dict[str, Any]]) -> None:
    """Print the table as Markdown."""
    print("| " + " | ".join(COLUMNS) + " |")
    print("|---" * len(COLUMNS) + "|")
    for row in rows:
        print("| " + " | ".join(str(value) for value in row.values()) + " |")


if __name__ == "__main__":
    sys.exit(main())
