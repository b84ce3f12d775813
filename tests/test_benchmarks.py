"""What the benchmarks of time and memory measure."""

import argparse
import subprocess
import sys
from pathlib import Path

import pytest

import epoch_time
import loader_throughput
import pool_time
import step_time
from nnunet_ssl.trainers.nnUNetTrainerSPCL import nnUNetTrainerSPCL as SPCL
from nnunet_ssl.training.host_work import Pending

BENCHMARKS = Path(__file__).parent.parent / "benchmarks"


def test_peak_of_a_process_is_not_that_of_the_one_which_started_it():
    """Linux hands the high-water mark that getrusage reports on to children."""
    held = bytearray(2 * 2**30)  # more than what an interpreter with torch holds
    here = step_time.kib_of_process("VmHWM")
    child = "import step_time; print(step_time.kib_of_process('VmHWM'))"
    there = int(subprocess.check_output([sys.executable, "-c", child], cwd=BENCHMARKS))
    assert here > len(held) / 2**10 > there


def test_cost_of_unlike_networks_is_counted_in_their_passes():
    """Six passes of the first network, and seven of one that costs 1.5 of it: (6 + 10.5) / 3."""
    unlike = type("Unlike", (), {"STEP_COST": 9.0, "PASSES": (("first", 6), ("second", 7))})
    timing = step_time.Timing(step=1.0, host=0.0, networks={"first": 0.2, "second": 0.3})
    assert step_time.cost_of(unlike, timing) == pytest.approx(5.5)
    timing = step_time.Timing(step=1.0, host=0.0, networks={"student": 0.2, "encoder": 0.08})
    assert step_time.cost_of(SPCL, timing) == pytest.approx((7 + 7 * 0.4) / 3), "an encoder is a part of a pass"
    assert step_time.cost_of(type("One", (), {"STEP_COST": 2.0}), timing) == 2.0


def test_step_time_of_two_networks_and_of_the_host(tmp_path, monkeypatch):
    monkeypatch.setenv("nnUNet_results", str(tmp_path))
    monkeypatch.setenv("nnUNet_preprocessed", str(tmp_path))
    names = ["nnUNetTrainer", "nnUNetTrainerCrossTeaching", "nnUNetTrainerCAD", "nnUNetTrainerSPCL"]
    words = f"--trainer {' '.join(names[1:])} --steps 1 --features 4 8 8 8 --batch-size 1 --device cpu --threads 1"
    monkeypatch.setattr(sys, "argv", ["step_time.py", *words.split()])
    waits = iter(range(1, 100))

    def result(self):
        self._record({"host/seconds_waiting": float(next(waits))})
        return []

    monkeypatch.setattr(Pending, "result", result)
    timings = step_time.time_alternately(names, step_time.parse_arguments())
    assert list(timings["nnUNetTrainerCrossTeaching"].networks) == ["first", "second"]
    assert list(timings["nnUNetTrainerSPCL"].networks) == ["student", "encoder"]
    assert timings["nnUNetTrainer"].networks == {}
    assert all(seconds > 0 for seconds in timings["nnUNetTrainerCrossTeaching"].networks.values())
    rows = [step_time.row_of(name, timings, dict.fromkeys(timings, 1.0)) for name in names]
    assert [row["host_seconds"] for row in rows] == [0.0, 0.0, 4.0, 0.0], "three to warm up are not counted"
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
