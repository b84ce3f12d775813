"""How much memory a process may have."""

import os
import sys
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

CGROUPS = Path("/sys/fs/cgroup")
# Linux takes large blocks of memory back, and gives them again page by page: a tenth to a fifth of the time of a step
# on a CPU. With these variables a process keeps them.
KEPT_BLOCKS = {"MALLOC_MMAP_MAX_": "0", "MALLOC_TRIM_THRESHOLD_": str(2**30)}


def memory_limit() -> int | None:
    """Return how many bytes of memory this process can have at most, however much of it is in use; None if unknown.

    That is what the machine has, or less where a container, a job of a cluster or `ulimit -v` says so.
    """
    return min(_limits(), default=None)


def _limits() -> Iterator[int]:
    with suppress(AttributeError, ValueError, OSError):
        yield os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    if sys.platform != "win32":
        import resource

        soft, _ = resource.getrlimit(resource.RLIMIT_AS)
        if soft != resource.RLIM_INFINITY:
            yield soft
    with suppress(OSError):
        for line in Path("/proc/self/cgroup").read_text().splitlines():
            yield from _limits_of_cgroup(line)


def _limits_of_cgroup(line: str) -> Iterator[int]:
    """Give the limits of a control group and of those that it lies in; a line is NUMBER:CONTROLLERS:PATH."""
    _, controllers, path = line.split(":", 2)
    if controllers not in ("", "memory"):
        return
    root, name = (CGROUPS / "memory", "memory.limit_in_bytes") if controllers else (CGROUPS, "memory.max")
    folder = root / path.strip("/")
    for one in (folder, *folder.parents):
        with suppress(OSError, ValueError):
            yield int((one / name).read_text())
        if one == root:
            return
