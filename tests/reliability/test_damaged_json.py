"""JSON files that are damaged at random: each verb refuses them in a sentence, makes them anew, or takes what they say.

What still reads as JSON of the right form may have another meaning, which nobody can know. A verb that refuses a file
does its work when the file is as it was.
"""

import collections
import json
import random
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.reliability import situations
from tests.reliability.trial import Trial
from tests.reliability.whole import problems_in

VERBS = [*situations.VERBS]
ALL = 156  # mutations of the slow form
OTHER_VALUES = (None, True, -1, 1e300, "", "../x", [], {}, [[]], "0", {"a": {}})


def mutated(text: str, drawn: random.Random) -> str:
    """Return a text with one thing changed: a part of it, or a value of what it holds."""
    kind = drawn.choice(("cut", "byte", "lost", "value", "key"))
    at = drawn.randrange(len(text))
    if kind == "cut":
        return text[:at]
    if kind == "byte":
        return text[:at] + chr(ord(text[at]) ^ 1 << drawn.randrange(7)) + text[at + 1 :]
    if kind == "lost":
        return text[:at] + text[at + drawn.randint(1, 8) :]
    content = json.loads(text)
    places = list(places_in(content))
    if not places:
        return json.dumps(drawn.choice(OTHER_VALUES))
    holder, key = drawn.choice(places)
    if kind == "value":
        holder[key] = drawn.choice(OTHER_VALUES)
    else:
        del holder[key]
    return json.dumps(content)


def places_in(content: object) -> Iterator[tuple[dict | list, str | int]]:
    """Yield each key of each dictionary, and each position of each list."""
    keys = content.keys() if isinstance(content, dict) else range(len(content)) if isinstance(content, list) else ()
    for key in keys:
        yield content, key
        yield from places_in(content[key])


def damage(name: str, process, written, root: Path, times: int) -> collections.Counter:
    """Let a verb meet files that are damaged; return how it went."""
    trial, drawn = Trial(name, process, written, root), random.Random(f"{name}{times}")
    expected = trial.undisturbed()
    trial.fresh()
    files = sorted(file.relative_to(root) for file in root.rglob("*.json"))
    for number in range(times):
        trial.fresh()
        file = root / drawn.choice(files)
        before = file.read_text()
        file.write_text(mutated(before, drawn))
        code, _, said = trial.run()
        where = f"{name}, number {number}, {file.name}: exit code {code}\n{said[-3000:]}\n{file.read_text()[-1500:]}"
        trial.counts["damaged"] += 1
        assert code in (0, 1, 2), where
        assert "Traceback" not in said, where
        broken = [problem for problem in problems_in(root) if file.name not in problem]
        assert not broken, (broken, where)
        if code == trial.code:
            trial.counts["went on"] += 1
        else:
            trial.counts["a sentence"] += 1
            file.write_text(before)
            if code == 2:  # of 1 a part may be done, such as a report that leaves out what it cannot read
                trial.check_again(where, expected)
    return trial.counts


def assert_adds_up(counts: collections.Counter, times: int) -> None:
    assert counts["damaged"] == times == counts["went on"] + counts["a sentence"]


@pytest.mark.parametrize("name", ["preprocess", "split --hide"])
def test_some_damaged_files(name, process, written, tmp_path):
    assert_adds_up(damage(name, process, written, tmp_path / "disk", times=6), 6)


@pytest.mark.slow
@pytest.mark.parametrize("name", VERBS)
def test_damaged_files(name, process, written, tmp_path):
    times = ALL // len(VERBS)
    counts = damage(name, process, written, tmp_path / "disk", times)
    print(f"{name}: {dict(counts)}")
    assert_adds_up(counts, times)
