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
from pathlib import Path
from statistics import mean

from nnunet_ssl.benchmarking.rows import Row, Table, mean_dice, remarks, rows_of
from nnunet_ssl.benchmarking.tables import section_of, table_of

ROOT = Path(__file__).resolve().parent.parent
RESULTS = Path(__file__).with_name("results")
TABLES = Path(__file__).with_name("tables.toml")
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
    for line in remarks(tables, RESULTS):
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
    gains = [{row.trainer: row for row in rows_of(one, results) if one.represents_trainer(row)} for one in tables]
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
    return f"{mean(mean_dice(row.results).values()):.3f}"


def step_table(file: Path) -> str:
    """Return what step_time.py measured of each trainer in Markdown: time and memory as multiples of nnU-Net's."""
    with file.open(newline="") as opened:
        rows = list(csv.DictReader(opened))
    lines = [list(STEP_COLUMNS.values()), ["---"] * len(STEP_COLUMNS)]
    lines += [[f"`{row['trainer']}`", *(f"{float(row[key]):.2f}" for key in list(STEP_COLUMNS)[1:])] for row in rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


if __name__ == "__main__":
    sys.exit(main())
