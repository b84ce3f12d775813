"""What the benchmarks compute apart from training; the trainings themselves are slow tests of test_end_to_end.py."""

import argparse
import json
import os
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import SimpleITK
from nnunetv2.utilities.plans_handling.plans_handler import PlansManager

import data_of_runs as data
import epoch_time
import label_efficiency
import loader_throughput
import pool_time
import result_files
import step_time
import train_one
from nnunet_ssl.training.host_work import Pending
from tests.conftest import Case

BENCHMARKS = Path(__file__).parent.parent / "benchmarks"


def test_plans_of_a_configuration_that_inherits_are_whole(tmp_path):
    plans = Case(dim=2, stages=4).plans()
    plans["configurations"]["2d_coarse"] = {"inherits_from": "2d", "spacing": [3.0, 3.0]}
    (tmp_path / "nnUNetPlans.json").write_text(json.dumps(plans))
    options = argparse.Namespace(configuration="2d_coarse", features=[4, 8, 16], batch_size=8)
    smaller = data.smaller_plans(tmp_path / "nnUNetPlans.json", options)
    configuration = PlansManager(smaller).get_configuration("2d_coarse")
    assert (configuration.spacing, configuration.batch_size, configuration.patch_size) == ([3.0, 3.0], 8, [16, 16])
    arguments = configuration.network_arch_init_kwargs
    assert arguments["features_per_stage"] == [4, 8, 16]
    assert [len(arguments[name]) for name in ("strides", "n_conv_per_stage", "n_conv_per_stage_decoder")] == [3, 3, 2]


def test_peak_of_a_process_is_not_that_of_the_one_which_started_it():
    """Linux hands the high-water mark that getrusage reports on to children."""
    held = bytearray(2 * 2**30)  # more than what an interpreter with torch holds
    here = step_time.kib_of_process("VmHWM")
    child = "import step_time; print(step_time.kib_of_process('VmHWM'))"
    there = int(subprocess.check_output([sys.executable, "-c", child], cwd=BENCHMARKS))
    assert here > len(held) / 2**10 > there


# ---- which runs there are, and which are not repeated ----


@pytest.fixture
def hippocampus(tmp_path, monkeypatch):
    """A preprocessed data set of 10 labeled and 3 unlabeled cases, as far as the planning of runs reads it."""
    for name in ("raw", "preprocessed"):
        monkeypatch.setenv(f"nnUNet_{name}", str(tmp_path / name))
    source = tmp_path / "preprocessed" / "Dataset004_Hippocampus"
    (source / "gt_segmentations").mkdir(parents=True)
    for number in range(10):
        (source / "gt_segmentations" / f"case.{number}.nii.gz").touch()
    images = tmp_path / "raw" / source.name / "imagesUn"
    images.mkdir(parents=True)
    for number in range(3):
        (images / f"un{number}_0000.nii.gz").touch()
    (source / "nnUNetPlans.json").write_text(json.dumps(Case(dim=2, stages=4).plans()))
    (source / "dataset.json").write_text(json.dumps({"file_ending": ".nii.gz"}))
    (source / "dataset_fingerprint.json").write_text("{}")
    monkeypatch.setattr(data, "folder_of", lambda dataset: source)
    return source


@pytest.fixture
def options_of(tmp_path, monkeypatch):
    def options(words=""):
        line = f"x --dataset 4 --labeled 2 --trainers nnUNetTrainerBCP --steps 40 {words} --device cpu"
        monkeypatch.setattr(
            sys, "argv", [*shlex.split(line), "--results", f"{tmp_path}/json", "-o", f"{tmp_path}/work"]
        )
        return label_efficiency.parse_arguments()

    return options


def finish(planned, options, **changes):
    file = planned.run.file(options.results)
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(json.dumps(planned.facts | changes))


def names(runs):
    return [planned.run.name for planned in runs]


def test_runs_of_an_experiment(hippocampus, options_of):
    runs = label_efficiency.plan_runs(options_of("--seeds 1 2"))
    assert names(runs) == [
        "nnUNetTrainer__default__seed1",
        "nnUNetTrainer__default__seed2",
        "nnUNetTrainerBCP__default__seed1",
        "nnUNetTrainerBCP__default__seed2",
        "nnUNetTrainer__all__seed1",
        "nnUNetTrainer__all__seed2",
    ]
    assert {planned.run.experiment for planned in runs} == {"hippocampus_2d_2labeled"}
    digests = [planned.facts["split"].pop("digest") for planned in runs]
    assert digests[:2] == digests[2:4]  # the same cases for all trainers, others for each seed
    assert digests[0] != digests[1]
    assert [planned.facts["split"] for planned in runs[2:5]] == [
        {"labeled": 2, "unlabeled": 3, "validation": 2},
        {"labeled": 2, "unlabeled": 3, "validation": 2},
        {"labeled": 8, "unlabeled": 0, "validation": 2},
    ]
    assert runs[0].split["train"][0].startswith("case.")


def test_the_data_sets_own_split(hippocampus, options_of):
    """The upper bound learns the labels of the unlabeled cases too, where they have one."""
    split = {"train": ["case.1"], "val": ["case.0"], "unlabeled": ["case.2", "un0"]}
    (hippocampus / "splits_final.json").write_text(json.dumps([split]))
    options = options_of()
    options.own_split, options.labeled = True, None
    baseline, ours, everything = label_efficiency.plan_runs(options)
    assert baseline.split == ours.split == split
    assert everything.split == {"train": ["case.1", "case.2"], "val": ["case.0"]}
    assert ours.run.experiment == everything.run.experiment == "hippocampus_2d_1labeled"
    assert ours.facts["setting"]["fold"] == "own split"
    unlabeled = [planned.facts["split"]["unlabeled"] for planned in (ours, everything)]
    assert unlabeled == [2, 0]


def test_another_fold_of_the_own_split(hippocampus, options_of):
    splits = [{"train": ["case.1"], "val": [f"case.{fold}"], "unlabeled": ["un0"]} for fold in (2, 3)]
    (hippocampus / "splits_final.json").write_text(json.dumps(splits))
    options = options_of("--head 1")
    options.own_split, options.labeled, options.fold = True, None, 1
    baseline, ours, everything = label_efficiency.plan_runs(options)
    assert baseline.split == ours.split == splits[1]
    assert everything.split["val"] == ["case.3"]
    assert ours.facts["setting"]["fold"] == "own split, fold 1"
    assert ours.facts["head"] == 1
    for fold in (-1, 2):
        options.fold = fold
        with pytest.raises(ValueError, match=f"there is no fold {fold}: .*splits_final.json has 2, the first is 0"):
            label_efficiency.plan_runs(options)


def test_a_variant_is_named_by_its_options_and_the_baseline_has_none(hippocampus, options_of):
    options = options_of('--no-upper-bound --tune-fold --options "ema_decay=0.9 box_side=0.5"')
    baseline, variant = label_efficiency.plan_runs(options)
    assert baseline.run.name == "nnUNetTrainer__default__seed1"
    assert (baseline.facts["options"], baseline.facts["code"]["step"]) == ({}, None)
    assert variant.run.name == "nnUNetTrainerBCP__box_side=0.5,ema_decay=0.9__seed1"
    assert variant.run.experiment == "hippocampus_2d_2labeled_tune"
    assert variant.facts["options"] == {"ema_decay": "0.9", "box_side": "0.5"}
    assert result_files.variant_of({"init_checkpoint": "a/b c__d"}) == "init_checkpoint=a-b-c__d"


def test_facts_hold_no_path_and_no_name_of_a_machine(hippocampus, options_of, tmp_path):
    import socket

    for planned in label_efficiency.plan_runs(options_of()):
        text = json.dumps(planned.facts)
        assert str(tmp_path) not in text
        assert str(BENCHMARKS.parent) not in text
        assert socket.gethostname() not in text


def test_a_finished_run_is_not_repeated(hippocampus, options_of):
    options = options_of()
    runs = label_efficiency.plan_runs(options)
    assert label_efficiency.without_finished(runs, options) == runs
    finish(runs[0], options)
    finish(runs[2], options)
    assert label_efficiency.without_finished(runs, options) == [runs[1]]


def test_a_stale_run_is_repeated_only_when_asked_for(hippocampus, options_of, monkeypatch, tmp_path, capsys):
    trainers = tmp_path / "trainers"
    trainers.mkdir()
    monkeypatch.setattr(result_files, "TRAINERS", trainers)
    (trainers / "nnUNetTrainerBCP.py").write_text("a = 1")
    runs = label_efficiency.plan_runs(options_of())
    for planned in runs:
        finish(planned, options_of())
    assert label_efficiency.without_finished(runs, options_of()) == []
    assert capsys.readouterr().out == ""
    (trainers / "nnUNetTrainerBCP.py").write_text("a = 2")
    assert label_efficiency.without_finished(runs, options_of()) == []
    assert "nnUNetTrainerBCP__default__seed1 is stale" in capsys.readouterr().out
    assert label_efficiency.without_finished(runs, options_of("--repeat-stale")) == [runs[1]]


def test_a_new_training_step_makes_our_results_stale_and_not_those_of_nnunet(monkeypatch, tmp_path):
    step = tmp_path / "step.py"
    monkeypatch.setattr(result_files, "STEP", step)
    code = {name: result_files.code_of(name) for name in ("nnUNetTrainer", "nnUNetTrainerBCP")}
    step.write_text("a = 1")
    stale = [name for name in code if result_files.is_stale({"trainer": name, "code": code[name]})]
    assert stale == ["nnUNetTrainerBCP"]
    assert code["nnUNetTrainer"]["trainer"] is not None


DIGEST_OF_ASSIGNMENT = "84a9ff2628b258681f8eedb167cb4f40caf2f8268832a479f351fdcbaa1d7117"  # of `a = 1`, in every Python


def test_comments_docstrings_and_line_breaks_are_no_change_of_code(tmp_path):
    def digest_of(text: str) -> str | None:
        (tmp_path / "code.py").write_text(text)
        return result_files.sha256(tmp_path / "code.py")

    assert digest_of('"""What."""\n\na = (  # one\n    1\n)\n') == digest_of("a = 1") == DIGEST_OF_ASSIGNMENT
    others = [digest_of(text) for text in ("a = 2", "b = 1", "a == 1", "a = '1'", "a = 1.0", "a = True", "a = 1; a")]
    assert len({DIGEST_OF_ASSIGNMENT, *others}) == 8
    assert digest_of("x = f'{a}'") != digest_of("x = f'{a!r}'")


def test_a_trainer_of_the_users_own_folder_has_a_digest(monkeypatch, tmp_path):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "nnUNetTrainerMine.py").write_text("a = 1")
    monkeypatch.setenv("nnUNet_extTrainer", os.pathsep.join((f"{tmp_path}/none", str(tmp_path))))
    assert result_files.digests("nnUNetTrainerMine")["trainer"] == DIGEST_OF_ASSIGNMENT
    assert result_files.digests("nnUNetTrainerNobodys")["trainer"] is None


@pytest.mark.parametrize(("words", "what"), [("--steps 60", "setting"), ("--labeled 3", "split")])
def test_another_setting_needs_another_experiment(hippocampus, options_of, words, what):
    for planned in label_efficiency.plan_runs(options := options_of("--experiment mine")):
        finish(planned, options)
    runs = label_efficiency.plan_runs(options := options_of(f"--experiment mine {words}"))
    with pytest.raises(
        SystemExit, match=rf"of mine was trained (in|on) another {what}: name this one with --experiment"
    ):
        label_efficiency.without_finished(runs, options)


def test_an_interrupted_run_goes_on_and_begins_again_with_other_code(hippocampus, options_of, capsys):
    options = options_of()
    planned = label_efficiency.plan_runs(options)[1]
    place = label_efficiency.prepare(planned, options)
    splits = json.loads((place / "preprocessed" / hippocampus.name / "splits_final.json").read_text())
    assert splits == [planned.split]
    (place / "checkpoint").touch()
    planned.facts["code"] |= {"commit": "another", "dirty": False}  # which leaves trainer and step as they were
    assert label_efficiency.prepare(planned, options) == place
    assert (place / "checkpoint").exists()
    planned.facts["code"]["trainer"] = "another"
    label_efficiency.prepare(planned, options)
    assert not (place / "checkpoint").exists()
    assert json.loads((place / "facts.json").read_text()) == planned.facts
    assert "begins again" in capsys.readouterr().out


def test_a_run_is_started_with_its_options_and_the_code_of_that_moment(hippocampus, options_of, monkeypatch, capsys):
    started = []

    def call(command, stdout, stderr, env):
        started.append((command, env))
        return len(started) - 1

    options = options_of("--no-upper-bound --options ema_decay=0.9")
    runs = label_efficiency.plan_runs(options)
    monkeypatch.setattr("subprocess.call", call)
    monkeypatch.setattr(label_efficiency, "code_of", lambda trainer: {"commit": "later"})
    assert [label_efficiency.start(planned, options) for planned in runs] == [0, 1]
    place = options.output / "hippocampus_2d_2labeled" / runs[1].run.name
    command, environment = started[1]
    assert command[2:] == [str(place), str(runs[1].run.file(options.results))]
    length = "num_epochs=20 num_iterations_per_epoch=2 num_val_iterations_per_epoch=5 save_every=2 seed=1"
    assert environment["nnUNet_ssl_options"] == f"{length} ema_decay=0.9"
    assert environment["nnUNet_preprocessed"] == str(place / "preprocessed")
    assert json.loads((place / "facts.json").read_text())["code"] == {"commit": "later"}
    first, second = capsys.readouterr().out.splitlines()
    assert (first, second[: second.index(", see")]) == (f"{runs[0].run.name}: done", f"{runs[1].run.name}: FAILED")


# ---- what a result says of the code, and of the training ----


@pytest.mark.skipif(shutil.which("git") is None, reason="there is no git")
def test_a_changed_tree_is_said(tmp_path, monkeypatch):
    def git(*words):
        subprocess.run(["git", "-c", "user.name=a", "-c", "user.email=b", *words], cwd=tmp_path, check=True)

    monkeypatch.setattr(result_files, "ROOT", tmp_path)
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(tmp_path.parent))
    assert (result_files.code_of("nnUNetTrainer")["commit"], result_files.code_of("nnUNetTrainer")["dirty"]) == (
        None,
        False,
    )
    for folder in ("nnunet_ssl", "trainers", "benchmarks/results"):
        (tmp_path / folder).mkdir(parents=True)
        (tmp_path / folder / "a.py").touch()
    git("init", "-q")
    git("add", ".")
    git("commit", "-qm", "a")
    (tmp_path / "README.md").touch()
    (tmp_path / "benchmarks" / "results" / "new.json").touch()
    code = result_files.code_of("nnUNetTrainer")
    assert (len(code["commit"]), code["dirty"]) == (12, False)
    (tmp_path / "trainers" / "new.py").touch()
    assert result_files.code_of("nnUNetTrainer")["dirty"]


def test_a_file_that_is_no_result_is_named(tmp_path):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "a__default__seed1.json").write_text('{"trainer": "b", "variant": "default", "seed": 1}')
    with pytest.raises(ValueError, match="a__default__seed1.json holds the result of b__default__seed1"):
        result_files.read_results("mine", tmp_path)
    (tmp_path / "mine" / "a__default__seed1.json").write_text("{}")
    with pytest.raises(ValueError, match=r"a__default__seed1.json is no result of label_efficiency.py: KeyError"):
        result_files.read_results("mine", tmp_path)


def test_outcome_of_a_training():
    cases = {"a.1": {"1": 0.12345678, "2": float("nan")}, "b": {"1": 0.0, "2": 1.0}}
    summary = [
        {"prediction_file": f"/x/{case}.nii.gz", "metrics": {label: {"Dice": value} for label, value in dice.items()}}
        for case, dice in cases.items()
    ]
    found = train_one.dice_of({"metric_per_case": summary}, ".nii.gz")
    assert found == {"a.1": {"1": 0.123457, "2": None}, "b": {"1": 0.0, "2": 1.0}}

    class Logger:
        def get_value(self, key, step):
            return {"epoch_start_timestamps": [10.0, 100.0, 200.0], "epoch_end_timestamps": [20.0, 130.0]}[key]

    assert train_one.seconds_of(argparse.Namespace(logger=Logger())) == 40


def test_distances_by_hand(tmp_path):
    """Two rows of three voxels of 2 mm, one voxel apart: each end is 2 mm from one of the other; the core is missed."""
    labels = {"background": 0, "whole": [1, 2], "core": 2}
    content = {"labels": labels, "file_ending": ".nii.gz", "channel_names": {"0": "MR"}, "numTraining": 2}
    (tmp_path / "dataset.json").write_text(json.dumps(content | {"regions_class_order": [1, 2]}))
    reference, prediction = np.zeros((2, 1, 1, 8), np.uint8)
    reference[..., 2:4], reference[..., 4] = 1, 2
    prediction[..., 3:6] = 1
    for folder, array in (("gt_segmentations", reference), ("validation", prediction)):
        (tmp_path / folder).mkdir()
        image = SimpleITK.GetImageFromArray(array)
        image.SetSpacing((2.0, 1.0, 1.0))
        SimpleITK.WriteImage(image, str(tmp_path / folder / "a.nii.gz"))
    (tmp_path / "gt_segmentations" / "not_validated.nii.gz").touch()
    trainer = argparse.Namespace(
        preprocessed_dataset_folder_base=str(tmp_path),
        output_folder=str(tmp_path),
        plans_manager=argparse.Namespace(plans={"image_reader_writer": "SimpleITKIO"}),
        dataset_json=content,
    )
    assert train_one.distances_of(trainer) == {
        "hd95": {"a": {"(1, 2)": 2.0, "2": None}},
        "asd": {"a": {"(1, 2)": 2.0, "2": None}},
    }


def test_cost_is_that_of_our_trainers_and_of_those_built_on_them():
    ours = type("Base", (), {"__module__": "nnunet_ssl.training.base", "STEP_COST": 7 / 3})
    renamed = type("nnUNetTrainerMine", (ours,), {"__module__": "mine", "STEP_COST": 2.0})
    assert (train_one.cost_of(ours), train_one.cost_of(renamed), train_one.cost_of(dict)) == (2.3333, 2.0, None)


def test_cost_of_unlike_networks_is_counted_in_their_passes():
    """Six passes of the first network, and seven of one that costs 1.5 of it: (6 + 10.5) / 3."""
    unlike = type("Unlike", (), {"STEP_COST": 9.0, "PASSES": (("first", 6), ("second", 7))})
    timing = step_time.Timing(step=1.0, host=0.0, networks={"first": 0.2, "second": 0.3})
    assert step_time.cost_of(unlike, timing) == pytest.approx(5.5)
    assert step_time.cost_of(type("One", (), {"STEP_COST": 2.0}), timing) == 2.0


def test_step_time_of_two_networks_and_of_the_host(tmp_path, monkeypatch):
    monkeypatch.setenv("nnUNet_results", str(tmp_path))
    monkeypatch.setenv("nnUNet_preprocessed", str(tmp_path))
    names = ["nnUNetTrainer", "nnUNetTrainerCrossTeaching", "nnUNetTrainerCAD"]
    words = f"--trainer {' '.join(names[1:])} --steps 1 --features 4 8 8 8 --batch-size 1 --device cpu --threads 1"
    monkeypatch.setattr(sys, "argv", ["step_time.py", *words.split()])
    waits = iter(range(1, 100))

    def result(self):
        self._record({"host/seconds_waiting": float(next(waits))})
        return []

    monkeypatch.setattr(Pending, "result", result)
    timings = step_time.time_alternately(names, step_time.parse_arguments())
    assert list(timings["nnUNetTrainerCrossTeaching"].networks) == ["first", "second"]
    assert timings["nnUNetTrainer"].networks == {}
    assert all(seconds > 0 for seconds in timings["nnUNetTrainerCrossTeaching"].networks.values())
    rows = [step_time.row_of(name, timings, dict.fromkeys(timings, 1.0)) for name in names]
    assert [row["host_seconds"] for row in rows] == [0.0, 0.0, 4.0], "three to warm up are not counted"
    assert list(rows[0]) == list(step_time.COLUMNS)


def test_pool_time_is_of_steps_and_of_whole_cases(tmp_path, monkeypatch):
    monkeypatch.setenv("nnUNet_results", str(tmp_path))
    monkeypatch.setenv("nnUNet_preprocessed", str(tmp_path))
    network = "--features 4 8 8 8 --batch-size 1 --device cpu --threads 1 --steps 1"
    words = f"--configuration 2d --cases 10 --shape 3 50 35 --rounds 2 {network}"
    monkeypatch.setattr(sys, "argv", ["pool_time.py", *words.split()])
    options = pool_time.parse_arguments()
    step, cases = pool_time.measure(options)
    assert step > 0
    assert list(cases) == ["mirrored", "not mirrored"]
    assert min(cases.values()) > 0
    assert pool_time.share_of_run(0.5, 0.2, options, 1000) == pytest.approx(2 * 10 * 0.2 / 500)


def test_pool_time_predicts_as_a_training_does_with_and_without_mirroring(tmp_path, monkeypatch):
    monkeypatch.setenv("nnUNet_results", str(tmp_path))
    monkeypatch.setenv("nnUNet_preprocessed", str(tmp_path))
    words = "--cases 1 --shape 3 50 35 --features 4 8 8 8 --batch-size 1 --device cpu --threads 1 --steps 1"
    monkeypatch.setattr(sys, "argv", ["pool_time.py", "--configuration", "2d", *words.split()])
    trainer = pool_time.step_time.make_trainer(pool_time.TRAINER, pool_time.parse_arguments())
    passes = []
    trainer.network.register_forward_hook(lambda *_: passes.append(1))
    counts = {}
    for name, predict in pool_time.predicting(trainer, [3, 50, 35]).items():
        passes.clear()
        predict()
        counts[name] = len(passes)
    assert counts["mirrored"] == 4 * counts["not mirrored"] > 0


# ---- time around a step ----


def test_what_is_called_inside_of_something_else_is_counted_once(monkeypatch):
    now = [0.0]
    monkeypatch.setattr(epoch_time.time, "perf_counter", lambda: now[0])

    def take(seconds):
        now[0] += seconds

    watch = epoch_time.Stopwatch()
    inner = watch.timed("inner", lambda: take(2.0))

    def end():
        take(1.0)
        inner()
        inner()
        take(0.5)

    watch.timed("outer", end)()
    inner()
    assert watch.seconds == {"inner": 6.0, "outer": 1.5}


def test_parts_of_an_epoch_are_counted_up_to_one_of_nnunet():
    watch = epoch_time.Stopwatch()
    watch.seconds |= {"steps": 4.0, "validation": 2.0, "pictures and curves": 1.0}
    table = epoch_time.table({"nnUNetTrainer": watch}, argparse.Namespace(epochs=2))
    assert table.splitlines()[-1] == "| nnUNetTrainer | 250.00 | 25.00 | 0.50 | 0.00 | 0.00 | 9.3% |"


def test_costs_of_samples_are_ratios_to_labeled_ones():
    table = loader_throughput.table({"labeled": 0.2, "weak": 0.1}, argparse.Namespace(step=0.4))
    assert table.splitlines()[2:] == ["| labeled | 0.200 | 1.00 | 0.5 |", "| weak | 0.100 | 0.50 | 0.2 |"]
