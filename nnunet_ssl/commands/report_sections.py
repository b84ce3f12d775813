"""The part of a report that is about one data set: tables, pictures and warnings of what was collected on it."""

import os
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from nnunet_ssl.evaluation.comparison import Comparison, Prediction
    from nnunet_ssl.evaluation.folders import Row
    from nnunet_ssl.evaluation.report import Picture
    from nnunet_ssl.evaluation.report_tables import Table
    from nnunet_ssl.evaluation.runs import Run
    from nnunet_ssl.evaluation.structures import Structures

MOST_WARNINGS = 3  # in an error


@dataclass(frozen=True)
class Section:
    """What the page has of one data set."""

    comparison: "Comparison"
    tables: "list[Table]"
    pictures: "list[Picture]"
    warnings: list[str]


def joined(warnings: list[str]) -> str:
    """Return the first warnings as one sentence, and how many more there are."""
    more = f" and {len(warnings) - MOST_WARNINGS} more" if len(warnings) > MOST_WARNINGS else ""
    return "; ".join(warnings[:MOST_WARNINGS]) + more


@dataclass(frozen=True)
class Collected:
    """The rows of each prediction, and its file, by trainer."""

    rows: "dict[str, dict[Prediction, list[Row]]]"
    files: "dict[str, dict[Prediction, Path]]"

    def folders(self) -> list[Path]:
        """Return where the files lie."""
        return list(dict.fromkeys(file.parent for of_trainer in self.files.values() for file in of_trainer.values()))

    def add(self, trainer: str, prediction: "Prediction", rows: "list[Row]", file: Path) -> None:
        """Enter a prediction."""
        self.rows.setdefault(trainer, {})[prediction] = rows
        self.files.setdefault(trainer, {})[prediction] = file


def section_of(
    name: str,
    collected: Collected,
    references: Path,
    structures: "Structures",
    warnings: list[str],
    runs: "Sequence[Run]" = (),
) -> Section:
    """Return tables, pictures and warnings of what was collected on a data set, and of the trainings it is from.

    Raises:
        ValueError: nothing was.
    """
    from nnunet_ssl.evaluation.case_pictures import previews
    from nnunet_ssl.evaluation.comparison import Comparison, patient_pattern, patients_of
    from nnunet_ssl.evaluation.data_notes import notes_about
    from nnunet_ssl.evaluation.leak_notes import audit_of, leaks_in_runs
    from nnunet_ssl.evaluation.leaving_out import drawn
    from nnunet_ssl.evaluation.report import box_plots, curves
    from nnunet_ssl.evaluation.report_tables import differences_table, metrics_tables, runs_table
    from nnunet_ssl.evaluation.runs import warnings_about

    if not collected.rows:
        raise ValueError(f"no prediction of {name} can be compared with its reference: {joined(warnings)}")
    raw, preprocessed = (Path(os.environ[f"nnUNet_{place}"], name) for place in ("raw", "preprocessed"))
    cases = sorted({prediction.case for predictions in collected.rows.values() for prediction in predictions})
    patients, unknown = patients_of(cases, patient_pattern(raw / "dataset.json", preprocessed / "dataset.json"))
    comparison = Comparison(name, collected.rows, patients)
    differences = differences_table(comparison)
    figures = {"box plots": lambda: box_plots(comparison)} | ({"curves": lambda: curves(runs)} if runs else {})
    pictures, failed = drawn(figures | previews(comparison, collected.files, references, raw, structures))
    return Section(
        comparison,
        [
            *metrics_tables(comparison),
            *([differences] if differences.rows else []),
            *([runs_table(runs, audit_of(raw, preprocessed))] if runs else []),
        ],
        pictures,
        [
            *warnings,
            *unknown,
            *notes_about(raw, preprocessed, [references, *collected.folders()], structures, [run.fold for run in runs]),
            *leaks_in_runs(raw, preprocessed, runs),
            *comparison.warnings(),
            *(warnings_about(runs) if runs else []),
            *failed,
        ],
    )


def titled(section: Section) -> Section:
    """Return a section whose tables, pictures and warnings name the data set."""
    name = section.comparison.dataset
    tables = [replace(table, name=f"{table.name}-{name}", title=f"{name}: {table.title}") for table in section.tables]
    pictures = [replace(picture, title=f"{name}: {picture.title}") for picture in section.pictures]
    return Section(section.comparison, tables, pictures, [f"{name}: {warning}" for warning in section.warnings])
