"""Estimate the device kernels behind each call that the stub has logged, by the rules of CANN 8.5.0's own sources.

An aclnn call makes its inputs contiguous, computes, and copies into a strided output; each of these is a kernel.  The
rules are those of ``contiguous.cpp``, ``view_copy.cpp`` and the operators' ``op_api`` in the public repositories
ops-math and ops-nn.  An estimate: nothing here has run on an NPU.
"""

from __future__ import annotations

import math
import re
from typing import NamedTuple

OPERAND = re.compile(r" (\w+)\[([\d,]*)\](?:\(([\d,]*)\))?(?:\+(\d+))?")
COPIES = ("Slice", "StridedSlice", "Transpose", "AsStrided", "ViewCopy", "BroadcastTo", "TensorMove")
"""Kernels that compute nothing."""
COMPUTES = {
    "aclnnGlu": ["SplitV", "Sigmoid", "Mul"],
    "aclnnConvolution": ["TransData", "TransData", "Conv2D", "TransData"],  # input, weight, and output
}
"""Calls that compute by more than one kernel."""
FUSED = {"aclnnAddLayerNorm": 2, "aclnnFlashAttentionScore": 4, "aclnnFFNV2": 3, "aclnnGroupNormSilu": 1}
"""Calls of one kernel with several outputs, and how many of their tensors are factors."""


class Operand(NamedTuple):
    """A tensor as the call got it."""

    dtype: str
    shape: list[int]
    strides: list[int]

    @property
    def is_contiguous(self) -> bool:
        return all(n == 1 or s == d for n, s, d in zip(self.shape, self.strides, dense(self.shape), strict=True))

    @property
    def is_transposed(self) -> bool:
        """Whether the last two axes are exchanged and all is contiguous otherwise: a product reads that as it is."""
        if len(self.shape) < 2 or self.strides[-2] != 1 or self.strides[-1] == 1:
            return False
        return self._exchanged.is_contiguous

    @property
    def _exchanged(self) -> Operand:
        shape, strides = list(self.shape), list(self.strides)
        shape[-2:], strides[-2:] = shape[:-3:-1], strides[:-3:-1]
        return Operand(self.dtype, shape, strides)


def dense(shape: list[int]) -> list[int]:
    """Return the strides of a contiguous tensor."""
    return [math.prod(shape[axis + 1 :]) for axis in range(len(shape))]


def parse(line: str) -> tuple[str, list[Operand]]:
    """Return the call and its tensors, in the order of its arguments, from a line of the stub's log."""
    call = line.split()[1]
    operands = []
    for dtype, shape, strides, _ in OPERAND.findall(line[len("LAUNCH ") + len(call) :]):
        sizes = [int(n) for n in shape.split(",") if n]
        operands.append(Operand(dtype, sizes, [int(n) for n in strides.split(",")] if strides else dense(sizes)))
    return call, operands[::-1]  # gcc evaluates arguments from the last to the first


def made_contiguous(operand: Operand) -> list[str]:
    """Return the kernels that make an input contiguous."""
    if operand.is_contiguous:
        return []
    axes = [(s, n) for n, s in zip(operand.shape, operand.strides, strict=True) if s and n != 1]
    broadcast = ["BroadcastTo"] if 0 in operand.strides else []
    if broadcast and _are_dense(axes):
        return broadcast
    ordered = sorted(axes, reverse=True)
    transpose = ["Transpose"] if [s for s, _ in axes] != [s for s, _ in ordered] else []
    if transpose and _are_dense(ordered):
        return transpose + broadcast
    if len(ordered) == 1:
        ordered.append((1, 1))
    strides, sizes = [s for s, _ in ordered], [n for _, n in ordered]
    if any(strides[i - 1] < strides[i] * (sizes[i] - 1) for i in range(1, len(strides))):
        return ["AsStrided"]
    if strides[-1] == 1 and all(strides[i - 1] % strides[i] == 0 for i in range(1, len(strides))):
        if transpose and operand.strides[-1] == 1 and operand.shape[-1] % 64 == 0:
            return ["AsStrided"]
        return ["Slice"] + transpose + broadcast
    common = math.gcd(*strides[:-1])
    if common > 1 and common >= strides[-1] * sizes[-1]:
        return ["StridedSlice"] + transpose + broadcast
    return ["AsStrided"]


def _are_dense(axes: list[tuple[int, int]]) -> bool:
    return [s for s, _ in axes] == dense([n for _, n in axes])


def written(output: Operand) -> list[str]:
    """Return the kernels that write a computed, contiguous result into ``output``."""
    if output.is_contiguous:
        return []
    axes = [(s, n) for n, s in zip(output.shape, output.strides, strict=True) if s and n != 1]
    if axes != sorted(axes, reverse=True) and _are_dense(sorted(axes, reverse=True)):
        return ["Transpose"]
    return ["ViewCopy"]


def kernels(line: str) -> list[str]:
    """Return the names of the kernels behind a line ``LAUNCH ...`` of the stub's log."""
    call, operands = parse(line)
    *inputs, output = operands
    if call == "aclnnInplaceCopy":
        output, source = operands[:2]
        before = made_contiguous(source)
        before += ["Cast"] * (source.dtype != output.dtype) + ["BroadcastTo"] * (source.shape != output.shape)
        return before + (written(output) or [] if before else ["TensorMove" if output.is_contiguous else "ViewCopy"])
    if call in ("aclnnMm", "aclnnBatchMatMul", "aclnnAddmm", "aclnnBaddbmm"):
        return _product(call, inputs, output)
    if call in FUSED:
        return [kernel for x in operands[: FUSED[call]] for kernel in made_contiguous(x)] + [call.removeprefix("aclnn")]
    if call == "aclnnLayerNorm":
        return made_contiguous(inputs[0]) + ["LayerNormV4"]
    if call.startswith("aclnnInplace"):
        output = operands[0]
        inputs = [] if call in ("aclnnInplaceZero", "aclnnInplaceFillScalar") else operands
    before = [kernel for operand in inputs for kernel in made_contiguous(operand)]
    return before + COMPUTES.get(call, [call.removeprefix("aclnn")]) + written(output)


def _product(call: str, inputs: list[Operand], output: Operand) -> list[str]:
    """Only a bias row is added by the kernel of a product; anything else by a kernel of its own."""
    *added, left, right = inputs[-3:]
    found = [kernel for operand in added for kernel in made_contiguous(operand)]
    if call == "aclnnBaddbmm":
        found.append("Muls")  # by 1
    found += [kernel for x in (left, right) if not x.is_transposed for kernel in made_contiguous(x)]
    found.append("MatMul")
    if added and (call == "aclnnBaddbmm" or len(added[0].shape) == 2 and added[0].shape[0] > 1):
        found.append("Axpy")
    return found + written(output)
