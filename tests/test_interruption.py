"""Ctrl-C as a terminal sends it: a signal to a command and to all processes that it has started."""

import csv
import json
import os
import re
import signal
import subprocess
import sysconfig
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from nnunet_ssl.commands.cli import main
from nnunet_ssl.data.preprocessed_images import content_of, open_image
from nnunet_ssl.data.stamps import read_stamp, state_folder
from nnunet_ssl.data.unlabeled_preprocessing import UnlabeledPreprocessing
from nnunet_ssl.splits.protocols import load_benchmark
from nnunet_ssl.trainers.nnUNetTrainerMeanTeacher import nnUNetTrainerMeanTeacher
from tests.data.test_unlabeled_preprocessing import write_image
from tests.dataset_conversion.conftest import assert_nothing_left, names, raw, source, write  # noqa: F401 - fixtures
from tests.training.test_model_export import finished_run

SCRIPTS = Path(sysconfig.get_path("scripts"))
SECONDS_TO_END = 30.0  # less than two on an idle machine
INTERRUPTED_BEFORE = 240  # seconds within which the first items are finished, on a busy machine too


class Command:
    """A command that runs, in a group of processes of its own."""

    def __init__(self, log: Path, *words: str) -> None:
        self.log = log
        with log.open("w") as opened:
            self.process = subprocess.Popen(
                [SCRIPTS / words[0], *words[1:]],
                stdout=opened,
                stderr=subprocess.STDOUT,
                env=os.environ | {"PYTHONUNBUFFERED": "1"},  # as on a terminal: what is printed stands in order
                start_new_session=True,
                preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # a shell's `&` would have it ignored
            )

    def interrupt_after(self, is_time: Callable[[], bool]) -> int:
        """Send Ctrl-C when it is time for it; return the exit code, after the end of all processes of the group."""
        try:
            wait_until(lambda: is_time() or self.process.poll() is not None, INTERRUPTED_BEFORE)
            assert self.process.poll() is None, self.output()
            os.killpg(self.process.pid, signal.SIGINT)
            code = self.process.wait(timeout=SECONDS_TO_END)
            wait_until(lambda: not self.living(), SECONDS_TO_END)
            return code
        finally:
            for process in self.living():
                os.kill(process, signal.SIGKILL)
            self.process.wait()

    def living(self) -> list[int]:
        """Return the processes of the group that have not ended, where the system lists them in files."""
        found = []
        for file in Path("/proc").glob("[0-9]*/stat"):
            try:
                state, _, group = file.read_text().rpartition(")")[2].split()[:3]
            except OSError:  # it has ended meanwhile
                continue
            if int(group) == self.process.pid and state != "Z":
                found.append(int(file.parent.name))
        return found

    def output(self) -> str:
        return self.log.read_text()

    def lines(self) -> list[str]:
        """Return what the command has printed, but for progress bars."""
        without_bars = re.sub(r"[^\r\n]*\d+%\|[^\]\r\n]*\]?", "", self.output())
        return [line for line in re.split(r"[\r\n]+", without_bars) if line.strip()]


def wait_until(is_so: Callable[[], bool], seconds: float) -> None:
    deadline = time.monotonic() + seconds
    while not is_so():
        assert time.monotonic() < deadline
        time.sleep(0.005)


def changes(folder: Path) -> dict[Path, int]:
    return {file: file.stat().st_mtime_ns for file in folder.rglob("*") if file.is_file()}


@pytest.fixture
def dataset(tiny_dataset):
    dataset = tiny_dataset()
    for i in range(60):
        write_image(dataset.images_un / f"scan{i:02d}_0000.nii.gz", seed=i, shape=(32, 32, 32))
    (dataset.images_un.parent / "dataset.json").write_text(json.dumps(dataset.case.dataset_json()))
    return dataset


def finished_and_intact(dataset) -> set[str]:
    """Return the unlabeled cases that count as preprocessed, each looked at; nothing half-written lies about."""
    job = UnlabeledPreprocessing(
        dataset.case.plans(), "3d_fullres", dataset.case.dataset_json(), dataset.images_un, dataset.unlabeled_folder
    )
    done = job.image_files().keys() - job.outdated()
    for case in done:
        assert content_of(open_image(job.preprocessed, case)[:]) == read_stamp(job.preprocessed, case).content
    state = state_folder(job.preprocessed)
    assert not list(state.glob("unfinished/*"))
    assert all(file.suffix == ".json" for file in (state / "stamps").iterdir())
    return done


def some_stamps(dataset) -> bool:
    return len(list(state_folder(dataset.unlabeled_folder).glob("stamps/*.json"))) >= 3


def test_preprocess_keeps_what_is_finished_and_the_same_words_do_the_rest(dataset, tmp_path):
    words = ["preprocess", "-d", "999", "-np", "2"]
    command = Command(tmp_path / "log.txt", "nnunet_ssl", *words)
    assert command.interrupt_after(lambda: some_stamps(dataset)) == 130
    assert command.lines() == ["nnunet_ssl preprocess: interrupted"]
    done = finished_and_intact(dataset)
    assert 3 <= len(done) < 60
    before = changes(dataset.unlabeled_folder)
    assert main(words) == 0
    after = changes(dataset.unlabeled_folder)
    assert all(after[file] == time for file, time in before.items() if file.name[:6] in done)
    assert len(finished_and_intact(dataset)) == 60


@pytest.mark.slow
def test_training_keeps_what_is_preprocessed_at_its_start(dataset, tmp_path, monkeypatch):
    monkeypatch.setenv("nnUNet_def_n_proc", "2")
    words = ["nnUNetv2_train", "999", "3d_fullres", "0", "-tr", "nnUNetTrainerMeanTeacher", "-device", "cpu"]
    command = Command(tmp_path / "log.txt", *words)
    assert command.interrupt_after(lambda: some_stamps(dataset)) != 0
    assert command.output().count("Traceback") == 1  # nnU-Net's own; none of a worker
    done = finished_and_intact(dataset)
    assert 3 <= len(done) < 60


def test_convert_leaves_nothing_half_done(raw, source, tmp_path):  # noqa: F811
    for seed, case in enumerate(load_benchmark("la").train[:60]):
        voxels = np.random.default_rng(seed).integers(0, 255, (32, 48, 48)).astype(np.uint8)
        write(voxels, source / case / "lgemri.nrrd")
        write((voxels > 127).astype(np.uint8) * 255, source / case / "laendo.nrrd")
    words = ["convert", "LA", "-i", str(source)]
    command = Command(tmp_path / "log.txt", "nnunet_ssl", *words)
    labels = raw / ".Dataset128_LA.unfinished" / "labelsTr"
    assert command.interrupt_after(lambda: len(names(labels)) >= 3) == 130
    assert command.lines() == ["nnunet_ssl convert LA: interrupted, nothing was written"]
    assert_nothing_left(raw)
    assert main(words) == 0
    assert len(names(raw / "Dataset128_LA" / "labelsTr")) == 60


@pytest.fixture
def masks(tmp_path) -> Path:
    for i in range(60):
        for folder, shift in (("gt", 0), ("pred", 2)):
            voxels = np.zeros((48, 48, 48), np.uint8)
            voxels[8:40, 8 + shift : 40 + shift, 8:40] = 1
            write(voxels, tmp_path / folder / f"case{i:02d}.nii.gz")
    labels = {"background": 0, "one": 1}
    content = {"labels": labels, "file_ending": ".nii.gz", "channel_names": {"0": "MRI"}}
    (tmp_path / "dataset.json").write_text(json.dumps(content))
    return tmp_path


def evaluate(folder: Path) -> list[str]:
    arguments = {"-gt": "gt", "-pred": "pred", "-djfile": "dataset.json", "-o": "summary.csv"}
    return ["evaluate", *(word for name, file in arguments.items() for word in (name, str(folder / file)))]


def test_evaluate_writes_no_half_table(masks):
    command = Command(masks / "log.txt", "nnunet_ssl", *evaluate(masks))
    assert command.interrupt_after(lambda: re.search(r"Evaluating: .* [1-9]\d*/60 ", command.output())) == 130
    assert command.lines() == ["nnunet_ssl evaluate: interrupted"]
    assert not (masks / "summary.csv").exists()
    assert main(evaluate(masks)) == 0
    with (masks / "summary.csv").open(newline="") as opened:
        assert len(list(csv.DictReader(opened))) == 60


def test_workers_that_still_start_leave_ctrl_c_to_the_command(masks, tmp_path, monkeypatch):
    """Each worker gets it before it has imported anything; it would end with errors about a module not imported."""
    code = "import os, signal, sys\nif '--multiprocessing-fork' in sys.orig_argv: os.kill(os.getpid(), signal.SIGINT)\n"
    (tmp_path / "early").mkdir()
    (tmp_path / "early" / "sitecustomize.py").write_text(code)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path / "early"), prepend=os.pathsep)
    command = Command(masks / "log.txt", "nnunet_ssl", *evaluate(masks))
    try:
        assert command.process.wait(timeout=INTERRUPTED_BEFORE) == 0
    finally:
        command.process.kill()
    assert "Traceback" not in command.output()


def test_pseudolabel_keeps_what_is_finished_and_the_same_words_do_the_rest(dataset, tmp_path):
    finished_run(dataset, nnUNetTrainerMeanTeacher)
    pool = [f"scan{i:02d}" for i in range(12)]
    for case in pool:  # the later ones take seconds together: the signal comes before the end
        write_image(dataset.images_un / f"{case}_0000.nii.gz", shape=(12, 14, 16) if case < "scan06" else (40, 40, 40))
    dataset.write_splits([{"train": ["labeled0"], "val": ["labeled1"], "unlabeled": pool}])
    out = tmp_path / "pseudo"
    words = ["pseudolabel", "-d", "999", "-tr", "nnUNetTrainerMeanTeacher", "-device", "cpu", "-o", str(out)]
    command = Command(tmp_path / "log.txt", "nnunet_ssl", *words)
    assert command.interrupt_after(lambda: len(finished_scans(out)) >= 3) == 130
    assert command.lines()[-1] == "nnunet_ssl pseudolabel: interrupted"
    assert "Traceback" not in command.output()
    done, before = finished_scans(out), changes(out)
    assert len(done) < 12
    assert main(words) == 0
    after = changes(out)
    assert all(after[file] == before[file] for file in (out / f"{case}.nii.gz" for case in done))
    assert sorted(finished_scans(out)) == pool
    assert {f"{case}.nii.gz" for case in pool} | {"ranking.csv", "finished.jsonl"} == {path.name for path in after}


def finished_scans(out: Path) -> list[str]:
    file = out / "finished.jsonl"
    lines = file.read_text().splitlines(keepends=True)[1:] if file.exists() else []
    return [json.loads(line)["case"] for line in lines if line.endswith("\n")]
