"""The pictures of a run: none of them ends it, and those of its curves take little of its time."""

import time
from collections.abc import Callable
from pathlib import Path

import matplotlib.pyplot as plt

from nnunet_ssl.data.disk_faults import is_fault_of_disk, words_of
from nnunet_ssl.data.whole_files import replacing

SECONDS_PER_EPOCH = 0.25  # on average, for each picture of curves: they take ever longer, and an epoch does not; ours


class Drawing:
    """Draws what a run shows of itself."""

    def __init__(self, write_line: Callable[..., None]) -> None:
        """Begin a run.

        Args:
            write_line: writes to its log.
        """
        self.write_line = write_line
        self._undrawn: dict[str, str] = {}  # why, by the name of the picture
        self._allowed: dict[str, Allowance] = {}

    def draw(self, draw: Callable[..., None], *arguments: object, file: Path) -> None:
        """Let a file be drawn; one that cannot be ends nothing: the reason is said, once for each name of a picture."""
        name = file.parent.name if file.parent.name == "previews" else file.name
        try:
            draw(*arguments, file=file)
        except Exception as error:  # noqa: BLE001 - libraries raise anything, and no picture is worth a run
            reason = words_of(error) if is_fault_of_disk(error) else f"{type(error).__name__}: {error}"
            if self._undrawn.get(name) != type(error).__name__:
                reason = " ".join(reason.split())
                self.write_line(f"WARNING: {name} cannot be drawn, and the training goes on without it: {reason}")
            self._undrawn[name] = type(error).__name__

    def draw_now_and_then(self, draw: Callable[..., None], *, file: Path, is_last: bool) -> None:
        """Draw in the first epoch, the last one, and as many as the allowance is enough for; called once in each."""
        allowance = self._allowed.setdefault(file.name, Allowance(SECONDS_PER_EPOCH))
        allowance.add_epoch()
        if is_last or allowance.is_enough:
            started = time.perf_counter()
            self.draw(draw, file=file)
            allowance.spend(time.perf_counter() - started)


class Allowance:
    """Time that something may take: as much in each epoch, saved until there is enough for doing it once."""

    def __init__(self, seconds: float) -> None:
        """Start with enough.

        Args:
            seconds: of an epoch, on average.
        """
        self.seconds, self._saved, self._needed = seconds, 0.0, 0.0

    @property
    def is_enough(self) -> bool:
        """Whether as much is saved as it took the last time."""
        return self._saved >= self._needed

    def add_epoch(self) -> None:
        """Save what an epoch gives."""
        self._saved += self.seconds

    def spend(self, seconds: float) -> None:
        """Note what it has taken; what was saved beyond is lost, so that nothing is made up for later."""
        self._saved, self._needed = 0.0, seconds


def draw_whole(plot: Callable[[str], None], file: Path) -> None:
    """Let nnU-Net draw its picture, so that it appears whole or not at all, and leaves no figure in memory.

    Args:
        plot: draws into a folder.
        file: progress.png, which is how nnU-Net calls it.
    """
    before = {*plt.get_fignums()}
    try:
        with replacing(file) as unfinished:
            plot(str(unfinished.parent))
    finally:
        for figure in {*plt.get_fignums()} - before:
            plt.close(figure)
