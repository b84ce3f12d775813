import os
import stat
import sys

import pytest

from nnunet_ssl.commands import demo
from nnunet_ssl.commands.cli import main


@pytest.fixture
def commands(tmp_path, monkeypatch):
    """Put commands of our own on the PATH, ahead of nnU-Net's."""
    folder = tmp_path / "bin"
    folder.mkdir()
    monkeypatch.setattr(sys, "executable", str(folder / "python"))

    def add(name: str, script: str) -> None:
        file = folder / name
        file.write_text(f"#!/bin/sh\n{script}\n")
        file.chmod(file.stat().st_mode | stat.S_IXUSR)

    return add


@pytest.mark.parametrize(
    ("content", "arguments", "message"),
    [
        ("notes.txt", [], "exists and holds no demo: name another folder with -o"),
        ("notes.txt", ["--overwrite"], "exists and holds no demo: name another folder with -o"),
        (f"{demo.RAW}/dataset.json", [], "repeat it with --overwrite, or name another with -o"),
        (f"{demo.RAW}/dataset.json", ["--seed", "-1"], "--seed is a number from 0 on, got -1"),
    ],
)
def test_nothing_that_lies_in_the_folder_is_lost(tmp_path, content, arguments, message, capsys):
    file = tmp_path / "demo" / content
    file.parent.mkdir(parents=True)
    file.write_text("mine")
    assert main(["demo", "-o", str(tmp_path / "demo"), *arguments]) == 2
    assert message in capsys.readouterr().err
    assert file.read_text() == "mine"


def test_overwrite_removes_an_earlier_demo_and_nothing_else(tmp_path):
    for made in (demo.RAW, f"nnUNet_results/{demo.DATASET}", "predictions_nnUNetTrainer_5epochs", "logs"):
        (tmp_path / made).mkdir(parents=True)
    (tmp_path / "demo.png").touch()
    mine = tmp_path / "thesis.txt", tmp_path / "nnUNet_raw" / "Dataset001_Mine" / "dataset.json"
    for file in mine:
        file.parent.mkdir(exist_ok=True)
        file.write_text("mine")
    demo.clear(tmp_path, overwrite=True)
    assert {path for path in tmp_path.rglob("*") if path.is_file()} == set(mine)


def test_command_runs_in_folders_of_its_own(tmp_path, commands, monkeypatch, capsys):
    monkeypatch.setenv("nnUNet_raw", "/precious")
    monkeypatch.setenv("nnUNet_ssl_options", "consistency_weight=7")
    monkeypatch.setenv("MALLOC_MMAP_MAX_", "7")
    commands("nnUNetv2_show", "echo $nnUNet_raw; echo ${nnUNet_ssl_options:-none}; echo $MALLOC_MMAP_MAX_; echo $*")
    stages = demo.Stages(tmp_path)
    stages.run("nnUNetv2_show", "-i", str(tmp_path / "images"))
    (log,) = (tmp_path / "logs").iterdir()
    assert log.read_text().splitlines() == [str(tmp_path / "nnUNet_raw"), "none", "7", f"-i {tmp_path / 'images'}"]
    assert capsys.readouterr().out.splitlines()[0] == "$ nnUNetv2_show -i images"
    assert len(stages.seconds) == 1


def test_failing_command_is_named_with_its_log(tmp_path, commands):
    commands("nnUNetv2_fail", "echo all is lost; exit 3")
    stages = demo.Stages(tmp_path)
    with pytest.raises(RuntimeError, match=r"nnUNetv2_fail failed with exit code 3, see .*0_nnUNetv2_fail.txt\nall is"):
        stages.run("nnUNetv2_fail")


def test_missing_command_names_the_remedy(tmp_path, monkeypatch):
    monkeypatch.setitem(os.environ, "PATH", "")
    with pytest.raises(RuntimeError, match="no command nnUNetv2_none beside .* pip install nnunetv2"):
        demo.Stages(tmp_path).run("nnUNetv2_none")


@pytest.mark.parametrize(("seconds", "text"), [(0.4, "0:00"), (59.6, "1:00"), (127, "2:07"), (3601, "60:01")])
def test_clock(seconds, text):
    assert demo.clock(seconds) == text


@pytest.mark.slow
def test_demo_from_planning_to_the_picture(tmp_path, monkeypatch, capsys):
    """Minutes: ten epochs of 250 steps. The numbers are what comes out; here only that there are some."""
    monkeypatch.setenv("nnUNet_n_proc_DA", "2")
    assert main(["demo", "-o", str(tmp_path / "demo"), "-device", "cpu"]) == 0
    output = capsys.readouterr().out
    assert (tmp_path / "demo" / "demo.png").exists()
    lines = output.splitlines()
    assert sum(line.startswith(("$ nnUNetv2_", "$ nnunet_ssl preprocess")) for line in lines) == 8
    (row,) = [line for line in lines if line.startswith("nnUNetTrainer_5epochs ")]
    assert float(row.split()[1]) > 0.5
    assert next(line for line in lines if line.startswith("picture: ")).endswith("demo.png")
