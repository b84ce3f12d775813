"""Disks that are full: a small one that is mounted, and one whose n-th write fails; both in a process of their own."""

import builtins
import errno
import io
import os
import shutil
import subprocess
import sys
import traceback
from collections.abc import Callable
from pathlib import Path

import blosc2
import SimpleITK

PAGE = 4096  # bytes that a tmpfs gives at a time
FULL = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


class InjectedFault:
    """The disk under `root` is full from its n-th write on: half of that one is written, and nothing afterwards."""

    def __init__(self, root: Path, fails_at: int) -> None:
        self.root, self.fails_at = root, fails_at
        self.writes = 0

    def is_full(self) -> bool:
        self.writes += 1
        return self.writes > self.fails_at

    def is_here(self, file: object) -> bool:
        return isinstance(file, str | os.PathLike) and Path(file).absolute().is_relative_to(self.root)

    def install(self) -> None:
        """Let all that writes in this process fail; it is never undone."""
        builtins.open = io.open = self._opener(io.open)
        for owner, name in ((os, "mkdir"), (os, "link")):
            setattr(owner, name, self._raising(getattr(owner, name)))
        os.fsync = self._fsync(os.fsync)
        shutil.copyfile = self._copyfile(shutil.copyfile)
        SimpleITK.WriteImage = self._write_image(SimpleITK.WriteImage)
        blosc2.asarray = self._asarray(blosc2.asarray)

    def _opener(self, real: Callable) -> Callable:
        disk = self

        class File(io.FileIO):
            def write(self, content: bytes) -> int:
                if disk.is_full():
                    super().write(memoryview(content)[: len(content) // 2])
                    raise OSError(*FULL.args)
                return super().write(content)

        def open_file(file, mode="r", buffering=-1, encoding=None, errors=None, newline=None, *more, **named):
            if not disk.is_here(file) or not {*mode} & {*"wax+"}:
                return real(file, mode, buffering, encoding, errors, newline, *more, **named)
            raw = File(file, mode.replace("b", "").replace("t", ""))
            if buffering == 0:
                return raw
            buffered = io.BufferedRandom(raw) if "+" in mode else io.BufferedWriter(raw)
            if "b" in mode:
                return buffered
            text = io.TextIOWrapper(buffered, encoding, errors, newline, line_buffering=buffering == 1)
            text.mode = mode
            return text

        return open_file

    def _raising(self, real: Callable) -> Callable:
        def make(file, *more, **named):
            if self.is_here(file) and not Path(file).is_dir() and self.is_full():
                raise OSError(*FULL.args, str(file))
            return real(file, *more, **named)

        return make

    def _fsync(self, real: Callable) -> Callable:
        def fsync(descriptor: int) -> None:
            if self.is_here(os.readlink(f"/proc/self/fd/{descriptor}")) and self.is_full():
                raise OSError(*FULL.args)
            real(descriptor)

        return fsync

    def _copyfile(self, real: Callable) -> Callable:
        def copyfile(source, target, **named):
            if self.is_here(target) and self.is_full():
                content = Path(source).read_bytes()
                with io.FileIO(target, "w") as opened:
                    opened.write(content[: len(content) // 2])
                raise OSError(*FULL.args, str(source), None, str(target))
            return real(source, target, **named)

        return copyfile

    def _write_image(self, real: Callable) -> Callable:
        def write_image(image, file, *more, **named):
            real(image, file, *more, **named)
            if self.is_here(file) and self.is_full():
                os.truncate(file, Path(file).stat().st_size // 2)
                if not str(file).endswith((".nii", ".nii.gz")):  # of these ITK says nothing
                    raise RuntimeError("ITK ERROR: could not write")

        return write_image

    def _asarray(self, real: Callable) -> Callable:
        def asarray(array, *more, **named):
            file = named.get("urlpath")
            if not self.is_here(file) or not self.is_full():
                return real(array, *more, **named)
            real(array, *more, **named)
            os.truncate(file, Path(file).stat().st_size // 2)
            raise RuntimeError("Error while creating the NDArray")

        return asarray


def in_a_process(
    work: Callable[[], int],
    log: Path,
    fault: InjectedFault | None = None,
    meanwhile: Callable[[int], None] = lambda _: None,
) -> tuple[int, bool]:
    """Run something in a forked process; return its exit code, and whether the fault came.

    What it prints is in `log`. Whatever libraries keep open of a disk is closed with the process. `meanwhile` is called
    with its number.
    """
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        code = 99
        try:
            with log.open("w") as opened:
                os.dup2(opened.fileno(), 1)
                os.dup2(opened.fileno(), 2)
            sys.stdout = sys.stderr = io.TextIOWrapper(io.FileIO(1, "w", closefd=False), write_through=True)
            if fault is not None:
                fault.install()
            code = work()
        except SystemExit as end:
            code = int(end.code or 0)
        except BaseException:  # noqa: BLE001 - a traceback is what is looked for
            traceback.print_exc()
        finally:
            os.write(writing, bytes([fault is not None and fault.writes > fault.fails_at]))
            os._exit(code)
    os.close(writing)
    meanwhile(child)
    came = os.read(reading, 1) == b"\x01"
    os.close(reading)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), came


class MountedDisk:
    """A file system in memory, of which only so many pages are free."""

    def __init__(self, place: Path) -> None:
        self.place = place

    def mount(self) -> str:
        """Mount it; return why that cannot be done, or nothing."""
        self.place.mkdir(parents=True, exist_ok=True)
        words = ["mount", "-t", "tmpfs", "-o", "size=256m", "tmpfs", str(self.place)]
        try:
            done = subprocess.run(words, capture_output=True, text=True, check=False)
        except FileNotFoundError:
            return "there is no command mount"
        return "" if done.returncode == 0 else f"no tmpfs mounts here: {done.stderr.strip()}"

    def leave_free(self, pages: int | None) -> None:
        """Let so many pages be free; None gives back all."""
        found = os.statvfs(self.place)
        used = (found.f_blocks - found.f_bfree) * found.f_frsize
        size = "256m" if pages is None else str(used + pages * PAGE)
        subprocess.run(["mount", "-o", f"remount,size={size}", str(self.place)], check=True)

    def make_read_only(self) -> None:
        subprocess.run(["mount", "-o", "remount,ro", str(self.place)], check=True)

    def unmount(self) -> None:
        subprocess.run(["umount", "-l", str(self.place)], check=True)
