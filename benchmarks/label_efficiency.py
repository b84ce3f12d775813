r"""Dice with a few labeled cases: trainers, the labeled-only nnU-Net and the fully labeled upper bound.

    python benchmarks/label_efficiency.py --dataset 4 --configuration 2d --labeled 2 \
        --trainers nnUNetTrainerMeanTeacher --steps 2000 --seeds 1 2 --features 16 32 64 128 --batch-size 16

The data set is planned and preprocessed by nnU-Net before. All runs of an experiment share network, steps and
validation cases: those of nnU-Net's own fold 0, or with --tune-fold those of its fold 1, so that settings are never
tuned on what is reported. Each seed draws its own labeled cases, nested over their number, and seeds the training. The
unlabeled cases are those of imagesUn; without any, the training cases that are not labeled. With --own-split instead of
--labeled all three are those of a fold of the data set's splits_final.json (a published protocol, a split by patient),
and a seed is one of the training alone; each fold is an experiment of its own, and a table may put some together.
Trainers of your own, which nnUNet_extTrainer names, take part like ours.

A finished run leaves a small file in --results, and is not repeated. Interrupted, the same command goes on where it
stopped. tables.py makes the tables of the README from these files.
"""

import argparse
import json
import os
import shlex
import shutil
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import data_of_runs as data
from result_files import (
    ALL_LABELED,
    BASELINE,
    DEFAULT,
    RESULTS,
    ROOT,
    Result,
    Run,
    code_of,
    is_stale,
    read_results,
    variant_of,
    versions,
)
from tables import Table, rows_of, table_of
from train_one import EPOCHS, length

TRAIN_ONE = Path(__file__).with_name("train_one.py")


@dataclass(frozen=True)
class Planned:
    """A run before it starts: its split, and what its result says of it."""

    run: Run
    split: data.Split
    facts: Result


def main() -> int:
    """Run what is not done yet, and print the table of the experiment."""
    options = parse_arguments()
    refuse_other_checkout()
    runs = plan_runs(options)
    pending = without_finished(runs, options)
    print(f"{len(runs)} runs, {len(runs) - len(pending)} done before; logs in {options.output}", flush=True)
    with ThreadPoolExecutor(options.jobs) as executor:
        codes = list(executor.map(lambda planned: start(planned, options), pending))
    table = Table(runs[0].run.experiment, tuple(options.seeds))
    print(table_of(table, rows_of(table, options.results)))
    return int(any(codes))


def parse_arguments() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dataset", required=True, help="data set: id or name")
    parser.add_argument("--configuration", default="2d", help="default: 2d")
    which = parser.add_mutually_exclusive_group(required=True)
    which.add_argument("--labeled", type=int, metavar="N", help="number of labeled cases")
    which.add_argument("--own-split", action="store_true", help="take the data set's own splits_final.json")
    parser.add_argument("--fold", type=int, default=0, metavar="K", help="of the data set's own split (default: 0)")
    parser.add_argument("--trainers", nargs="+", required=True, metavar="NAME")
    parser.add_argument("--steps", type=int, required=True, help=f"of each training, a multiple of {EPOCHS}")
    parser.add_argument("--seeds", type=int, nargs="+", default=[1], help="default: 1")
    parser.add_argument(
        "--features", type=int, nargs="+", metavar="N", help="features per stage, instead of the plans'"
    )
    parser.add_argument("--batch-size", type=int, metavar="B", help="instead of the plans'")
    parser.add_argument("--options", default="", help='a variant of our trainers, for example "ema_decay=0.9"')
    parser.add_argument("--tune-fold", action="store_true", help="use the validation cases that are not reported")
    parser.add_argument(
        "--head", type=int, metavar="LABEL", help="measure the circumference of this label too, as nnunet_ssl hc does"
    )
    parser.add_argument("--no-upper-bound", action="store_true", help="leave the fully labeled trainings out")
    parser.add_argument("--experiment", help="default: for example hippocampus_2d_2labeled")
    parser.add_argument("--repeat-stale", action="store_true", help="run again what other code was finished with")
    parser.add_argument("--results", type=Path, default=RESULTS, help="default: benchmarks/results")
    parser.add_argument("--device", default="cuda", choices=("cpu", "cuda"), help="default: cuda")
    parser.add_argument("--jobs", type=int, default=1, help="trainings at a time (default: 1)")
    parser.add_argument(
        "-o", "--output", type=Path, default="label_efficiency", help="checkpoints and logs (default: label_efficiency)"
    )
    options = parser.parse_args()
    if options.steps % EPOCHS:
        parser.error(f"--steps is a multiple of {EPOCHS}, got {options.steps}")
    if options.own_split and options.tune_fold:
        parser.error("--tune-fold goes with --labeled")
    if options.fold and not options.own_split:
        parser.error("--fold goes with --own-split")
    words = shlex.split(options.options)
    if not all("=" in word for word in words):
        parser.error(f"--options is written as name=value name=value, got {options.options!r}")
    options.options = dict(word.split("=", 1) for word in words)
    options.output, options.results = options.output.resolve(), options.results.resolve()
    return options


def refuse_other_checkout() -> None:
    """Stop if the code that runs is not that whose commit the results would name."""
    import nnunet_ssl

    if Path(nnunet_ssl.__file__).resolve().parent.parent != ROOT:
        sys.exit(f"results name the commit of {ROOT}, but another nnunet_ssl is installed: pip install -e {ROOT}")


def plan_runs(options: argparse.Namespace) -> list[Planned]:
    """Return all runs of the experiment: for each seed the baseline, the trainers and the upper bound."""
    source = data.folder_of(options.dataset)
    setting = data.facts_of_setting(source, options)
    variant = variant_of(options.options)
    trainings = [(BASELINE, DEFAULT), *((trainer, variant) for trainer in options.trainers if trainer != BASELINE)]
    if not options.no_upper_bound:
        trainings.append((BASELINE, ALL_LABELED))
    runs = []
    for trainer, variant in trainings:
        for seed in options.seeds:
            is_all = variant == ALL_LABELED
            split = split_of(source, is_all, seed, options)
            few = split if not is_all else split_of(source, False, seed, options)
            experiment = options.experiment or data.name_of_experiment(setting, len(few["train"]))
            run = Run(experiment, trainer, variant, seed)
            facts = facts_of(run, options) | {
                "setting": setting,
                "split": data.facts_of_split(split, source, not is_all),
            }
            runs.append(Planned(run, split, facts))
    return runs


def split_of(source: Path, is_all: bool, seed: int, options: argparse.Namespace) -> data.Split:
    """Return the split of a seed, or with all labels."""
    if options.own_split:
        return data.own_split(source, is_all, options.fold)
    fold = data.TUNE_FOLD if options.tune_fold else data.REPORT_FOLD
    return data.draw_split(source, None if is_all else options.labeled, seed, fold)


def facts_of(run: Run, options: argparse.Namespace) -> Result:
    """Return what identifies a run, and the code and versions that it is made with."""
    head = {} if options.head is None else {"head": options.head}
    return head | {
        "trainer": run.trainer,
        "variant": run.variant,
        "options": {} if run.trainer == BASELINE else options.options,
        "seed": run.seed,
        "device": options.device,
        "versions": versions(),
        "code": code_of(run.trainer),
    }


def without_finished(runs: list[Planned], options: argparse.Namespace) -> list[Planned]:
    """Return the runs that have no result yet, or with --repeat-stale a stale one.

    Results of the same experiment in another setting, or of the same run on another split, are refused.
    """
    experiment = runs[0].run.experiment
    finished = read_results(experiment, options.results)
    for run, result in finished.items():
        if result["setting"] != runs[0].facts["setting"]:
            sys.exit(f"{run.name} of {experiment} was trained in another setting: name this one with --experiment")
    pending = []
    for planned in runs:
        result = finished.get(planned.run)
        if result is not None and result["split"] != planned.facts["split"]:
            sys.exit(
                f"{planned.run.name} of {experiment} was trained on another split: name this one with --experiment"
            )
        stale = result is not None and is_stale(result)
        if stale and not options.repeat_stale:
            print(f"{planned.run.name} is stale, --repeat-stale runs it again")
        if result is None or (stale and options.repeat_stale):
            pending.append(planned)
    return pending


def start(planned: Planned, options: argparse.Namespace) -> int:
    """Run one training in a process of its own; its output goes to a file."""
    run = planned.run
    planned.facts["code"] = code_of(run.trainer)  # which may have changed while the runs before were trained
    place = prepare(planned, options)
    environment = os.environ | {
        "nnUNet_preprocessed": str(place / "preprocessed"),
        "nnUNet_results": str(place / "results"),
        "OMP_NUM_THREADS": str(max(1, (os.cpu_count() or 1) // options.jobs)),
    }
    given = length(options.steps) | {"seed": run.seed} | planned.facts["options"]
    environment["nnUNet_ssl_options"] = " ".join(shlex.quote(f"{name}={value}") for name, value in given.items())
    with (place / "log.txt").open("a") as log:
        command = [sys.executable, str(TRAIN_ONE), str(place), str(run.file(options.results))]
        code = subprocess.call(command, stdout=log, stderr=subprocess.STDOUT, env=environment)
    print(f"{run.name}: {'done' if code == 0 else f'FAILED, see {log.name}'}", flush=True)
    return code


def prepare(planned: Planned, options: argparse.Namespace) -> Path:
    """Return the folder of a run, as it was interrupted or new.

    What was begun with other code, versions or data is not gone on with.
    """
    run, facts = planned.run, planned.facts
    place = options.output / run.experiment / run.name
    known = place / "facts.json"
    if known.exists() and not is_same_run(json.loads(known.read_text()), facts):
        print(f"{run.name} was begun with other code, versions or data, and begins again")
        shutil.rmtree(place)
    source = data.folder_of(options.dataset)
    data.lay_preprocessed(source, place / "preprocessed" / source.name, planned.split, options)
    if not known.exists():
        known.write_text(json.dumps(facts, indent=1))
    return place


def is_same_run(before: Result, now: Result) -> bool:
    """Return whether nothing differs but the commit, where its change does not touch the trainer or the step."""
    code = {"commit": None, "dirty": None}
    return all(before.get(key) == value for key, value in now.items() if key != "code") and (
        before["code"] | code == now["code"] | code
    )


if __name__ == "__main__":
    sys.exit(main())
