"""Memory, cores and open files that this process may use, including the limits of a container."""

from __future__ import annotations

import os
import resource
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

from ..errors import SetupError

CGROUP = Path("/sys/fs/cgroup")
PROC = Path("/proc")
MEMORY_FILES = (
    ("memory.max", "memory.current", "inactive_file"),  # version 2 of control groups
    ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file"),  # version 1
)
"""Limit, usage, and the entry of ``memory.stat`` that counts the caches which the kernel frees on demand."""


class Memory(NamedTuple):
    """Host memory in bytes."""

    free: int
    """What this process can still allocate."""
    total: int
    limited: bool
    """Whether a container's limit sets ``total``."""


def allow_open_files(count: int) -> None:
    """Let this process have so many files open.  Raises SetupError where its limit cannot be raised as far."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft == resource.RLIM_INFINITY or count <= soft:
        return
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (count, hard))
    except (OSError, ValueError) as error:
        problem = f"{count:,} may be needed, {hard:,} are allowed"
        raise SetupError("open files", problem, f"ulimit -n {count}") from error


def free_memory() -> Memory:
    """Return the memory that this process may use."""
    values = dict(line.split(":") for line in (PROC / "meminfo").read_text().splitlines())
    free, total = (int(values[name].split()[0]) * 1024 for name in ("MemAvailable", "MemTotal"))
    limited = False
    for files in MEMORY_FILES:
        for folder in _cgroups("memory"):
            with suppress(OSError, ValueError):  # a missing file, "max"
                limit, left = _limit(folder, *files)
                if limit < total:
                    free = min(free, left)
                    total = limit
                    limited = True
    return Memory(free, total, limited)


def _limit(folder: Path, limit: str, usage: str, cache: str) -> tuple[int, int]:
    """Return the memory limit of a control group and what is left of it."""
    total = int((folder / limit).read_text())
    stats = dict(line.split() for line in (folder / "memory.stat").read_text().splitlines())
    return total, total - int((folder / usage).read_text()) + int(stats.get(cache, 0))


def thread_seconds() -> tuple[float, float]:
    """Return the seconds that this thread has run, and those that it was ready to run but had to wait for a core.

    Both are 0 where the kernel does not count them.
    """
    try:
        ran, waited, _ = (PROC / "thread-self" / "schedstat").read_text().split()
    except (OSError, ValueError):
        return 0.0, 0.0
    return int(ran) / 1e9, int(waited) / 1e9


def cores() -> float:
    """Return the number of CPU cores that this process may use; a container's quota may be a fraction."""
    count = float(len(os.sched_getaffinity(0)))
    for folder in _cgroups("cpu"):
        with suppress(OSError, ValueError):
            quota, period = map(int, (folder / "cpu.max").read_text().split())
            count = min(count, quota / period)
        with suppress(OSError, ValueError):
            quota, period = (int((folder / f"cpu.cfs_{name}_us").read_text()) for name in ("quota", "period"))
            if quota > 0:  # -1: no limit
                count = min(count, quota / period)
    return count


def _cgroups(controller: str) -> Iterator[Path]:
    """Yield the folders of this process's control group and of its parents, of versions 2 and 1."""
    lines = []
    with suppress(OSError):
        lines = (PROC / "self" / "cgroup").read_text().splitlines()
    for line in lines:
        _, controllers, path = line.split(":", 2)
        if controllers and controller not in controllers.split(","):
            continue
        base = CGROUP / controller if controllers else CGROUP
        inner = base / path.strip("/")
        yield from (inner, *(folder for folder in inner.parents if folder.is_relative_to(base)))
