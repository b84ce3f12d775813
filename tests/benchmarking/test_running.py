"""Trainings in processes of their own: how they are started, ended, gone on with and begun again."""

import json
import os
import signal
import subprocess
import sys
import threading
from dataclasses import replace

import pytest

from nnunet_ssl.benchmarking import running
from nnunet_ssl.benchmarking.planning import plan_runs
from nnunet_ssl.benchmarking.running import LOG, Trainings, prepare, run_all
from nnunet_ssl.data.memory import KEPT_BLOCKS
from nnunet_ssl.training.interruption import Interrupted
from nnunet_ssl.training.run_lock import locked


@pytest.fixture
def started(monkeypatch):
    """Return the words and variables of the processes that are started in place of trainings; the second one fails."""
    begun = []

    def process(command, stdout, stderr, env):
        begun.append((command, env))
        code = len(begun) - 1
        return start([sys.executable, "-c", f"print('why'); raise SystemExit({code})"], stdout=stdout, stderr=stderr)

    start = subprocess.Popen
    monkeypatch.setattr(running, "Popen", process)
    return begun


def test_a_training_is_started_with_its_options_and_the_code_of_that_moment(
    comparison, places, started, monkeypatch, capsys
):
    for name in KEPT_BLOCKS:
        monkeypatch.delenv(name, raising=False)
    planned = plan_runs(replace(comparison, options={"ema_decay": "0.9"}, with_upper_bound=False))
    monkeypatch.setattr(running, "code_of", lambda trainer: {"commit": "later"})
    assert run_all(planned, places, jobs=1) == [0, 1]
    place = places.of(planned[1])
    assert place == places.output / "hippocampus_2d_2labeled" / planned[1].run.name
    command, environment = started[1]
    assert command[-2:] == [str(place), str(planned[1].run.file(places.results))]
    length = "num_epochs=20 num_iterations_per_epoch=2 num_val_iterations_per_epoch=5 save_every=2 seed=1"
    assert environment["nnUNet_ssl_options"] == f"{length} ema_decay=0.9"
    assert environment["nnUNet_preprocessed"] == str(place / "preprocessed")
    assert environment.items() >= KEPT_BLOCKS.items()
    assert json.loads((place / "facts.json").read_text())["code"] == {"commit": "later"}
    done, failed = capsys.readouterr().out.splitlines()
    assert done == f"hippocampus_2d_2labeled/{planned[0].run.name}: done"
    assert failed == f"hippocampus_2d_2labeled/{planned[1].run.name}: FAILED, see {place / LOG}: why"


@pytest.mark.parametrize(
    ("ended_by", "said"),
    [
        (signal.SIGKILL, "FAILED (killed, most often because the memory was full: try fewer --jobs), see "),
        (signal.SIGTERM, "FAILED (ended by SIGTERM), see "),
    ],
)
def test_what_ended_a_training_from_outside_is_said(comparison, places, monkeypatch, capsys, ended_by, said):
    start = subprocess.Popen

    def process(command, stdout, stderr, env):
        ends = f"import os; print('epoch 3', flush=True); os.kill(os.getpid(), {int(ended_by)})"
        return start([sys.executable, "-c", ends], stdout=stdout, stderr=stderr)

    monkeypatch.setattr(running, "Popen", process)
    (planned, *_) = plan_runs(comparison)
    assert run_all([planned], places, jobs=1) == [-ended_by]
    line = capsys.readouterr().out.strip()
    assert line.startswith(f"hippocampus_2d_2labeled/{planned.run.name}: {said}")
    assert line.endswith(": epoch 3")


def test_trainings_that_run_at_a_time_are_on_gpus_of_their_own(comparison, places, monkeypatch):
    planned = plan_runs(replace(comparison, device="cuda", seeds=(1, 2)))
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "2,GPU-7")
    there, on = threading.Barrier(2), []

    class Process:
        def __init__(self, command, stdout, stderr, env):
            on.append(env["CUDA_VISIBLE_DEVICES"])

        def wait(self):
            there.wait(30)
            return 0

    monkeypatch.setattr(running, "Popen", Process)
    assert set(run_all(planned[:4], places, jobs=2)) == {0}
    assert [sorted(pair) for pair in (on[:2], on[2:])] == [["2", "GPU-7"]] * 2


def test_a_training_on_a_cpu_keeps_the_gpus_that_there_are(comparison, places, started, monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "2,GPU-7")
    run_all(plan_runs(comparison)[:1], places, jobs=1)
    assert started[0][1]["CUDA_VISIBLE_DEVICES"] == "2,GPU-7"


def test_unlabeled_images_are_preprocessed_for_all_trainings_at_once(comparison, places, hippocampus):
    """Also where nothing is preprocessed yet: whatever the first one makes is the data set's."""
    for planned in plan_runs(comparison)[:2]:
        places.of(planned).mkdir(parents=True)
    first, second = (prepare(planned, places.of(planned)) for planned in plan_runs(comparison)[:2])
    for name in ("nnUNetPlans_2d_unlabeled", "nnUNetPlans_2d_unlabeled_state"):
        (first / "preprocessed" / hippocampus.name / name / "case").touch()
        assert (second / "preprocessed" / hippocampus.name / name / "case").is_file()
        assert (hippocampus / name / "case").is_file()


def test_all_labels_leave_their_result_in_each_experiment(comparison, experiment, places, started):
    both = replace(comparison, experiments=(experiment, replace(experiment, labeled=3)))
    run_all(plan_runs(both)[-1:], places, jobs=1)
    files = [f"{places.results}/hippocampus_2d_{number}labeled/nnUNetTrainer__all__seed1.json" for number in (2, 3)]
    assert started[0][0][-2:] == files


def test_an_interrupted_training_goes_on_and_begins_again_with_other_code(
    comparison, places, hippocampus, monkeypatch, capsys
):
    planned = plan_runs(comparison)[1]
    place = places.of(planned)
    place.mkdir(parents=True)
    prepare(planned, place)
    splits = json.loads((place / "preprocessed" / hippocampus.name / "splits_final.json").read_text())
    assert splits == [planned.split]
    (place / "checkpoint").touch()
    code = dict(planned.facts["code"])
    monkeypatch.setattr(running, "code_of", lambda _: code | {"commit": "another", "dirty": False})
    prepare(planned, place)  # trainer and step are as they were
    assert (place / "checkpoint").exists()
    gone_on_with = json.loads((place / "facts.json").read_text())["code"]
    assert gone_on_with == code | {"commit": f"{code['commit']}, another"}
    monkeypatch.setattr(running, "code_of", lambda _: code | {"trainer": "another"})
    (place / "training.lock").touch()
    prepare(planned, place)
    assert not (place / "checkpoint").exists()
    assert (place / "training.lock").exists(), "it is held by this process"
    assert json.loads((place / "facts.json").read_text()) == planned.facts
    assert "begins again" in capsys.readouterr().out
    (place / "checkpoint").touch()
    (place / "facts.json").write_text('{"half')
    prepare(planned, place)
    assert not (place / "checkpoint").exists()


@pytest.mark.parametrize(
    ("changes", "what"),
    [
        ({"device": "cuda"}, "on another device"),
        ({"options": {"ema_decay": "0.5"}}, "with other options"),
        ({"setting": {}}, "in another setting"),
    ],
)
def test_a_training_takes_no_others_place(comparison, places, changes, what, capsys):
    """With other --results it is planned, but the folder of its checkpoints is that of the one before."""
    planned = plan_runs(comparison)[1]
    place = places.of(planned)
    place.mkdir(parents=True)
    prepare(planned, place)
    (place / "checkpoint").touch()
    run_all([replace(planned, facts=planned.facts | changes)], places, jobs=1)
    assert f"was trained {what}: name this one with --experiment, or choose another --output" in capsys.readouterr().out
    assert (place / "checkpoint").exists()


def test_a_training_that_another_process_runs_is_left_to_it(comparison, places, started, capsys):
    planned = plan_runs(comparison)[0]
    places.of(planned).mkdir(parents=True)
    with locked(places.of(planned), print):
        assert run_all([planned], places, jobs=1) == [1]
    assert started == []
    assert "another process trains or validates in" in capsys.readouterr().out
    assert run_all([planned], places, jobs=1) == [0]


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_is_passed_on_and_nothing_more_is_started(comparison, places, monkeypatch, capsys, number):
    """The process that trains says that it runs, and after the signal that it has saved."""
    code = (
        "import signal, sys, time\n"
        "def save(*_):\n    print('saved', flush=True)\n    sys.exit(143)\n"
        "signal.signal(signal.SIGTERM, save)\nsignal.signal(signal.SIGINT, signal.SIG_IGN)\n"
        "signal.alarm(60)\nopen(sys.argv[1], 'w').close()\nwhile True:\n    time.sleep(0.1)"
    )
    begun, start = [], subprocess.Popen
    ready = places.output / "ready"

    def process(command, stdout, stderr, env):
        os.mkfifo(ready)
        begun.append(start([sys.executable, "-c", code, str(ready)], stdout=stdout, stderr=stderr))
        threading.Thread(target=lambda: (ready.read_text(), os.kill(os.getpid(), number))).start()
        return begun[-1]

    monkeypatch.setattr(running, "Popen", process)
    planned = plan_runs(comparison)
    with pytest.raises(Interrupted) as ended:
        run_all(planned, places, jobs=1)
    assert ended.value.code == 128 + number
    assert len(begun) == 1
    assert (places.of(planned[0]) / LOG).read_text() == "saved\n"
    assert "interrupted, the same command goes on with it" in capsys.readouterr().out


def test_what_is_ended_before_it_starts_is_not_started(comparison, places, started):
    trainings = Trainings(places, threads=1)
    trainings.end()
    trainings.end()
    assert trainings.run(plan_runs(comparison)[0]) == 1
    assert started == []
