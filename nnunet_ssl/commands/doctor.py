"""Check whether a training can start here. Each problem comes with the command that mends it."""

import argparse
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from nnunet_ssl.discovery.startup import SHIM_FOLDER

GIB = 1024**3
REINSTALL = "pip install --force-reinstall --no-deps .   # in a checkout of nnunet_ssl"
FOLDERS = {"nnUNet_raw": os.R_OK, "nnUNet_preprocessed": os.W_OK, "nnUNet_results": os.W_OK}
MINIMUM_DISK_GIB = 2  # one set of checkpoints with teacher and optimiser; a data set comes on top


@dataclass(frozen=True)
class Finding:
    """One thing looked at: its state, and the command that mends it if it keeps a training from starting."""

    name: str
    state: str
    remedy: str | None = None
    is_problem: bool = False


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare no arguments: the doctor looks at everything."""


def run(options: argparse.Namespace) -> int:  # noqa: ARG001 - every verb is called with its options
    """Print all findings; return 0 only if a training can start."""
    findings = [finding for check in CHECKS for finding in check()]
    for finding in findings:
        mark = "PROBLEM" if finding.is_problem else "note" if finding.remedy else "ok"
        print(f"[{mark:^7}] {finding.name}: {finding.state}")
        if finding.remedy:
            print(f"          {'mend it' if finding.is_problem else 'advice'}: {finding.remedy}")
    problems = sum(finding.is_problem for finding in findings)
    print("A training can start." if problems == 0 else f"A training cannot start: {problems} problem(s).")
    return 0 if problems == 0 else 1


def check_versions() -> Iterator[Finding]:
    """Look at nnunetv2, and whether torch and torchvision fit: a mismatch hides every external trainer."""
    from importlib.metadata import version

    from nnunet_ssl.discovery.host_version import nnunetv2_version_problem, supported_nnunetv2

    problem = nnunetv2_version_problem()
    if problem:
        yield Finding("nnunetv2", problem, f'pip install "{supported_nnunetv2()}"', is_problem=True)
    else:
        yield Finding("nnunetv2", version("nnunetv2"))
    # In a process of its own: a broken binary may end the interpreter.
    trial = subprocess.run([sys.executable, "-c", "import torch, torchvision"], capture_output=True, text=True)
    if trial.returncode:
        reason = (trial.stderr.strip().splitlines() or ["no message"])[-1]
        state = f"cannot be imported together ({reason}); nnU-Net then finds no external trainer"
        remedy = "pip install --force-reinstall torch torchvision   # both from one index"
        yield Finding("torch and torchvision", state, remedy, is_problem=True)
    else:
        yield Finding("torch and torchvision", f"{version('torch')} and {version('torchvision')}")


def check_discovery() -> Iterator[Finding]:
    """Look whether `nnUNetv2_train -tr` finds our trainers."""
    remedy = f"export nnUNet_extTrainer={SHIM_FOLDER}"
    listed = SHIM_FOLDER in os.environ.get("nnUNet_extTrainer", "").split(os.pathsep)
    if not listed:
        state = "nnUNet_extTrainer does not name our folder"
        if os.environ.get("NNUNET_SSL_DISCOVERY") == "0":
            state += " (NNUNET_SSL_DISCOVERY=0 switches that off)"
        yield Finding("discovery", state, remedy, is_problem=True)
        return
    code = "from nnunet_ssl.discovery.variants import find_trainer; find_trainer('nnUNetTrainerMeanTeacher')"
    trial = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    if trial.returncode:
        reason = (trial.stderr.strip().splitlines() or ["no message"])[-1]
        yield Finding("discovery", f"on, but no trainer can be imported: {reason}", REINSTALL, True)
    else:
        yield Finding("discovery", "on: nnUNetv2_train -tr nnUNetTrainerMeanTeacher")


def check_folders() -> Iterator[Finding]:
    """Look whether nnU-Net's three folders are set, exist and can be written to."""
    for name, access in FOLDERS.items():
        value = os.environ.get(name)
        if not value:
            yield Finding(name, "not set", f"export {name}=/path/to/folder", is_problem=True)
        elif not os.path.isdir(value):
            yield Finding(name, f"{value} does not exist", f"mkdir -p {value}", is_problem=True)
        elif not os.access(value, access | os.X_OK):
            mode = "w" if access == os.W_OK else "r"
            state = f"{value} cannot be {'written to' if mode == 'w' else 'read'}"
            yield Finding(name, state, f"chmod u+{mode}x {value}", is_problem=True)
        else:
            yield Finding(name, value)


def check_hardware() -> Iterator[Finding]:
    """Look at GPU, memory, shared memory and disk."""
    yield _gpu()
    try:
        memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / GIB
        yield Finding("memory", f"{memory:.0f} GiB")
    except (AttributeError, ValueError, OSError):
        yield Finding("memory", "unknown on this system")
    shared = Path("/dev/shm")
    if shared.is_dir():
        free = shutil.disk_usage(shared).free / GIB
        advice = "docker run --shm-size=8g, or nnUNet_n_proc_DA=2" if free < 1 else None
        yield Finding("/dev/shm", f"{free:.1f} GiB free; batches go through it", advice)
    for name in ("nnUNet_preprocessed", "nnUNet_results"):
        folder = os.environ.get(name, "")
        if os.path.isdir(folder):
            free = shutil.disk_usage(folder).free / GIB
            full = free < MINIMUM_DISK_GIB
            remedy = f"free {MINIMUM_DISK_GIB} GiB there, or let {name} name another disk" if full else None
            yield Finding(f"disk of {name}", f"{free:.0f} GiB free", remedy, is_problem=full)


def _gpu() -> Finding:
    code = (
        "import torch\n"
        "if torch.cuda.is_available():\n"
        "    free, total = torch.cuda.mem_get_info()\n"
        "    print(f'{torch.cuda.get_device_name()}, {free / 2**30:.0f} of {total / 2**30:.0f} GiB free')\n"
        "elif torch.backends.mps.is_available(): print('mps')"
    )
    trial = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    name = trial.stdout.strip()
    if name == "mps":
        return Finding("GPU", "Apple GPU", "nnUNetv2_train ... -device mps")
    if name:
        return Finding("GPU", name)
    return Finding("GPU", "none that torch can use", "nnUNetv2_train ... -device cpu   # slow: for trying out")


CHECKS = (check_versions, check_discovery, check_folders, check_hardware)
