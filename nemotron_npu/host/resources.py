"""What this process may use of the machine: memory and cores, also where a container has less of them."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

CGROUP, PROC = Path("/sys/fs/cgroup"), Path("/proc")


def free_memory() -> tuple[int, int, bool]:
    """Bytes that this process may still take and may have in all, and whether a container's limit says so."""
    values = dict(line.split(":") for line in (PROC / "meminfo").read_text().splitlines())
    free, total = (int(values[name].split()[0]) * 1024 for name in ("MemAvailable", "MemTotal"))
    limited = False
    for limit, used, stat in (
        ("memory.max", "memory.current", "inactive_file"),
        ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file"),
    ):
        for folder in _cgroups("memory"):
            with suppress(OSError, ValueError):
                most = int((folder / limit).read_text())
                stats = dict(line.split() for line in (folder / "memory.stat").read_text().splitlines())
                left = most - int((folder / used).read_text()) + int(stats.get(stat, 0))  # caches make way
                if most < total:
                    free, total, limited = min(free, left), most, True
    return free, total, limited


def cores() -> float:
    """CPU cores that this process may use; a container's quota may be a part of one."""
    count = float(len(os.sched_getaffinity(0)))
    for folder in _cgroups("cpu"):
        with suppress(OSError, ValueError):
            quota, period = map(int, (folder / "cpu.max").read_text().split())
            count = min(count, quota / period)
        with suppress(OSError, ValueError):
            quota, period = (int((folder / f"cpu.cfs_{name}_us").read_text()) for name in ("quota", "period"))
            count = min(count, quota / period) if quota > 0 else count
    return count


def _cgroups(controller: str) -> Iterator[Path]:
    """This process's control group and those around it, of version 2 and 1."""
    lines = []
    with suppress(OSError):
        lines = (PROC / "self" / "cgroup").read_text().splitlines()
    for line in lines:
        _, controllers, path = line.split(":", 2)
        if not controllers or controller in controllers.split(","):
            base = CGROUP if not controllers else CGROUP / controller
            inner = base / path.strip("/")
            yield from (inner, *(folder for folder in inner.parents if folder.is_relative_to(base)))
