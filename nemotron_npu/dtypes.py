"""Dtypes that a device computes in, and what a CPU needs for each.  Only this module asks torch about the CPU.

torch is imported by the functions alone, so that ``--help`` can list the needs without it.
"""

from __future__ import annotations

import platform
from typing import TYPE_CHECKING

from .device import TRAITS, import_torch, traits_of
from .errors import SetupError

if TYPE_CHECKING:
    import torch

ON_CPU = {
    "float32": "any CPU",
    "bfloat16": "x86 with AVX-512 (BW, DQ and VL) or AVX-NE-CONVERT",
    "int8": "x86",
}
"""What a CPU needs for each of its dtypes.  All but float32 need oneDNN, which every wheel of torch contains."""

ON_DEVICES = TRAITS["npu"].dtypes
"""Dtypes of an NPU or a GPU."""

FBGEMM_OPERATORS = ("linear_prepack", "linear_with_input_q_dq_qweight_dq_output_fp32")


def offered_dtypes(device: torch.device) -> tuple[str, ...]:
    """Return the dtypes that ``device`` computes in."""
    traits = traits_of(device)
    if not traits.is_host:
        return traits.dtypes
    return tuple(dtype for dtype in traits.dtypes if not missing(dtype))


def missing(dtype: str) -> str | None:
    """Return why this CPU does not compute in ``dtype``, one of ``ON_CPU``; None if it does."""
    if dtype == "float32":
        return None
    if platform.machine() != "x86_64":
        return f"this CPU is {platform.machine()}, not x86"
    torch = import_torch()
    if not packs_weights():
        return f"torch {torch.__version__} was built without oneDNN"
    if dtype == "bfloat16" and not _supports(torch.ops.mkldnn, "_is_mkldnn_bf16_supported"):
        return f"this CPU lacks {ON_CPU[dtype].removeprefix('x86 with ')}"
    return None


def left_out(device: torch.device) -> dict[str, str]:
    """Return the reason for each dtype of CPUs that this CPU does not compute in; empty for other devices."""
    traits = traits_of(device)
    if not traits.is_host:
        return {}
    return {dtype: reason for dtype in traits.dtypes if (reason := missing(dtype))}


def check_dtype(dtype: str, device: torch.device, saved: str = "") -> None:
    """Raise SetupError if ``device`` does not compute in ``dtype``.  The hint names the dtypes that it offers.

    ``saved`` is the name of a checkpoint whose weights have this dtype.
    """
    traits = traits_of(device)
    reason = None
    if dtype not in traits.dtypes:
        reason = f"not for {traits.kind}"
    elif traits.is_host:
        reason = missing(dtype)
    if not reason:
        return
    others = " or ".join(reversed(offered_dtypes(device)))
    if saved:
        raise SetupError(saved, f"was saved in {dtype}: {reason}", f"--save one with --dtype {others}")
    raise SetupError(f"--dtype {dtype}", reason, f"use {others}")


def packs_weights() -> bool:
    """Return whether oneDNN can pack weights for its kernels on this CPU."""
    return platform.machine() == "x86_64" and import_torch().backends.mkldnn.is_available()


def has_tiles() -> bool:
    """Return whether the CPU has AMX, which FBGEMM does not use."""
    return _supports(import_torch().cpu, "_is_amx_tile_supported")


def has_fbgemm() -> bool:
    """Return whether FBGEMM's int8 kernels can be called: they need AVX2.

    torch has announced the end of the quantized tensors that hold FBGEMM's weights
    (https://github.com/pytorch/pytorch/issues/184982); without them oneDNN computes int8, slower and equally exact.
    """
    torch = import_torch()
    quantized = getattr(torch.backends, "quantized", None)
    if "fbgemm" not in getattr(quantized, "supported_engines", []):
        return False
    if not hasattr(torch, "_make_per_tensor_quantized_tensor"):
        return False
    return all(hasattr(torch.ops.quantized, name) for name in FBGEMM_OPERATORS)


def instructions() -> str:
    """Return the instruction sets of this CPU that matter here, ``"AVX-512, VNNI, BF16"``; else its machine."""
    cpu = import_torch().cpu
    vectors = platform.machine()
    if _supports(cpu, "_is_avx512_supported"):
        vectors = "AVX-512"
    elif _supports(cpu, "_is_avx2_supported"):
        vectors = "AVX2"
    checks = {"VNNI": "_is_vnni_supported", "BF16": "_is_avx512_bf16_supported", "AMX": "_is_amx_tile_supported"}
    return ", ".join([vectors, *(name for name, check in checks.items() if _supports(cpu, check))])


def _supports(module: object, check: str) -> bool:
    """Call a check of torch that has a private name only."""
    return getattr(module, check)()
