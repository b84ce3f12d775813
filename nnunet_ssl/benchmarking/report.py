"""The report of a comparison: what is finished, in tables, and what is not."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from statistics import mean

from nnunet_ssl.benchmarking.planning import Comparison, Planned
from nnunet_ssl.benchmarking.result_files import ALL_LABELED, BASELINE, DEFAULT, Run, read_results
from nnunet_ssl.benchmarking.rows import Row, Table, mean_dice, remarks, rows_of
from nnunet_ssl.benchmarking.tables import NOTHING, named, section_of

HOW_TO_READ = (
    "Dice, over the labels of a case, then over the validation cases. The difference is paired over the cases; its "
    "interval, over patients, says nothing of how much chance in the training and in the choice of labeled cases does: "
    "the seeds show that. What is finished over all seeds that `nnUNetTrainer` has finished is shown."
)


def report_of(comparison: Comparison, planned: Sequence[Planned], results: Path) -> str:
    """Return the report in Markdown: a table of all numbers of labeled cases, one of each, and what is missing.

    Args:
        comparison: whose experiments are shown, with all trainers that have results there.
        planned: its trainings, of which those without a result are named.
        results: folder of the files of finished trainings.
    """
    tables = [table_for(experiment.name, comparison.seeds, results) for experiment in comparison.experiments]
    rows = {table.name: rows_of(table, results) for table in tables}
    parts = [f"# Benchmark of {comparison.experiments[0].source.name}", HOW_TO_READ]
    if len(tables) > 1 and any(rows.values()):
        parts.append(overview_of(rows))
    parts += [section_of(table, rows[table.name]) or f"## {table.name}\n\n{NOTHING}" for table in tables]
    unfinished = [one.run for one in planned if not one.run.file(results).exists()]
    lines = [f"not finished: {run.experiment}/{run.name}" for run in unfinished]
    lines += remarks({table.name: table for table in tables}, results)
    if lines:
        parts.append("\n".join(f"* {line}" for line in lines))
    return "\n\n".join(parts) + "\n"


def table_for(experiment: str, seeds: Sequence[int], results: Path) -> Table:
    """Return a table over the seeds that the baseline has finished, or all where it has finished none."""
    finished = tuple(seed for seed in seeds if Run(experiment, BASELINE, DEFAULT, seed).file(results).exists())
    table = Table(experiment, finished or tuple(seeds))
    if any("circumference_error" in result for result in read_results(experiment, results).values()):
        place = table.columns.index("asd") + 1
        return replace(table, columns=(*table.columns[:place], "circumference", *table.columns[place:]))
    return table


def overview_of(rows: dict[str, list[Row]]) -> str:
    """Return how much each trainer gains with each number of labeled cases: a column for each experiment."""
    keys = dict.fromkeys((row.trainer, row.variant) for of_table in rows.values() for row in of_table)
    ordered = sorted(keys, key=lambda key: key[1] == ALL_LABELED)  # at the end, as in the other tables
    lines = [["trainer", *rows], ["---"] * (1 + len(rows))]
    for trainer, variant in ordered:
        cells, name = [], ""
        for of_table in rows.values():
            found = [row for row in of_table if (row.trainer, row.variant) == (trainer, variant)]
            cells.append(dice_cell(found[0]) if found else "")
            name = named(next(iter(found[0].results.values()))) if found else name
        lines.append([f"`{trainer}`, all labeled" if variant == ALL_LABELED else name, *cells])
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def dice_cell(row: Row) -> str:
    """Return the mean Dice over cases and seeds, and the difference to the baseline."""
    return f"{mean(mean_dice(row.results).values()):.4f}" + (
        "" if row.difference is None else f" ({row.difference.mean:+.4f})"
    )
