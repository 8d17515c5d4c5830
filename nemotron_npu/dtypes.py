"""Which dtypes a device computes in, and what a CPU needs for each: asked of torch here and nowhere else.

torch is imported by the functions alone, so that ``--help`` can show what is needed without it.
"""

from __future__ import annotations

import platform

from .errors import SetupError

ON_CPU = {
    "float32": "any CPU",
    "bfloat16": "x86 with AVX-512 (BW, DQ and VL) or AVX-NE-CONVERT",
    "int8": "x86",
}
"""What a CPU needs for each of its dtypes; oneDNN, which all but float32 need, is in every wheel of torch."""

ON_DEVICES = ("float32", "bfloat16", "float16")  # an NPU's or a GPU's


def offered_dtypes(device) -> tuple[str, ...]:
    """The dtypes that ``device``, a torch.device, computes in."""
    if device.type != "cpu":
        return ON_DEVICES
    return tuple(dtype for dtype in ON_CPU if not missing(dtype))


def missing(dtype: str) -> str | None:
    """Why this CPU does not compute in ``dtype``, one of ``ON_CPU``, or None if it does."""
    import torch

    if dtype == "float32":
        return None
    if platform.machine() != "x86_64":
        return f"this CPU is {platform.machine()}, not x86"
    if not packs_weights():
        return f"torch {torch.__version__} was built without oneDNN"
    if dtype == "bfloat16" and not torch.ops.mkldnn._is_mkldnn_bf16_supported():
        return f"this CPU lacks {ON_CPU[dtype].removeprefix('x86 with ')}"
    return None


def left_out(device) -> dict[str, str]:
    """Each dtype of a CPU that this one does not compute in, and why."""
    if device.type != "cpu":
        return {}
    return {dtype: reason for dtype in ON_CPU if (reason := missing(dtype))}


def check_dtype(dtype: str, device) -> None:
    """Raise SetupError, which names what is missing and the dtypes to take instead, if ``device`` lacks ``dtype``."""
    if dtype in (ON_CPU if device.type == "cpu" else ON_DEVICES):
        reason = missing(dtype) if device.type == "cpu" else None
    else:
        reason = f"not for {device.type}"
    if reason:
        raise SetupError(f"--dtype {dtype}: {reason} (take {' or '.join(reversed(offered_dtypes(device)))})")


def packs_weights() -> bool:
    """Whether oneDNN can lay weights out for its kernels here."""
    import torch

    return platform.machine() == "x86_64" and torch.backends.mkldnn.is_available()


def has_vnni() -> bool:
    """Whether products of 8 bits are summed in 32 bits; without VNNI two of them are summed in 16 first."""
    import torch

    return torch.cpu._is_vnni_supported()


def has_tiles() -> bool:
    """Whether the CPU has AMX, which FBGEMM does not know."""
    import torch

    return torch.cpu._is_amx_tile_supported()


def has_fbgemm() -> bool:
    """Whether FBGEMM's int8 kernels can be called: they need AVX2.

    torch has announced the end of quantized tensors, in which they take their weights
    (https://github.com/pytorch/pytorch/issues/184982); without them oneDNN serves int8, slower but equally exact.
    """
    import torch

    engines = getattr(getattr(torch.backends, "quantized", None), "supported_engines", [])
    calls = "linear_prepack", "linear_with_input_q_dq_qweight_dq_output_fp32"
    there = hasattr(torch, "_make_per_channel_quantized_tensor")
    return "fbgemm" in engines and there and all(hasattr(torch.ops.quantized, name) for name in calls)


def instructions() -> str:
    """The instruction sets of this CPU that matter here: ``"AVX2"``, ``"AVX-512, VNNI, BF16"``; else its machine."""
    import torch

    vectors = "AVX-512" if torch.cpu._is_avx512_supported() else "AVX2" if torch.cpu._is_avx2_supported() else None
    checks = {"VNNI": has_vnni, "BF16": torch.cpu._is_avx512_bf16_supported, "AMX": has_tiles}
    return ", ".join([vectors or platform.machine(), *(name for name, has in checks.items() if has())])
