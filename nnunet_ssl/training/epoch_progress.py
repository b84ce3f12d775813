"""How far an epoch is: a bar on a terminal, a line every minute elsewhere."""

import sys
import time
from collections.abc import Callable

from tqdm import tqdm

SECONDS_BETWEEN_LINES = 60.0


class EpochProgress:
    """Shows step, loss, the last epoch's Dice and the time left of one epoch."""

    def __init__(self, epoch: int, steps: int, dice: float | None, write_line: Callable[[str], None]) -> None:
        """Start an epoch; `write_line` takes the lines when standard error is no terminal."""
        self.epoch, self.steps, self.step = epoch, steps, 0
        self.dice = "" if dice is None else f", Dice {dice:.3f}"
        self.write_line = write_line
        self.bar = tqdm(total=steps, desc=f"Epoch {epoch}", leave=False) if sys.stderr.isatty() else None
        self.started = self.written = time.monotonic()

    def advance(self, loss: float) -> None:
        """Count a step."""
        self.step += 1
        now = time.monotonic()
        if self.bar is not None:
            self.bar.set_postfix_str(f"loss {loss:.3f}{self.dice}", refresh=False)
            self.bar.update()
        elif now - self.written >= SECONDS_BETWEEN_LINES:
            self.written = now
            left = (now - self.started) / self.step * (self.steps - self.step)
            self.write_line(
                f"epoch {self.epoch}: step {self.step} of {self.steps}, loss {loss:.3f}{self.dice}, "
                f"{left / 60:.1f} minutes left in this epoch"
            )

    def close(self) -> None:
        """Take the bar away."""
        if self.bar is not None:
            self.bar.close()
