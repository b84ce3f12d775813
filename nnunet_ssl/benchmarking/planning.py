"""Which trainings a comparison consists of, and which of them have no result yet."""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from nnunet_ssl.benchmarking.experiment import Experiment
from nnunet_ssl.benchmarking.result_files import (
    ALL_LABELED,
    BASELINE,
    DEFAULT,
    Result,
    Run,
    code_of,
    is_stale,
    read_results,
    variant_of,
    versions,
)
from nnunet_ssl.benchmarking.splits import Split, facts_of_split
from nnunet_ssl.data.preprocessed_images import write_json_atomically

IN_ANOTHER = {
    "setting": "in another setting",
    "split": "on another split",
    "options": "with other options",
    "device": "on another device",
}


@dataclass(frozen=True)
class Comparison:
    """Trainers that are compared in each of some experiments, which differ in the number of labeled cases alone.

    Attributes:
        experiments: one for each number.
        trainers: by name; the baseline is trained in any case.
        seeds: of the trainings, and of the labeled cases where they are drawn.
        device: "cpu" or "cuda".
        options: of the trainers, a variant of them.
        with_upper_bound: whether the baseline is trained with all labels, too.
        head: a label whose circumference is measured.
    """

    experiments: tuple[Experiment, ...]
    trainers: tuple[str, ...]
    seeds: tuple[int, ...]
    device: str
    options: dict[str, str] = field(default_factory=dict)
    with_upper_bound: bool = True
    head: int | None = None


@dataclass(frozen=True)
class Planned:
    """A training before it starts.

    Attributes:
        run: whose result it leaves.
        experiment: of the run.
        split: its cases.
        facts: what its result says of it beside the outcome.
        others: runs of further experiments that are the same training: with all labels.
    """

    run: Run
    experiment: Experiment
    split: Split
    facts: Result
    others: tuple[Run, ...] = ()

    @property
    def runs(self) -> tuple[Run, ...]:
        """All runs whose result it leaves."""
        return (self.run, *self.others)


def plan_runs(comparison: Comparison) -> list[Planned]:
    """Return all trainings: of each experiment and seed the baseline and the trainers, and once the upper bound."""
    trainings = [(BASELINE, DEFAULT)]
    trainings += [(trainer, variant_of(comparison.options)) for trainer in comparison.trainers if trainer != BASELINE]
    head = {} if comparison.head is None else {"head": comparison.head}
    same = head | {"device": comparison.device, "versions": versions()}
    codes = {trainer: code_of(trainer) for trainer, _ in trainings}
    runs = []
    for experiment in comparison.experiments:
        facts = same | {"setting": experiment.setting()}
        for trainer, variant in trainings:
            options = {} if trainer == BASELINE else comparison.options
            of_training = facts | {"options": options, "code": codes[trainer]}
            for seed in comparison.seeds:
                runs.append(plan_run(Run(experiment.name, trainer, variant, seed), experiment, of_training))
    if comparison.with_upper_bound:
        first, *others = comparison.experiments
        facts = same | {"setting": first.setting(), "options": {}, "code": codes[BASELINE]}
        for seed in comparison.seeds:
            run = Run(first.name, BASELINE, ALL_LABELED, seed)
            same_trainings = tuple(replace(run, experiment=other.name) for other in others)
            runs.append(replace(plan_run(run, first, facts), others=same_trainings))
    return runs


def plan_run(run: Run, experiment: Experiment, facts: Result) -> Planned:
    """Return one training with its cases, and what identifies it beside the facts that it shares with others."""
    is_all = run.variant == ALL_LABELED
    split = experiment.split(run.seed, with_all_labels=is_all)
    own = {"trainer": run.trainer, "variant": run.variant, "options": facts["options"], "seed": run.seed}
    return Planned(
        run, experiment, split, own | facts | {"split": facts_of_split(split, experiment.source, not is_all)}
    )


def without_finished(planned: Sequence[Planned], results: Path, repeat_stale: bool = False) -> list[Planned]:
    """Return the trainings that have no result yet, or if so asked a stale one, which is said otherwise.

    A result that an experiment has and another one of the same training lacks is copied.

    Raises:
        ValueError: there is a result of the same experiment in another setting, or of the same run on another split or
            with other options, which a file's name may not tell apart.
    """
    finished = {}
    for experiment, setting in {run.experiment: one.facts["setting"] for one in planned for run in one.runs}.items():
        of_experiment = read_results(experiment, results)
        for run, result in of_experiment.items():
            refuse_other(run, result, {"setting": setting}, "setting")
        finished |= of_experiment
    pending = []
    for one in planned:
        known = {run: finished[run] for run in one.runs if run in finished}
        for run, result in known.items():
            for what in ("split", "options"):
                refuse_other(run, result, one.facts, what)
        stale = [run for run, result in known.items() if is_stale(result)]
        if stale and not repeat_stale:
            print(f"{one.run.name} is stale, --repeat-stale runs it again")
        if not known or (stale and repeat_stale):
            pending.append(one)
            continue
        for run in one.runs:
            if run not in known:
                write_json_atomically(next(iter(known.values())), run.file(results))
    return pending


def refuse_other(run: Run, found: Result, asked: Result, what: str) -> None:
    """Raise a ValueError if a training was made in another setting, on another split, or as `what` says."""
    if found[what] != asked[what]:
        raise ValueError(
            f"{run.name} of {run.experiment} was trained {IN_ANOTHER[what]}: name this one with --experiment, or "
            "choose another --output"
        )
