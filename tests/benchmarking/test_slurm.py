"""Trainings as tasks of a SLURM job array, with small programs in the place of SLURM's own."""

import json
import os
import shlex
import signal
import sys
import threading
from dataclasses import replace

import pytest

from nnunet_ssl.benchmarking import running, slurm
from nnunet_ssl.benchmarking.planning import plan_runs
from nnunet_ssl.benchmarking.slurm import Array, Task, minutes_of
from nnunet_ssl.commands import benchmark_checks
from nnunet_ssl.commands.cli import main

submitit = pytest.importorskip("submitit")

from submitit.core.submission import process_job
from submitit.core.utils import DelayedSubmission

PROGRAMS = {
    "srun": "exit 1",  # which only has to be there
    "sbatch": 'cp "$1" HERE/script.sh; echo "Submitted batch job 77"',
    "sacct": "cat HERE/states",
    "scontrol": 'echo "$@" >> HERE/requeued',
}


@pytest.fixture
def cluster(tmp_path, monkeypatch):
    """Return a folder in which SLURM's programs say what they were told, and read the states of jobs."""
    for name, words in PROGRAMS.items():
        program = tmp_path / "programs" / name
        program.parent.mkdir(exist_ok=True)
        program.write_text(f"#!/bin/sh\n{words.replace('HERE', str(tmp_path))}\n")
        program.chmod(0o755)
    submitit.SlurmJob.watcher.clear()
    monkeypatch.setenv("PATH", f"{tmp_path / 'programs'}{os.pathsep}{os.environ['PATH']}")
    return tmp_path


@pytest.fixture
def planned(comparison):
    return plan_runs(replace(comparison, seeds=(1, 2)))


def lines_of(script) -> set[str]:
    return {*script.read_text().splitlines()}


# ---- the script ----


def test_a_script_says_what_is_asked_for_and_needs_no_slurm(planned, places):
    words = "partition=gpu time=1-12:30:00 --mem=64GB cpus-per-task=8 reservation=mine array_parallelism=3 y=2"
    array = Array.of(places, words.split(), is_on_gpu=True)
    script = array.write_script(planned)
    assert lines_of(script) >= {
        "#SBATCH --partition=gpu",
        f"#SBATCH --time={36 * 60 + 30}",
        "#SBATCH --mem=64GB",
        "#SBATCH --cpus-per-task=8",
        "#SBATCH --gpus-per-node=1",
        "#SBATCH --reservation=mine",
        "#SBATCH --y=2",
        "#SBATCH --job-name=nnunet_ssl_benchmark",
        "#SBATCH --array=0-5%3",
        "#SBATCH --signal=USR2@90",
    }
    command = script.read_text().rstrip().splitlines()[-1]
    assert command.startswith("srun ")
    assert "--cpus-per-task=8" in command, "srun does not take it over from sbatch"
    assert f"{sys.executable} -u -m submitit.core._submit {places.output / 'slurm'}" in command
    assert [*places.output.rglob("*")] == [places.output / "slurm", script]


@pytest.mark.parametrize(
    ("words", "is_on_gpu", "lines"),
    [([], True, ["--gpus-per-node=1"]), ([], False, []), (["gres=gpu:a100:2"], True, ["--gres=gpu:a100:2"])],
)
def test_a_gpu_is_asked_for_unless_another_one_is(planned, places, words, is_on_gpu, lines):
    script = Array.of(places, words, is_on_gpu).write_script(planned[:1])
    assert [line.removeprefix("#SBATCH ") for line in lines_of(script) if line.startswith("#SBATCH --g")] == lines
    assert not any("--array" in line for line in lines_of(script)), "one task is a job"


@pytest.mark.parametrize(
    ("time", "minutes"),
    [("90", 90), ("90:30", 91), ("12:00:00", 720), ("1-0", 1440), ("1-12:30", 2190), ("2-00:00:01", 2881)],
)
def test_time_limits(time, minutes):
    assert minutes_of(time) == minutes


@pytest.mark.parametrize("time", ["", "12h", "1-", "1:2:3:4", "-5"])
def test_a_time_limit_that_is_none(time):
    with pytest.raises(ValueError, match="time is minutes, hours:minutes:seconds or days-hours, got"):
        minutes_of(time)


@pytest.mark.parametrize("word", ["gpu", "partition=", "=gpu"])
def test_an_option_that_is_none(places, word):
    with pytest.raises(ValueError, match=r"--slurm-options takes name=value, such as partition=gpu .*, got"):
        Array.of(places, [word], is_on_gpu=True)


def test_without_submitit_the_extra_is_named(places, monkeypatch):
    monkeypatch.setitem(sys.modules, "submitit", None)
    with pytest.raises(ValueError, match=r"which is not installed: pip install nnunet_ssl\[slurm\]"):
        Array.of(places, [], is_on_gpu=True)


def test_without_slurm_that_is_said(planned, places, monkeypatch, tmp_path):
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(ValueError, match=r"there is no SLURM on this machine \(no srun\): start it on a login node"):
        Array.of(places, [], is_on_gpu=True).submit(planned)


def test_what_sbatch_refuses_is_said(planned, places, cluster):
    (cluster / "programs" / "sbatch").write_text("#!/bin/sh\necho 'invalid partition specified: gpu' >&2\nexit 1\n")
    with pytest.raises(RuntimeError, match="invalid partition specified: gpu"):
        Array.of(places, ["partition=gpu"], is_on_gpu=True).submit(planned)
    assert not (places.output / "slurm" / "jobs.json").exists()


# ---- jobs ----


def test_each_training_is_a_task_and_what_waits_or_runs_is_known(planned, places, cluster):
    array = Array.of(places, ["time=60"], is_on_gpu=True)
    assert array.in_hand(planned) == []
    assert array.submit(planned) == [f"77_{number}" for number in range(6)]
    assert lines_of(cluster / "script.sh") >= {"#SBATCH --array=0-5%6", "#SBATCH --time=60"}
    assert "#SBATCH --array=0-5%256" not in lines_of(cluster / "script.sh")
    states = ["RUNNING", "PENDING", "COMPLETED", "FAILED", "CANCELLED by 1000", "TIMEOUT"]
    rows = [f"77_{number}|{state}|node1" for number, state in enumerate(states)]
    (cluster / "states").write_text("\n".join(["JobID|State|NodeList", *rows]))
    again = Array.of(places, [], is_on_gpu=True)
    assert [(one.run, job.job_id) for one, job in again.in_hand(planned)] == [
        (planned[0].run, "77_0"),
        (planned[1].run, "77_1"),
    ]
    known = json.loads((places.output / "slurm" / "jobs.json").read_text())
    assert list(known)[0] == f"hippocampus_2d_2labeled/{planned[0].run.name}"


class Process:
    """In place of a training: it is over after it was asked to end, or at once."""

    ends_at_once = False

    def __init__(self, command, stdout, stderr, env):
        self.begun.append((command, env))
        self.asked = threading.Event()
        self.has_begun.set()

    def wait(self):
        if self.ends_at_once:
            return 0
        assert self.asked.wait(20)
        self.saved.append(True)
        return 143

    def terminate(self):
        self.asked.set()


@pytest.fixture
def process(monkeypatch):
    """Let tasks start such processes; return their class."""
    cls = type("Own", (Process,), {"begun": [], "saved": [], "has_begun": threading.Event()})
    monkeypatch.setattr(running, "Popen", cls)
    before = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGCONT, signal.SIGUSR2)}
    yield cls
    for number, handler in before.items():
        signal.signal(number, handler)


def run_task(array: Array, number: int, monkeypatch) -> None:
    """Do what the array's script does in one of its tasks."""
    for name, value in {
        "SUBMITIT_EXECUTOR": "slurm",
        "SLURM_JOB_ID": "80",
        "SLURM_ARRAY_JOB_ID": "77",
        "SLURM_ARRAY_TASK_ID": str(number),
    }.items():
        monkeypatch.setenv(name, value)
    process_job(array.folder)


def send(number: int, process: type[Process]) -> None:
    """Send a signal to this process once its training runs."""

    def later():
        assert process.has_begun.wait(60)
        os.kill(os.getpid(), number)

    threading.Thread(target=later).start()


def test_a_task_trains_with_the_variables_of_the_shell_that_submits(planned, places, cluster, process, monkeypatch):
    process.ends_at_once = True
    array = Array.of(places, [], is_on_gpu=True)
    array.submit(planned)
    raw = os.environ["nnUNet_raw"]
    monkeypatch.setenv("nnUNet_raw", "forgotten")
    run_task(array, 3, monkeypatch)
    ((command, environment),) = process.begun
    assert command[4:] == [str(places.of(planned[3])), str(planned[3].run.file(places.results))]
    assert environment["nnUNet_raw"] == raw
    assert DelayedSubmission.load(array.folder / "77_3_submitted.pkl").function.planned.run == planned[3].run


def test_a_task_that_slurm_preempts_saves_is_queued_again_and_goes_on(planned, places, cluster, process, monkeypatch):
    array = Array.of(places, ["time=60"], is_on_gpu=True)
    array.submit(planned)
    send(signal.SIGUSR2, process)
    with pytest.raises(SystemExit):
        run_task(array, 1, monkeypatch)
    assert (cluster / "requeued").read_text() == "requeue 77_1\n"
    assert process.saved == [True]
    assert not [*array.folder.glob("*_result.pkl")], "it is not over"
    process.ends_at_once = True
    run_task(array, 1, monkeypatch)
    assert [command[4] for command, _ in process.begun] == [str(places.of(planned[1]))] * 2
    assert [file.name for file in array.folder.glob("*_result.pkl")] == ["77_1_0_result.pkl"]


def test_sigterm_before_it_is_passed_on_and_the_task_waits_for_what_slurm_decides(
    planned, places, cluster, process, monkeypatch
):
    """As SLURM preempts: SIGTERM to all processes, then the signal that submitit waits for."""
    array = Array.of(places, ["time=60"], is_on_gpu=True)
    array.submit(planned)
    waited = []

    class Decided(threading.Event):
        def wait(self, timeout=None):
            waited.append(timeout)
            os.kill(os.getpid(), signal.SIGUSR2)
            return super().wait(1)

    monkeypatch.setattr(slurm, "Event", Decided)
    send(signal.SIGTERM, process)
    with pytest.raises(SystemExit):
        run_task(array, 1, monkeypatch)
    assert waited == [slurm.GRACE_SECONDS]
    assert process.saved == [True]
    assert (cluster / "requeued").read_text() == "requeue 77_1\n"


def test_a_training_that_fails_is_a_failed_task(planned, places, process, monkeypatch):
    monkeypatch.setattr(Process, "wait", lambda _: 1)
    with pytest.raises(RuntimeError, match=r"nnUNetTrainer__default__seed1 failed, see .*seed1"):
        Task(planned[0], places, {})()


# ---- the verb ----


def test_the_verb_submits_what_no_job_has_and_reports(hippocampus, cluster, monkeypatch, capsys, places):
    monkeypatch.setattr(benchmark_checks, "refuse_unfinished", lambda *_: None)
    words = (
        f"benchmark -d 4 -c 2d --trainers nnUNetTrainerBCP --labeled 2 --seeds 0 1 -o {places.output} --slurm "
        "--no-upper-bound --slurm-options partition=gpu"
    )
    assert main([*shlex.split(words), "--dry-run"]) == 0
    said = capsys.readouterr().out
    assert f"the script that would be submitted: {places.output / 'slurm' / 'array.sh'}" in said
    assert "hippocampus_2d_2labeled/nnUNetTrainerBCP__default__seed1: 2 labeled, 3 unlabeled" in said
    assert "#SBATCH --array=0-3%4" in (places.output / "slurm" / "array.sh").read_text()
    assert not (cluster / "script.sh").exists()
    assert main(shlex.split(words)) == 0
    said = capsys.readouterr().out
    assert "submitted: 77_0, 77_1, 77_2, 77_3; this command again prints what is finished" in said
    script = (cluster / "script.sh").read_text()
    assert script == (places.output / "slurm" / "array.sh").read_text(), "as the dry run has said"
    (cluster / "states").write_text("JobID|State|NodeList\n77_0|RUNNING|a\n77_[1-3]|PENDING|\n")
    assert main([*shlex.split(words), "--dry-run"]) == 0
    assert "script that would be submitted" not in capsys.readouterr().out
    assert main(shlex.split(words)) == 0
    said = capsys.readouterr().out
    assert "submitted" not in said
    assert "hippocampus_2d_2labeled/nnUNetTrainer__default__seed0: running, job 77_0" in said
    assert said.count(": pending, job 77_") == 3
    assert "* not finished: hippocampus_2d_2labeled/nnUNetTrainerBCP__default__seed1" in said
