"""Matrix products with fixed weights, where the encoder's time goes, in the form that is fastest for each dtype.

Measured on one thread of a Xeon with AMX, microseconds for a 4096 x 1024 weight (torch 2.13.0; reading the float32
weight alone takes about 800):

    rows               1      2      7     14    112
    plain float32    679    737   2440   3827   5846
    packed float32   772    824   1119   1550   5261
    packed bfloat16  354    354    360    373    678
    int8             254    254    263    280    676

int8 is measured with one scale per block; docs/int8.md has what one per row costs.
FBGEMM's int8 (torch.ops.quantized.linear_dynamic) takes 185, 187, 217, 301 and 1879 there, but in the full-size encoder
only a single row was faster with it: a step took 63, 100 and 120 ms at 80, 560 and 1120 ms, with oneDNN's 70, 80, 91.
On an EPYC with VNNI and without AMX oneDNN's int8 takes 328, 386, 362, 533 and 2510, FBGEMM's 187, 165, 199, 384 and
2635, and a step 80, 74 and 97 ms with oneDNN, 47, 49 and 78 with FBGEMM.
"""

from __future__ import annotations

import warnings

import torch
import torch.nn.functional as F

from .device import traits_of
from .dtypes import check_dtype, has_fbgemm, has_tiles, has_vnni, packs_weights

# FBGEMM takes its weights in such a tensor, whose end torch has announced: see dtypes.has_fbgemm
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
    """The same on an x86 CPU with int8 weights and 8-bit activations; input and output are float32.

    Weights have one scale per output, activations one per row, so that a row's result does not depend on the others.
    The range of a row is [-max |x|, max |x|], or [floor, max x] where its values have a floor.

    Without VNNI the kernels sum two products of neighbouring columns in 16 bits (vpmaddubsw).  255 * (v + w) fits
    there as long as v + w <= 128: the scale of the weights makes sure of it for every pair, instead of giving up one
    of the 8 bits.
    """

    PAIR = 128  # the largest sum of two neighbouring weights of one sign: 128 * 255 < 2**15

    def __init__(self, weight: torch.Tensor, bias: torch.Tensor | None, scale: float, floor: float | None):
        quantized, scales = _quantize(weight * scale, None if has_vnni() else self.PAIR)
        self.elements, self.bytes = quantized.numel(), quantized.nbytes
        self.floor = floor
        self.bias = None if bias is None else bias * scale
        if floor:  # it is subtracted from the activations, and its product added again
            lowest = floor * quantized.sum(1, dtype=torch.float32) * scales
            self.bias = lowest if self.bias is None else self.bias + lowest
        self._pack(quantized, scales)

    def _pack(self, weight: torch.Tensor, scales: torch.Tensor) -> None:
        """Lay int8 [out, in] out for the kernel."""
        raise NotImplementedError

    def _multiply(self, x: torch.Tensor, largest: torch.Tensor) -> torch.Tensor:
        """x / largest @ weight.T, float32; ``largest`` [rows, 1] is that of |x|, or of x if it has a floor."""
        raise NotImplementedError

    def _product(self, x: torch.Tensor) -> torch.Tensor:
        if self.floor is None:
            largest = x.abs().amax(1, keepdim=True)
        else:
            x = x - self.floor if self.floor else x
            largest = x.amax(1, keepdim=True)
        largest.clamp_(min=1e-30)  # a row of zeros
        return self._multiply(x, largest).mul_(largest)

    def __call__(self, x: torch.Tensor, out: torch.Tensor | None = None) -> torch.Tensor:
        y = self._product(x)
        if self.bias is not None:
            y.add_(self.bias)
        return y if out is None else out.copy_(y)

    def silu(self, x: torch.Tensor) -> torch.Tensor:
        return F.silu(self(x), inplace=True)

    def add(self, residual: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
        return self(x).add_(residual)


class FbgemmLinear(QuantizedLinear):
    """By FBGEMM: the fastest without AMX."""

    def _pack(self, weight: torch.Tensor, scales: torch.Tensor) -> None:
        zeros = torch.zeros(len(scales), dtype=torch.long)
        weight = torch._make_per_channel_quantized_tensor(weight, scales.double(), zeros, 0)
        before, torch.backends.quantized.engine = torch.backends.quantized.engine, "fbgemm"
        try:
            self.packed = torch.ops.quantized.linear_prepack(weight, None)
        finally:
            torch.backends.quantized.engine = before
        self.levels = (1 / 127, 128) if self.floor is None else (1 / 255, 0)  # scale and zero point of [-1, 1], [0, 1]

    def _multiply(self, x: torch.Tensor, largest: torch.Tensor) -> torch.Tensor:
        multiply = torch.ops.quantized.linear_with_input_q_dq_qweight_dq_output_fp32
        return multiply(x / largest, *self.levels, self.packed)


class OnednnLinear(QuantizedLinear):
    """By oneDNN, which alone knows AMX, tiles that pay from a few rows on, and which needs no AVX2."""

    def _pack(self, weight: torch.Tensor, scales: torch.Tensor) -> None:
        self.packed = torch.ops.onednn.qlinear_prepack(weight, None)
        self.scales, self.zeros = scales, torch.zeros(len(scales), dtype=torch.long)
        self.top, self.kind = (127, torch.int8) if self.floor is None else (255, torch.uint8)

    def _multiply(self, x: torch.Tensor, largest: torch.Tensor) -> torch.Tensor:
        quantized = (x * (self.top / largest)).round_().to(self.kind)
        weight = self.packed, self.scales, self.zeros, None
        output = 1.0, 0, torch.float32, "none", [], ""
        return torch.ops.onednn.qlinear_pointwise(quantized, 1 / self.top, 0, *weight, *output)


def _quantize(weight: torch.Tensor, pair: int | None) -> tuple[torch.Tensor, torch.Tensor]:
    """int8 [out, in] and its scales float32 [out]: symmetric, the largest weight of each output is 127 at most.

    Two neighbouring weights of one sign, columns 2 i and 2 i + 1, add up to at most ``pair``, if one is given.
    """
    scales = torch.maximum(weight.amax(1), -weight.amin(1)) / 127
    if pair:
        scales = torch.maximum(scales, _largest_pair(weight) / (pair - 1))  # each of the two may be rounded up by 0.5
    scales.clamp_(min=1e-12)
    return (weight * (1 / scales)[:, None]).round_().to(torch.int8), scales


def _largest_pair(weight: torch.Tensor) -> torch.Tensor:
    """The largest magnitude of the sum of two neighbouring weights of one sign: [out, in] -> [out]."""
    pairs = F.pad(weight, (0, weight.shape[1] % 2)).unflatten(1, (-1, 2))
    return torch.maximum(pairs.clamp(min=0).sum(2).amax(1), -pairs.clamp(max=0).sum(2).amin(1))


def make_linear(
    weight: torch.Tensor,
    bias: torch.Tensor | None,
    dtype: str,
    scale: float = 1.0,
    floor: float | None = None,
):
    """The linear layer for a weight where it lies and the dtype that is wanted: ``Linear`` or one of its likes.

    ``dtype`` is ``"float32"``, ``"bfloat16"``, ``"float16"`` or ``"int8"``; on an NPU or GPU the weight has it already.
    ``"plain"`` is float32 that is not laid out for speed: the weight is not even copied.
    ``floor`` is the least value that an input can have, where there is one: int8 uses its whole range then.
    Raises SetupError for a dtype that this CPU cannot compute in.
    """
    if not traits_of(weight.device).is_host or dtype == "plain":
        return Linear(weight, bias, scale)
    check_dtype(dtype, weight.device)
    if dtype == "int8":
        quantized = FbgemmLinear if has_fbgemm() and not has_tiles() else OnednnLinear
        return quantized(weight, bias, scale, floor)
    if not packs_weights():
        return Linear(weight, bias, scale)
    return PackedLinear(weight, bias, scale, getattr(torch, dtype))
