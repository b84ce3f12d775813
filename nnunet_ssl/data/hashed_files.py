"""Files that are read once: whoever reads them to see whether they are whole has their SHA-256 too."""

import hashlib
import io
from pathlib import Path
from typing import BinaryIO

BUFFER_BYTES = 1 << 20


class HashedFile:
    """A file, opened when it is first read; all that is read of it, in its order, goes into its SHA-256."""

    def __init__(self, file: Path) -> None:
        self.file = file
        self._opened: BinaryIO | None = None
        self._source: _Source | None = None

    def __enter__(self) -> "HashedFile":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close it; nothing can be read of it any more."""
        if self._opened is not None:
            self._opened.close()

    def read(self, size: int = -1) -> bytes:
        """Return the next bytes; fewer than are asked for at its end."""
        return self._open().read(size)

    def digest(self) -> str:
        """Read what nobody has read yet and return the SHA-256, hexadecimal; empty for what is no file."""
        if not self.file.is_file():
            return ""
        while self.read(BUFFER_BYTES):
            pass
        return self._source.digest.hexdigest()

    def _open(self) -> BinaryIO:
        if self._opened is None:
            self._source = _Source(self.file)
            self._opened = io.BufferedReader(self._source, BUFFER_BYTES)
        return self._opened


class _Source(io.RawIOBase):
    def __init__(self, file: Path) -> None:
        self.opened, self.digest = file.open("rb", buffering=0), hashlib.sha256()

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: memoryview) -> int:
        size = self.opened.readinto(buffer)
        self.digest.update(buffer[:size])
        return size

    def close(self) -> None:
        self.opened.close()
        super().close()
