"""What the benchmarks compute apart from training; the trainings themselves are slow tests of test_end_to_end.py."""

import argparse
import importlib.util
import json
import subprocess
import sys
from pathlib import Path
from types import ModuleType

from nnunetv2.utilities.plans_handling.plans_handler import PlansManager

from tests.conftest import Case

BENCHMARKS = Path(__file__).parent.parent / "benchmarks"


def load(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(name, BENCHMARKS / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # dataclasses look it up there
    spec.loader.exec_module(module)
    return module


def test_plans_of_a_configuration_that_inherits_are_whole(tmp_path):
    plans = Case(dim=2, stages=4).plans()
    plans["configurations"]["2d_coarse"] = {"inherits_from": "2d", "spacing": [3.0, 3.0]}
    (tmp_path / "nnUNetPlans.json").write_text(json.dumps(plans))
    options = argparse.Namespace(configuration="2d_coarse", features=[4, 8, 16], batch_size=8)
    smaller = load("label_efficiency").smaller_plans(tmp_path / "nnUNetPlans.json", options)
    configuration = PlansManager(smaller).get_configuration("2d_coarse")
    assert (configuration.spacing, configuration.batch_size, configuration.patch_size) == ([3.0, 3.0], 8, [16, 16])
    arguments = configuration.network_arch_init_kwargs
    assert arguments["features_per_stage"] == [4, 8, 16]
    assert [len(arguments[name]) for name in ("strides", "n_conv_per_stage", "n_conv_per_stage_decoder")] == [3, 3, 2]


def test_peak_of_a_process_is_not_that_of_the_one_which_started_it():
    """Linux hands the high-water mark that getrusage reports on to children."""
    step_time = load("step_time")
    held = bytearray(2 * 2**30)  # more than what an interpreter with torch holds
    here = step_time.kib_of_process("VmHWM")
    child = "import step_time; print(step_time.kib_of_process('VmHWM'))"
    there = int(subprocess.check_output([sys.executable, "-c", child], cwd=BENCHMARKS))
    assert here > len(held) / 2**10 > there
