"""Streaming speech recognition with cache-aware FastConformer-RNNT checkpoints on Ascend NPUs, GPUs and CPUs."""

import os
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .engine import ModelOptions
    from .recognizer import Recognizer, Stream, load_recognizer
    from .transcript import Transcript

__version__ = "0.9.0"
__all__ = ["ModelOptions", "Recognizer", "Stream", "Transcript", "__version__", "load_recognizer"]

# torch_npu registers itself to be imported by `import torch`, which then dies on a host without CANN, even for the CPU.
# It must be set before the first `import torch`; for an npu device, device.py imports torch_npu by name.
os.environ["TORCH_DEVICE_BACKEND_AUTOLOAD"] = "0"

# How long threads spin before they sleep.  Spinning for long takes the core of whoever shares it, sleeping at once
# costs a wake-up for each operator.  An int8 step of 80 ms at full size on 2 threads, median ms, alone and beside a
# busy process: sleeping at once 88 and 76, this 54 and 110, spinning for long 44 and 264.  Read by OpenMP when torch
# is loaded; the user's own setting wins.
if not os.environ.keys() & {"OMP_WAIT_POLICY", "GOMP_SPINCOUNT"}:
    os.environ.update({"OMP_WAIT_POLICY": "PASSIVE", "GOMP_SPINCOUNT": "3000"})


def __getattr__(name: str):
    """Import the public names when they are first asked for: torch takes a second."""
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module

    module = {"ModelOptions": "engine", "Transcript": "transcript"}.get(name, "recognizer")
    value = globals()[name] = getattr(import_module(f".{module}", __name__), name)
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
