"""The tables of the page: means, differences to the baseline, training by training, and what was trained."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import version

import numpy as np

from nnunet_ssl.evaluation.cells import latex_cell
from nnunet_ssl.evaluation.comparison import Comparison
from nnunet_ssl.evaluation.paired_statistics import FEWEST_PATIENTS, PairedDifference, holm, means_by, paired_difference
from nnunet_ssl.evaluation.runs import Run

METRICS = {
    "dice": "Dice",
    "jaccard": "Jaccard",
    "hd95": "HD95 (mm)",
    "asd": "ASD (mm)",
    "assd": "ASSD (mm)",
    "nsd": "NSD",
}
PACKAGES = ("nnunet_ssl", "nnunetv2", "torch", "numpy")
NONE = "–"


@dataclass(frozen=True)
class Table:
    """A table of the page: its name in the html, title, columns, rows of texts, and a note below, in lines."""

    name: str
    title: str
    columns: list[str]
    rows: list[list[str]]
    note: str


def metrics_tables(comparison: Comparison) -> list[Table]:
    """Return mean and standard deviation of every metric, by trainer and structure; trainers that are apart second."""
    note = (
        "Mean ± standard deviation over the predictions{which}. A prediction is a case in one training: a case that "
        "several trainings predict counts once for each of them. Where prediction or reference is empty, Dice is 0 "
        "(both: 1) and distances are undefined, as they are where a reference holds the ignore label; the last column "
        "counts these, and the mean of distances is over the others."
    )
    which = " that all trainers of this table have" if len(comparison.listed) > 1 else ""
    tables = [metrics_table(comparison, comparison.listed, "metrics", "Results", note.format(which=which))]
    if comparison.apart:
        note = note.format(which=" that each trainer has, which are not those of the table above")
        title = "Results of trainers that have too few of these predictions"
        tables.append(metrics_table(comparison, comparison.apart, "metrics-apart", title, note))
    return tables


def metrics_table(comparison: Comparison, trainers: Sequence[str], name: str, title: str, note: str) -> Table:
    """Return mean and standard deviation of every metric for some trainers, by structure."""
    lines = []
    for trainer in trainers:
        rows = comparison.rows(trainer)
        for label in dict.fromkeys(row.label for row in rows):
            cells = [row.cells() for row in rows if row.label == label]
            undefined = sum(not np.isfinite(float(cell["hd95"])) for cell in cells)
            values = [mean_and_deviation([float(cell[name]) for cell in cells]) for name in METRICS]
            lines.append([trainer, label, str(len(cells)), *values, str(undefined)])
    return Table(name, title, ["trainer", "structure", "predictions", *METRICS.values(), "no distance"], lines, note)


def mean_and_deviation(values: Sequence[float]) -> str:
    """Return "0.812 ± 0.034" over the values that are defined."""
    defined = np.array([value for value in values if np.isfinite(value)])
    if not len(defined):
        return NONE
    return f"{defined.mean():.3f}" + (f" ± {defined.std(ddof=1):.3f}" if len(defined) > 1 else "")


def differences_to_baseline(comparison: Comparison) -> dict[str, PairedDifference]:
    """Return the paired difference of each other trainer's Dice to the baseline's, where they share a prediction."""
    reference, found = comparison.dice(comparison.baseline), {}
    for trainer, predictions in comparison.results.items():
        if trainer != comparison.baseline and not reference.keys().isdisjoint(predictions):
            found[trainer] = paired_difference(comparison.dice(trainer), reference, comparison.patients)
    return found


def differences_table(comparison: Comparison) -> Table:
    """Return each trainer's paired difference to the baseline, with interval, p, and the spread between trainings."""
    found = differences_to_baseline(comparison)
    corrected = dict(zip(found, holm([one.p for one in found.values()]), strict=True))
    rows = []
    for trainer in comparison.results:
        if one := found.get(trainer):
            interval = f"{one.low:+.4f} to {one.high:+.4f}" if np.isfinite(one.low) else NONE
            numbers = [str(number) for number in (one.patients, one.cases, len(one.by_training))]
            p_values = [f"{p:.3g}" for p in (one.p, corrected[trainer])]
            rows.append([trainer, *numbers, f"{one.mean:+.4f}", interval, *p_values, spread(one.by_training)])
        elif trainer != comparison.baseline:
            rows.append([trainer, *["0"] * 3, *[NONE] * 5])
    columns = ["trainer", "patients", "cases", "trainings", "difference", "95 % interval", "p", "p (Holm)"]
    note = (
        "Difference of the mean Dice over all structures, on the predictions that trainer and baseline both have. "
        "Each case is averaged over its trainings, then each patient over its cases; the difference is the mean over "
        "the patients. The interval (Student's t) and p (Wilcoxon signed-rank test, without the patients that do not "
        "differ; Holm: corrected for the number of trainers) are over the patients too. "
        f"Below {FEWEST_PATIENTS} patients there is no interval, and p cannot be "
        "below 0.05.\n"
        "p and the interval do not cover the spread between trainings: another seed can move all cases together, and "
        "p is then small without any effect of the trainer. The last column shows that spread: the smallest and the "
        "largest mean difference of a training, and the standard deviation (SD) over the trainings. Trainings of "
        "different folds differ in their cases too.\n"
        "Patients are what patient_pattern in dataset.json finds in the case ids. A case in which it finds nothing, "
        "and every case where there is none, is a patient of its own."
    )
    return Table(
        "differences", f"Difference to {comparison.baseline}", [*columns, "spread between trainings"], rows, note
    )


def spread(by_training: Mapping[str, float]) -> str:
    """Return "-0.0100 to +0.0300, SD 0.0208" over the trainings."""
    values = list(by_training.values())
    if len(values) < 2:
        return NONE
    return f"{min(values):+.4f} to {max(values):+.4f}, SD {np.std(values, ddof=1):.4f}"


def trainings_table(comparisons: Sequence[Comparison]) -> Table:
    """Return each trainer against the baseline training by training, on each data set and over all of them."""
    rows, of_trainer = [], {}
    for one in comparisons:
        differences = differences_to_baseline(one)
        for trainer in one.results:
            dice = one.dice(trainer)
            own = means_by({key: dice[key] for key in one.shown(trainer)}, lambda prediction: prediction.training)
            gains = list(differences[trainer].by_training.values()) if trainer in differences else []
            rows.append(
                [trainer, one.dataset, str(len(own)), mean_and_deviation(list(own.values())), *mean_and_wins(gains)]
            )
            mean = np.nan if trainer in one.apart else np.mean(list(own.values()))
            of_trainer.setdefault(trainer, []).append((mean, np.mean(gains) if gains else np.nan))
    for trainer, of_datasets in of_trainer.items() if len(comparisons) > 1 else ():
        if len(of_datasets) == len(comparisons):
            dice, gains = zip(*of_datasets, strict=True)
            cells = mean_and_wins(gains) if np.isfinite(gains).all() else ["", ""]
            mean = f"{np.mean(dice):.3f}" if np.isfinite(dice).all() else NONE
            rows.append([trainer, "all, each counted once", "", mean, *cells])
    columns = ["trainer", "data set", "trainings", "Dice", "difference", "better in"]
    note = (
        "A training is one fold, or one fold of one results folder where there are several (seeds). Dice: mean over "
        "structures and over a training's predictions in the table of means (of a trainer that stands apart, over all "
        "that it has), then mean ± standard deviation over the trainings. Difference: to the baseline's training of "
        "the same fold and folder, on the cases that both have, then the mean over the trainings, each counted once."
    )
    return Table("trainings", "Training by training", columns, rows, note)


def mean_and_wins(gains: Sequence[float]) -> list[str]:
    """Return the mean of differences and how many are gains: ["+0.0100", "3 of 4"]; empty texts if there are none."""
    return [f"{np.mean(gains):+.4f}", f"{sum(gain > 0 for gain in gains)} of {len(gains)}"] if len(gains) else ["", ""]


def runs_table(runs: Sequence[Run], audited: str = "") -> Table:
    """Return what was trained: split, length, options; `audited` says what is known of leaks."""
    rows = [
        [
            run.trainer,
            run.training.removeprefix("fold "),
            str(run.labeled),
            number_of_unlabeled(run),
            str(len(run.cases)),
            run.train_and_val if run.numbers_then is None else "?",
            run.split or NONE,
            str(len(run.pseudo_dice)),
            f"{run.minutes:.1f}",
            " ".join(f"{name}={value}" for name, value in run.options.items()) or NONE,
        ]
        for run in runs
    ]
    columns = ["trainer", "fold", "labeled", "unlabeled", "validation", "hash of train and val", "hash of the split"]
    versions = ", ".join(f"{name} {version(name)}" for name in PACKAGES)
    note = (
        "Trainings with the same hash of train and val had the same labeled and validation cases. The hash of the "
        "split, with the unlabeled cases, is that of the training's log. Cases and hashes are from the checkpoint; "
        f"where it holds none (hash of the split: {NONE}), they are from splits_final.json as it is now. Minutes of "
        f"the  epochs alone. {audited + ' ' if audited else ''}Report made with {versions}."
    )
    return Table("runs", "Trainings", [*columns, "epochs", "minutes", "options"], rows, note)


def number_of_unlabeled(run: Run) -> str:
    """Return how many unlabeled cases a training had, as far as the split tells it."""
    if not run.is_semi_supervised:
        return NONE
    if run.unlabeled is None:
        return "?"
    return str(len(run.unlabeled)) if run.unlabeled else "imagesUn"


def latex(table: Table) -> str:
    """Return a table for LaTeX with the package booktabs."""
    escaped = [[latex_cell(cell) for cell in row] for row in (table.columns, *table.rows)]
    lines = [" & ".join(row) + r" \\" for row in escaped]
    body = "\n".join([r"\toprule", lines[0], r"\midrule", *lines[1:], r"\bottomrule"])
    columns = "ll" + "r" * (len(table.columns) - 2)
    return f"\\begin{{tabular}}{{{columns}}}\n{body}\n\\end{{tabular}}\n"
