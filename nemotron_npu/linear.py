"""Matrix products with fixed weights, in the form that is fastest for each dtype: most of the encoder's time.

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
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F

from .checkpoint.weights import Quantized, Weights
from .device import traits_of
from .dtypes import check_dtype, has_fbgemm, has_tiles, packs_weights

# FBGEMM's weights are a quantized tensor, whose end torch has announced: see dtypes.has_fbgemm
warnings.filterwarnings("ignore", message="torch.quantize_per_tensor")


PAIR = 128  # the largest sum of two neighboring weights of one sign: 128 * 255 < 2**15
PIECE = 1 << 18  # weights that are quantized together: they stay in the cache meanwhile

QUANTIZED_TENSOR = "_make_per_tensor_quantized_tensor"  # torch has no public name for it


class Linear:
    """``scale * (x @ weight.T + bias)`` for x [rows, in], weight [out, in], bias [out] or None; on any device.

    ``elements`` and ``bytes`` count the weight as it is read.
    """

    def __init__(self, weight: torch.Tensor, bias: torch.Tensor | None, scale: float = 1.0) -> None:
        self.weight = weight.t()
        self.bias = bias
        self.scale = scale
        self.elements = weight.numel()
        self.bytes = weight.nbytes

    def fold_scale(self) -> None:
        """Multiply weight and bias by ``scale``: the product has it then, ``scale`` is 1."""
        if self.scale != 1:
            self.weight = self.weight * self.scale
            self.bias = None if self.bias is None else self.bias * self.scale
            self.scale = 1.0

    def __call__(self, x: torch.Tensor, out: torch.Tensor | None = None) -> torch.Tensor:
        """Return the product, without ``scale``; write it into ``out`` if that is given."""
        if self.bias is None:
            return torch.mm(x, self.weight, out=out)
        return torch.addmm(self.bias, x, self.weight, out=out)

    def silu(self, x: torch.Tensor) -> torch.Tensor:
        """Return silu of the product, without ``scale``."""
        return F.silu(self(x))

    def add(self, residual: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
        """Return ``residual`` + the product, in one operator, or two with a bias."""
        if self.bias is not None:
            residual = torch.add(residual, self.bias, alpha=self.scale)
        return torch.addmm(residual, x, self.weight, alpha=self.scale)


class PackedLinear:
    """``Linear`` on an x86 CPU by oneDNN, with the weight packed for its kernels: float32 or bfloat16 products.

    Input and output are float32, and so is the sum inside a bfloat16 product.
    """

    ROWS = 14  # rows that the packing is chosen for: a chunk of 1120 ms; 1 to 112 rows are as fast with it

    def __init__(
        self,
        weight: torch.Tensor,
        bias: torch.Tensor | None,
        scale: float = 1.0,
        dtype: torch.dtype = torch.float32,
    ) -> None:
        self.dtype = dtype
        weight = weight.to(dtype).contiguous()
        self.elements = weight.numel()
        self.bytes = weight.nbytes
        self.weight = _onednn("_reorder_linear_weight")(weight, self.ROWS)
        if scale != 1:
            self.weight.mul_(torch.tensor(scale))  # in place: a scaled copy takes three times as long
        self.bias = None if bias is None else (bias * scale).to(dtype)

    def __call__(self, x: torch.Tensor, out: torch.Tensor | None = None) -> torch.Tensor:
        """Return scale * (x @ weight.T + bias); write it into ``out`` if that is given."""
        y = self._product(x, "none")
        return y.float() if out is None else out.copy_(y)

    def silu(self, x: torch.Tensor) -> torch.Tensor:
        """Return silu of the product."""
        return self._product(x, "swish").float()

    def add(self, residual: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
        """Return ``residual`` + the product."""
        if self.dtype != torch.float32:
            return residual + self(x)
        return _onednn("_linear_pointwise").binary(x, residual, self.weight, self.bias, "add")

    def _product(self, x: torch.Tensor, activation: str) -> torch.Tensor:
        return _onednn("_linear_pointwise")(x.to(self.dtype), self.weight, self.bias, activation, [], "")


def _onednn(name: str) -> Any:
    """Return an operator of oneDNN; torch has only private names for those that take packed weights."""
    return getattr(torch.ops.mkldnn, name)


class QuantizedLinear:
    """``Linear`` on an x86 CPU with int8 weights and 8-bit activations; input and output are float32.

    Weights have one scale per output, activations one per row, so that a row's result does not depend on the others.
    The range of a row is [-max |x|, max |x|], or [floor, max x] where its values have a floor.

    Without VNNI the kernels sum two products of neighboring columns in 16 bits (vpmaddubsw).  255 * (v + w) fits
    into these as long as v + w <= 128: the scale of the weights ensures that for every pair, and all 8 bits are used.
    """

    def __init__(self, weight: Quantized, bias: torch.Tensor | None, scale: float, floor: float | None) -> None:
        quantized, scales = weight
        self.scales = scales * scale
        """Of the outputs, [out].  They follow the product: FBGEMM would read each by itself when it packs."""
        self.elements = quantized.numel()
        self.bytes = quantized.nbytes
        self.floor = floor
        self.bias = None if bias is None else bias * scale
        self._pack(quantized)
        if floor:  # it is subtracted from the activations, and its product is added again
            ones = torch.ones(1, quantized.shape[1])
            lowest = self._multiply(ones, ones[:, :1])[0] * floor * self.scales
            self.bias = lowest if self.bias is None else self.bias + lowest

    def _pack(self, weight: torch.Tensor) -> None:
        """Pack int8 [out, in] for the kernel."""
        raise NotImplementedError

    def _multiply(self, x: torch.Tensor, largest: torch.Tensor) -> torch.Tensor:
        """Return float32 x / largest @ int8 weight.T, finite where a row is 0.

        ``largest`` [rows, 1] is the maximum of |x|, or of x with a floor.
        """
        raise NotImplementedError

    def _product(self, x: torch.Tensor) -> torch.Tensor:
        if self.floor is None:
            largest = x.abs().amax(1, keepdim=True)
        else:
            x = x - self.floor if self.floor else x
            largest = x.amax(1, keepdim=True)
        return self._multiply(x, largest).mul_(largest)

    def __call__(self, x: torch.Tensor, out: torch.Tensor | None = None) -> torch.Tensor:
        """Return scale * (x @ weight.T + bias); write it into ``out`` if that is given."""
        y = self._product(x)
        if self.bias is None:
            return torch.mul(y, self.scales, out=y if out is None else out)
        return torch.addcmul(self.bias, y, self.scales, out=y if out is None else out)

    def silu(self, x: torch.Tensor) -> torch.Tensor:
        """Return silu of the product."""
        return F.silu(self(x), inplace=True)

    def add(self, residual: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
        """Return ``residual`` + the product."""
        if self.bias is not None:
            return self(x).add_(residual)
        y = self._product(x)
        return torch.addcmul(residual, y, self.scales, out=y)


class FbgemmLinear(QuantizedLinear):
    """``QuantizedLinear`` by FBGEMM: the fastest without AMX."""

    def _pack(self, weight: torch.Tensor) -> None:
        weight = getattr(torch, QUANTIZED_TENSOR)(weight, 1.0, 0)
        engine = torch.backends.quantized.engine
        torch.backends.quantized.engine = "fbgemm"
        try:
            self.packed = torch.ops.quantized.linear_prepack(weight, None)
        finally:
            torch.backends.quantized.engine = engine
        self.levels = (1 / 127, 128) if self.floor is None else (1 / 255, 0)  # scale and zero point of [-1, 1], [0, 1]

    def _multiply(self, x: torch.Tensor, largest: torch.Tensor) -> torch.Tensor:
        multiply = torch.ops.quantized.linear_with_input_q_dq_qweight_dq_output_fp32
        return multiply(x / largest, *self.levels, self.packed)


class OnednnLinear(QuantizedLinear):
    """``QuantizedLinear`` by oneDNN, which alone uses AMX, faster from a few rows on, and which needs no AVX2."""

    def _pack(self, weight: torch.Tensor) -> None:
        self.packed = torch.ops.onednn.qlinear_prepack(weight, None)
        self.unit = torch.ones(1), torch.zeros(1, dtype=torch.long)
        """Scale and zero point of the weight."""
        self.top, self.zero, self.dtype = (127, 0, torch.int8) if self.floor is None else (255, 0, torch.uint8)
        if self.floor is None and not has_tiles():  # only AMX has a fast kernel for signed activations
            self.zero, self.dtype = 128, torch.uint8

    def _multiply(self, x: torch.Tensor, largest: torch.Tensor) -> torch.Tensor:
        quantized = (x * (self.top / largest)).round_()
        if self.zero:
            quantized.add_(self.zero)
        levels = quantized.to(self.dtype), 1 / self.top, self.zero
        output: tuple = (1.0, 0, torch.float32, "none", [], "")
        return torch.ops.onednn.qlinear_pointwise(*levels, self.packed, *self.unit, None, *output)


def quantize(weight: torch.Tensor) -> Quantized:
    """Return a weight, float32 [out, in], in int8: symmetric, at most 127, bit for bit the same on every CPU.

    Two neighboring weights of one sign, columns 2 i and 2 i + 1, add up to at most ``PAIR``.
    """
    quantized = torch.empty(weight.shape, dtype=torch.int8)
    scales = torch.empty(len(weight))
    rows = max(1, PIECE // weight.shape[1])
    scratch = torch.empty(rows, weight.shape[1])  # one for all pieces: touching new memory would take longer
    for part, levels, scale in zip(weight.split(rows), quantized.split(rows), scales.split(rows), strict=True):
        torch.div(largest_pair(part), PAIR - 1, out=scale)  # each of the two may be rounded up by 0.5
        scale.clamp_(min=1e-12)
        levels.copy_(torch.mul(part, (1 / scale)[:, None], out=scratch[: len(part)]).round_())
    return Quantized(quantized, scales)


def largest_pair(weight: torch.Tensor) -> torch.Tensor:
    """Return the largest magnitude of a weight, or of a sum of two neighboring weights of one sign: [out, in] -> [out].

    A sum of two signs is smaller than one of its weights: it needs no exception.
    """
    if weight.shape[1] % 2:
        weight = F.pad(weight, (0, 1))
    sums = weight[:, ::2] + weight[:, 1::2]
    alone, pairs = (torch.maximum(x.amax(1), -x.amin(1)) for x in (weight, sums))
    return torch.maximum(alone, pairs)


AnyLinear = Linear | PackedLinear | QuantizedLinear


def make_linear(
    weight: torch.Tensor | Quantized,
    bias: torch.Tensor | None,
    dtype: str,
    scale: float = 1.0,
    floor: float | None = None,
) -> AnyLinear:
    """Return the fastest linear layer for a weight [out, in], where it lies, in ``dtype``.

    A weight that is quantized already is for ``"int8"`` on a CPU.

    ``dtype`` is ``"float32"``, ``"bfloat16"``, ``"float16"`` or ``"int8"``; on an NPU or GPU the weight has it already.
    ``"plain"`` is float32 that is not packed for speed: the weight is not even copied.
    ``floor`` is the least value that an input can have, if there is one: int8 then uses its whole range.
    Raises SetupError for a dtype that this CPU cannot compute in.
    """
    if isinstance(weight, Quantized):
        return _make_quantized(weight, bias, scale, floor)
    if not traits_of(weight.device).is_host or dtype == "plain":
        return Linear(weight, bias, scale)
    check_dtype(dtype, weight.device)
    if dtype == "int8":
        return _make_quantized(quantize(weight), bias, scale, floor)
    if not packs_weights():
        return Linear(weight, bias, scale)
    return PackedLinear(weight, bias, scale, getattr(torch, dtype))


def _make_quantized(weight: Quantized, bias: torch.Tensor | None, scale: float, floor: float | None) -> QuantizedLinear:
    kernels = FbgemmLinear if has_fbgemm() and not has_tiles() else OnednnLinear
    return kernels(weight, bias, scale, floor)


NORM_EPSILON = 1e-5  # torch.nn.LayerNorm's own


class Norm(NamedTuple):
    """A layer norm over the last axis."""

    weight: torch.Tensor
    bias: torch.Tensor | None

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        """Normalize [..., width]."""
        return F.layer_norm(x, self.weight.shape, self.weight, self.bias, NORM_EPSILON)


@dataclass(frozen=True)
class LayerLoader:
    """Makes layers of a checkpoint's tensors, with matrix products in ``dtype`` (see ``make_linear``)."""

    weights: Weights
    dtype: str

    def inside(self, prefix: str) -> LayerLoader:
        """Return the loader of the tensors whose names begin with ``prefix``."""
        return LayerLoader(self.weights.inside(prefix), self.dtype)

    def weight_and_bias(self, name: str, shape: tuple[int, ...]) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Return a weight of this shape, and the bias of its outputs if it has one.  Raises SetupError as Weights."""
        return self.weights(f"{name}.weight", *shape), self._bias(name, shape[0])

    def _bias(self, name: str, outputs: int) -> torch.Tensor | None:
        return self.weights(f"{name}.bias", outputs) if self.weights.has(f"{name}.bias") else None

    def matrix(self, name: str, *shape: int) -> torch.Tensor | Quantized:
        """Return the weight of a matrix product, [out, in].  Raises SetupError as Weights."""
        if self.weights.tensors.quantized:
            return self.weights.quantized(f"{name}.weight", *shape)
        if self.dtype == "int8":
            return self.weights.quantized_by(quantize, f"{name}.weight", *shape)
        weight = self.weights.stored(f"{name}.weight", *shape)
        is_ready = traits_of(self.weights.device).is_host and str(weight.dtype) == f"torch.{self.dtype}"
        return (weight if is_ready else self.weights.converted(weight)).view(shape[0], -1)

    def norm(self, name: str, width: int) -> Norm:
        """Return the scale and the shift of a norm over ``width`` channels."""
        weight, bias = self.weight_and_bias(name, (width,))
        return Norm(weight, bias)

    def linear(self, name: str, shape: tuple[int, ...], *, scale: float = 1.0, floor: float | None = None) -> AnyLinear:
        """Return the linear layer, or pointwise convolution, of a weight with this shape."""
        layer = make_linear(self.matrix(name, *shape), self._bias(name, shape[0]), self.dtype, scale, floor)
        self.weights.release()
        return layer
