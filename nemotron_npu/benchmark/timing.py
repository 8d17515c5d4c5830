"""Time calls, and count their operators."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode

from ..device import synchronize
from .results import Times

UNSAFE_VIEW = "aten::_unsafe_view"
"""A view that does not say so."""


def measure_ms(call: Callable[[], object], device: torch.device) -> float:
    """Time one call in milliseconds; the device is synchronized before each reading of the clock."""
    synchronize(device)
    began = time.perf_counter()
    call()
    synchronize(device)
    return (time.perf_counter() - began) * 1000


def measure_in_turn(
    calls: Sequence[Callable[[], object]], device: torch.device, rounds: int, seconds: float = 0.0
) -> list[Times]:
    """Time every call once in each round: at least ``rounds`` of them, and more until ``seconds`` are over."""
    began = time.perf_counter()
    runs: list[list[float]] = []
    while len(runs) < rounds or time.perf_counter() - began < seconds:
        runs.append([measure_ms(call, device) for call in calls])
    return [Times.of(own) for own in zip(*runs, strict=True)]


def count_operators(call: Callable[[], object]) -> int:
    """Count the dispatched operators of a call that are not views."""
    with _Count() as count:
        call()
    return count.operators


class _Count(TorchDispatchMode):
    """Count the operators that reach the kernels: composite operators by their parts, views not at all."""

    def __init__(self) -> None:
        super().__init__()
        self.operators = 0

    def __torch_dispatch__(
        self, function: Any, types: Any, args: tuple = (), kwargs: dict[str, Any] | None = None
    ) -> object:
        kwargs = kwargs or {}
        with self:
            result = function.decompose(*args, **kwargs)
        if result is not NotImplemented:
            return result
        is_view = function.is_view or function.name() == UNSAFE_VIEW
        self.operators += not is_view
        return function(*args, **kwargs)
