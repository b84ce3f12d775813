"""Killed at any moment: what stands under its name is whole, and the same words do the rest, to the same result.

The fast form kills each verb and a training twice, the slow one all together 200 times, a training of each base too.
"""

import random
import re
import signal

import pytest

from tests.reliability import situations
from tests.reliability.trial import Trial
from tests.reliability.whole import TEMPORARY, content_of, problems_in

SIGNALS = (signal.SIGKILL, signal.SIGTERM, signal.SIGINT)
TRAININGS = (
    "training",
    "training nnUNetTrainerEntropyMinimization",
    "training nnUNetTrainerCPS",
    "training nnUNetTrainerSelfTraining",
)
NAMES = [*situations.VERBS, *TRAININGS]
KILLS = 200
# What SIGKILL may leave for ever: hidden files of a few kilobytes whose names hold a number, or a time.
OF_A_PROCESS = re.compile(r"\.\d+\.tmp$|/\.[\w.]+_until_[\d_-]+\.json\.tmp(/[\w.-]+)?$")
SOONEST = 0.02  # seconds after the start


def kill(name: str, process, written, root, times: int) -> dict[str, int]:
    """Kill something so often at random times of its run; return how it went."""
    trial, drawn = Trial(name, process, written, root), random.Random(f"{name}{times}")
    expected = trial.undisturbed()
    for number in range(times):
        with_signal = SIGNALS[number % len(SIGNALS)]
        trial.fresh()
        code, came, said = trial.run(signal=with_signal, after=max(SOONEST, drawn.random() * trial.seconds))
        where = f"{name}, {with_signal.name}, number {number}: exit code {code}\n{said[-3000:]}"
        trial.counts[with_signal.name] += 1
        broken = [problem for problem in problems_in(root) if not TEMPORARY.search(problem)]
        assert not broken, (broken, where)
        if not came:
            assert code == trial.code, where
            trial.counts["had ended"] += 1
        elif content_of(root) == expected:
            trial.counts["was done"] += 1
        else:
            trial.check_again(where, expected, OF_A_PROCESS)
    return dict(trial.counts)


def assert_adds_up(counts: dict[str, int], times: int) -> None:
    assert sum(counts.get(one.name, 0) for one in SIGNALS) == times
    assert sum(counts.get(end, 0) for end in ("had ended", "was done", "the same afterwards")) == times


@pytest.mark.parametrize("name", ["preprocess", "split --hide", "adopt", "training"])
def test_killed_at_some_moments(name, process, written, tmp_path):
    assert_adds_up(kill(name, process, written, tmp_path / "disk", times=3), 3)


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_killed_at_any_moment(name, process, written, tmp_path):
    share, more = divmod(KILLS, len(NAMES))
    times = share + (NAMES.index(name) < more)
    counts = kill(name, process, written, tmp_path / "disk", times)
    print(f"{name}: {counts}")
    assert_adds_up(counts, times)
