"""Checks of ``--doctor`` on the device: whether it is usable, computes correctly, and has enough memory."""

from __future__ import annotations

import warnings
from collections.abc import Callable

import torch

from ..checkpoint.weights import read_weights
from ..device import (
    TRAITS,
    choose_device,
    configure,
    device_memory,
    device_name,
    device_settings,
    traits_of,
)
from ..dtypes import instructions, left_out, offered_dtypes
from ..errors import SetupError
from ..host.program import command
from ..host.provenance import processor
from ..host.resources import cores, free_memory
from .checkpoint import find
from .finding import GB, OK, PROBLEM, SKIPPED, WARNING, Context, Finding, error_text

CPU = torch.device("cpu")
PEAK_MEMORY = {"native": (1.15, 0.3 * GB), "nemo": (2.0, 0.9 * GB)}
"""Engine -> peak memory of the process: a factor of the float32 weights, and bytes on top.  Measured: docs."""
DEVICE_MEMORY = 0.5 * GB  # on top of the weights: a block of one recording and its caches
TOLERANCE = 1e-3  # absolute, of the probes of arithmetic


def device(context: Context) -> list[Finding]:
    """Check that the requested or default device is usable."""
    try:
        chosen, _ = choose_device(context.device)
    except SetupError as error:
        kind = (context.device or "").partition(":")[0]
        fix = TRAITS[kind].tool or ""
        if "does not exist" in str(error):
            fix = f"{command()} --device {kind}:0"
        elif kind == "cuda" and not torch.version.cuda:
            release = torch.__version__.partition("+")[0]
            fix = f"pip install --force-reinstall torch=={release}"
        return [Finding(PROBLEM, error_text(error), fix)]
    configure(chosen)
    if not traits_of(chosen).is_host:
        return [Finding(OK, f"{chosen}: {device_name(chosen)}")]
    name = processor() or "unknown"
    return [Finding(OK, f"cpu: {name} ({instructions()})")]


def dtypes(context: Context) -> list[Finding]:
    """Report the dtypes that the device computes in, and why others are left out."""
    chosen, _ = choose_device(context.device)
    reasons = [f"no {dtype}: {reason}" for dtype, reason in left_out(chosen).items()]
    return [Finding(OK, "; ".join([", ".join(offered_dtypes(chosen)), *reasons]))]


def float32(context: Context) -> list[Finding]:
    """Check that float32 is not rounded to HF32 or TF32, by products that only a mantissa of 17 bits and more holds."""
    chosen, _ = choose_device(context.device)
    probes = {"convolutions": _convolution, "matrix products": _product}
    rounded = [name for name, compute in probes.items() if not _works(compute, chosen)]
    states = [f"{name} {'on' if is_on else 'off'}" for name, is_on in device_settings(chosen).items()]
    switches = f" ({', '.join(states)})" if states else ""
    if not rounded:
        return [Finding(OK, f"{chosen} computes true float32{switches}")]
    found = f"{chosen} does not compute {' and '.join(rounded)} in true float32{switches}"
    return [Finding(WARNING, found, f"{command()} --device {chosen} --precision_compare   (shows what it costs)")]


def memory(context: Context) -> list[Finding]:
    """Check that the model fits into the memory of device and host."""
    try:
        weights = 4 * sum(tensor.numel() for tensor in read_weights(find(context)).values())  # float32
    except SetupError:
        return [Finding(SKIPPED, "engine")]
    chosen = choose_device(context.device)[0] if "device" in context.usable else CPU
    factor, extra = PEAK_MEMORY[context.engine]
    host = _host_memory(context, factor * weights + extra)
    own = device_memory(chosen)
    if not own:
        return [host]
    free, total = own
    need = weights + DEVICE_MEMORY
    found = f"{free / GB:.1f} of {total / GB:.1f} GB free on {chosen}; this model needs about {need / GB:.1f} GB"
    if free >= need:
        return [Finding(OK, found), host]
    return [Finding(PROBLEM, found, f"{traits_of(chosen).tool}   (lists the processes that use it)"), host]


def _host_memory(context: Context, need: float) -> Finding:
    free, total, limited = free_memory()
    limit = " (the limit of a container)" if limited else ""
    count = cores()
    noun = "core" if count == 1 else "cores"
    room = f"{free / GB:.1f} of {total / GB:.1f} GB free{limit}, {count:g} {noun}"
    found = f"{room}; this model needs about {need / GB:.1f} GB"
    if free >= need:
        return Finding(OK, found)
    fix = "docker run --memory ...   (give the container more)" if limited else "ps aux --sort=-rss | head"
    if context.engine == "native" and "int8" in offered_dtypes(CPU):
        fix += f"\n{command()} --dtype int8   (on a CPU it takes less than half)"
    return Finding(PROBLEM if total < need else WARNING, found, fix)


def arithmetic(context: Context) -> list[Finding]:
    """Check what an NPU may lack; the native engine needs neither, since it computes log-mel on the CPU."""
    chosen, _ = choose_device(context.device)
    probes = {"float64": _float64, "stft": _stft}
    lacks = [name for name, compute in probes.items() if not _works(compute, chosen)]
    if not lacks:
        return [Finding(OK, f"{chosen} has float64 and stft")]
    found = f"{chosen} lacks {' and '.join(lacks)}"
    if context.engine == "native" or "stft" not in lacks:
        return [Finding(OK, f"{found}, which the {context.engine} engine does not need")]
    return [Finding(WARNING, f"{found}: NeMo computes log-mel with stft", "--engine native")]


def _works(compute: Callable[[torch.device], torch.Tensor], chosen: torch.device) -> bool:
    """Return whether the device computes what the CPU does."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return torch.allclose(compute(chosen).cpu(), compute(CPU), atol=TOLERANCE)
    except Exception:  # devices refuse operators with various exceptions, or compute in another dtype
        return False


def _float64(chosen: torch.device) -> torch.Tensor:
    halves = torch.full((4,), 0.5, dtype=torch.float64).to(chosen)
    return (halves + 2.0**-40 - 0.5) * 2.0**40  # ones; float32 would round them to zeros


def _convolution(chosen: torch.device) -> torch.Tensor:
    x = torch.full((1, 1, 8, 8), 1 + 2.0**-17).to(chosen)
    return (torch.nn.functional.conv2d(x, torch.ones(1, 1, 1, 1).to(chosen)) - 1) * 2.0**17  # ones; HF32: zeros


def _product(chosen: torch.device) -> torch.Tensor:
    x = torch.full((16, 1), 1 + 2.0**-17).to(chosen)
    return (x @ torch.ones(1, 16).to(chosen) - 1) * 2.0**17


def _stft(chosen: torch.device) -> torch.Tensor:
    wave = torch.linspace(0, 100, 2048).sin().to(chosen)
    window = torch.hann_window(512).to(chosen)
    return torch.view_as_real(torch.stft(wave, 512, window=window, return_complex=True))
