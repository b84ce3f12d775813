import os
import shutil
import subprocess
from collections import namedtuple

import pytest

from nnunet_ssl.commands import doctor
from nnunet_ssl.commands.cli import main
from nnunet_ssl.discovery.startup import SHIM_FOLDER

Usage = namedtuple("Usage", "total used free")


@pytest.fixture(autouse=True)
def _healthy(tiny_dataset, monkeypatch):
    tiny_dataset()
    monkeypatch.setenv("nnUNet_extTrainer", SHIM_FOLDER)
    monkeypatch.delenv("NNUNET_SSL_DISCOVERY", raising=False)


def problem_of(check, name: str) -> doctor.Finding:
    """Return the one problem that a check finds."""
    (finding,) = [finding for finding in check() if finding.is_problem]
    assert finding.name == name
    return finding


def test_healthy_machine(capsys):
    assert main(["doctor"]) == 0
    output = capsys.readouterr().out
    assert "PROBLEM" not in output
    assert output.strip().endswith("A training can start.")


def test_a_problem_is_printed_with_its_remedy_and_counts(capsys, monkeypatch):
    monkeypatch.setattr(doctor, "CHECKS", (doctor.check_folders,))
    monkeypatch.delenv("nnUNet_raw")
    assert main(["doctor"]) == 1
    output = capsys.readouterr().out
    assert "[PROBLEM] nnUNet_raw: not set\n          fix it: export nnUNet_raw=/path/to/folder\n" in output
    assert output.strip().endswith("A training cannot start: 1 problem(s).")


def test_discovery_switched_off(monkeypatch):
    monkeypatch.setenv("nnUNet_extTrainer", "/elsewhere")
    monkeypatch.setenv("NNUNET_SSL_DISCOVERY", "0")
    finding = problem_of(doctor.check_discovery, "discovery")
    assert "(NNUNET_SSL_DISCOVERY=0 switches that off)" in finding.state
    assert finding.remedy == f"export nnUNet_extTrainer={SHIM_FOLDER}"


@pytest.mark.parametrize("name", ["nnUNet_raw", "nnUNet_preprocessed", "nnUNet_results"])
def test_folders(monkeypatch, tmp_path, name):
    monkeypatch.delenv(name)
    assert problem_of(doctor.check_folders, name).remedy == f"export {name}=/path/to/folder"
    monkeypatch.setenv(name, str(tmp_path / "missing"))
    assert problem_of(doctor.check_folders, name).remedy == f"mkdir -p {tmp_path / 'missing'}"


def test_folder_that_cannot_be_written(monkeypatch):
    folder = os.environ["nnUNet_results"]
    allowed = os.access
    monkeypatch.setattr(os, "access", lambda path, mode: path != folder and allowed(path, mode))
    assert problem_of(doctor.check_folders, "nnUNet_results").remedy == f"chmod u+wx {folder}"


@pytest.fixture
def _trials_succeed(monkeypatch):
    """Those of other processes, which a healthy machine is asked for above, take seconds each."""
    monkeypatch.setattr(subprocess, "run", lambda command, **_: subprocess.CompletedProcess(command, 0, "", ""))


@pytest.mark.usefixtures("_trials_succeed")
def test_full_disk(monkeypatch):
    monkeypatch.setattr(shutil, "disk_usage", lambda path: Usage(10, 10, 0))
    findings = {finding.name: finding for finding in doctor.check_hardware()}
    assert findings["disk of nnUNet_results"].is_problem
    assert "--shm-size" in findings["/dev/shm"].remedy
    assert not findings["/dev/shm"].is_problem


def test_torch_and_torchvision_that_do_not_fit(monkeypatch):
    error = "Traceback ...\nRuntimeError: operator torchvision::nms does not exist\n"
    monkeypatch.setattr(subprocess, "run", lambda command, **_: subprocess.CompletedProcess(command, 1, "", error))
    finding = problem_of(doctor.check_versions, "torch and torchvision")
    assert "operator torchvision::nms does not exist); nnU-Net then finds no external trainer" in finding.state
    assert finding.remedy.startswith("pip install --force-reinstall torch torchvision")


@pytest.mark.usefixtures("_trials_succeed")
def test_nnunetv2_outside_the_range(monkeypatch):
    monkeypatch.setattr("nnunet_ssl.discovery.host_version.nnunetv2_version_problem", lambda: "2.9.0 is installed")
    assert problem_of(doctor.check_versions, "nnunetv2").remedy == 'pip install "nnunetv2<2.9,>=2.8"'
