"""Trainings of a benchmark as tasks of a SLURM job array, by submitit."""

import os
import re
import signal
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from dataclasses import dataclass, field
from math import ceil
from pathlib import Path
from threading import Event
from typing import TYPE_CHECKING, Any

from nnunet_ssl.benchmarking.planning import Planned
from nnunet_ssl.benchmarking.running import Places, Trainings, usable_cores
from nnunet_ssl.data.preprocessed_images import read_json, write_json_atomically

if TYPE_CHECKING:
    from submitit import Job
    from submitit.helpers import DelayedSubmission

DEFAULTS = {"job_name": "nnunet_ssl_benchmark", "time": "24:00:00", "cpus_per_task": "12"}
ON_GPU = {"gpus_per_node": "1"}
MOST_TIMEOUTS = 100  # after which a task that its time limit ends is not queued again
IN_HAND = ("PENDING", "CONFIGURING", "RUNNING", "COMPLETING", "REQUEUED", "RESIZING", "SUSPENDED")  # states of a job
GRACE_SECONDS = 600.0  # in which SLURM, after SIGTERM, says what becomes of a job


@dataclass
class Task:
    """What a task of the array does: one training; SLURM's signals let it save, and queue it again.

    Attributes:
        planned: the training.
        places: where it writes.
        variables: nnU-Net's, of the shell that submits.
    """

    planned: Planned
    places: Places
    variables: dict[str, str]
    _trainings: Trainings | None = None
    _running: "Future[int] | None" = None

    def __call__(self) -> None:
        """Train, going on where there is a checkpoint.

        Raises:
            RuntimeError: the training failed.
        """
        os.environ.update(self.variables)
        self._trainings = Trainings(self.places, usable_cores())
        signal.signal(signal.SIGTERM, lambda *_: self._trainings.end())  # submitit's own handler overlooks it
        with ThreadPoolExecutor(1) as executor:
            self._running = executor.submit(self._trainings.run, self.planned)
            code = self._running.result()
            if code and self._trainings.has_ended:
                Event().wait(GRACE_SECONDS)  # for the signal that queues it again, or the end
        if code:
            raise RuntimeError(f"{self.planned.run.name} failed, see {self.places.of(self.planned)}")

    def checkpoint(self) -> "DelayedSubmission":
        """Let the training save and end, and return what goes on with it; submitit calls it on SLURM's signal."""
        from submitit.helpers import DelayedSubmission

        if self._running is not None:
            self._trainings.end()
            wait([self._running])
        return DelayedSubmission(Task(self.planned, self.places, self.variables))


@dataclass(frozen=True)
class Array:
    """A job array, and the jobs that have been submitted into a folder.

    Attributes:
        places: where its trainings write; scripts, logs and the list of jobs are in `slurm` there.
        parameters: of submitit.
    """

    places: Places
    parameters: dict[str, Any] = field(default_factory=dict)

    @classmethod
    def of(cls, places: Places, words: Sequence[str], is_on_gpu: bool) -> "Array":
        """Return an array with sbatch's options, each written as name=value, over the defaults.

        Raises:
            ValueError: a word that is none, or submitit is not installed.
        """
        refuse_without_submitit()
        given = options_of(words)
        says_gpus = any(name.startswith(("gpu", "gres", "num_gpus")) for name in given)
        return cls(places, parameters_of(DEFAULTS | (ON_GPU if is_on_gpu and not says_gpus else {}) | given))

    @property
    def folder(self) -> Path:
        """Where submitit keeps scripts, logs and tasks."""
        return self.places.output / "slurm"

    @property
    def _jobs(self) -> Path:
        return self.folder / "jobs.json"

    def submit(self, new: Sequence[Planned]) -> list[str]:
        """Submit a task for each training, and return the ids of their jobs.

        Raises:
            ValueError: there is no SLURM here.
            RuntimeError: sbatch refuses it.
        """
        from submitit import SlurmExecutor

        if SlurmExecutor.affinity() < 0:
            raise ValueError(
                "there is no SLURM on this machine (no srun): start it on a login node, look at the script with "
                "--dry-run, or train here without --slurm"
            )
        executor = SlurmExecutor(self.folder, max_num_timeout=MOST_TIMEOUTS)
        executor.update_parameters(**self.parameters)
        variables = {name: value for name, value in os.environ.items() if name.startswith("nnUNet_")}
        jobs = executor.submit_array([Task(planned, self.places, variables) for planned in new])
        ids = {name_of(planned): job.job_id for planned, job in zip(new, jobs, strict=True)}
        write_json_atomically((read_json(self._jobs) or {}) | ids, self._jobs)
        return list(ids.values())

    def write_script(self, new: Sequence[Planned]) -> Path:
        """Write the script that `submit` would submit, and return its path."""
        from submitit import SlurmExecutor

        executor = type("ScriptWriter", (SlurmExecutor,), {"affinity": lambda *_: 1})(self.folder)
        executor.update_parameters(**self.parameters)
        if len(new) > 1:
            executor.parameters["map_count"] = len(new)
        script = self.folder / "array.sh"
        script.parent.mkdir(parents=True, exist_ok=True)
        script.write_text(executor._make_submission_file_text(executor._submitit_command_str, uid=""))
        return script

    def in_hand(self, pending: Sequence[Planned]) -> "list[tuple[Planned, Job]]":
        """Return the trainings that a job of an earlier call waits for or runs, with the job."""
        from submitit import SlurmJob

        known = read_json(self._jobs) or {}
        jobs = [(one, SlurmJob(self.folder, known[name_of(one)])) for one in pending if name_of(one) in known]
        return [(one, job) for one, job in jobs if job.state.startswith(IN_HAND)]


def name_of(planned: Planned) -> str:
    """Return by which a training is known in the list of jobs."""
    return f"{planned.run.experiment}/{planned.run.name}"


def refuse_without_submitit() -> None:
    """Raise a ValueError if submitit is not installed."""
    try:
        import submitit  # noqa: F401
    except ImportError as error:
        raise ValueError(
            "--slurm submits by submitit, which is not installed: pip install nnunet_ssl[slurm]"
        ) from error


def options_of(words: Sequence[str]) -> dict[str, str]:
    """Return sbatch's options, by the names that submitit has for them, with underscores.

    Raises:
        ValueError: a word that is not name=value.
    """
    options = {}
    for word in words:
        name, equals, value = word.lstrip("-").partition("=")
        if not (name and equals and value):
            raise ValueError(f"--slurm-options takes name=value, such as partition=gpu time=12:00:00, got {word!r}")
        options[name.replace("-", "_")] = value
    return options


def parameters_of(options: dict[str, str]) -> dict[str, Any]:
    """Return submitit's parameters; what it does not know is passed to sbatch as it is.

    Raises:
        ValueError: `time` is none.
    """
    from submitit import SlurmExecutor

    values = {name: int(value) if value.isdecimal() else value for name, value in options.items()}
    valid = SlurmExecutor._valid_parameters()
    known = {name: value for name, value in values.items() if name in valid}
    if "cpus_per_task" in known:  # which srun does not take over from sbatch
        known["srun_args"] = [f"--cpus-per-task={known['cpus_per_task']}"]
    others = {name: value for name, value in values.items() if name not in valid}
    return known | {"time": minutes_of(options["time"])} | ({"additional_parameters": others} if others else {})


def minutes_of(time: str) -> int:
    """Return a time limit as sbatch writes it, "90", "12:00:00", "1-00", "1-12:30:00", in minutes, rounded up.

    Raises:
        ValueError: it is none.
    """
    if not re.fullmatch(r"(\d+-)?\d+(:\d+){0,2}", time):
        raise ValueError(f"--slurm-options: time is minutes, hours:minutes:seconds or days-hours, got {time!r}")
    days, _, rest = time.rpartition("-")
    parts = [int(part) for part in rest.split(":")]
    begins_with_hours = bool(days) or len(parts) == 3
    hours, minutes, seconds = ([*parts, 0, 0] if begins_with_hours else [0, *parts, 0])[:3]
    return ceil((int(days or 0) * 24 + hours) * 60 + minutes + seconds / 60)
