"""The tables of results in README.md and docs/: that they are those of their files, and where they stand."""

import pytest

import tables
from nnunet_ssl.benchmarking.result_files import Run
from tests.benchmarking.written_results import TABLE, lines, write_finished


@pytest.fixture
def finished(tmp_path):
    return write_finished(tmp_path)


# ---- what is published ----


def test_the_tables_of_the_documents_are_those_of_their_files():
    known = tables.read_tables()
    for document in tables.documents():
        text = document.read_text(encoding="utf-8")
        different = f"{document.name} differs from benchmarks/results: python benchmarks/tables.py"
        assert tables.with_tables(text, known) == text, different


def test_every_table_has_its_section_in_docs_results():
    text = (tables.ROOT / "docs" / "results.md").read_text(encoding="utf-8")
    for experiment in tables.read_tables():
        assert f"<!-- section: {experiment} -->" in text


def test_two_tables_of_one_experiment_show_rows_of_their_own(finished, tmp_path):
    file = tmp_path / "tables.toml"
    file.write_text(
        '[mine]\nseeds = [1, 2]\n[parts]\nexperiments = ["mine"]\nseeds = [1]\nrows = ["nnUNetTrainer__*", "*URPC*"]'
    )
    known = tables.read_tables(file)
    assert [row.trainer for row in tables.rows_of(known["mine"], finished)] == [
        "nnUNetTrainer",
        "nnUNetTrainerBCP",
        "nnUNetTrainer",
    ]
    assert [row.trainer for row in tables.rows_of(known["parts"], finished)] == [
        "nnUNetTrainer",
        "nnUNetTrainerURPC",
        "nnUNetTrainer",
    ]
    stale = f"stale: mine/{Run('mine', 'nnUNetTrainerBCP', 'default', 1).name}"
    assert tables.remarks(known, finished).count(stale) == 1


# ---- documents ----


def test_tables_stand_between_their_markers(finished):
    text = "a\n<!-- table: mine -->\nold\n<!-- end -->\nb\n<!-- section: mine -->\n<!-- end -->\nc\n"
    new = tables.with_tables(text, {"mine": TABLE}, finished)
    table = "\n".join(lines(finished))
    setting = (
        "Of two seeds. Dataset001_Mine, 2d: 2 labeled, 80 unlabeled and 6 validation cases (nnU-Net's fold 0). "
        "20 steps, batches of 4 patches of 56 x 40, features 8 16. nnunet_ssl 0.1.0, python 3.11.7."
    )
    assert new == (
        f"a\n<!-- table: mine -->\n\n{table}\n\n<!-- end -->\nb\n"
        f"<!-- section: mine -->\n\n## Mine\n\n{setting}\n\n{table}\n\n<!-- end -->\nc\n"
    )
    assert tables.with_tables(new, {"mine": TABLE}, finished) == new


def test_gains_fill_the_last_columns_of_a_table_by_hand(finished):
    text = (
        "<!-- gains: mine,other -->\n\n| method | `-tr` | mine | other |\n| --- | --- | --- | --- |\n"
        "| none | `nnUNetTrainer` | | old |\n| BCP | `nnUNetTrainerBCP` | 1 | 2 |\n| x | `nnUNetTrainerX` | 3 | 4 |\n"
        "\n<!-- end -->\n"
    )
    known = {"mine": TABLE, "other": tables.Table("other", (1,))}
    made = tables.with_tables(text, known, finished)
    assert made.splitlines()[4:7] == [
        "| none | `nnUNetTrainer` | 0.500 |  |",
        "| BCP | `nnUNetTrainerBCP` | +0.040 |  |",
        "| x | `nnUNetTrainerX` |  |  |",
    ]
    assert tables.with_tables(made, known, finished) == made


def test_a_trainer_that_has_to_be_told_of_the_data_gains_as_told():
    table = tables.Table("mine", (1,), told=("nnUNetTrainerX__label=2",))
    rows = [tables.Row("nnUNetTrainerX", variant, {}, None) for variant in ("default", "label=2", "label=3", "all")]
    assert [table.represents_trainer(row) for row in rows] == [True, True, False, False]
    assert not table.represents_trainer(tables.Row("nnUNetTrainerY", "label=2", {}, None))


def test_a_table_of_step_times_stands_after_its_marker(tmp_path):
    (tmp_path / "step_time").mkdir()
    (tmp_path / "step_time" / "here.csv").write_text(
        "trainer,seconds,ratio,cost_model,share_of_model,host_seconds,peak_gib,peak_ratio\n"
        "nnUNetTrainerMine,0.3,2.5,2.0,1.25,0.0,3.456,1.5\n"
    )
    made = tables.with_tables("<!-- step_time: here -->\nold\n<!-- end -->", {}, tmp_path).splitlines()
    assert made[0] == "<!-- step_time: here -->"
    assert made[2].startswith("| trainer | time of a step (nnU-Net's: 1) | cost | time / cost | peak memory (GiB) |")
    assert made[4] == "| `nnUNetTrainerMine` | 2.50 | 2.00 | 1.25 | 3.46 | 1.50 |"
    assert made[-1] == "<!-- end -->"
    assert "old" not in made


def test_without_results_a_table_says_so_and_a_section_is_left_out(tmp_path):
    text = "<!-- table: mine -->\n<!-- end -->\n<!-- section: mine -->\n\nold\n\n<!-- end -->\n"
    new = "<!-- table: mine -->\n\nNo finished runs yet.\n\n<!-- end -->\n<!-- section: mine -->\n<!-- end -->\n"
    assert tables.with_tables(text, {"mine": TABLE}, tmp_path) == new


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("<!-- table: mine -->\n", "has an <!-- end --> of its own"),
        ("<!-- table: mine -->\n<!-- table: mine -->\n<!-- end -->\n", "has an <!-- end --> of its own"),
        ("<!-- table: other -->\n<!-- end -->\n", "tables.toml has no table other"),
        ("<!-- gains: mine,other -->\n<!-- end -->\n", "tables.toml has no table other"),
    ],
)
def test_wrong_markers(tmp_path, text, problem):
    with pytest.raises(ValueError, match=problem):
        tables.with_tables(text, {"mine": TABLE}, tmp_path)


def test_check_changes_nothing_and_fails_where_a_table_differs(finished, monkeypatch, capsys):
    document = finished / "results.md"
    document.write_text("<!-- table: mine -->\n<!-- end -->\n")
    monkeypatch.setattr(tables, "documents", lambda: [document])
    monkeypatch.setattr(tables, "read_tables", lambda: {"mine": TABLE})
    monkeypatch.setattr("sys.argv", ["tables.py", "--check"])
    assert tables.main() == 1
    assert document.read_text() == "<!-- table: mine -->\n<!-- end -->\n"
    assert "differ from their files: results.md" in capsys.readouterr().out
    monkeypatch.setattr("sys.argv", ["tables.py"])
    assert tables.main() == 0
    assert "written: results.md" in capsys.readouterr().out
    monkeypatch.setattr("sys.argv", ["tables.py", "--check"])
    assert tables.main() == 0
