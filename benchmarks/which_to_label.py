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
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch

import label_efficiency
from nnunet_ssl.benchmarking.planning import Comparison, Planned, plan_runs, without_finished
from nnunet_ssl.benchmarking.result_files import BASELINE
from nnunet_ssl.benchmarking.rows import Table, rows_of
from nnunet_ssl.benchmarking.running import Places, run_all
from nnunet_ssl.benchmarking.splits import facts_of_split
from nnunet_ssl.benchmarking.tables import table_of
from nnunet_ssl.commands.benchmark_checks import comparison_of, places_of
from nnunet_ssl.data.preprocessed_images import write_json_atomically
from nnunet_ssl.data.raw_files import RawDataset
from nnunet_ssl.evaluation.label_priority import Uncertainty, priority
from nnunet_ssl.evaluation.pool_prediction import PoolPredictor


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
    if not volumes.sum() > 0:  # of 2-D images no volume is known
        raise ValueError("the rule foreground needs cases whose predicted foreground has a volume: there is none")
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
    comparison = comparison_to_label(options)
    places = places_of(options, comparison)
    first = plan_runs(comparison)
    codes = run_all(without_model_or_result(first, places, options.repeat_stale), places, options.jobs)
    if any(codes):
        return 1
    runs = [run for planned in first for run in with_more_labels(planned, places, options.add)]
    codes = run_all(without_finished(runs, places.results, options.repeat_stale), places, options.jobs)
    table = Table(first[0].run.experiment, comparison.seeds)
    print(table_of(table, rows_of(table, places.results)))
    return int(any(codes))


def parse_arguments() -> argparse.Namespace:
    """Read the command line: what is not named here is label_efficiency.py's."""
    parser = label_efficiency.argument_parser(__doc__)
    parser.add_argument("--add", type=int, required=True, metavar="N", help="number of cases that a rule adds")
    options = parser.parse_args([*sys.argv[1:], "--trainers", BASELINE, "--no-upper-bound"])
    if options.labeled is None or len(options.labeled) > 1 or options.options:
        parser.error("which_to_label.py draws its cases by --labeled, one number, and takes no --options")
    return options


def comparison_to_label(options: argparse.Namespace) -> Comparison:
    """Return what the first runs compare, of an experiment that says how many cases are added."""
    comparison = comparison_of(options)
    (experiment,) = comparison.experiments
    if options.experiment is None:
        experiment = replace(experiment, given_name=f"{experiment.name}_and_{options.add}_more")
    return replace(comparison, experiments=(experiment,))


def model_of(planned: Planned, places: Places) -> Path:
    """Return the model of a run, which has to be there still after its result."""
    run, experiment = planned.run, planned.experiment
    name = f"{run.trainer}__{experiment.plans}__{experiment.configuration}"
    return places.of(planned) / "results" / experiment.source.name / name / "fold_0" / "checkpoint_final.pth"


def without_model_or_result(runs: list[Planned], places: Places, repeat_stale: bool) -> list[Planned]:
    """Return the first runs that have to be trained or validated: their model chooses, their result is the baseline."""
    unfinished = without_finished(runs, places.results, repeat_stale)
    return [planned for planned in runs if planned in unfinished or not model_of(planned, places).exists()]


def with_more_labels(planned: Planned, places: Places, count: int) -> list[Planned]:
    """Return the runs of a seed, one for each rule, with the cases that it adds."""
    predicted = prediction_of(planned, places)
    runs = []
    for name, rule in RULES.items():
        chosen = rule(predicted, count, np.random.default_rng(planned.run.seed))
        split = {"train": sorted([*planned.split["train"], *chosen]), "val": planned.split["val"]}
        facts = planned.facts | {
            "variant": f"{count}-more-{name}",
            "added": sorted(chosen),
            "split": facts_of_split(split, planned.experiment.source, False),
        }
        runs.append(replace(planned, run=replace(planned.run, variant=facts["variant"]), split=split, facts=facts))
    return runs


def prediction_of(planned: Planned, places: Places) -> Predicted:
    """Return what the model of a seed predicts of the training cases that it has not learned from; made once."""
    model = model_of(planned, places)
    file = model.with_name("other_cases.json")
    if not file.exists():
        experiment, seed = planned.experiment, planned.run.seed
        images = RawDataset.open(Path(os.environ["nnUNet_raw"], experiment.source.name)).images("imagesTr")
        predictor = PoolPredictor(model.parent.parent, "0", model.name, torch.device(planned.facts["device"]))
        fold = experiment.split(seed, with_all_labels=True)
        others = sorted({*fold["train"]} - {*planned.split["train"]})
        found = {case: predictor.predict(images[case]) for case in others}
        facts = {case: [vars(one.uncertainty), sum(one.volumes_ml.values())] for case, one in found.items()}
        write_json_atomically(facts, file)
    known = json.loads(file.read_text())
    uncertainty = {case: Uncertainty(**facts) for case, (facts, _) in known.items()}
    return Predicted(uncertainty, {case: volume for case, (_, volume) in known.items()})


if __name__ == "__main__":
    sys.exit(main())
