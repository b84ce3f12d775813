r"""Which scans to label next: what a model is most uncertain about, as `nnunet_ssl pseudolabel` ranks, or random ones.

    python benchmarks/which_to_label.py --dataset 4 --configuration 2d --labeled 2 --add 4 --steps 2000 \
        --seeds 1 2 3 --features 16 32 64 128 --batch-size 16

For each seed nnUNetTrainer learns from its few labeled cases and predicts the fold's other training cases; each rule
then adds some of them, with their true labels, and nnUNetTrainer is trained again from the beginning. The rules:

    random         any case
    foreground     at random, in proportion to the predicted foreground, in ml
    uncertain      the most uncertain cases, as `nnunet_ssl pseudolabel` ranks them
    each-class     in turn for each structure the case whose prediction of it is the least confident

Settings, result files and interruptions are as in label_efficiency.py, and so are the other options.
"""

import argparse
import json
import os
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import numpy as np
import torch

import data_of_runs as data
import label_efficiency
from label_efficiency import Planned
from nnunet_ssl.data.preprocessed_images import write_json_atomically
from nnunet_ssl.data.raw_files import RawDataset
from nnunet_ssl.evaluation.label_priority import Uncertainty, priority
from result_files import BASELINE
from tables import Table, rows_of, table_of


@dataclass(frozen=True)
class Predicted:
    """What a model predicts of the cases that are not labeled: how uncertain it is, and the foreground in ml."""

    uncertainty: dict[str, Uncertainty]
    foreground_ml: dict[str, float]


def at_random(predicted: Predicted, count: int, draws: np.random.Generator) -> list[str]:
    """Return any cases."""
    return [str(case) for case in draws.choice(sorted(predicted.uncertainty), count, replace=False)]


def by_foreground(predicted: Predicted, count: int, draws: np.random.Generator) -> list[str]:
    """Return cases at random, in proportion to their predicted foreground."""
    cases = sorted(predicted.foreground_ml)
    volumes = np.array([predicted.foreground_ml[case] for case in cases])
    return [str(case) for case in draws.choice(cases, count, replace=False, p=volumes / volumes.sum())]


def most_uncertain(predicted: Predicted, count: int, _: np.random.Generator) -> list[str]:
    """Return the cases that `nnunet_ssl pseudolabel` ranks first."""
    return priority(predicted.uncertainty)[:count]


def of_each_class(predicted: Predicted, count: int, _: np.random.Generator) -> list[str]:
    """Return in turn for each structure the case whose prediction of it is the least confident, a missing one first."""
    structures = list(next(iter(predicted.uncertainty.values())).confidence)
    chosen: list[str] = []
    while len(chosen) < count:
        name = structures[len(chosen) % len(structures)]
        left = {case: u.confidence[name] for case, u in predicted.uncertainty.items() if case not in chosen}
        chosen.append(min(left, key=lambda case: (np.nan_to_num(left[case], nan=-1.0), case)))
    return chosen


RULES: dict[str, Callable[[Predicted, int, np.random.Generator], list[str]]] = {
    "random": at_random,
    "foreground": by_foreground,
    "uncertain": most_uncertain,
    "each-class": of_each_class,
}


def main() -> int:
    """Run what is not done yet, and print the table."""
    options = parse_arguments()
    label_efficiency.refuse_other_checkout()
    first = label_efficiency.plan_runs(options)
    with ThreadPoolExecutor(options.jobs) as pool:
        trained = partial(label_efficiency.start, options=options)
        codes = list(pool.map(trained, without_model_or_result(first, options)))
        if any(codes):
            return 1
        runs = [run for planned in first for run in with_more_labels(planned, options)]
        codes = list(pool.map(trained, label_efficiency.without_finished(runs, options)))
    table = Table(first[0].run.experiment, tuple(options.seeds))
    print(table_of(table, rows_of(table, options.results)))
    return int(any(codes))


def parse_arguments() -> argparse.Namespace:
    """Read the command line: what is not named here is label_efficiency.py's."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--add", type=int, required=True, metavar="N", help="number of cases that a rule adds")
    own, others = parser.parse_known_args()
    sys.argv[1:] = [*others, "--trainers", BASELINE, "--no-upper-bound"]
    options = label_efficiency.parse_arguments()
    options.add = own.add
    if options.labeled is None or options.options:
        parser.error("which_to_label.py draws its cases by --labeled and takes no --options")
    if options.experiment is None:
        setting = data.facts_of_setting(data.folder_of(options.dataset), options)
        options.experiment = f"{data.name_of_experiment(setting, options.labeled)}_and_{options.add}_more"
    return options


def model_of(planned: Planned, options: argparse.Namespace) -> Path:
    """Return the model of a run, which has to be there still after its result."""
    setting, run = planned.facts["setting"], planned.run
    name = f"{run.trainer}__nnUNetPlans__{setting['configuration']}"
    place = options.output / run.experiment / run.name
    return place / "results" / setting["dataset"] / name / "fold_0" / "checkpoint_final.pth"


def without_model_or_result(runs: list[Planned], options: argparse.Namespace) -> list[Planned]:
    """Return the first runs that have to be trained or validated: their model chooses, their result is the baseline."""
    unfinished = label_efficiency.without_finished(runs, options)
    return [planned for planned in runs if planned in unfinished or not model_of(planned, options).exists()]


def with_more_labels(planned: Planned, options: argparse.Namespace) -> list[Planned]:
    """Return the runs of a seed, one for each rule, with the cases that it adds."""
    source = data.folder_of(options.dataset)
    predicted = prediction_of(planned, options)
    runs = []
    for name, rule in RULES.items():
        chosen = rule(predicted, options.add, np.random.default_rng(planned.run.seed))
        train = sorted([*planned.split["train"], *chosen])
        split = {"train": train, "val": planned.split["val"]}
        facts = planned.facts | {"variant": f"{options.add}-more-{name}", "added": sorted(chosen)}
        run = replace(planned.run, variant=facts["variant"])
        runs.append(Planned(run, split, facts | {"split": data.facts_of_split(split, source, False)}))
    return runs


def prediction_of(planned: Planned, options: argparse.Namespace) -> Predicted:
    """Return what the model of a seed predicts of the training cases that it has not learned from; made once."""
    from nnunet_ssl.evaluation.pool_prediction import PoolPredictor

    model = model_of(planned, options)
    file = model.with_name("other_cases.json")
    if not file.exists():
        images = RawDataset.open(Path(os.environ["nnUNet_raw"], planned.facts["setting"]["dataset"])).images("imagesTr")
        predictor = PoolPredictor(model.parent.parent, "0", model.name, torch.device(options.device))
        fold = label_efficiency.split_of(data.folder_of(options.dataset), True, planned.run.seed, options)
        others = sorted({*fold["train"]} - {*planned.split["train"]})
        found = {case: predictor.predict(images[case]) for case in others}
        facts = {case: [vars(one.uncertainty), sum(one.volumes_ml.values())] for case, one in found.items()}
        write_json_atomically(facts, file)
    known = json.loads(file.read_text())
    uncertainty = {case: Uncertainty(**facts) for case, (facts, _) in known.items()}
    return Predicted(uncertainty, {case: volume for case, (_, volume) in known.items()})


if __name__ == "__main__":
    sys.exit(main())
