"""Device kinds (CPU, NVIDIA GPU, Ascend NPU): how to open a device, and what each kind can do.

``TRAITS`` has one entry per kind.  A new kind is added there; nothing else branches on the kind.
This module imports torch at the first use, so that ``--help`` and ``--doctor`` can read the traits without it.
"""

from __future__ import annotations

import ctypes
import importlib.util
import re
import sys
import warnings
from collections.abc import Callable
from contextlib import redirect_stdout, suppress
from dataclasses import dataclass, field
from operator import attrgetter
from types import ModuleType
from typing import TYPE_CHECKING, Any

from .errors import ModelError, SetupError, first_line
from .host import ascend

if TYPE_CHECKING:
    import torch

    from .engine import ModelOptions

OUT_OF_MEMORY = ("out of memory", "can't allocate memory", "bad_alloc")  # in messages of torch, torch_npu and C++
SET_ENV = "/usr/local/Ascend/ascend-toolkit/set_env.sh"


@dataclass(frozen=True)
class DeviceTraits:
    """What one kind of device can do."""

    kind: str
    """``torch.device.type``."""
    open: Callable[[int], torch.device]
    """Return the device with this index.  Raises SetupError when it is not usable."""
    dtypes: tuple[str, ...]
    """Dtypes that the kind may offer; ``dtypes.offered_dtypes`` tells which of them the device at hand offers."""
    configure: Callable[..., None] | None = None
    """Called as ``configure(allow_hf32=...)``, see the function of that name; None where float32 is always float32."""
    settings: Callable[[], dict[str, bool]] = dict
    """Return the switches that ``configure`` sets, as torch has them now."""
    is_host: bool = False
    """Whether tensors lie in the host's memory: the host reads them without waiting, and log-mel runs there."""
    stores_dtype: bool = True
    """Whether the whole encoder is stored in the dtype; if not, the matrix products alone use it."""
    graph: str = ""
    """Class in the kind's torch module that holds a captured graph; empty where there is nothing to capture."""
    no_graph_with: dict[str, str] = field(default_factory=dict)
    """Environment variables and their values with which the kind captures nothing."""
    has_fused: bool = False
    """Whether the kind has the operators of ``fused.py``."""
    max_slots: int = 16
    """Default limit of batch slots."""
    cached_values: int | None = None
    """Values of one activation, all slots together, that stay in the cache of the device; None sets no limit."""
    subsampled_frames: int | None = None
    """Encoder frames that are subsampled together; None takes the whole block."""
    tool: str | None = None
    """Command that shows the processes and the memory of the device."""
    ray_resource: str = "CPU"
    """Name of the resource in Ray's own terms."""
    ray_options: dict = field(default_factory=dict)
    """Options of a Ray actor that reserve one such device."""

    @property
    def module(self) -> Any:
        """The torch module that manages the kind's memory and queues, such as ``torch.npu``; None for the CPU."""
        return None if self.is_host else getattr(import_torch(), self.kind)

    def storage_dtype(self, dtype: str) -> torch.dtype:
        """Return the dtype of the encoder's tensors when ``dtype`` is asked for: float32 where products convert."""
        return getattr(import_torch(), dtype if self.stores_dtype else "float32")


def import_torch() -> ModuleType:
    """Return torch.  Importing it takes about a second, which ``--help`` does not have."""
    import torch  # start-up time: see above

    return torch


def traits_of(device: torch.device) -> DeviceTraits:
    """Return the traits of the kind of ``device``."""
    return TRAITS[device.type]


def choose_device(name: str | None) -> tuple[torch.device, str | None]:
    """Return the device called ``name``; without a name ``npu:0`` if it is usable, else ``cpu``.

    Returns (device, reason): ``reason`` tells why the default is not the NPU, where one may be, or is None.
    Raises SetupError when a device that was asked for is not usable.
    """
    if name is None:
        try:
            return TRAITS[PREFERRED].open(0), None
        except SetupError as error:
            return TRAITS["cpu"].open(0), str(error) if _may_have_npu() else None
    if not DEVICE.fullmatch(name):
        raise SetupError(name, "no such device", f"use {DEVICE_NAMES}")
    kind, _, index = name.partition(":")
    return TRAITS[kind].open(int(index or 0)), None


def check_switches(kind: str, options: ModelOptions) -> None:
    """Raise SetupError for what ``options`` switch on and this kind of device does not have."""
    traits = TRAITS[kind]
    if options.graph and not traits.graph:
        raise SetupError("--graph on", f"{kind} has no graphs to capture", "use npu:N or cuda:N")
    if options.npu_fused and not traits.has_fused:
        raise SetupError("--npu_fused", f"{kind} has no such operators", "use npu:N")
    if options.allow_hf32 and not traits.configure:
        raise SetupError("--allow_hf32", f"{kind} computes float32 in float32 only", "use npu:N or cuda:N")


def configure(device: torch.device, *, allow_hf32: bool = False) -> None:
    """Let ``device`` compute float32 in float32, or with ``allow_hf32`` in the shorter HF32 (NPU) or TF32 (GPU).

    Both keep the range of float32, but 11 and 10 bits of its mantissa of 23.  torch_npu and torch allow them to
    convolutions unless they are told otherwise.  An NPU also keeps to formats and kernels that graph capture accepts.
    The switches are the process's: call this before the first operator.
    """
    if set_switches := traits_of(device).configure:
        set_switches(allow_hf32=allow_hf32)


def device_settings(device: torch.device) -> dict[str, bool]:
    """Return the switches that ``configure`` sets, by their names in torch, as they are now; empty for the CPU."""
    return traits_of(device).settings()


def _configure_npu(*, allow_hf32: bool) -> None:
    npu = import_torch().npu
    npu.conv.allow_hf32 = allow_hf32  # torch_npu's own default is True
    npu.matmul.allow_hf32 = allow_hf32
    npu.config.allow_internal_format = False  # below A3, torch_npu 2.9.0 calls convolutions that no graph captures
    npu.set_compile_mode(jit_compile=False)  # 910A and 310P would compile every operator for every shape


def _npu_settings() -> dict[str, bool]:
    npu = import_torch().npu
    get_option = attrgetter("_C._npu_getOption")(sys.modules["torch_npu"])  # no public name reads the format
    return {
        "conv.allow_hf32": npu.conv.allow_hf32,
        "matmul.allow_hf32": npu.matmul.allow_hf32,
        "allow_internal_format": get_option("ALLOW_INTERNAL_FORMAT") == b"enable",
        "jit_compile": not npu.is_jit_compile_false(),
    }


def _configure_cuda(*, allow_hf32: bool) -> None:
    backends = import_torch().backends
    with warnings.catch_warnings():  # torch recommends names that NeMo and lightning cannot be combined with
        warnings.simplefilter("ignore")
        backends.cudnn.allow_tf32 = allow_hf32  # torch's own default is True
        backends.cuda.matmul.allow_tf32 = allow_hf32


def _cuda_settings() -> dict[str, bool]:
    backends = import_torch().backends
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return {"conv.allow_tf32": backends.cudnn.allow_tf32, "matmul.allow_tf32": backends.cuda.matmul.allow_tf32}


def _may_have_npu() -> bool:
    """Return whether an NPU, CANN or torch_npu is seen on this host."""
    has_package = "torch_npu" in sys.modules or importlib.util.find_spec("torch_npu") is not None
    return has_package or ascend.is_here() or ascend.cann_is_loaded() or ascend.find_cann() is not None


def _open_cpu(_: int) -> torch.device:
    return import_torch().device("cpu")


def _open_npu(index: int) -> torch.device:
    torch = import_torch()
    name = f"npu:{index}"
    if "torch_npu" not in sys.modules and importlib.util.find_spec("torch_npu") is None:
        raise SetupError(name, "torch_npu is not installed", "on an Ascend host, source setup_env.sh")
    try:
        with redirect_stdout(sys.stderr):  # it prints warnings, and stdout is for results
            import torch_npu  # noqa: F401  optional; its import registers torch.npu
    except Exception as error:  # a missing CANN library raises ImportError, a mismatched one may raise anything
        problem = f"torch_npu cannot load CANN: {first_line(error)}"
        raise SetupError(name, problem, f"source {SET_ENV} first") from error
    try:
        count = torch.npu.device_count() if torch.npu.is_available() else 0
    except Exception as error:
        raise SetupError(name, first_line(error), "look at npu-smi info") from error
    if count == 0:
        hint = "look at npu-smi info and ASCEND_RT_VISIBLE_DEVICES"
        raise SetupError(name, "torch_npu finds no NPU", hint)
    _check_index("npu", index, count)
    try:
        torch.npu.set_device(index)
    except Exception as error:
        raise SetupError(name, first_line(error), "look at npu-smi info") from error
    return torch.device("npu", index)


def _open_cuda(index: int) -> torch.device:
    torch = import_torch()
    name = f"cuda:{index}"
    if torch.version.cuda is None:
        raise SetupError(name, f"torch {torch.__version__} is a build without CUDA", "install a CUDA build of torch")
    if not torch.cuda.is_available():
        raise SetupError(name, f"torch {torch.__version__} finds no GPU", "look at nvidia-smi")
    _check_index("cuda", index, torch.cuda.device_count())
    torch.cuda.set_device(index)
    return torch.device("cuda", index)


def _check_index(kind: str, index: int, count: int) -> None:
    """Raise SetupError unless the host has a device with this index."""
    if index < count:
        return
    offered = f"this host offers {kind}:0"
    if count > 1:
        offered += f" to {kind}:{count - 1}"
    raise SetupError(f"{kind}:{index}", "does not exist", offered)


TRAITS = {
    traits.kind: traits
    for traits in (
        DeviceTraits(
            kind="npu",
            open=_open_npu,
            dtypes=("float32", "bfloat16", "float16"),
            configure=_configure_npu,
            settings=_npu_settings,
            graph="NPUGraph",
            no_graph_with={"TASK_QUEUE_ENABLE": "2"},  # torch_npu prepares launches in a thread of its own
            has_fused=True,
            tool="npu-smi info",
            ray_resource="NPU",
            ray_options={"resources": {"NPU": 1}},
        ),
        DeviceTraits(
            kind="cuda",
            open=_open_cuda,
            dtypes=("float32", "bfloat16", "float16"),
            configure=_configure_cuda,
            settings=_cuda_settings,
            graph="CUDAGraph",
            tool="nvidia-smi",
            ray_resource="GPU",
            ray_options={"num_gpus": 1},
        ),
        DeviceTraits(
            kind="cpu",
            open=_open_cpu,
            dtypes=("float32", "bfloat16", "int8"),
            is_host=True,
            stores_dtype=False,
            max_slots=8,
            cached_values=128 * 1024,
            subsampled_frames=16,  # with 256 channels of features they stay in the cache
        ),
    )
}
"""Traits by kind of device."""

PREFERRED = "npu"  # the default where one is usable; else the CPU
NUMBERED = [traits.kind for traits in TRAITS.values() if not traits.is_host]
DEVICE = re.compile(rf"cpu|({'|'.join(NUMBERED)})(:\d+)?")
DEVICE_NAMES = ", ".join(f"{kind}:N" for kind in NUMBERED) + " or cpu"


def device_name(device: torch.device) -> str:
    """Return the name of the hardware for reports, such as ``Ascend910B3``; ``cpu`` for the CPU."""
    module = traits_of(device).module
    return module.get_device_name(device) if module else "cpu"


def synchronize(device: torch.device) -> None:
    """Wait until the device has finished all queued work; return at once for the CPU."""
    module = traits_of(device).module
    if module:
        module.synchronize(device)


def upload(x: torch.Tensor, device: torch.device) -> torch.Tensor:
    """Copy a tensor of the host to the device without waiting for it, through pinned memory; on a CPU return ``x``."""
    return x if traits_of(device).is_host else x.pin_memory().to(device, non_blocking=True)


def device_memory(device: torch.device) -> tuple[int, int] | None:
    """Return (free, total) bytes of the device's own memory; None for the CPU, which has none."""
    module = traits_of(device).module
    return module.mem_get_info(device) if module else None


def reset_peak_memory(device: torch.device) -> None:
    """Reset the device's part of ``peak_memory`` where the device can; the host's peak cannot be reset."""
    module = traits_of(device).module
    if module:
        with suppress(AttributeError):
            module.reset_peak_memory_stats(device)


def peak_memory(device: torch.device) -> dict[str, int]:
    """Return peak bytes: ``host`` is this process's resident memory, ``device`` is what torch allocated there."""
    with open("/proc/self/status") as status:  # getrusage() also counts the memory from before exec()
        peaks = {"host": next(int(line.split()[1]) * 1024 for line in status if line.startswith("VmHWM:"))}
    module = traits_of(device).module
    if module:
        peaks["device"] = int(module.max_memory_allocated(device))
    return peaks


def allocated_memory(device: torch.device) -> int:
    """Return the bytes that torch has allocated on the device; 0 for the CPU, where torch does not count them."""
    module = traits_of(device).module
    return int(module.memory_allocated(device)) if module else 0


def reserved_memory(device: torch.device) -> int:
    """Return the bytes of device memory that torch holds, in use or not; 0 for the CPU."""
    module = traits_of(device).module
    return int(module.memory_reserved(device)) if module else 0


def release_memory(device: torch.device) -> None:
    """Return torch's cache of freed device memory, so that blocks of another size find room."""
    module = traits_of(device).module
    if module:
        module.empty_cache()


def trim_memory() -> None:
    """Return freed host memory to the system: glibc keeps free blocks that lie between used ones."""
    with suppress(AttributeError):  # another C library
        ctypes.CDLL(None).malloc_trim(0)


def is_out_of_memory(error: Exception) -> bool:
    """Return whether the device or the host ran out of memory.  torch_npu and older torch only tell it in the text."""
    if isinstance(error, MemoryError):
        return True
    text = str(error).lower()
    return isinstance(error, RuntimeError) and any(phrase in text for phrase in OUT_OF_MEMORY)


def too_little_memory(device: torch.device, error: Exception) -> ModelError:
    """Return the error for a recording that does not fit into memory even alone."""
    return ModelError(str(device), f"not enough memory for this recording alone: {first_line(error)}")
