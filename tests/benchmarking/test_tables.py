"""What stands in tables of results, and what cannot be compared."""

import json
import math
import re
from dataclasses import replace

import pytest

from nnunet_ssl.benchmarking.result_files import Run
from nnunet_ssl.benchmarking.rows import Table, dice_of_cases, remarks, rows_of
from nnunet_ssl.benchmarking.tables import setting_of
from tests.benchmarking.written_results import SETTING, TABLE, lines, write, write_finished


@pytest.fixture
def finished(tmp_path):
    return write_finished(tmp_path)


# ---- the arithmetic, by hand ----


def test_a_table_by_hand(finished):
    """The gains of the cases, over both seeds, are 1.5, 2.5, ... 6.5 points: mean 4, sd sqrt(3.5), t(5) = 2.5706."""
    half = 2.5705818 * math.sqrt(3.5) / math.sqrt(6)
    assert lines(finished) == [
        "| trainer | seed 1 | seed 2 | difference to `nnUNetTrainer` (95 % interval) | cost of a step | commit |",
        "| --- | --- | --- | --- | --- | --- |",
        "| `nnUNetTrainer` | 0.5000 | 0.5000 |  | 1 | 0123456789ab |",
        f"| `nnUNetTrainerBCP` | 0.5350 | 0.5450 | +0.0400 (+{(4 - half) / 100:.4f} to +{(4 + half) / 100:.4f}) | 2.33 "
        "| 0123456789ab |",
        "| `nnUNetTrainer`, all 96 labeled | 0.9000 | 0.9000 | +0.4000 (+0.4000 to +0.4000) | 1 | 0123456789ab |",
    ]


def test_a_rival_is_compared_over_draws_and_cases(finished):
    """The baseline is 4 points below: 3.5, 4.5 and 4 in the three draws, 1.5 to 6.5 over the cases."""
    cases = {f"case{number}": 0.5 + (number + 1.5) / 100 for number in range(6)}
    for trainer, variant, dice in (
        ("nnUNetTrainer", "default", dict.fromkeys(cases, 0.5)),
        ("nnUNetTrainerBCP", "default", cases),
        ("nnUNetTrainer", "all", dict.fromkeys(cases, 0.9)),
    ):
        write(finished, trainer, 3, dice, variant)
    table = Table("mine", (1, 2, 3), columns=("trainer", "rival"), rival="nnUNetTrainerBCP__default")
    head, _, plain, rival, upper = lines(finished, table)
    assert "difference to `nnUNetTrainerBCP` (95 % interval over draws and cases)" in head
    assert rival == "| `nnUNetTrainerBCP` |  |"
    low, high = (float(number) for number in re.findall(r"[+-]0\.\d+(?= to|\))", plain)[:2])
    assert plain.startswith("| `nnUNetTrainer` | -0.0400 (")
    assert -0.0600 < low < -0.0515
    assert -0.0285 < high < -0.0200
    assert "+0.3600 (+0.34" in upper
    assert lines(finished, replace(table, seeds=(1, 2)))[2] == "| `nnUNetTrainer` | -0.0400 |", "two are too few"


def test_the_seeds_of_an_own_split_are_trainings_not_draws(tmp_path):
    for trainer in ("nnUNetTrainer", "nnUNetTrainerBCP"):
        write(tmp_path, trainer, 1, {"a": 0.5}, setting=SETTING | {"fold": "own split, fold 1"})
    table = Table("mine", (1,), columns=("rival",), rival="nnUNetTrainerBCP__default")
    assert "(95 % interval over trainings and cases)" in lines(tmp_path, table)[0]


def test_a_label_that_nobody_has_counts_1(tmp_path):
    """So a label that is predicted where there is none costs as much as elsewhere, and each case has a Dice."""
    plain = {"a": {"1": 0.8, "2": None}, "b": {"1": None}}
    result = write(tmp_path, "nnUNetTrainer", 1, plain)
    assert dice_of_cases(result) == pytest.approx({"a": 0.9, "b": 1.0})
    write(tmp_path, "nnUNetTrainerBCP", 1, {"a": {"1": 0.8, "2": 0.0}, "b": {"1": 0.0}})
    table = Table("mine", (1,), columns=("seeds", "difference", "rival"), rival="nnUNetTrainerBCP__default")
    assert lines(tmp_path, table)[2:] == ["| 0.9500 |  | +0.7500 |", "| 0.2000 | -0.7500 |  |"]


def test_distances_are_means_of_what_is_defined(tmp_path):
    for seed, distance in ((1, 2.0), (2, 6.0)):
        write(
            tmp_path, "nnUNetTrainer", seed, {"a": 0.5}, hd95={"a": {"1": distance, "2": 1.0}}, asd={"a": {"1": None}}
        )
    table = Table("mine", (1, 2), columns=("hd95", "asd"))
    assert lines(tmp_path, table)[::2] == ["| 95HD (mm) | ASD (mm) |", "| 2.50 | none, 2 undefined |"]
    write(tmp_path, "nnUNetTrainer", 2, {"a": 0.5})
    assert lines(tmp_path, table)[2] == "|  |  |"


def test_the_interval_is_over_patients(tmp_path):
    """Of two patients, one of whom has two cases: (0.1 + 0.3) / 2 = 0.2 and 0.4; no interval of so few.

    The mean of a seed is over patients too, (0.7 + 0.9) / 2, so that it is the baseline's and the difference.
    """
    setting = SETTING | {"patient_pattern": r"p\d"}
    write(tmp_path, "nnUNetTrainer", 1, dict.fromkeys(("p1_a", "p1_b", "p2_a"), 0.5), setting=setting)
    write(tmp_path, "nnUNetTrainerBCP", 1, {"p1_a": 0.6, "p1_b": 0.8, "p2_a": 0.9}, setting=setting)
    assert "| 0.8000 | +0.3000 | 2.33 |" in lines(tmp_path, replace(TABLE, seeds=(1,)))[3]


def test_groups_that_are_no_patients_have_no_interval(tmp_path):
    """Of blocks of images several may be of one patient; what is not known to be independent is not counted as it."""
    cases = [f"block{number}_{image}" for number in range(8) for image in range(1 + number)]
    for unit, interval in (({}, r" \(\+0\.0\d+ to \+0\.0\d+\)"), ({"unit": "blocks"}, "")):
        setting = SETTING | {"patient_pattern": r"block\d"} | unit
        for trainer, gain in (("nnUNetTrainer", 0.0), ("nnUNetTrainerBCP", 0.01)):
            dice = {case: 0.5 + gain * int(case[5]) for case in cases}
            write(tmp_path, trainer, 1, dice, setting=setting)
        row = lines(tmp_path, Table("mine", (1,), columns=("difference",)))[3]
        mean = 0.035 if not unit else 0.01 * sum(int(case[5]) for case in cases) / len(cases)
        assert re.fullmatch(rf"\| \+{mean:.4f}{interval} \|", row)


def test_a_row_says_what_its_trainings_ran_on(tmp_path):
    table = Table("mine", (1, 2), columns=("device",))
    for seed, device in ((1, "cpu"), (2, "cuda")):
        write(tmp_path, "nnUNetTrainer", seed, {"a": 0.5})
        write(tmp_path, "nnUNetTrainerBCP", seed, {"a": 0.6}, device=device)
    assert lines(tmp_path, table)[2:] == ["| CPU |", "| CPU, GPU |"]


# ---- which rows ----


def test_folds_are_shown_as_one(tmp_path):
    """The mean over all cases, not over folds; the distances too, and the interval is of all patients."""
    folds = {"one": {"a": 0.5}, "two": {"b": 0.5, "c": 0.5}}
    for number, (name, cases) in enumerate(folds.items()):
        setting = SETTING | {"fold": f"own split, fold {number}"}
        for trainer, gain in (("nnUNetTrainer", 0.0), ("nnUNetTrainerBCP", 0.3 * number)):
            split = {"labeled": 4 + number, "unlabeled": 8, "validation": len(cases), "digest": name}
            known = {
                "hd95": {case: {"1": 2.0 + number} for case in cases},
                "circumference_error": {case: None if case == "c" else 1.0 + number for case in cases},
            }
            result = write(tmp_path, trainer, 1, {c: v + gain for c, v in cases.items()}, setting=setting, split=split)
            place = tmp_path / name
            place.mkdir(exist_ok=True)
            run = Run("mine", trainer, "default", 1)
            run.file(tmp_path).unlink()
            (place / f"{run.name}.json").write_text(json.dumps(result | known))
    table = Table("both", (1,), ("one", "two"), columns=("seeds", "difference", "hd95", "circumference"))
    assert lines(tmp_path, table)[2:] == [
        "| 0.5000 |  | 2.67 | 1.50, 1 without |",
        "| 0.7000 | +0.2000 | 2.67 | 1.50, 1 without |",
    ]
    words = setting_of(rows_of(table, tmp_path))
    assert "4 to 5 labeled, 8 unlabeled and 3 validation cases (all folds of the data set's own split" in words
    for file in (tmp_path / "two").glob("*BCP*"):
        file.unlink()
    assert len(lines(tmp_path, table)) == 3  # a row needs all folds
    assert "not shown: both/nnUNetTrainerBCP__default, seed 1 without two" in remarks({"both": table}, tmp_path)


@pytest.mark.parametrize(
    ("changes", "what"),
    [({"setting": SETTING | {"steps": 40}}, "setting"), ({"device": "cuda"}, "device"), ({"versions": {}}, "versions")],
)
def test_folds_that_differ_in_more_than_the_fold_are_refused(tmp_path, changes, what):
    for name, case, change in (("one", "a", {}), ("two", "b", changes)):
        result = write(tmp_path, "nnUNetTrainer", 1, {case: 0.5}, **change)
        (tmp_path / name).mkdir()
        (tmp_path / name / "nnUNetTrainer__default__seed1.json").write_text(json.dumps(result))
    with pytest.raises(ValueError, match=f"nnUNetTrainer: folds that are shown as one differ in {what}"):
        lines(tmp_path, Table("both", (1,), ("one", "two")))


def test_folds_with_a_case_in_common_are_refused(tmp_path):
    for name in ("one", "two"):
        result = write(tmp_path, "nnUNetTrainer", 1, {"a": 0.5})
        (tmp_path / name).mkdir()
        (tmp_path / name / "nnUNetTrainer__default__seed1.json").write_text(json.dumps(result))
    with pytest.raises(ValueError, match="cases in common"):
        lines(tmp_path, Table("both", (1,), ("one", "two")))


def test_only_complete_rows_are_shown_and_the_others_named(finished):
    assert not any("URPC" in line for line in lines(finished))
    assert "not shown: mine/nnUNetTrainerURPC__default, without seed 2" in remarks({"mine": TABLE}, finished)
    assert [line.split(" | ")[0] for line in lines(finished, Table("mine", (1,)))[2:]] == [
        "| `nnUNetTrainer`",
        "| `nnUNetTrainerURPC`",  # + 10 points
        "| `nnUNetTrainerBCP`",  # + 3.5
        "| `nnUNetTrainer`, all 96 labeled",
    ]


def test_without_the_baseline_there_is_no_table(finished):
    Run("mine", "nnUNetTrainer", "default", 2).file(finished).unlink()
    assert lines(finished) == ["No finished runs yet."]


def test_rows_columns_and_order_can_be_chosen(finished):
    table = Table("mine", (1,), rows=("nnUNetTrainer__default", "*BCP*"), columns=("trainer", "minutes"), sort="name")
    chosen = ["| trainer | minutes |", "| --- | --- |", "| `nnUNetTrainer` | 1.5 |", "| `nnUNetTrainerBCP` | 1.5 |"]
    assert lines(finished, table) == chosen


def test_a_variant_and_a_changed_tree_are_said(finished):
    code = {"commit": "ba9876543210", "dirty": True, "trainer": None, "step": None}
    cases = dict.fromkeys([f"case{number}" for number in range(6)], 0.4)
    write(finished, "nnUNetTrainerBCP", 1, cases, "box_side=0.5,ema_decay=0.9", code=code)
    write(finished, "nnUNetTrainerBCP", 2, cases, "box_side=0.5,ema_decay=0.9")
    row = lines(finished)[4]
    assert row.startswith("| `nnUNetTrainerBCP`, box_side=0.5, ema_decay=0.9 | 0.4000 | 0.4000 | -0.1000 (-0.1000 to -")
    assert row.endswith("| ba9876543210 and changes, 0123456789ab |")


def test_options_are_named_as_they_were_given(finished):
    cases, options = dict.fromkeys([f"case{number}" for number in range(6)], 0.4), {"phase_pattern": "frame01$"}
    for seed in (1, 2):
        write(finished, "nnUNetTrainerSPCL", seed, cases, "phase_pattern=frame01-", options=options)
    assert any(line.startswith("| `nnUNetTrainerSPCL`, phase_pattern=frame01$ | 0.4") for line in lines(finished))


def test_stale_results_are_named_and_shown(finished):
    """Their digest of 64 zeros is not that of the file."""
    assert "stale: mine/nnUNetTrainerBCP__default__seed2" in remarks({"mine": TABLE}, finished)
    assert any("nnUNetTrainerBCP" in line for line in lines(finished))


# ---- what cannot be compared ----


@pytest.mark.parametrize(
    ("changes", "problem"),
    [
        ({"setting": SETTING | {"steps": 40}}, "was trained in another setting than nnUNetTrainer"),
        ({"split": {"labeled": 2, "digest": "other"}}, "was trained on another split than nnUNetTrainer"),
        ({"dice": {"case0": {"1": 0.5}}}, "has other validation cases than nnUNetTrainer"),
    ],
)
def test_what_differs_in_more_than_the_trainer_is_refused(finished, changes, problem):
    write(finished, "nnUNetTrainerBCP", 2, **{"dice": {}} | changes)
    with pytest.raises(ValueError, match=f"mine: nnUNetTrainerBCP, default, seed 2 {problem}"):
        rows_of(TABLE, finished)
