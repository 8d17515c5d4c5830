"""Streaming speech recognition with cache-aware FastConformer-RNNT checkpoints on Ascend NPUs, GPUs and CPUs."""

import os
from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .engine import ModelOptions, StreamOptions
    from .recognizer import Recognizer, load_recognizer
    from .streaming import Stream
    from .transcript import Transcript

__version__ = "0.10.0"
__all__ = ["ModelOptions", "Recognizer", "Stream", "StreamOptions", "Transcript", "__version__", "load_recognizer"]

_MODULES = {
    "ModelOptions": "engine",
    "Recognizer": "recognizer",
    "Stream": "streaming",
    "StreamOptions": "engine",
    "Transcript": "transcript",
    "load_recognizer": "recognizer",
}
"""Modules of the public names."""

# torch_npu registers itself to be imported by `import torch`, which then fails on a host without CANN, even for the
# CPU.  This must be set before the first `import torch`; for an npu device, device.py imports torch_npu by name.
os.environ["TORCH_DEVICE_BACKEND_AUTOLOAD"] = "0"

# How long threads spin before they sleep.  Long spinning takes the core from other processes, sleeping at once costs a
# wake-up for each operator.  An int8 step of 80 ms at full size on 2 threads, median ms, alone and next to a busy
# process: sleeping at once 88 and 76, this setting 54 and 110, long spinning 44 and 264.  OpenMP reads it when torch is
# loaded; the user's own setting wins.
if not os.environ.keys() & {"OMP_WAIT_POLICY", "GOMP_SPINCOUNT"}:
    os.environ.update({"OMP_WAIT_POLICY": "PASSIVE", "GOMP_SPINCOUNT": "3000"})


def __getattr__(name: str) -> object:
    """Import a public name when it is first used: torch takes a second."""
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    module = import_module(f".{_MODULES[name]}", __name__)
    value = globals()[name] = getattr(module, name)
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
