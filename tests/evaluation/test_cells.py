import csv
import shutil
import subprocess

import pytest

from nnunet_ssl.evaluation.cells import csv_cell, csv_cells, csv_row, latex_cell
from nnunet_ssl.evaluation.folders import Row, write_csv
from nnunet_ssl.evaluation.metrics import Metrics
from nnunet_ssl.evaluation.report_tables import Table, latex


@pytest.mark.parametrize("text", ["=1+1", "+1+1", "-1+1", "@SUM(A1)", "\t=1", "\r=1", '=HYPERLINK("http://x")'])
def test_no_cell_is_a_formula(text):
    assert csv_cell(text) == f"'{text}"
    assert csv_row([text, 1]) == [f"'{text}", 1]
    assert csv_cells({"case": text}) == {"case": f"'{text}"}


@pytest.mark.parametrize("value", ["case_1", "a=b", "-0.5", "+3", "-inf", "nan", "", -0.5, 3, None, float("nan")])
def test_all_else_stays_as_it_is(value):
    assert csv_cell(value) is value


def test_names_of_cases_and_structures_are_no_formulas(tmp_path):
    metrics = Metrics(**dict.fromkeys(Metrics.__dataclass_fields__, -1.0))
    write_csv([Row("=1+1", "@organ", metrics)], tmp_path / "out.csv")
    with (tmp_path / "out.csv").open(newline="") as opened:
        (row,) = csv.DictReader(opened)
    assert (row["case"], row["label"], row["dice"]) == ("'=1+1", "'@organ", "-1")


def test_latex_prints_every_sign():
    assert latex_cell(r"\input{/etc/passwd}") == r"\textbackslash{}input\{/etc/passwd\}"
    assert latex_cell("a_b % c & d # e $ f") == r"a\_b \% c \& d \# e \$ f"
    assert latex_cell("^^5cinput ~") == r"\textasciicircum{}\textasciicircum{}5cinput \textasciitilde{}"
    assert latex_cell("[3cm] one\n\ntwo") == "{[}3cm] one two"
    assert latex_cell("0.8 ± 0.1, –") == r"0.8 $\pm$ 0.1, --"


def test_no_command_is_left_in_a_table():
    table = Table("t", "T", ["a", "b"], [[r"\input{x}", r"{\write18{y}}"]], "")
    allowed = [r"\begin", r"\end", r"\toprule", r"\midrule", r"\bottomrule", r"\textbackslash{}", r"\\", r"\{", r"\}"]
    text = latex(table)
    for words in allowed:
        text = text.replace(words, "")
    assert "\\" not in text


@pytest.mark.skipif(not shutil.which("pdflatex"), reason="LaTeX is not installed (Debian: texlive-latex-base)")
def test_latex_takes_it(tmp_path):
    signs = r"\input{x} ^^5c ~ _ % & # $ { } [1cm] ± – < > |"
    table = latex(Table("t", "T", ["a", "b"], [[signs, signs], ["[1cm]", "x"]], ""))
    document = f"\\documentclass{{article}}\\usepackage{{booktabs}}\\begin{{document}}{table}\\end{{document}}"
    (tmp_path / "t.tex").write_text(document)
    words = ["pdflatex", "-interaction=nonstopmode", "-halt-on-error", "t.tex"]
    assert subprocess.run(words, cwd=tmp_path, capture_output=True).returncode == 0
