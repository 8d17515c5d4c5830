"""Which devices the workers get, by the resources that Ray reports."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

from ..device import TRAITS, check_switches
from ..errors import SetupError
from .worker import Setup


@dataclass(frozen=True)
class Placement:
    """Where workers run, and what each is given."""

    kind: str
    """Device kind: ``"npu"``, ``"cuda"`` or ``"cpu"``."""
    count: int
    """Number of workers."""
    room: int
    """Workers that there is room for now."""
    setup: Setup
    """What each loads, on the one device that it sees."""
    actor_options: dict[str, Any]
    """Ray's options of a worker."""
    remark: str
    """Why the device kind is not the default, or empty."""


def cores_per_worker(setup: Setup) -> int:
    """CPU cores that Ray reserves for each worker: one, unless the CPU is the device and has more threads."""
    if setup.device in ("", "cpu"):
        return setup.threads or 1
    return 1


def place(setup: Setup, count: int | None, resources: dict[str, float], *, may_grow: bool) -> Placement:
    """Choose the device kind and the number of workers.

    ``resources`` are those of the whole cluster; if it ``may_grow``, more workers can be asked for than it has room for
    now.  ``count`` is None for as many as there is room for.  Raises SetupError if there is no such device, or it
    lacks what is to be switched on.
    """
    has_npu = resources.get("NPU", 0) > 0
    kind = setup.device or ("npu" if has_npu else "cpu")
    remark = " (Ray knows of no NPU)" if not setup.device and kind == "cpu" else ""
    traits = TRAITS[kind]
    check_switches(kind, setup.options)
    cores = cores_per_worker(setup)
    room = int(resources.get(traits.ray_resource, 0))
    if traits.is_host:
        room //= cores
    if not room or (not may_grow and (count or 0) > room):
        where = "the cluster" if may_grow else "this host"
        known = room or "no"
        raise SetupError(f"--device {kind}", f"Ray knows of {known} {traits.ray_resource}s on {where}")
    options: dict[str, Any] = {"num_cpus": cores, "max_restarts": 0, "concurrency_groups": {"status": 1}}
    options |= traits.ray_options
    return Placement(kind, count or room, room, _on_device(setup, kind, cores), options, remark)


def _on_device(setup: Setup, kind: str, cores: int) -> Setup:
    if TRAITS[kind].is_host:
        return replace(setup, device="cpu", threads=cores)
    return replace(setup, device=f"{kind}:0")  # a worker sees its own device alone


def threads_per_device(kind: str, resources: dict[str, float]) -> int:
    """CPU threads for each device of a node, idle devices included: no worker waits for another's cores."""
    cores = int(resources.get("CPU", 1))
    devices = int(resources.get(TRAITS[kind].ray_resource, 1))
    return max(1, cores // max(1, devices))
