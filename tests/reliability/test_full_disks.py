"""On a disk that is full at any moment: a sentence, no half of a file, nothing temporary, and then the same result.

The fast form lets a few writes of each verb fail, in this process. The slow ones let each of them fail, and fill a
small disk that is mounted up to each page that a verb needs, through what libraries write in C, too.
"""

import collections
import re
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from nnunet_ssl.commands.cli import VERBS as ALL_VERBS
from tests.reliability import situations
from tests.reliability.full_disk import MountedDisk
from tests.reliability.trial import Trial
from tests.reliability.trying import Trying
from tests.reliability.whole import content_of, problems_in

FULL = re.compile(r"the disk is full \([\d.]+ MiB free in ")
ENDS = (1, 2)  # exit codes of what is said in a sentence
NAMES = [*situations.VERBS, "scans of a demo", "training"]


class DiskTrial(Trial):
    """Tried on a disk that is full ever later."""

    def check(self, at: int, code: int, said: str, expected: dict[str, str], more_space: Callable[[], None]) -> None:
        """Check what an attempt has left, and that the same words with space do the rest."""
        where = f"{self.name}, {at}: exit code {code}\n{said[-3000:]}"
        assert "Traceback" not in said, where
        assert not problems_in(self.root), (problems_in(self.root), where)
        if code == self.code:
            self.counts["went on"] += 1
        else:
            assert code in ENDS, where
            assert FULL.search(said), where
            self.counts["a sentence"] += 1
        more_space()
        self.check_again(where, expected)


def attempts(name: str, process: Trying, written: Path, root: Path, numbers: Iterator[int]) -> collections.Counter:
    """Let the writes of these numbers fail, one after the other, as long as there are such ones."""
    trial = DiskTrial(name, process, written, root)
    expected = trial.undisturbed()
    for number in numbers:
        trial.fresh()
        code, came, said = trial.run(fails_at=number)
        if not came:
            break
        trial.counts["full"] += 1
        trial.check(number, code, said, expected, lambda: None)
    return trial.counts


def test_every_verb_is_tried_or_said_to_write_nothing():
    assert {name.partition(" ")[0] for name in situations.VERBS} | {*situations.NOT_TRIED} == {*ALL_VERBS}


@pytest.mark.parametrize("name", [name for name in NAMES if name != "pseudolabel"])  # the data set needs it, too
def test_full_at_some_writes(name, process, written, tmp_path):
    counts = attempts(name, process, written, tmp_path / "disk", iter((20,) if name == "training" else (1, 10)))
    assert counts["full"] == counts["a sentence"] + counts["went on"] == counts["the same afterwards"] > 0


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_full_at_every_write(name, process, written, tmp_path):
    counts = attempts(name, process, written, tmp_path / "disk", iter(range(10**6)))
    print(f"{name}: {dict(counts)}")
    assert counts["full"] == counts["a sentence"] + counts["went on"] == counts["the same afterwards"] > 0


# ---- a small disk ----

STEP = {"training": 16, "preview": 3, "pseudolabel": 3, "pseudolabel --as-dataset": 5}  # pages; of others every one


@pytest.fixture
def mounted(tmp_path):
    disk = MountedDisk(tmp_path / "mounted")
    if reason := disk.mount():
        pytest.skip(reason)
    yield disk
    disk.unmount()


@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name in NAMES if name != "audit"])  # which remembers what there is room for
def test_full_at_every_page(name, process, written, mounted):
    trial = DiskTrial(name, process, written, mounted.place)
    expected = trial.undisturbed()
    for pages in range(0, 10**6, STEP.get(name, 1)):
        mounted.leave_free(None)
        trial.fresh()
        mounted.leave_free(pages)
        code, _, said = trial.run()
        if code == trial.code and content_of(mounted.place) == expected and "disk is full" not in said:
            break
        trial.counts["full"] += 1
        trial.check(pages, code, said, expected, lambda: mounted.leave_free(None))
    counts = trial.counts
    print(f"{name}: {dict(counts)}")
    assert counts["full"] == counts["a sentence"] + counts["went on"] == counts["the same afterwards"] > 0


@pytest.mark.parametrize("name", [name for name in NAMES if name != "training"])  # nnU-Net writes before it is ours
def test_on_a_disk_that_can_only_be_read(name, process, written, mounted):
    trial = DiskTrial(name, process, written, mounted.place)
    trial.fresh()
    before = content_of(mounted.place)
    mounted.make_read_only()
    code, _, said = trial.run()
    assert "Traceback" not in said, said
    assert content_of(mounted.place) == before
    if name == "audit":  # what it remembers is all that it writes
        assert code in (0, 1), said
    else:
        assert code == 2, said
        assert re.search("can only be read|cannot be written to", said), said
