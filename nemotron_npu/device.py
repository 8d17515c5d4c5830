"""``"npu:0"``, ``"cuda:0"``, ``"cpu"`` -> a torch.device that works, or a SetupError that says what is missing."""

from __future__ import annotations

import ctypes
import importlib.util
import re
import sys
from contextlib import suppress

from .errors import ModelError, SetupError, first_line

DEVICE = re.compile(r"cpu|(npu|cuda)(:\d+)?")


def choose_device(name: str | None):
    """The torch.device called ``name``; without a name ``npu:0`` if one is usable, else ``cpu``.

    Returns (device, reason): ``reason`` is why the default is not the NPU, or None.
    Raises SetupError when a device that was asked for is not usable.
    """
    import torch

    if name is None:
        try:
            return _npu(0), None
        except SetupError as error:
            return torch.device("cpu"), str(error)
    if not DEVICE.fullmatch(name):
        raise SetupError(f"{name}: no such device: use npu:N, cuda:N or cpu")
    kind, _, index = name.partition(":")
    if kind == "npu":
        return _npu(int(index or 0)), None
    if kind == "cuda":
        return _cuda(int(index or 0)), None
    return torch.device("cpu"), None


def named_device(name: str | None):
    """The torch.device called ``name``, None for None.  Raises SetupError when it is not usable."""
    return choose_device(name)[0] if name else None


def _npu(index: int):
    import torch

    if "torch_npu" not in sys.modules and importlib.util.find_spec("torch_npu") is None:
        raise SetupError(
            f"npu:{index} is not usable: torch_npu is not installed: on an Ascend host, source setup_env.sh"
        )
    try:
        import torch_npu  # noqa: F401  registers torch.npu
    except Exception as error:  # a missing CANN library is an ImportError, a mismatched one may be anything
        raise SetupError(
            f"npu:{index} is not usable: torch_npu cannot load CANN ({first_line(error)}): "
            "source /usr/local/Ascend/ascend-toolkit/set_env.sh first"
        ) from error
    try:
        count = torch.npu.device_count() if torch.npu.is_available() else 0
    except Exception as error:
        raise SetupError(f"npu:{index} is not usable: {first_line(error)}: look at npu-smi info") from error
    if count == 0:
        raise SetupError(
            f"npu:{index} is not usable: torch_npu finds no NPU: look at npu-smi info and ASCEND_RT_VISIBLE_DEVICES"
        )
    if index >= count:
        raise SetupError(f"npu:{index} does not exist: {_offered('npu', count)}")
    try:
        torch.npu.set_device(index)
    except Exception as error:
        raise SetupError(f"npu:{index} is not usable: {first_line(error)}: look at npu-smi info") from error
    return torch.device("npu", index)


def _cuda(index: int):
    import torch

    if not torch.cuda.is_available():
        built = "finds no GPU" if torch.version.cuda else "is a build without CUDA"
        raise SetupError(f"cuda:{index} is not usable: torch {torch.__version__} {built}")
    if index >= torch.cuda.device_count():
        raise SetupError(f"cuda:{index} does not exist: {_offered('cuda', torch.cuda.device_count())}")
    torch.cuda.set_device(index)
    return torch.device("cuda", index)


def _offered(kind: str, count: int) -> str:
    return f"this host offers {kind}:0" + (f" to {kind}:{count - 1}" if count > 1 else "")


def device_name(device) -> str:
    """What the hardware calls itself, for reports; the device string for the CPU."""
    module = _module(device)
    return module.get_device_name(device) if module else "cpu"


def synchronize(device) -> None:
    """Wait until the device has done all that it was given; nothing to wait for on the CPU."""
    module = _module(device)
    if module:
        module.synchronize(device)


def reset_peak_memory(device) -> None:
    """Start ``peak_memory`` anew where the device can (the host's own peak cannot be reset)."""
    module = _module(device)
    if module:
        with suppress(AttributeError):
            module.reset_peak_memory_stats(device)


def peak_memory(device) -> dict[str, int]:
    """Peak bytes: ``host`` is this process's resident memory since its start, ``device`` what torch held there."""
    with open("/proc/self/status") as status:  # getrusage() counts what was there before exec() too
        peaks = {"host": next(int(line.split()[1]) * 1024 for line in status if line.startswith("VmHWM:"))}
    module = _module(device)
    if module:
        peaks["device"] = int(module.max_memory_allocated(device))
    return peaks


def allocated_memory(device) -> int:
    """Bytes that torch holds on the device now; 0 on a CPU, where nobody counts them."""
    module = _module(device)
    return int(module.memory_allocated(device)) if module else 0


def is_out_of_memory(error: Exception) -> bool:
    """Whether a device or the host had not enough memory.  torch_npu and older torch tell it by the text alone."""
    text = str(error).lower()
    told = "out of memory" in text or "can't allocate memory" in text or "bad_alloc" in text
    return isinstance(error, MemoryError) or isinstance(error, RuntimeError) and told


def too_little_memory(device, error: Exception) -> ModelError:
    """What to say where even one recording by itself is too much."""
    return ModelError(f"{device} has not enough memory for it alone: {first_line(error)}")


def release_memory(device) -> None:
    """Give what torch keeps of freed device memory back, so that pieces of another size find room."""
    module = _module(device)
    if module:
        module.empty_cache()


def trim_memory() -> None:
    """Give freed host memory back to the system: glibc keeps what lies between blocks that are still in use."""
    with suppress(AttributeError):  # another C library
        ctypes.CDLL(None).malloc_trim(0)


def _module(device):
    import torch

    return None if device.type == "cpu" else getattr(torch, device.type)
