"""One page about all trainings of a data set: numbers, differences to the baseline, curves, pictures, warnings."""

import base64
import csv
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from importlib.resources import files
from pathlib import Path

import jinja2
import numpy as np
from matplotlib.figure import Figure

from nnunet_ssl.evaluation.folders import COLUMNS, Row
from nnunet_ssl.evaluation.paired_statistics import holm, paired_difference
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
Results = Mapping[str, Sequence[Row]]  # by trainer, the baseline first


@dataclass(frozen=True)
class Comparison:
    """What is compared on one data set.

    Attributes:
        dataset: its name.
        results: the rows of each trainer.
        trainings: which training a case was predicted in, by case; empty for predictions of a test set.
    """

    dataset: str
    results: Results
    trainings: Mapping[str, str]


@dataclass(frozen=True)
class Table:
    """A table of the page: its name in the html, title, columns, rows of texts, and a note below."""

    name: str
    title: str
    columns: list[str]
    rows: list[list[str]]
    note: str


@dataclass(frozen=True)
class Picture:
    """A picture of the page: title, PNG as base64, and a note below."""

    title: str
    png: str
    note: str


def write_report(
    folder: Path,
    title: str,
    comparisons: Sequence[Comparison],
    tables: list[Table],
    pictures: list[Picture],
    warnings: list[str],
) -> Path:
    """Write report.html, report.csv with every case, and report.tex with the first table; return the page."""
    folder.mkdir(parents=True, exist_ok=True)
    template = files("nnunet_ssl.evaluation").joinpath("templates/report.html.j2").read_text(encoding="utf-8")
    environment = jinja2.Environment(autoescape=True, trim_blocks=True)
    page = environment.from_string(template).render(title=title, warnings=warnings, tables=tables, figures=pictures)
    (folder / "report.html").write_text(page, encoding="utf-8")
    with (folder / "report.csv").open("w", newline="", encoding="utf-8") as opened:
        writer = csv.DictWriter(opened, ["dataset", "trainer", *COLUMNS])
        writer.writeheader()
        for one in comparisons:
            for trainer, rows in one.results.items():
                writer.writerows({"dataset": one.dataset, "trainer": trainer} | row.cells() for row in rows)
    (folder / "report.tex").write_text(latex(tables[0]), encoding="utf-8")
    return folder / "report.html"


def metrics_table(results: Results) -> Table:
    """Return mean and standard deviation of every metric, by trainer and structure."""
    rows = []
    for trainer, of_trainer in results.items():
        for label in dict.fromkeys(row.label for row in of_trainer):
            cells = [row.cells() for row in of_trainer if row.label == label]
            undefined = sum(not np.isfinite(float(cell["hd95"])) for cell in cells)
            values = [mean_and_deviation([float(cell[name]) for cell in cells]) for name in METRICS]
            rows.append([trainer, label, str(len(cells)), *values, str(undefined)])
    columns = ["trainer", "structure", "cases", *METRICS.values(), "no distance"]
    note = (
        "Mean ± standard deviation over the cases. Where prediction or reference is empty, Dice is 0 (both: 1) and "
        "distances are undefined; the last column counts these cases, and the mean of distances is over the others."
    )
    return Table("metrics", "Results", columns, rows, note)


def mean_and_deviation(values: Sequence[float]) -> str:
    """Return "0.812 ± 0.034" over the values that are defined."""
    defined = np.array([value for value in values if np.isfinite(value)])
    if not len(defined):
        return "–"
    return f"{defined.mean():.3f}" + (f" ± {defined.std(ddof=1):.3f}" if len(defined) > 1 else "")


def dice_by_case(rows: Sequence[Row]) -> dict[str, float]:
    """Return the mean Dice over all structures of each case."""
    by_case: dict[str, list[float]] = {}
    for row in rows:
        by_case.setdefault(row.case, []).append(row.metrics.dice)
    return {case: float(np.mean(values)) for case, values in by_case.items()}


def differences_table(results: Results) -> Table:
    """Return each trainer's paired difference to the first one, with interval and corrected p."""
    baseline, *others = results
    reference = dice_by_case(results[baseline])
    compared, rows = {}, []
    for trainer in others:
        own = dice_by_case(results[trainer])
        common = sorted(reference.keys() & own.keys())
        if len(common) > 1:
            compared[trainer] = paired_difference([own[c] for c in common], [reference[c] for c in common])
    for (trainer, found), corrected in zip(
        compared.items(), holm([found.p for found in compared.values()]), strict=True
    ):
        interval = f"{found.low:+.4f} to {found.high:+.4f}"
        rows.append([trainer, str(found.cases), f"{found.mean:+.4f}", interval, f"{found.p:.3g}", f"{corrected:.3g}"])
    columns = ["trainer", "cases", "difference", "95 % interval", "p", "p (Holm)"]
    note = (
        "Difference of the mean Dice over all structures, case by case. Interval: bootstrap over the cases; p: "
        "Wilcoxon signed-rank test, and corrected for the number of trainers. Cases are no sample of trainings: "
        "another seed can move all of them."
    )
    return Table("differences", f"Difference to {baseline}", columns, rows, note)


def dice_by_training(comparison: Comparison, trainer: str) -> dict[str, float]:
    """Return the mean Dice over the cases of each training of a trainer."""
    by_training: dict[str, list[float]] = {}
    for case, dice in dice_by_case(comparison.results[trainer]).items():
        by_training.setdefault(comparison.trainings[case], []).append(dice)
    return {training: float(np.mean(values)) for training, values in by_training.items()}


def trainings_table(comparisons: Sequence[Comparison]) -> Table:
    """Return each trainer against the first one training by training, on each data set and over all of them."""
    rows, by_trainer = [], {}
    for one in comparisons:
        baseline = next(iter(one.results))
        reference = dice_by_training(one, baseline)
        for trainer in one.results:
            own = dice_by_training(one, trainer)
            gains = [own[training] - reference[training] for training in own if training in reference]
            cells = [f"{np.mean(gains):+.4f}", f"{sum(gain > 0 for gain in gains)} of {len(gains)}"]
            cells = cells if gains and trainer != baseline else ["", ""]
            rows.append([trainer, one.dataset, str(len(own)), mean_and_deviation(list(own.values())), *cells])
            by_trainer.setdefault(trainer, []).append(
                (np.mean(list(own.values())), np.mean(gains) if gains else np.nan)
            )
    for trainer, of_datasets in by_trainer.items() if len(comparisons) > 1 else ():
        if len(of_datasets) == len(comparisons):
            dice, gain = np.mean(of_datasets, axis=0)
            cells = [f"{gain:+.4f}", f"{sum(gain > 0 for _, gain in of_datasets)} of {len(of_datasets)}"]
            baseline = all(trainer == next(iter(one.results)) for one in comparisons)
            rows.append([trainer, "all, each counted once", "", f"{dice:.3f}", *(["", ""] if baseline else cells)])
    columns = ["trainer", "data set", "trainings", "Dice", "difference", "better in"]
    note = (
        "A training is one fold, or one fold of one results folder where there are several (seeds). Dice: mean over "
        "structures and cases of a training, then mean ± standard deviation over the trainings; difference: to the "
        "baseline's training of the same fold and folder."
    )
    return Table("trainings", "Training by training", columns, rows, note)


def runs_table(runs: Sequence[Run]) -> Table:
    """Return what was trained: split, length, options."""
    rows = [
        [
            run.trainer,
            run.training.removeprefix("fold "),
            str(run.labeled),
            "–" if not run.is_semi_supervised else str(len(run.unlabeled)) if run.unlabeled else "imagesUn",
            str(len(run.cases)),
            run.digest,
            str(len(run.pseudo_dice)),
            f"{run.minutes:.1f}",
            " ".join(f"{name}={value}" for name, value in run.options.items()) or "–",
        ]
        for run in runs
    ]
    columns = ["trainer", "fold", "labeled", "unlabeled", "validation", "split", "epochs", "minutes", "options"]
    versions = ", ".join(f"{name} {version(name)}" for name in PACKAGES)
    return Table("runs", "Trainings", columns, rows, f"Report made with {versions}; minutes of the epochs alone.")


def latex(table: Table) -> str:
    """Return a table for LaTeX with the package booktabs."""
    lines = [" & ".join(row) + r" \\" for row in (table.columns, *table.rows)]
    body = "\n".join([r"\toprule", lines[0], r"\midrule", *lines[1:], r"\bottomrule"])
    body = body.replace("_", r"\_").replace("%", r"\%").replace("±", r"$\pm$").replace("–", "--")
    columns = "ll" + "r" * (len(table.columns) - 2)
    return f"\\begin{{tabular}}{{{columns}}}\n{body}\n\\end{{tabular}}\n"


def box_plots(results: Results) -> Picture:
    """Draw the Dice of every case, by structure and trainer."""
    labels = list(dict.fromkeys(row.label for rows in results.values() for row in rows))
    figure = Figure(figsize=(max(6, 4.5 * len(labels)), 1.2 + 0.6 * len(results)), layout="constrained")
    axes = figure.subplots(1, len(labels), sharey=True, squeeze=False)[0]
    for axis, label in zip(axes, labels, strict=True):
        dice = [[row.metrics.dice for row in rows if row.label == label] for rows in results.values()]
        axis.boxplot(dice, orientation="horizontal", tick_labels=list(results), widths=0.6)
        axis.set(title=label, xlabel="Dice", xlim=(-0.02, 1.02))
        axis.grid(axis="x", alpha=0.3)
    axes[0].invert_yaxis()
    return Picture("Dice by structure", encoded(figure), "Box: quartiles and median; whiskers: 1.5 times the box.")


def curves(runs: Sequence[Run]) -> Picture:
    """Draw the pseudo-Dice of every training on one axis."""
    figure = Figure(figsize=(10, 4.5), layout="constrained")
    axis = figure.subplots()
    colors = {trainer: f"C{i}" for i, trainer in enumerate(dict.fromkeys(run.trainer for run in runs))}
    for run in runs:
        epochs = np.arange(1, len(run.pseudo_dice) + 1)
        marker = "o" if len(epochs) < 20 else None
        axis.plot(
            epochs, run.pseudo_dice, color=colors[run.trainer], marker=marker, label=f"{run.trainer}, {run.training}"
        )
    axis.set(xlabel="epoch", ylabel="pseudo-Dice (mean over foreground)", ylim=(0, 1))
    axis.xaxis.get_major_locator().set_params(integer=True)
    axis.grid(alpha=0.3)
    axis.legend(fontsize="small")
    return Picture("Validation patches during training", encoded(figure), "nnU-Net's estimate from random patches.")


def encoded(figure: Figure) -> str:
    """Return a figure as PNG in base64."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=110)
    return base64.b64encode(buffer.getvalue()).decode()
