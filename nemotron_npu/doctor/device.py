"""Checks of ``--doctor`` on the device: is it usable, what does it compute, does the model fit."""

from __future__ import annotations

import warnings
from collections.abc import Callable

import torch

from ..checkpoint.load import read_weights
from ..device import choose_device, device_name, traits_of
from ..dtypes import instructions, left_out, offered_dtypes
from ..errors import SetupError
from ..host.program import command
from ..host.provenance import processor
from ..host.resources import cores, free_memory
from .checkpoint import find
from .finding import GB, OK, PROBLEM, SKIPPED, WARNING, Context, Finding
from .privacy import error_text

PEAK_MEMORY = {"native": (1.15, 0.3 * GB), "nemo": (2.0, 0.9 * GB)}
"""Engine -> peak memory of the process: a factor of the float32 weights, and bytes on top.  Measured: docs."""
DEVICE_MEMORY = 0.5 * GB  # on top of the weights: a block of one recording and its caches
STFT_TOLERANCE = 1e-3


def device(context: Context) -> list[Finding]:
    """Check that the requested or default device is usable."""
    try:
        chosen, _ = choose_device(context.device)
    except SetupError as error:
        return [Finding(PROBLEM, error_text(error), _fix(context.device or "", error))]
    if not traits_of(chosen).is_host:
        return [Finding(OK, f"{chosen}: {device_name(chosen)}")]
    name = processor() or "unknown"
    return [Finding(OK, f"cpu: {name} ({instructions()})")]


def _fix(name: str, error: SetupError) -> str:
    kind = name.partition(":")[0]
    if "does not exist" in str(error):
        return f"{command()} --device {kind}:0"
    if kind == "npu":
        return "npu-smi info"
    if torch.version.cuda:
        return "nvidia-smi"
    release = torch.__version__.partition("+")[0]
    return f"pip install --force-reinstall torch=={release}"


def dtypes(context: Context) -> list[Finding]:
    """Report the dtypes that the device computes in, and why others are left out."""
    chosen, _ = choose_device(context.device)
    found = ", ".join(offered_dtypes(chosen))
    for dtype, reason in left_out(chosen).items():
        found += f"; no {dtype}: {reason}"
    return [Finding(OK, found)]


def memory(context: Context) -> list[Finding]:
    """Check that the model fits into the memory of device and host."""
    try:
        weights = 4 * sum(tensor.numel() for tensor in read_weights(find(context)).values())  # float32
    except SetupError:
        return [Finding(SKIPPED, "engine")]
    findings = []
    if "device" in context.usable:
        chosen, _ = choose_device(context.device)
        if not traits_of(chosen).is_host:
            findings.append(_device_memory(chosen, weights + DEVICE_MEMORY))
    factor, extra = PEAK_MEMORY[context.engine]
    return [*findings, _host_memory(context, factor * weights + extra)]


def _device_memory(chosen: torch.device, need: float) -> Finding:
    free, total = traits_of(chosen).module.mem_get_info(chosen)
    found = f"{free / GB:.1f} of {total / GB:.1f} GB free on {chosen}; this model needs about {need / GB:.1f} GB"
    if free >= need:
        return Finding(OK, found)
    return Finding(PROBLEM, found, f"{traits_of(chosen).tool}   (lists the processes that use it)")


def _host_memory(context: Context, need: float) -> Finding:
    free, total, limited = free_memory()
    limit = " (the limit of a container)" if limited else ""
    room = f"{free / GB:.1f} of {total / GB:.1f} GB free{limit}, {cores():g} cores"
    found = f"{room}; this model needs about {need / GB:.1f} GB"
    if free >= need:
        return Finding(OK, found)
    fix = "ps aux --sort=-rss | head"
    if limited:
        fix = "docker run --memory ...   (give the container more)"
    if context.engine == "native" and "int8" in offered_dtypes(torch.device("cpu")):
        fix += f"\n{command()} --dtype int8   (on a CPU it takes less than half)"
    return Finding(PROBLEM if total < need else WARNING, found, fix)


def arithmetic(context: Context) -> list[Finding]:
    """Check what an NPU may lack; the native engine needs neither, since it computes log-mel on the CPU."""
    chosen, _ = choose_device(context.device)
    works = {"float64": _works(_has_float64, chosen), "stft": _works(_has_stft, chosen)}
    has = " and ".join(name for name, fine in works.items() if fine)
    lacks = " and ".join(name for name, fine in works.items() if not fine)
    if not lacks:
        return [Finding(OK, f"{chosen} has {has}")]
    found = f"{chosen} has {has} and lacks {lacks}" if has else f"{chosen} lacks {lacks}"
    if works["stft"] or context.engine == "native":
        return [Finding(OK, f"{found}, which the native engine does not need")]
    return [Finding(WARNING, f"{found}: NeMo computes log-mel with stft", "--engine native")]


def _works(compute: Callable[[torch.device], bool], chosen: torch.device) -> bool:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return compute(chosen)
    except Exception:  # devices refuse operators with various exceptions
        return False


def _has_float64(chosen: torch.device) -> bool:
    halves = torch.full((4,), 0.5, dtype=torch.float64).to(chosen) + 2.0**-40  # float32 would round the sum to 2
    return bool(halves.cpu().double().sum() > 2)


def _has_stft(chosen: torch.device) -> bool:
    wave = torch.linspace(0, 100, 2048).sin()
    return torch.allclose(_stft(wave.to(chosen)).cpu(), _stft(wave), atol=STFT_TOLERANCE)


def _stft(wave: torch.Tensor) -> torch.Tensor:
    window = torch.hann_window(512).to(wave.device)
    return torch.view_as_real(torch.stft(wave, 512, window=window, return_complex=True))
