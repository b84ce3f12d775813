"""Processes that find torch and nnU-Net imported, which takes a spawned one seconds: they are forked from a server.

The server has imported nothing of this package: what a spawned process must import of it, these must too. A test or a
process of a test that asks multiprocessing for "spawn" gets them; commands as a user types them do not.
"""

import multiprocessing
import os
import sys
from importlib import metadata
from multiprocessing.context import ForkServerContext, ForkServerProcess
from pathlib import Path

import numpy as np

HEAVY = [
    "nnunetv2.experiment_planning.plan_and_preprocess_entrypoints",
    "nnunetv2.inference.predict_from_raw_data",
    "nnunetv2.run.run_training",
    "torchvision",
]


class WarmProcess(ForkServerProcess):
    """Has the environment of the process that starts it, not of the server, and random numbers of its own."""

    def start(self) -> None:
        self.environment = dict(os.environ)
        super().start()

    def run(self) -> None:
        os.environ.clear()
        os.environ.update(self.environment)
        np.random.seed()
        multiprocessing.context._concrete_contexts["spawn"] = WARM
        super().run()


class WarmContext(ForkServerContext):
    _name = "spawn"
    Process = WarmProcess


WARM = WarmContext()
WARM.set_forkserver_preload(HEAVY)


def answer_of_one(expression: str) -> object:
    """Return the value of an expression in a process of its own."""
    with WARM.Pool(1) as pool:
        return pool.apply(eval, (expression,))


def start_command(arguments: list[str], log: Path, folder: Path, environment: dict[str, str]) -> WarmProcess:
    """Start an installed command as `subprocess.Popen` would, with its output in a file."""
    process = WARM.Process(target=run_command, args=(arguments, log, folder, environment))
    process.start()
    return process


def run_command(arguments: list[str], log: Path, folder: Path, environment: dict[str, str]) -> None:
    with log.open("wb") as opened:
        for stream in (1, 2):
            os.dup2(opened.fileno(), stream)
    sys.stdout.reconfigure(line_buffering=True)  # as on a terminal: what is printed stands before an error
    multiprocessing.set_start_method(None, force=True)  # the default, as in a process that no other one forked
    os.chdir(folder)
    os.environ.clear()
    os.environ.update(environment)
    sys.argv = arguments
    (script,) = metadata.entry_points(group="console_scripts", name=arguments[0])
    sys.exit(script.load()())
