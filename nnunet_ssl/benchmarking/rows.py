"""The rows of tables of results: which results one shows, put together over seeds and folds, and compared."""

from dataclasses import dataclass, replace
from fnmatch import fnmatch
from math import nan
from pathlib import Path
from statistics import mean

from nnunet_ssl.benchmarking.result_files import ALL_LABELED, BASELINE, DEFAULT, Result, is_stale, read_results
from nnunet_ssl.data.patients import patients_of
from nnunet_ssl.evaluation.comparison import Prediction
from nnunet_ssl.evaluation.paired_statistics import PairedDifference, means_by, paired_difference

BY_CASE = ("dice", "hd95", "asd", "circumference_error")  # what a result has of each case


@dataclass(frozen=True)
class Table:
    """A table of one experiment, or of several as one; the attributes are explained in benchmarks/tables.toml."""

    name: str
    seeds: tuple[int, ...]
    experiments: tuple[str, ...] = ()
    title: str = ""
    text: str = ""
    rows: tuple[str, ...] = ("*",)
    columns: tuple[str, ...] = ("trainer", "seeds", "difference", "hd95", "asd", "cost", "device", "commit")
    sort: str = "difference"
    rival: str = ""
    told: tuple[str, ...] = ()

    def represents_trainer(self, row: "Row") -> bool:
        """Return whether a row is that of a trainer as it is, or as told what it has to be told of the data."""
        return row.variant == DEFAULT or f"{row.trainer}__{row.variant}" in self.told

    @property
    def sources(self) -> tuple[str, ...]:
        """The experiments whose files it is made of."""
        return self.experiments or (self.name,)


@dataclass(frozen=True)
class Row:
    """A trainer with its options: the result of each seed of the table, and the difference to the baseline's."""

    trainer: str
    variant: str
    results: dict[int, Result]
    difference: PairedDifference | None
    rival: dict[int, Result] | None = None


def rows_of(table: Table, results: Path) -> list[Row]:
    """Return the rows whose seeds are complete; none without the baseline, with which all are compared.

    Raises:
        ValueError: the results of a row cannot be compared with the baseline's.
    """
    complete = {
        key: {seed: of_seed[seed] for seed in table.seeds}
        for key, of_seed in results_of(table, results).items()
        if len(of_seed) == len(table.seeds)
    }
    baseline = complete.pop((BASELINE, DEFAULT), None)
    if baseline is None:
        return []
    rival = complete.get(tuple(table.rival.split("__")))
    others = [Row(*key, of_seed, compare(table, of_seed, baseline), rival) for key, of_seed in complete.items()]
    sizes = {"difference": lambda row: -row.difference.mean, "name": lambda row: (row.trainer, row.variant)}
    others.sort(key=lambda row: (row.variant == ALL_LABELED, sizes[table.sort](row)))
    return [Row(BASELINE, DEFAULT, baseline, None, rival), *others]


def results_of(table: Table, results: Path) -> dict[tuple[str, str], dict[int, Result]]:
    """Return what is finished in all experiments of each trainer and variant that the table may show, by seed."""
    found: dict[tuple[str, str], dict[int, Result]] = {}
    for (trainer, variant, seed), of_experiments in parts_of(table, results).items():
        if len(of_experiments) == len(table.sources):
            found.setdefault((trainer, variant), {})[seed] = as_one([*of_experiments.values()])
    return found


def parts_of(table: Table, results: Path) -> dict[tuple[str, str, int], dict[str, Result]]:
    """Return what is finished of each trainer, variant and seed that the table may show, by experiment."""
    parts: dict[tuple[str, str, int], dict[str, Result]] = {}
    for experiment in table.sources:
        for run, result in read_results(experiment, results).items():
            if run.seed in table.seeds and any(fnmatch(f"{run.trainer}__{run.variant}", row) for row in table.rows):
                parts.setdefault((run.trainer, run.variant, run.seed), {})[experiment] = result
    return parts


def as_one(results: list[Result]) -> Result:
    """Return the results of several folds as one: the cases of all, each validated once.

    Raises:
        ValueError: a case is validated in two of them, or they differ in more than the fold.
    """
    if len(results) == 1:
        return results[0]
    whole = dict(results[0])
    for name in ("setting", "options", "versions", "device"):
        same = [result[name] | {"fold": None} if name == "setting" else result[name] for result in results]
        if any(one != same[0] for one in same):
            raise ValueError(f"{whole['trainer']}: folds that are shown as one differ in {name}")
    for name in BY_CASE:
        if name in whole:
            whole[name] = {case: value for result in results for case, value in result[name].items()}
    if len(whole["dice"]) != sum(len(result["dice"]) for result in results):
        raise ValueError(f"{whole['trainer']}: folds that are shown as one have cases in common")
    splits = [result["split"] for result in results]
    numbers = {name: [split[name] for split in splits] for name in ("labeled", "unlabeled")}
    whole["split"] = {
        **{name: " to ".join(dict.fromkeys(str(n) for n in (min(of), max(of)))) for name, of in numbers.items()},
        "validation": sum(split["validation"] for split in splits),
        "digest": " ".join(split["digest"] for split in splits),
    }
    whole["setting"] = whole["setting"] | {"fold": "folds"}
    whole["code"] = whole["code"] | {"dirty": any(result["code"]["dirty"] for result in results)}
    whole["code"]["commit"] = ", ".join(dict.fromkeys(str(result["code"]["commit"]) for result in results))
    whole["seconds"] = sum(result["seconds"] for result in results)
    return whole


def compare(table: Table, results: dict[int, Result], baseline: dict[int, Result]) -> PairedDifference:
    """Return the difference of a row to the baseline, of the same cases in each seed."""
    for seed, result in results.items():
        plain, name = baseline[seed], f"{table.name}: {result['trainer']}, {result['variant']}, seed {seed}"
        if result["setting"] != plain["setting"]:
            raise ValueError(f"{name} was trained in another setting than {BASELINE}")
        has_own_labels = result["variant"] == ALL_LABELED or "added" in result
        if not has_own_labels and result["split"]["digest"] != plain["split"]["digest"]:
            raise ValueError(f"{name} was trained on another split than {BASELINE}")
        if result["dice"].keys() != plain["dice"].keys():
            raise ValueError(f"{name} has other validation cases than {BASELINE}")
    difference = paired_difference(predictions(results), predictions(baseline), patients_in(results))
    has_patients = "unit" not in next(iter(results.values()))["setting"]
    return difference if has_patients else replace(difference, low=nan, high=nan)


def patients_in(results: dict[int, Result]) -> dict[str, str]:
    """Return whose each case is; its own where the pattern finds something else than patients."""
    first = next(iter(results.values()))
    pattern = None if "unit" in first["setting"] else first["setting"]["patient_pattern"]
    return patients_of(first["dice"], pattern)


def predictions(results: dict[int, Result]) -> dict[Prediction, float]:
    """Return the Dice of each case in each training."""
    return {
        Prediction(str(seed), case): dice
        for seed, result in results.items()
        for case, dice in dice_of_cases(result).items()
    }


def dice_of_cases(result: Result) -> dict[str, float]:
    """Return the mean over the labels of each case.

    A label that is neither in the reference nor in the prediction counts 1, as in `nnunet_ssl evaluate`: nnU-Net leaves
    it out, so that a label which is predicted where there is none would cost nothing in a comparison.
    """
    return {
        case: mean(1.0 if dice is None else dice for dice in labels.values()) for case, labels in result["dice"].items()
    }


def mean_dice(results: dict[int, Result]) -> dict[int, float]:
    """Return the mean of each seed over the labels of a case, the cases of a patient, and the patients."""
    patients = patients_in(results)
    return {
        seed: mean(means_by(dice_of_cases(result), patients.__getitem__).values()) for seed, result in results.items()
    }


def remarks(tables: dict[str, Table], results: Path) -> list[str]:
    """Return which results are stale, and which rows are not shown because seeds are missing."""
    experiments = dict.fromkeys(experiment for table in tables.values() for experiment in table.sources)
    lines = [
        f"stale: {run.experiment}/{run.name}"
        for experiment in experiments
        for run, result in read_results(experiment, results).items()
        if is_stale(result)
    ]
    for table in tables.values():
        for (trainer, variant, seed), of_experiments in parts_of(table, results).items():
            if missing := [one for one in table.sources if one not in of_experiments]:
                lines.append(f"not shown: {table.name}/{trainer}__{variant}, seed {seed} without {', '.join(missing)}")
        for (trainer, variant), of_seed in results_of(table, results).items():
            if missing := [str(seed) for seed in table.seeds if seed not in of_seed]:
                lines.append(f"not shown: {table.name}/{trainer}__{variant}, without seed {', '.join(missing)}")
    return list(dict.fromkeys(lines))
