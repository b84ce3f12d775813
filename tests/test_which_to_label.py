"""The rules by which benchmarks/which_to_label.py adds cases, and what its runs are."""

import json
import shlex
import sys

import numpy as np
import pytest

import which_to_label
from nnunet_ssl.benchmarking.experiment import Experiment
from nnunet_ssl.benchmarking.planning import Planned
from nnunet_ssl.benchmarking.result_files import Run
from nnunet_ssl.benchmarking.running import Places
from nnunet_ssl.evaluation.label_priority import Uncertainty
from tests.conftest import Case
from which_to_label import RULES, Predicted

NAN = float("nan")


@pytest.fixture
def predicted():
    """Twenty cases, the more uncertain and the larger the higher their number."""
    uncertainty = {
        f"c{i:02}": Uncertainty(i / 100, NAN, {"head": 1 - i / 100, "tail": 0.5 + i / 100}) for i in range(20)
    }
    return Predicted(uncertainty, {case: float(i) for i, case in enumerate(uncertainty)})


def added(name, predicted, seed=0, count=3):
    return RULES[name](predicted, count, np.random.default_rng(seed))


def test_the_most_uncertain_are_those_that_pseudolabel_ranks_first(predicted):
    assert added("uncertain", predicted) == ["c19", "c18", "c17"]


def test_each_structure_takes_its_turn_and_a_missing_one_comes_first(predicted):
    predicted.uncertainty["c05"].confidence["head"] = NAN
    assert added("each-class", predicted, count=4) == ["c05", "c00", "c19", "c01"]


@pytest.mark.parametrize("name", ["random", "foreground"])
def test_random_rules_draw_by_their_seed_and_no_case_twice(name, predicted):
    draws = [added(name, predicted, seed) for seed in range(50)]
    assert all(len(set(chosen)) == 3 for chosen in draws)
    assert draws == [added(name, predicted, seed) for seed in range(50)]
    assert len({tuple(chosen) for chosen in draws}) > 40


def test_cases_of_much_foreground_are_drawn_more_often_and_those_of_none_never(predicted):
    means = {}
    for name in ("random", "foreground"):
        chosen = [int(case[1:]) for seed in range(400) for case in added(name, predicted, seed, count=1)]
        means[name] = np.mean(chosen)
        assert (0 in chosen) == (name == "random")
    assert means["random"] == pytest.approx(9.5, abs=1.0)
    assert means["foreground"] == pytest.approx(13.0, abs=1.0)  # sum i² / sum i


def test_without_any_volume_the_rule_that_needs_one_is_refused(predicted):
    for volume in (0.0, NAN):
        nothing = Predicted(predicted.uncertainty, dict.fromkeys(predicted.foreground_ml, volume))
        with pytest.raises(ValueError, match="the rule foreground needs cases"):
            added("foreground", nothing)


@pytest.fixture
def experiment(tmp_path, monkeypatch):
    monkeypatch.setenv("nnUNet_raw", str(tmp_path / "raw"))
    source = tmp_path / "Dataset004_Hippocampus"
    source.mkdir()
    (source / "dataset.json").write_text(json.dumps(Case().dataset_json()))
    return Experiment(source, "2d", labeled=2)


def test_runs_add_true_labels_and_keep_the_validation_cases(monkeypatch, predicted, experiment):
    split = {"train": ["a", "b"], "val": ["v"]}
    monkeypatch.setattr(which_to_label, "prediction_of", lambda *_: predicted)
    planned = Planned(Run("e", "nnUNetTrainer", "default", 1), experiment, split, {"variant": "default", "seed": 1})
    runs = which_to_label.with_more_labels(planned, None, 4)
    assert [one.run.variant for one in runs] == [f"4-more-{name}" for name in RULES]
    for one in runs:
        assert one.split == {"train": sorted(["a", "b", *one.facts["added"]]), "val": ["v"]}
        assert set(one.facts["added"]) <= set(predicted.uncertainty)
        assert one.facts["split"]["labeled"] == 6
        json.dumps(one.facts)


@pytest.mark.parametrize("words", ["--own-split", "--labeled 2 --options ema_decay=0.9", "--labeled 2 3"])
def test_other_splits_and_options_are_refused(words, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", shlex.split(f"x --dataset 4 --add 4 --steps 20 {words}"))
    with pytest.raises(SystemExit):
        which_to_label.parse_arguments()
    assert "draws its cases by --labeled, one number, and takes no --options" in capsys.readouterr().err


def test_first_runs_are_gone_on_with_until_there_is_a_model_and_a_result(tmp_path, monkeypatch, experiment):
    """One has both, one was stopped in its validation, one's model was deleted, one has nothing."""
    runs = [Planned(Run("e", "nnUNetTrainer", "default", seed), experiment, {}, {}) for seed in (1, 2, 3, 4)]
    places = Places(tmp_path, tmp_path)
    for planned in runs[:2]:
        model = which_to_label.model_of(planned, places)
        model.parent.mkdir(parents=True)
        model.touch()
    monkeypatch.setattr(which_to_label, "without_finished", lambda *_: [runs[1], runs[3]])
    assert which_to_label.without_model_or_result(runs, places, False) == runs[1:]
