"""The state of a run after its last whole epoch: on disk, or in memory until something makes it due.

A run goes on at the beginning of an epoch: that is where its random numbers are drawn anew. In the middle of one there
is no state to save that leads to the same end: loaders have drawn ahead, in processes of their own.
"""

import time
from pathlib import Path
from typing import Any

from nnunet_ssl.training.checkpoints import on_host, save_atomically

LATEST = "checkpoint_latest.pth"


class LastEpoch:
    """Keeps the newest checkpoint of a run, and writes it every so many minutes, or when the run ends early.

    Attributes:
        epoch: how many epochs are over by the checkpoint, on disk or in memory.
    """

    def __init__(self, folder: str | Path, minutes: float) -> None:
        """Start with none.

        Args:
            folder: of the run.
            minutes: between two checkpoints; 0 writes one after each epoch.
        """
        self.epoch = 0
        self._file = Path(folder, LATEST)
        self._seconds = 60 * minutes
        self._written_at = time.monotonic()
        self._unwritten: dict[str, Any] | None = None

    def note_written(self, epoch: int) -> None:
        """Note that a checkpoint after so many epochs is on disk."""
        self.epoch = epoch
        self._written_at = time.monotonic()
        self._unwritten = None

    def keep(self, checkpoint: dict[str, Any]) -> None:
        """Write a checkpoint if it is time; otherwise keep a copy of it in the memory of the host."""
        if time.monotonic() - self._written_at >= self._seconds:
            save_atomically(checkpoint, self._file)
            self.note_written(checkpoint["current_epoch"])
        else:
            self._unwritten, self.epoch = on_host(checkpoint), checkpoint["current_epoch"]

    def write(self) -> None:
        """Write what is not on disk yet."""
        if self._unwritten is not None:
            save_atomically(self._unwritten, self._file)
            self.note_written(self.epoch)
