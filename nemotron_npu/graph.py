"""A step whose operators are recorded once on the device and launched all together from then on.

An NPU is bound by how fast the host can launch operators: a recorded step is one launch.  ``torch.npu.NPUGraph``
mirrors ``torch.cuda.CUDAGraph``, so that one code path serves both.
"""

from __future__ import annotations

from collections.abc import Callable

import torch

from .device import traits_of


class Recorded:
    """``call`` recorded with a tensor like ``example``; its other tensors must stay where they are.

    Recording does nothing yet: it is the first replay that computes.  ``call`` may not wait for the device, nor depend
    on anything on the host that changes from step to step.
    """

    def __init__(self, call: Callable[[torch.Tensor], torch.Tensor], example: torch.Tensor):
        traits = traits_of(example.device)
        module = traits.module
        self.graph = getattr(module, traits.graph)()
        self.input = example.clone()
        with module.graph(self.graph):
            self.output = call(self.input)

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        self.input.copy_(x)
        self.graph.replay()
        return self.output.clone()  # the next replay overwrites it
