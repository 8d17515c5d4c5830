"""Graph capture: the operators of a step are captured once on the device and launched together from then on.

An NPU is bound by the rate at which the host launches operators: a captured step is one launch.
``torch.npu.NPUGraph`` mirrors ``torch.cuda.CUDAGraph``, so that one code path serves both.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable
from weakref import WeakSet

import torch

from .device import reserved_memory, traits_of
from .errors import SetupError, first_line, one_line

MAX_CAPTURES = 32  # at a time: a device has room for few (each takes memory, and on an NPU streams)
_capturing = threading.Lock()  # a capture begins by returning unused memory, which would end another one


def check_graphs(device: torch.device) -> None:
    """Raise SetupError where an environment variable keeps steps from being captured."""
    for name, value in traits_of(device).no_graph_with.items():
        if os.environ.get(name) == value:
            raise SetupError("--graph on", f"nothing can be captured with {name}={value}", f"unset {name}")


class CapturedStep:
    """A call that is captured with a tensor like ``example``; its other tensors must keep their addresses.

    The capture computes nothing: the first replay does.  ``call`` must not wait for the device, nor depend on values
    of the host that change from step to step.  A capture that fails raises what the device raises.
    """

    def __init__(self, call: Callable[[torch.Tensor], torch.Tensor], example: torch.Tensor) -> None:
        device = example.device
        traits = traits_of(device)
        module = traits.module
        with _capturing:
            module.empty_cache()
            before = reserved_memory(device)
            self.graph = getattr(module, traits.graph)()
            self.input = example.clone()
            # The outer stream is the current one: a capture that does not even begin leaves its own as the current.
            # "global" would let a synchronizing call of any other thread end the capture.
            with (
                module.stream(module.current_stream()),
                module.graph(self.graph, capture_error_mode="thread_local"),
            ):
                self.output = call(self.input)
            self.bytes = max(0, reserved_memory(device) - before)
            """Memory of the device that the graph holds."""

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        """Replay the graph with ``x``, of the example's shape and dtype.  Returns a copy of the output."""
        self.input.copy_(x)
        self.graph.replay()
        return self.output.clone()  # the next replay overwrites the output


class Captures:
    """The captured steps of one encoder: their number is bounded, and a capture that fails ends them."""

    def __init__(self, announce: Callable[[str], None]) -> None:
        """``announce`` gets a line for each block size that is captured, and one when steps run eagerly."""
        self.announce = announce
        self.wanted = True
        """Whether steps are to be captured; False after a failure."""
        self.alive: WeakSet[CapturedStep] = WeakSet()
        """Captured steps whose encoder states exist: each state has its own."""
        self.reported: set[int] = set()
        """Numbers of frames that were reported; 0 for the bound."""

    def capture(
        self, call: Callable[[torch.Tensor], torch.Tensor], example: torch.Tensor, frames: int
    ) -> CapturedStep | None:
        """Capture a step of ``frames`` frames; return None where it has to run eagerly."""
        if len(self.alive) >= MAX_CAPTURES:
            self._report(0, f"{MAX_CAPTURES} steps are captured, which is the limit; others run without a graph")
            return None
        try:
            step = CapturedStep(call, example)
        except Exception as error:  # whatever the reason, an eager step computes the same
            self.wanted = False
            self.announce(one_line("--graph on", f"capture failed: {first_line(error)}", "continuing without a graph"))
            return None
        self.alive.add(step)
        length = f"{frames} frame{'s' * (frames > 1)}"
        self._report(frames, f"captured a step of {length}, {step.bytes / 1e6:.1f} MB of device memory")
        return step

    def _report(self, frames: int, line: str) -> None:
        if frames not in self.reported:
            self.reported.add(frames)
            self.announce(one_line("--graph on", line))
