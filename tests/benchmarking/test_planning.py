"""Which trainings there are, and which are not repeated."""

import json
import socket
from dataclasses import replace

import pytest

from nnunet_ssl.benchmarking import result_files
from nnunet_ssl.benchmarking.planning import plan_runs, without_finished
from tests.benchmarking.conftest import changed, finish, names


def test_trainings_of_an_experiment(comparison):
    planned = plan_runs(replace(comparison, seeds=(1, 2)))
    assert names(planned) == [
        "nnUNetTrainer__default__seed1",
        "nnUNetTrainer__default__seed2",
        "nnUNetTrainerBCP__default__seed1",
        "nnUNetTrainerBCP__default__seed2",
        "nnUNetTrainer__all__seed1",
        "nnUNetTrainer__all__seed2",
    ]
    assert {one.run.experiment for one in planned} == {"hippocampus_2d_2labeled"}
    digests = [one.facts["split"].pop("digest") for one in planned]
    assert digests[:2] == digests[2:4]  # the same cases for all trainers, others for each seed
    assert digests[0] != digests[1]
    assert [one.facts["split"] for one in planned[2:5]] == [
        {"labeled": 2, "unlabeled": 3, "validation": 2},
        {"labeled": 2, "unlabeled": 3, "validation": 2},
        {"labeled": 8, "unlabeled": 0, "validation": 2},
    ]
    assert planned[0].split["train"][0].startswith("case.")


def test_all_labels_are_trained_once_for_all_numbers_of_labeled_cases(comparison, experiment, places):
    both = replace(comparison, experiments=(experiment, replace(experiment, labeled=3)))
    planned = plan_runs(both)
    assert names(planned) == [
        *["nnUNetTrainer__default__seed1", "nnUNetTrainerBCP__default__seed1"] * 2,
        "nnUNetTrainer__all__seed1",
    ]
    assert [run.experiment for run in planned[-1].runs] == ["hippocampus_2d_2labeled", "hippocampus_2d_3labeled"]
    finish(planned[-1], places, dice="of all")
    assert without_finished(planned, places.results) == planned[:-1]
    copied = planned[-1].others[0].file(places.results)
    assert json.loads(copied.read_text())["dice"] == "of all"
    planned[-1].run.file(places.results).unlink()
    assert without_finished(planned, places.results) == planned[:-1], "what the other experiment has is taken"
    copied.unlink()
    planned[-1].run.file(places.results).unlink()
    assert without_finished(planned, places.results) == planned


def test_a_variant_is_named_by_its_options_and_the_baseline_has_none(comparison):
    options = {"ema_decay": "0.9", "box_side": "0.5"}
    tuned = replace(changed(comparison, fold=1), options=options, with_upper_bound=False)
    baseline, variant = plan_runs(tuned)
    assert baseline.run.name == "nnUNetTrainer__default__seed1"
    assert (baseline.facts["options"], baseline.facts["code"]["step"]) == ({}, None)
    assert variant.run.name == "nnUNetTrainerBCP__box_side=0.5,ema_decay=0.9__seed1"
    assert variant.run.experiment == "hippocampus_2d_2labeled_tune"
    assert variant.facts["options"] == options
    assert result_files.variant_of({"init_checkpoint": "a/b c__d"}) == "init_checkpoint=a-b-c__d"


def test_facts_hold_no_path_and_no_name_of_a_machine(comparison, tmp_path):
    for planned in plan_runs(replace(comparison, head=1)):
        text = json.dumps(planned.facts)
        assert str(tmp_path) not in text
        assert str(result_files.ROOT) not in text
        assert socket.gethostname() not in text
        assert planned.facts["head"] == 1


def test_a_finished_training_is_not_repeated(comparison, places):
    planned = plan_runs(comparison)
    assert without_finished(planned, places.results) == planned
    finish(planned[0], places)
    finish(planned[2], places)
    assert without_finished(planned, places.results) == [planned[1]]


def test_a_stale_result_is_made_again_only_when_asked_for(comparison, places, monkeypatch, tmp_path, capsys):
    trainers = tmp_path / "trainers"
    trainers.mkdir()
    monkeypatch.setattr(result_files, "TRAINERS", trainers)
    (trainers / "nnUNetTrainerBCP.py").write_text("a = 1")
    planned = plan_runs(comparison)
    for one in planned:
        finish(one, places)
    assert without_finished(planned, places.results) == []
    assert capsys.readouterr().out == ""
    (trainers / "nnUNetTrainerBCP.py").write_text("a = 2")
    assert without_finished(planned, places.results) == []
    assert "nnUNetTrainerBCP__default__seed1 is stale" in capsys.readouterr().out
    assert without_finished(planned, places.results, repeat_stale=True) == [planned[1]]


def test_options_that_leave_the_same_name_are_told_apart(comparison, places):
    """The file of `frame01$` is called as that of `frame01|`: the second would count as finished."""
    own = replace(comparison, trainers=("nnUNetTrainerSPCL",), with_upper_bound=False)
    for planned in plan_runs(replace(own, options={"phase_pattern": "frame01$"})):
        finish(planned, places)
    with pytest.raises(ValueError, match="was trained with other options: name this one with --experiment"):
        without_finished(plan_runs(replace(own, options={"phase_pattern": "frame01|"})), places.results)


@pytest.mark.parametrize(
    ("changes", "what"), [({"steps": 60}, "in another setting"), ({"labeled": 3}, "on another split")]
)
def test_another_setting_needs_another_experiment(comparison, places, changes, what):
    mine = changed(comparison, given_name="mine")
    for planned in plan_runs(mine):
        finish(planned, places)
    planned = plan_runs(changed(mine, **changes))
    with pytest.raises(ValueError, match=rf"of mine was trained {what}: name this one with --experiment"):
        without_finished(planned, places.results)
