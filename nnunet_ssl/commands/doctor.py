"""Check whether a training can start here, and with -d of this data set. Problems come with the words that fix them.

Of a data set the names and headers of files are looked at, no voxel: nnUNetv2_plan_and_preprocess
--verify_dataset_integrity reads the labels.
"""

import argparse
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from shlex import quote

from nnunet_ssl.commands.findings import Finding
from nnunet_ssl.discovery.startup import SHIM_FOLDER

GIB = 1024**3
REINSTALL = "pip install --force-reinstall --no-deps .   # in a checkout of nnunet_ssl"
FOLDERS = {"nnUNet_raw": os.R_OK, "nnUNet_preprocessed": os.W_OK, "nnUNet_results": os.W_OK}
MINIMUM_DISK_GIB = 2  # one set of checkpoints with teacher and optimiser; a data set comes on top


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments."""
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("-d", metavar="DATASET", help="look at this data set too: id or name")
    parser.add_argument("-c", metavar="CONFIGURATION", help="with -d (default: all that are preprocessed)")
    parser.add_argument("-p", metavar="PLANS", help="with -d: plans identifier (default: nnUNetPlans)")


def run(options: argparse.Namespace) -> int:
    """Print all findings; return 0 only if a training can start."""
    if options.d is None and (options.c or options.p):
        raise ValueError(f"{'-c' if options.c else '-p'} goes with -d DATASET")
    findings = [finding for check in CHECKS for finding in check()]
    if options.d is not None:
        from nnunet_ssl.commands.dataset_checks import check_dataset

        findings += check_dataset(options.d, options.c, options.p or "nnUNetPlans")
    print(*(finding.lines() for finding in findings), sep="\n")
    problems = sum(finding.is_problem for finding in findings)
    what = "A training" if options.d is None else f"A training on data set {options.d}"
    print(f"{what} can start." if problems == 0 else f"{what} cannot start: {problems} problem(s).")
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
    remedy = f"export nnUNet_extTrainer={quote(SHIM_FOLDER)}"
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
            yield Finding(name, f"{value} does not exist", f"mkdir -p {quote(value)}", is_problem=True)
        elif not os.access(value, access | os.X_OK):
            mode = "w" if access == os.W_OK else "r"
            state = f"{value} cannot be {'written to' if mode == 'w' else 'read'}"
            yield Finding(name, state, f"chmod u+{mode}x {quote(value)}", is_problem=True)
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
