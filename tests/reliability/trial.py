"""One thing that writes, tried again and again, each time on the same files."""

import collections
import re
import shutil
import time
from dataclasses import dataclass, field
from pathlib import Path

from tests.reliability import situations
from tests.reliability.trying import Found, Job, Trying
from tests.reliability.whole import content_of, problems_in

NOTHING = re.compile("$^")


@dataclass
class Trial:
    """What is tried; `counts` says how it went, `seconds` how long it takes undisturbed."""

    name: str
    process: Trying
    written: Path
    root: Path
    counts: collections.Counter = field(default_factory=collections.Counter)

    def fresh(self) -> None:
        for folder in [*self.root.iterdir()] if self.root.exists() else ():
            shutil.rmtree(folder) if folder.is_dir() else folder.unlink()
        shutil.copytree(self.written, self.root, dirs_exist_ok=True)
        if self.name.startswith("training"):
            shutil.rmtree(self.root / "results")
            (self.root / situations.fold_of(self.name)).mkdir(parents=True)  # or nnU-Net makes it, before ours runs

    def run(self, **how: float) -> Found:
        return self.process.run(Job(self.name, self.root, **how))

    def undisturbed(self) -> dict[str, str]:
        self.fresh()
        began = time.monotonic()
        code, _, said = self.run()
        self.seconds = time.monotonic() - began
        assert code in (0, 1), said
        assert problems_in(self.root) == []
        self.code = code
        return content_of(self.root)

    def check_again(self, where: str, expected: dict[str, str], may_stay: re.Pattern = NOTHING) -> None:
        """Check that the same words do the rest."""
        again, _, said = self.run()
        assert again == self.code, f"{where}\nagain: {said[-3000:]}"
        problems = [problem for problem in problems_in(self.root) if not may_stay.search(problem)]
        assert not problems, (problems, where)
        found = content_of(self.root)
        assert {*found} == {*expected}, (where, {*found} ^ {*expected})
        assert [name for name in found if found[name] != expected[name]] == [], where
        self.counts["the same afterwards"] += 1
