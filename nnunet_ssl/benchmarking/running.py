"""Running the trainings of a comparison, each in a process of its own that can be ended and goes on later."""

import os
import shlex
import shutil
import signal
import sys
import threading
from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from subprocess import STDOUT, Popen

import torch

from nnunet_ssl.benchmarking.experiment import length
from nnunet_ssl.benchmarking.planning import IN_ANOTHER, Planned, refuse_other
from nnunet_ssl.benchmarking.result_files import Result, code_of
from nnunet_ssl.data.memory import KEPT_BLOCKS
from nnunet_ssl.data.preprocessed_images import read_json, write_json_atomically
from nnunet_ssl.training.interruption import signals_interrupt
from nnunet_ssl.training.run_lock import LOCK, locked

FACTS, LOG = "facts.json", "log.txt"  # in the folder of a training


@dataclass(frozen=True)
class Places:
    """Where a benchmark writes: the folders of its trainings, by experiment, and the files of finished ones."""

    output: Path
    results: Path

    def of(self, planned: Planned) -> Path:
        """Return the folder of a training: its log, its checkpoints, and what it is trained on."""
        return self.output / planned.run.experiment / planned.run.name


@dataclass
class Trainings:
    """Trainings in processes of their own, which can be ended together.

    Attributes:
        places: where they write.
        threads: that torch may use in each.
        gpus: that they share, as CUDA_VISIBLE_DEVICES names them, each training one; without any they have all.
    """

    places: Places
    threads: int
    gpus: Sequence[str] = ()
    has_ended: bool = False
    _processes: list[Popen] = field(default_factory=list)
    _starting: threading.RLock = field(default_factory=threading.RLock)  # a signal may come while one is handled
    _trained_on: Counter[str] = field(default_factory=Counter)

    def run(self, planned: Planned) -> int:
        """Run one training to its end and return its exit code; its output goes to a file."""
        place = self.places.of(planned)
        place.mkdir(parents=True, exist_ok=True)
        try:
            with locked(place, print):
                code = self._run(planned, prepare(planned, place))
        except ValueError as error:  # another process has it, or its data set has become unreadable
            print(f"{planned.run.experiment}/{planned.run.name}: {error}", flush=True)
            return 1
        if code == 0:
            state = "done"
        elif self.has_ended:
            state = "interrupted, the same command goes on with it"
        else:
            state = f"FAILED{ended_by(code)}, see {place / LOG}: {last_line(place / LOG)}"
        print(f"{planned.run.experiment}/{planned.run.name}: {state}", flush=True)
        return code

    def end(self) -> None:
        """Ask what runs to save and end, and start nothing more."""
        with self._starting:
            if not self.has_ended:
                self.has_ended = True
                for process in [*self._processes]:
                    process.terminate()

    def _run(self, planned: Planned, place: Path) -> int:
        files = [str(run.file(self.places.results)) for run in planned.runs]
        command = [sys.executable, "-P", "-m", "nnunet_ssl.benchmarking.one_training", str(place), *files]
        with self._gpu_of(planned) as gpu, (place / LOG).open("a") as log:
            with self._starting:
                if self.has_ended:
                    return 1
                process = Popen(command, stdout=log, stderr=STDOUT, env=self._environment(planned, place, gpu))
                self._processes.append(process)
            code = process.wait()
        self._processes.remove(process)
        return code

    @contextmanager
    def _gpu_of(self, planned: Planned) -> Iterator[str | None]:
        """Give a training the GPU on which the fewest train, None where it has no choice."""
        if planned.facts["device"] != "cuda" or not self.gpus:
            yield None
            return
        with self._starting:
            gpu = min(self.gpus, key=lambda one: self._trained_on[one])
            self._trained_on[gpu] += 1
        try:
            yield gpu
        finally:
            self._trained_on[gpu] -= 1

    def _environment(self, planned: Planned, place: Path, gpu: str | None) -> dict[str, str]:
        facts = planned.facts
        options = length(facts["setting"]) | {"seed": facts["seed"]} | facts["options"]
        variables = {
            "nnUNet_preprocessed": str(place / "preprocessed"),
            "nnUNet_results": str(place / "results"),
            "OMP_NUM_THREADS": str(self.threads),
            "nnUNet_ssl_options": " ".join(shlex.quote(f"{name}={value}") for name, value in options.items()),
        }
        kept = KEPT_BLOCKS if facts["device"] == "cpu" else {}
        its_own = {} if gpu is None else {"CUDA_VISIBLE_DEVICES": gpu}
        return kept | os.environ | variables | its_own


def run_all(pending: Sequence[Planned], places: Places, jobs: int) -> list[int]:
    """Run trainings, so many at a time, and return their exit codes.

    SIGINT and SIGTERM are passed on to what runs, and end the process when that has ended.
    """
    trainings = Trainings(places, max(1, usable_cores() // jobs), usable_gpus())
    with signals_interrupt(is_first_process=True), ThreadPoolExecutor(jobs) as executor:
        futures = []
        try:
            for planned in pending:
                futures.append(executor.submit(trainings.run, planned))
            return [future.result() for future in futures]
        except BaseException:
            trainings.end()
            for future in futures:
                future.cancel()
            raise


def usable_cores() -> int:
    """Return how many cores this process may use, which a cluster limits."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def usable_gpus() -> list[str]:
    """Return the GPUs that this process may use, as CUDA_VISIBLE_DEVICES names them."""
    named = os.environ.get("CUDA_VISIBLE_DEVICES")
    return [str(i) for i in range(torch.cuda.device_count())] if named is None else [*filter(None, named.split(","))]


def prepare(planned: Planned, place: Path) -> Path:
    """Make the folder of a training ready, as it was interrupted or new, and return it.

    What was begun with other code or versions is not gone on with. What is gone on with names all of its commits.

    Raises:
        ValueError: it holds a training in another setting, on another split or device, or with other options.
    """
    planned.facts["code"] = code_of(planned.run.trainer)  # may have changed while those before were trained
    facts, before = planned.facts, read_json(place / FACTS)
    if before is not None:
        for what in IN_ANOTHER:
            refuse_other(planned.run, before, facts, what)
    if before is not None and is_same_run(before, facts):
        facts = facts | {"code": joined(before["code"], facts["code"])}
    elif (place / FACTS).exists():
        print(f"{planned.run.name} was begun with other code or versions, and begins again")
        for one in place.iterdir():
            if not one.name.startswith(LOCK):
                shutil.rmtree(one) if one.is_dir() else one.unlink()
    experiment = planned.experiment
    experiment.lay_preprocessed(place / "preprocessed" / experiment.source.name, planned.split)
    write_json_atomically(facts, place / FACTS)
    return place


def joined(before: Result, now: Result) -> Result:
    """Return the code of a training that is gone on with: its commits in order, and whether any was changed."""
    commits = dict.fromkeys([*str(before["commit"]).split(", "), str(now["commit"])])
    return now | {"commit": ", ".join(commits), "dirty": before["dirty"] or now["dirty"]}


def is_same_run(before: Result, now: Result) -> bool:
    """Return whether nothing differs but the commit, where its change does not touch the trainer or the step."""
    code = {"commit": None, "dirty": None}
    return all(before.get(key) == value for key, value in now.items() if key != "code") and (
        before["code"] | code == now["code"] | code
    )


def ended_by(code: int) -> str:
    """Return what ended a process from outside and what to do, nothing if it ended by itself."""
    if code == -signal.SIGKILL:
        return " (killed, most often because the memory was full: try fewer --jobs)"
    return f" (ended by {signal.Signals(-code).name})" if code < 0 else ""


def last_line(log: Path) -> str:
    """Return the last line of a log that says something."""
    lines = [line.strip() for line in log.read_text(errors="replace").splitlines()]
    return next((line for line in reversed(lines) if line), "it is empty")
