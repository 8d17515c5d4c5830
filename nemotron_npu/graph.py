"""Graph capture: the operators of a step are captured once on the device and launched together from then on.

An NPU is bound by the rate at which the host launches operators: a captured step is one launch.
``torch.npu.NPUGraph`` mirrors ``torch.cuda.CUDAGraph``, so that one code path serves both.
"""

from __future__ import annotations

from collections.abc import Callable

import torch

from .device import traits_of


class CapturedStep:
    """A call that is captured with a tensor like ``example``; its other tensors must keep their addresses.

    The capture computes nothing: the first replay does.  ``call`` must not wait for the device, nor depend on values
    of the host that change from step to step.
    """

    def __init__(self, call: Callable[[torch.Tensor], torch.Tensor], example: torch.Tensor) -> None:
        traits = traits_of(example.device)
        self.graph = getattr(traits.module, traits.graph)()
        self.input = example.clone()
        # "global" would let a synchronizing call of any other thread end the capture
        with traits.module.graph(self.graph, capture_error_mode="thread_local"):
            self.output = call(self.input)

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        """Replay the graph with ``x``, of the example's shape and dtype.  Returns a copy of the output."""
        self.input.copy_(x)
        self.graph.replay()
        return self.output.clone()  # the next replay overwrites the output
