"""Matrix products with fixed weights, where the encoder's time goes, in the form that is fastest for each dtype.

Measured on one thread of a Xeon with AMX, microseconds for a 4096 x 1024 weight (torch 2.13.0; reading the float32
weight alone takes about 800):

    rows               1      2      7     14    112
    plain float32    679    737   2440   3827   5846
    packed float32   772    824   1119   1550   5261
    packed bfloat16  354    354    360    373    678
    int8             254    254    263    280    676

FBGEMM's int8 (torch.ops.quantized.linear_dynamic) takes 185, 187, 217, 301 and 1879 there, but in the full-size encoder
only a single row was faster with it: a step took 63, 100 and 120 ms at 80, 560 and 1120 ms, with oneDNN's 70, 80, 91.
On an EPYC with VNNI and without AMX oneDNN's int8 takes 328, 386, 362, 533 and 2510, FBGEMM's 187, 165, 199, 384 and
2635, and a step 80, 74 and 97 ms with oneDNN, 47, 49 and 78 with FBGEMM.
"""

from __future__ import annotations

import platform
import warnings

import torch
import torch.nn.functional as F

from .errors import SetupError

# torch announces another API for it, which the oldest torch supported here lacks
warnings.filterwarnings("ignore", message="torch.quantize_per_tensor")


class Linear:
    """``scale * (x @ weight.T + bias)`` for x [rows, in], weight [out, in], bias [out] or None; on any device.

    ``elements`` and ``bytes`` are those of the weight as it is read.
    """

    def __init__(self, weight: torch.Tensor, bias: torch.Tensor | None, scale: float = 1.0):
        self.weight, self.bias, self.scale = weight.t(), bias, scale
        self.elements, self.bytes = weight.numel(), weight.nbytes

    def __call__(self, x: torch.Tensor, out: torch.Tensor | None = None) -> torch.Tensor:
        """Into ``out`` where one is given."""
        if self.bias is None:
            return torch.mm(x, self.weight, out=out)
        return torch.addmm(self.bias, x, self.weight, out=out)

    def silu(self, x: torch.Tensor) -> torch.Tensor:
        """silu of the product."""
        return F.silu(self(x))

    def add(self, residual: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
        """``residual`` + the product, in one operator, two with a bias."""
        if self.bias is not None:
            residual = torch.add(residual, self.bias, alpha=self.scale)
        return torch.addmm(residual, x, self.weight, alpha=self.scale)


class PackedLinear:
    """The same on an x86 CPU by oneDNN, with the weight laid out for its kernels: float32 or bfloat16 products.

    Input and output are float32, and so is the sum inside a bfloat16 product.
    """

    ROWS = 14  # for which the layout is chosen: a chunk of 1120 ms; 1 to 112 rows are as fast with it

    def __init__(self, weight: torch.Tensor, bias: torch.Tensor | None, scale: float = 1.0, dtype=torch.float32):
        self.dtype = dtype
        weight = (weight if scale == 1 else weight * scale).to(dtype).contiguous()
        self.elements, self.bytes = weight.numel(), weight.nbytes
        self.weight = torch.ops.mkldnn._reorder_linear_weight(weight, self.ROWS)
        self.bias = None if bias is None else (bias * scale).to(dtype)

    def __call__(self, x: torch.Tensor, out: torch.Tensor | None = None, activation: str = "none") -> torch.Tensor:
        y = torch.ops.mkldnn._linear_pointwise(x.to(self.dtype), self.weight, self.bias, activation, [], "")
        return y.float() if out is None else out.copy_(y)

    def silu(self, x: torch.Tensor) -> torch.Tensor:
        return self(x, activation="swish")

    def add(self, residual: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
        if self.dtype != torch.float32:
            return residual + self(x)
        return torch.ops.mkldnn._linear_pointwise.binary(x, residual, self.weight, self.bias, "add")


class QuantizedLinear:
    """The same on an x86 CPU by FBGEMM with int8 weights, one scale per output, and activations quantized as they come.

    Input and output are float32.  The activations of a block share one scale, so that results depend a little on what
    else is in the block.
    """

    def __init__(self, weight: torch.Tensor, bias: torch.Tensor | None, scale: float = 1.0):
        quantized, scales = _quantize(weight * scale)
        self.elements, self.bytes = quantized.numel(), quantized.nbytes
        zeros = torch.zeros(len(scales), dtype=torch.long)
        quantized = torch._make_per_channel_quantized_tensor(quantized, scales.double(), zeros, 0)
        before, torch.backends.quantized.engine = torch.backends.quantized.engine, "fbgemm"
        try:
            self.packed = torch.ops.quantized.linear_prepack(quantized, None if bias is None else bias * scale)
        finally:
            torch.backends.quantized.engine = before
        # without VNNI two products of 8 bits overflow the 16 that they are summed in: take 7 of the activations
        self.reduce_range = not torch.cpu._is_vnni_supported()

    def __call__(self, x: torch.Tensor, out: torch.Tensor | None = None) -> torch.Tensor:
        y = torch.ops.quantized.linear_dynamic(x, self.packed, self.reduce_range)
        return y if out is None else out.copy_(y)

    def silu(self, x: torch.Tensor) -> torch.Tensor:
        return F.silu(self(x), inplace=True)

    def add(self, residual: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
        return self(x).add_(residual)


class TiledQuantizedLinear:
    """What ``QuantizedLinear`` is, by oneDNN, which alone knows AMX: tiles that pay from a few rows on."""

    def __init__(self, weight: torch.Tensor, bias: torch.Tensor | None, scale: float = 1.0):
        quantized, self.scales = _quantize(weight * scale)
        self.elements, self.bytes = quantized.numel(), quantized.nbytes
        self.zeros = torch.zeros(len(self.scales), dtype=torch.long)
        self.weight = torch.ops.onednn.qlinear_prepack(quantized, None)
        self.bias = None if bias is None else bias * scale

    def __call__(self, x: torch.Tensor, out: torch.Tensor | None = None, activation: str = "none") -> torch.Tensor:
        quantized = torch.quantize_per_tensor_dynamic(x, torch.quint8, False)
        y = torch.ops.onednn.qlinear_pointwise(
            quantized.int_repr(),
            quantized.q_scale(),
            quantized.q_zero_point(),
            self.weight,
            self.scales,
            self.zeros,
            self.bias,
            1.0,
            0,
            torch.float32,
            activation,
            [],
            "",
        )
        return y if out is None else out.copy_(y)

    def silu(self, x: torch.Tensor) -> torch.Tensor:
        return self(x, activation="swish")

    def add(self, residual: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
        return self(x).add_(residual)


def _quantize(weight: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """int8 [out, in] and its scales float32 [out]: symmetric, the largest weight of each output is 127."""
    scales = (torch.maximum(weight.amax(1), -weight.amin(1)) / 127).clamp(min=1e-12)
    return (weight * (1 / scales)[:, None]).round_().to(torch.int8), scales


def make_linear(weight: torch.Tensor, bias: torch.Tensor | None, dtype: str, scale: float = 1.0):
    """The linear layer for a weight where it lies and the dtype that is wanted: ``Linear`` or one of its likes.

    ``dtype`` is ``"float32"``, ``"bfloat16"``, ``"float16"`` or ``"int8"``; on an NPU or GPU the weight has it already.
    ``"plain"`` is float32 that is not laid out for speed: the weight is not even copied.
    Raises SetupError for one that this CPU cannot do.
    """
    if weight.device.type != "cpu" or dtype == "plain":
        return Linear(weight, bias, scale)
    if dtype == "float32":
        return PackedLinear(weight, bias, scale) if _packs() else Linear(weight, bias, scale)
    if not _packs():
        raise SetupError(f"--dtype {dtype} on a CPU needs x86 and a torch with oneDNN: take float32")
    if dtype == "bfloat16":
        return PackedLinear(weight, bias, scale, torch.bfloat16)
    tiles = torch.cpu._is_amx_tile_supported()
    return (TiledQuantizedLinear if tiles else QuantizedLinear)(weight, bias, scale)


def offered_dtypes(device: torch.device) -> tuple[str, ...]:
    """The dtypes that ``make_linear`` has there."""
    if device.type != "cpu":
        return "float32", "bfloat16", "float16"
    return ("float32", "bfloat16", "int8") if _packs() else ("float32",)


def _packs() -> bool:
    return platform.machine() == "x86_64" and torch.backends.mkldnn.is_available()
