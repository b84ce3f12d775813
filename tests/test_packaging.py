"""Both kinds of install, in fresh environments that see the installed dependencies but not this checkout."""

import ast
import shutil
import subprocess
import sys
import sysconfig
import venv
import zipfile
from pathlib import Path

import pytest

from nnunet_ssl.benchmarking.result_files import digests

CHECKOUT = Path(__file__).parent.parent
SOURCES = ("nnunet_ssl", "trainers", "dataset_conversion", "setup.py", "pyproject.toml", "README.md", "LICENSE")
NAMES = ["nnUNetTrainerMeanTeacher", "nnUNetTrainerMeanTeacher_250epochs"]


@pytest.fixture(scope="module")
def checkout(tmp_path_factory) -> Path:
    """Return a copy of the sources, so that building leaves nothing in the checkout."""
    copy = tmp_path_factory.mktemp("checkout")
    for name in SOURCES:
        source = CHECKOUT / name
        if source.is_dir():
            shutil.copytree(source, copy / name, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copy(source, copy / name)
    return copy


@pytest.fixture(scope="module", params=["regular", "editable"])
def environment(request, checkout, tmp_path_factory) -> Path:
    """Return the interpreter of an environment into which the package is installed."""
    folder = tmp_path_factory.mktemp(request.param)
    venv.create(folder, with_pip=False)
    python = folder / "bin" / "python"
    site_packages = Path(run(python, "import sysconfig; print(sysconfig.get_path('purelib'))"))
    # The dependencies are those of the running environment; its start-up files are not read this way.
    (site_packages / "dependencies.pth").write_text(sysconfig.get_path("purelib"))
    kind = ["-e"] if request.param == "editable" else []
    pip(python, "install", "--no-deps", "--no-build-isolation", *kind, str(checkout))
    return python


def pip(python: Path, *arguments: str) -> None:
    command = [sys.executable, "-m", "pip", "--python", str(python), "--disable-pip-version-check", *arguments]
    subprocess.run(command, check=True, capture_output=True)


def run(python: Path, code: str, **environment: str) -> str:
    """Run code in a fresh interpreter, outside the checkout, and return its last line."""
    variables = {"PATH": "/usr/bin:/bin", "HOME": "/nonexistent", "MPLCONFIGDIR": "/tmp", **environment}
    result = subprocess.run(
        [str(python), "-c", code], capture_output=True, text=True, env=variables, cwd=python.parent, check=False
    )
    assert result.returncode == 0, result.stderr
    return (result.stdout.strip().splitlines() or [""])[-1]


def test_wheel_holds_the_packages_and_the_startup_files(checkout, tmp_path):
    subprocess.run(
        [sys.executable, "-m", "pip", "wheel", "--no-deps", "--no-build-isolation", "-w", tmp_path, checkout],
        check=True,
        capture_output=True,
    )
    (wheel,) = tmp_path.glob("*.whl")
    with zipfile.ZipFile(wheel) as opened:
        names = set(opened.namelist())
        startup = opened.read("nnunet_ssl.pth").decode(), opened.read("nnunet_ssl.start").decode()
    assert startup == (
        "import nnunet_ssl.discovery.startup; nnunet_ssl.discovery.startup.register()\n",
        "nnunet_ssl.discovery.startup:register\n",
    )
    for folder in ("nnunet_ssl", "trainers", "dataset_conversion"):
        package = folder if folder == "nnunet_ssl" else f"nnunet_ssl/{folder}"
        for file in (checkout / folder).rglob("*.py"):
            assert f"{package}/{file.relative_to(checkout / folder)}" in names
    top_level = {name.split("/")[0] for name in names}
    assert top_level == {"nnunet_ssl", "nnunet_ssl.pth", "nnunet_ssl.start", "nnunet_ssl-0.1.0.dist-info"}


@pytest.fixture(scope="module")
def found(environment) -> dict[str, str]:
    """Return what plain nnU-Net finds by each name, looked for in a process of its own with nnU-Net imported."""
    code = (
        "import multiprocessing, nnunetv2.run.run_training\n"
        "from nnunetv2.utilities.find_objects import recursive_find_trainer_class_by_name as find\n"
        "def look_for(name):\n"
        "    trainer = find(name)\n"
        "    return f'{trainer.__name__} {getattr(trainer, \"num_epochs\", None)}'\n"
        "with multiprocessing.get_context('fork').Pool(1, maxtasksperchild=1) as pool:\n"
        f"    print(pool.map(look_for, {NAMES}, chunksize=1))"
    )
    return dict(zip(NAMES, ast.literal_eval(run(environment, code)), strict=True))


@pytest.mark.parametrize("name", NAMES)
def test_plain_nnunet_finds_the_trainer(found, name):
    assert found[name] == (f"{name} 250" if name.endswith("epochs") else f"{name} None")


def test_own_value_of_the_variable_is_kept(environment):
    code = "import os; print(os.environ['nnUNet_extTrainer'])"
    assert run(environment, code, nnUNet_extTrainer="/mine").startswith("/mine:/")


def test_opt_out(environment):
    code = "import os, sys; print(os.environ.get('nnUNet_extTrainer'), 'nnunet_ssl.discovery.variants' in sys.modules)"
    assert run(environment, code, NNUNET_SSL_DISCOVERY="0") == "None False"


def test_start_of_an_interpreter_loads_nothing_heavy(environment):
    code = (
        "import sys\n"
        "print(sorted(name for name in sys.modules if name.partition('.')[0] in ('nnunet_ssl', 'torch', 'numpy')))"
    )
    assert run(environment, code) == "['nnunet_ssl', 'nnunet_ssl.discovery', 'nnunet_ssl.discovery.startup']"


def test_start_of_an_interpreter_costs_less_than_an_import_of_argparse(environment):
    """The best of ten, in processes that have imported only what every start of an interpreter does: os.

    Against an import of the standard library that takes some milliseconds, because a limit in seconds would be one of
    the machine.
    """
    folder = run(environment, "import nnunet_ssl, os; print(os.path.dirname(os.path.dirname(nnunet_ssl.__file__)))")
    code = (
        f"import os, sys, time; sys.path.insert(0, {folder!r}); start = time.perf_counter()\n"
        "import nnunet_ssl.discovery.startup; nnunet_ssl.discovery.startup.register(); middle = time.perf_counter()\n"
        "import argparse; print(middle - start, time.perf_counter() - middle)"
    )
    outputs = [subprocess.check_output([environment, "-S", "-c", code], text=True, env={}) for _ in range(10)]
    ours, of_argparse = zip(*(map(float, output.split()) for output in outputs), strict=True)
    assert min(ours) < 0.5 * min(of_argparse)


def test_version_is_that_of_the_metadata(environment):
    assert run(environment, "import nnunet_ssl; print(nnunet_ssl.__version__)") == "0.1.0"


def test_a_benchmark_without_a_checkout_names_the_version_and_the_same_code(environment):
    """The copy that is installed has no .git; the digests are those of this checkout."""
    code = (
        "from nnunet_ssl.benchmarking.result_files import code_of\n"
        "print({name: code_of(name) for name in ('nnUNetTrainer', 'nnUNetTrainerBCP')})"
    )
    found = ast.literal_eval(run(environment, code))
    assert found == {
        name: {"commit": "nnunet_ssl 0.1.0", "dirty": False} | digests(name)
        for name in ("nnUNetTrainer", "nnUNetTrainerBCP")
    }
    assert None not in found["nnUNetTrainerBCP"].values()


def test_uninstalling_removes_every_trace(environment):
    """Last of this file: it takes the package out of the environment that the tests above share."""
    site_packages = Path(run(environment, "import sysconfig; print(sysconfig.get_path('purelib'))"))
    assert any("nnunet_ssl" in path.name for path in site_packages.iterdir())
    pip(environment, "uninstall", "-y", "nnunet_ssl")
    assert [path.name for path in site_packages.iterdir() if "nnunet_ssl" in path.name] == []
    assert not (environment.parent / "nnunet_ssl").exists()
    assert run(environment, "import os; print(os.environ.get('nnUNet_extTrainer'))") == "None"
