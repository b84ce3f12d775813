"""One page about all trainings of a data set: numbers, differences to the baseline, curves, pictures, warnings."""

import base64
import csv
import io
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path

import jinja2
import numpy as np
from matplotlib.figure import Figure

from nnunet_ssl.data.whole_files import replacing
from nnunet_ssl.evaluation.cells import csv_cells
from nnunet_ssl.evaluation.comparison import Comparison
from nnunet_ssl.evaluation.folders import COLUMNS
from nnunet_ssl.evaluation.report_tables import Table, latex
from nnunet_ssl.evaluation.runs import Run


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
    """Write report.html, report.csv with every prediction, and report.tex with the first table; return the page."""
    template = files("nnunet_ssl.evaluation").joinpath("templates/report.html.j2").read_text(encoding="utf-8")
    environment = jinja2.Environment(autoescape=True, trim_blocks=True)
    page = environment.from_string(template).render(title=title, warnings=warnings, tables=tables, figures=pictures)
    with replacing(folder / "report.html") as unfinished:
        unfinished.write_text(page, encoding="utf-8")
    with replacing(folder / "report.csv") as unfinished, unfinished.open("w", newline="", encoding="utf-8") as opened:
        writer = csv.DictWriter(opened, ["dataset", "trainer", "training", "patient", *COLUMNS])
        writer.writeheader()
        for one in comparisons:
            for trainer, predictions in one.results.items():
                for (training, case), rows in predictions.items():
                    whose = {"trainer": trainer, "training": training, "patient": one.patients[case]}
                    writer.writerows(csv_cells({"dataset": one.dataset} | whose | row.cells()) for row in rows)
    with replacing(folder / "report.tex") as unfinished:
        unfinished.write_text(latex(tables[0]), encoding="utf-8")
    return folder / "report.html"


def box_plots(comparison: Comparison) -> Picture:
    """Draw the Dice of every prediction in the table of means, by structure and trainer."""
    results = {trainer: comparison.rows(trainer) for trainer in comparison.listed}
    labels = list(dict.fromkeys(row.label for rows in results.values() for row in rows))
    figure = Figure(figsize=(max(6, 4.5 * len(labels)), 1.2 + 0.6 * len(results)), layout="constrained")
    axes = figure.subplots(1, len(labels), sharey=True, squeeze=False)[0]
    for axis, label in zip(axes, labels, strict=True):
        dice = [[row.metrics.dice for row in rows if row.label == label] for rows in results.values()]
        axis.boxplot(dice, orientation="horizontal", tick_labels=list(results), widths=0.6)
        axis.set(title=label, xlabel="Dice", xlim=(-0.02, 1.02))
        axis.grid(axis="x", alpha=0.3)
    axes[0].invert_yaxis()
    note = "The predictions of the table of means. Box: quartiles and median; whiskers: 1.5 times the box."
    return Picture("Dice by structure", encoded(figure), note)


def curves(runs: Sequence[Run]) -> Picture:
    """Draw the pseudo-Dice of every training on one axis."""
    figure = Figure(figsize=(10, 4.5), layout="constrained")
    axis = figure.subplots()
    colors = {trainer: f"C{i}" for i, trainer in enumerate(dict.fromkeys(run.trainer for run in runs))}
    for run in runs:
        epochs = np.arange(1, len(run.pseudo_dice) + 1)
        marker = "o" if len(epochs) < 20 else None
        axis.plot(epochs, run.pseudo_dice, color=colors[run.trainer], marker=marker, label=run.name)
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
