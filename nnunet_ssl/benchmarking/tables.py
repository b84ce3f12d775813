"""Tables of results in Markdown, and what each column says of a row."""

from collections.abc import Callable
from math import isnan
from statistics import mean
from typing import Any

from nnunet_ssl.benchmarking.result_files import ALL_LABELED, BASELINE, DEFAULT, Result
from nnunet_ssl.benchmarking.rows import Row, Table, mean_dice, patients_in, predictions
from nnunet_ssl.evaluation.paired_statistics import bootstrap_interval, paired_difference

FOLDS = {
    "report": "nnU-Net's fold 0",
    "tune": "nnU-Net's fold 1, for tuning",
    "own split": "the data set's own split",
    "folds": "all folds of the data set's own split together",
}
NOTHING = "No finished runs yet."


def section_of(table: Table, rows: list[Row]) -> str:
    """Return title, setting and table; nothing without a row."""
    if not rows:
        return ""
    text = f"{table.text} {setting_of(rows)}".strip()
    return f"## {table.title or table.name}\n\n{text}\n\n{table_of(table, rows)}"


def table_of(table: Table, rows: list[Row]) -> str:
    """Return the table in Markdown."""
    if not rows:
        return NOTHING
    cells = [{key: value for name in table.columns for key, value in COLUMNS[name](row).items()} for row in rows]
    lines = [list(cells[0]), ["---"] * len(cells[0]), *(list(row.values()) for row in cells)]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


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
    name = "circumference error (mm)"
    if not all("circumference_error" in result for result in row.results.values()):
        return {name: ""}
    errors = [error for result in row.results.values() for error in result["circumference_error"].values()]
    known = [error for error in errors if error is not None]
    without = len(errors) - len(known)
    text = (f"{mean(known):.2f}" if known else "none") + (f", {without} without" if without else "")
    return {name: text}


def setting_of(rows: list[Row]) -> str:
    """Return in words what the runs of an experiment share."""
    results = [result for row in rows for result in row.results.values()]
    setting, split = results[0]["setting"], results[0]["split"]
    versions = {name: sorted({result["versions"][name] for result in results}) for name in results[0]["versions"]}
    made_with = ", ".join(f"{name} {' and '.join(found)}" for name, found in versions.items())
    patch = " x ".join(str(size) for size in setting["patch_size"])
    fold = words_of_fold(setting["fold"])
    return (
        f"{setting['dataset']}, {setting['configuration']}: {split['labeled']} labeled, {split['unlabeled']} unlabeled "
        f"and {split['validation']} validation cases ({fold}). {setting['steps']} steps, batches of "
        f"{setting['batch_size']} patches of {patch}, features {' '.join(str(n) for n in setting['features'])}. "
        f"{made_with}."
    )


def words_of_fold(fold: str) -> str:
    """Return in words whose validation cases a setting has."""
    kind, comma, number = fold.partition(",")
    return f"{FOLDS[kind]}{comma}{number}"


def trainer_cell(row: Row) -> dict[str, str]:
    """Return the trainer and its variant."""
    return {"trainer": named(next(iter(row.results.values())))}


def named(result: Result) -> str:
    """Return trainer and variant of a result; options as they were given, where the name of a file lacks characters."""
    words = [f"{name}={value}" for name, value in sorted(result["options"].items())]
    if result["variant"] == ALL_LABELED:
        words = [f"all {result['split']['labeled']} labeled"]
    elif not words and result["variant"] != DEFAULT:  # which cases were added
        words = [result["variant"]]
    return ", ".join([f"`{result['trainer']}`", *words])


def seed_cells(row: Row) -> dict[str, str]:
    """Return the mean Dice of each seed."""
    return {f"seed {seed}": f"{dice:.4f}" for seed, dice in mean_dice(row.results).items()}


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
    first, text = next(iter(row.rival.values())), ""
    if row.results is not row.rival:
        ours, theirs, patients = predictions(row.results), predictions(row.rival), patients_in(row.results)
        text = f"{paired_difference(ours, theirs, patients).mean:+.4f}"
        if (interval := bootstrap_interval(ours, theirs, patients)) and "unit" not in first["setting"]:
            text += " ({:+.4f} to {:+.4f})".format(*interval)
    drawn = "trainings" if first["setting"]["fold"].startswith("own split") else "draws"
    return {f"difference to {named(first)} (95 % interval over {drawn} and cases)": text}


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
