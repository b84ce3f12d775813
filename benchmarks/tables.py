"""Make the tables of results in README.md and docs/ from the files of finished runs.

    python benchmarks/tables.py             # write them anew
    python benchmarks/tables.py --check     # exit with 1 where one differs from its files

A table stands between the lines `<!-- table: NAME -->` and `<!-- end -->`; with `section` instead of `table` its
title and setting come too, and nothing while no run is finished. tables.toml says which tables there are. Results of
trainers whose code has changed since are named as stale. `<!-- step_time: NAME -->` stands before the table that
step_time.py wrote to results/step_time/NAME.csv. `<!-- gains: NAME,NAME -->` stands before a table of trainers that is
written by hand: its last columns are the differences of these tables, by trainer.
"""

import argparse
import csv
import re
import sys
import tomllib
from collections.abc import Callable
from dataclasses import dataclass
from fnmatch import fnmatch
from math import isnan
from pathlib import Path
from statistics import mean
from typing import Any

from nnunet_ssl.evaluation.comparison import Prediction, patients_of
from nnunet_ssl.evaluation.paired_statistics import PairedDifference, bootstrap_interval, paired_difference
from result_files import ALL_LABELED, BASELINE, DEFAULT, RESULTS, ROOT, Result, is_stale, read_results

TABLES = Path(__file__).with_name("tables.toml")
FOLDS = {
    "report": "nnU-Net's fold 0",
    "tune": "nnU-Net's fold 1, for tuning",
    "own split": "the data set's own split",
    "folds": "all folds of the data set's own split together",
}
BY_CASE = ("dice", "hd95", "asd", "circumference_error")  # what a result has of each case
NOTHING = "No finished runs yet."
MARKER = re.compile(
    r"^(<!-- (table|section|step_time|gains): (\S+) -->\n)(.*?)(<!-- end -->)$", re.DOTALL | re.MULTILINE
)
START = re.compile(r"^<!-- (table|section|step_time|gains):", re.MULTILINE)

STEP_COLUMNS = {
    "trainer": "trainer",
    "ratio": "time of a step (nnU-Net's: 1)",
    "cost_model": "cost",
    "share_of_model": "time / cost",
    "peak_gib": "peak memory (GiB)",
    "peak_ratio": "peak memory (nnU-Net's: 1)",
}


@dataclass(frozen=True)
class Table:
    """A table of one experiment, or of several as one; the attributes are explained in tables.toml."""

    name: str
    seeds: tuple[int, ...]
    experiments: tuple[str, ...] = ()
    title: str = ""
    text: str = ""
    rows: tuple[str, ...] = ("*",)
    columns: tuple[str, ...] = ("trainer", "seeds", "difference", "hd95", "asd", "cost", "device", "commit")
    sort: str = "difference"
    rival: str = ""

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


def main() -> int:
    """Write or check the tables, and say which results are stale."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="change nothing; exit with 1 where a table differs")
    options = parser.parse_args()
    tables = read_tables()
    different = []
    for document in documents():
        text = document.read_text(encoding="utf-8")
        if (new := with_tables(text, tables)) != text:
            different.append(document.name)
            if not options.check:
                document.write_text(new, encoding="utf-8")
    for line in remarks(tables):
        print(line)
    if different:
        print(f"{'differ from their files' if options.check else 'written'}: {', '.join(different)}")
    return int(options.check and bool(different))


def documents() -> list[Path]:
    """Return the files that may hold tables."""
    return [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]


def read_tables(file: Path = TABLES) -> dict[str, Table]:
    """Return the tables that there are, by name."""
    return {
        name: Table(name, **{key: tuple(value) if isinstance(value, list) else value for key, value in entry.items()})
        for name, entry in tomllib.loads(file.read_text()).items()
    }


def remarks(tables: dict[str, Table], results: Path = RESULTS) -> list[str]:
    """Return which results are stale, and which rows are not shown because seeds are missing."""
    experiments = dict.fromkeys(experiment for table in tables.values() for experiment in table.sources)
    lines = [
        f"stale: {run.experiment}/{run.name}"
        for experiment in experiments
        for run, result in read_results(experiment, results).items()
        if is_stale(result)
    ]
    for table in tables.values():
        for (trainer, variant), of_seed in results_of(table, results).items():
            if missing := [str(seed) for seed in table.seeds if seed not in of_seed]:
                lines.append(f"not shown: {table.name}/{trainer}__{variant}, without seed {', '.join(missing)}")
    return list(dict.fromkeys(lines))


def with_tables(text: str, tables: dict[str, Table], results: Path = RESULTS) -> str:
    """Return a document with its tables made anew.

    Raises:
        ValueError: a marker without its end, or of a table that there is not; results that cannot be compared.
    """
    if len(START.findall(text)) != len(MARKER.findall(text)):
        raise ValueError("each <!-- table: NAME -->, section or step_time has an <!-- end --> of its own")

    def replaced(match: re.Match) -> str:
        start, kind, name, old, end = match.groups()
        if kind == "step_time":
            return f"{start}\n{step_table(results / kind / f'{name}.csv')}\n\n{end}"
        if missing := [one for one in name.split(",") if one not in tables]:
            raise ValueError(f"tables.toml has no table {', '.join(missing)}")
        if kind == "gains":
            return start + with_gains(old, [tables[one] for one in name.split(",")], results) + end
        rows = rows_of(tables[name], results)
        made = table_of(tables[name], rows) if kind == "table" else section_of(tables[name], rows)
        return f"{start}\n{made}\n\n{end}" if made else start + end

    return MARKER.sub(replaced, text)


def with_gains(text: str, tables: list[Table], results: Path) -> str:
    """Return a table of trainers whose last columns are what each gained: the baseline's Dice, others' difference."""
    gains = [{row.trainer: row for row in rows_of(table, results) if row.variant == DEFAULT} for table in tables]
    lines = text.splitlines(keepends=True)
    for number, line in enumerate(lines):
        if trainer := re.search(r"`(nnUNetTrainer\w*)`", line):
            kept = line.strip().strip("|").split("|")[: -len(tables)]
            cells = [gain_cell(of_table.get(trainer[1])) for of_table in gains]
            lines[number] = f"|{'|'.join(kept)}| {' | '.join(cells)} |\n"
    return "".join(lines)


def gain_cell(row: Row | None) -> str:
    """Return the difference of a row, the Dice of the baseline, nothing of what was not measured."""
    if row is None:
        return ""
    if row.difference is not None:
        return f"{row.difference.mean:+.3f}"
    return f"{mean(mean(dice_of_cases(result).values()) for result in row.results.values()):.3f}"


def section_of(table: Table, rows: list[Row]) -> str:
    """Return title, setting and table; nothing without a row."""
    if not rows:
        return ""
    return f"## {table.title or table.name}\n\n{table.text} {setting_of(rows)}".rstrip() + (
        f"\n\n{table_of(table, rows)}"
    )


def table_of(table: Table, rows: list[Row]) -> str:
    """Return the table in Markdown."""
    if not rows:
        return NOTHING
    cells = [{key: value for name in table.columns for key, value in COLUMNS[name](row).items()} for row in rows]
    lines = [list(cells[0]), ["---"] * len(cells[0]), *(list(row.values()) for row in cells)]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def step_table(file: Path) -> str:
    """Return what step_time.py measured of each trainer in Markdown: time and memory as multiples of nnU-Net's."""
    with file.open(newline="") as opened:
        rows = list(csv.DictReader(opened))
    lines = [list(STEP_COLUMNS.values()), ["---"] * len(STEP_COLUMNS)]
    lines += [[f"`{row['trainer']}`", *(f"{float(row[key]):.2f}" for key in list(STEP_COLUMNS)[1:])] for row in rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def rows_of(table: Table, results: Path = RESULTS) -> list[Row]:
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
    parts: dict[tuple[str, str, int], list[Result]] = {}
    for experiment in table.sources:
        for run, result in read_results(experiment, results).items():
            if run.seed in table.seeds and any(fnmatch(f"{run.trainer}__{run.variant}", row) for row in table.rows):
                parts.setdefault((run.trainer, run.variant, run.seed), []).append(result)
    found: dict[tuple[str, str], dict[int, Result]] = {}
    for (trainer, variant, seed), of_experiments in parts.items():
        if len(of_experiments) == len(table.sources):
            found.setdefault((trainer, variant), {})[seed] = as_one(of_experiments)
    return found


def as_one(results: list[Result]) -> Result:
    """Return the results of several folds as one: the cases of all, each validated once.

    Raises:
        ValueError: a case is validated in two of them.
    """
    if len(results) == 1:
        return results[0]
    whole = dict(results[0])
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
    first = next(iter(results.values()))
    patients, _ = patients_of(list(first["dice"]), first["setting"]["patient_pattern"])
    return paired_difference(predictions(results), predictions(baseline), patients)


def predictions(results: dict[int, Result]) -> dict[Prediction, float]:
    """Return the Dice of each case in each training."""
    return {
        Prediction(str(seed), case): dice
        for seed, result in results.items()
        for case, dice in dice_of_cases(result).items()
    }


def dice_of_cases(result: Result) -> dict[str, float]:
    """Return the mean over the labels of each case.

    A label that is neither in the reference nor in the prediction has no Dice, and a case without any is left out.
    """
    known = {case: [dice for dice in labels.values() if dice is not None] for case, labels in result["dice"].items()}
    return {case: mean(values) for case, values in known.items() if values}


def mean_distance(row: Row, name: str) -> str:
    """Return the mean of a distance over labels, cases and seeds in mm, and how many have none."""
    results = row.results.values()
    if not all(name in result for result in results):
        return ""
    all_of_them = [distance for result in results for labels in result[name].values() for distance in labels.values()]
    known = [distance for distance in all_of_them if distance is not None]
    without = len(all_of_them) - len(known)
    return (f"{mean(known):.2f}" if known else "none") + (f", {without} undefined" if without else "")


def circumference_cell(row: Row) -> dict[str, str]:
    """Return the mean error of the head circumference over cases and seeds in mm, and how many have none."""
    errors = [error for result in row.results.values() for error in result["circumference_error"].values()]
    known = [error for error in errors if error is not None]
    without = len(errors) - len(known)
    text = (f"{mean(known):.2f}" if known else "none") + (f", {without} without" if without else "")
    return {"circumference error (mm)": text}


def setting_of(rows: list[Row]) -> str:
    """Return in words what the runs of an experiment share."""
    results = [result for row in rows for result in row.results.values()]
    setting, split = results[0]["setting"], results[0]["split"]
    versions = {name: sorted({result["versions"][name] for result in results}) for name in results[0]["versions"]}
    made_with = ", ".join(f"{name} {' and '.join(found)}" for name, found in versions.items())
    patch = " x ".join(str(size) for size in setting["patch_size"])
    return (
        f"{setting['dataset']}, {setting['configuration']}: {split['labeled']} labeled, {split['unlabeled']} unlabeled "
        f"and {split['validation']} validation cases ({FOLDS[setting['fold']]}). {setting['steps']} steps, batches of "
        f"{setting['batch_size']} patches of {patch}, features {' '.join(str(n) for n in setting['features'])}. "
        f"{made_with}."
    )


def trainer_cell(row: Row) -> dict[str, str]:
    """Return the trainer and its variant."""
    first = next(iter(row.results.values()))
    words = f"all {first['split']['labeled']} labeled" if row.variant == ALL_LABELED else row.variant.replace(",", ", ")
    return {"trainer": f"`{row.trainer}`" + ("" if row.variant == DEFAULT else f", {words}")}


def seed_cells(row: Row) -> dict[str, str]:
    """Return the mean Dice over the cases of each seed."""
    return {f"seed {seed}": f"{mean(dice_of_cases(result).values()):.4f}" for seed, result in row.results.items()}


def difference_cell(row: Row) -> dict[str, str]:
    """Return the mean difference to the baseline, and its interval where there are cases enough."""
    text, difference = "", row.difference
    if difference is not None:
        text = f"{difference.mean:+.4f}"
        text += "" if isnan(difference.low) else f" ({difference.low:+.4f} to {difference.high:+.4f})"
    return {f"difference to `{BASELINE}` (95 % interval)": text}


def rival_cell(row: Row) -> dict[str, str]:
    """Return the mean difference to the table's rival, with its interval over draws of labeled cases, then patients."""
    if row.rival is None:
        return {"difference to the rival": ""}
    first = next(iter(row.rival.values()))
    name = f"`{first['trainer']}`" + ("" if first["variant"] == DEFAULT else f", {first['variant']}")
    text = ""
    if row.results is not row.rival:
        ours, theirs = predictions(row.results), predictions(row.rival)
        patients, _ = patients_of(list(first["dice"]), first["setting"]["patient_pattern"])
        low, high = bootstrap_interval(ours, theirs, patients)
        text = f"{paired_difference(ours, theirs, patients).mean:+.4f} ({low:+.4f} to {high:+.4f})"
    return {f"difference to {name} (95 % interval over draws and cases)": text}


def cost_cell(row: Row) -> dict[str, str]:
    """Return the cost that our trainers state; nnU-Net's own is 1."""
    cost = 1 if row.trainer == BASELINE else next(iter(row.results.values()))["cost"]
    return {"cost of a step": "" if cost is None else f"{cost:.3g}"}


def minutes_cell(row: Row) -> dict[str, str]:
    """Return the mean minutes of the training."""
    return {"minutes": f"{mean(result['seconds'] for result in row.results.values()) / 60:.1f}"}


def device_cell(row: Row) -> dict[str, str]:
    """Return what the trainings ran on; a GPU trains in mixed precision, as nnU-Net does."""
    names = {"cpu": "CPU", "cuda": "GPU"}
    return {"device": ", ".join(dict.fromkeys(names[result["device"]] for result in row.results.values()))}


def commit_cell(row: Row) -> dict[str, str]:
    """Return the commits that the results were made with."""
    codes = [result["code"] for result in row.results.values()]
    words = [f"{code['commit'] or 'unknown'}{' and changes' if code['dirty'] else ''}" for code in codes]
    return {"commit": ", ".join(dict.fromkeys(words))}


COLUMNS: dict[str, Callable[[Row], dict[str, Any]]] = {
    "trainer": trainer_cell,
    "seeds": seed_cells,
    "difference": difference_cell,
    "rival": rival_cell,
    "cost": cost_cell,
    "hd95": lambda row: {"95HD (mm)": mean_distance(row, "hd95")},
    "circumference": circumference_cell,
    "asd": lambda row: {"ASD (mm)": mean_distance(row, "asd")},
    "minutes": minutes_cell,
    "device": device_cell,
    "commit": commit_cell,
}


if __name__ == "__main__":
    sys.exit(main())
