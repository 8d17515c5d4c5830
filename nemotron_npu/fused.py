"""Conformer layers with torch_npu's fused operators (``--npu_fused``): fewer launches.  No NPU has run them yet.

``npu_add_layer_norm`` adds a part of the layer to its input and normalizes the sum, ``npu_fusion_attention`` attends
with the scores of the positions as ``pse``, ``npu_group_norm_silu`` is norm and activation inside the convolution, and
in float16 and bfloat16 ``npu_ffn`` is a whole feed-forward part.
They compute what ``conformer.py`` does, summed in another order.
"""

from __future__ import annotations

from collections.abc import Callable

import torch

from .attention import RelativeAttention
from .cache import LayerCache
from .checkpoint.config import EncoderConfig
from .conformer import ConformerLayer, Convolution
from .errors import SetupError
from .linear import NORM_EPSILON, AnyLinear, LayerLoader, Linear, Norm

Product = Callable[[torch.Tensor], torch.Tensor]
OPERATORS = ("npu_add_layer_norm", "npu_fusion_attention", "npu_group_norm_silu", "npu_ffn")


def check_fused(*, graph: bool) -> None:
    """Raise SetupError where torch_npu lacks the operators, or they are to be captured: CANN excludes attention."""
    missing = [name for name in OPERATORS if not hasattr(torch.ops.npu, name)]
    if missing:
        raise SetupError("--npu_fused", f"this torch_npu has no {missing[0]}", "update it")
    if graph:
        raise SetupError("--npu_fused", "npu_fusion_attention cannot be captured", "leave out --graph on")


class FusedAttention(RelativeAttention):
    """``RelativeAttention`` by one operator behind the scores of the positions.

    The projections of a frame are [parts, heads, head_width], and each part of the window lies apart: the operator
    would copy whole windows otherwise, and so copies go with the new frames alone.
    """

    parts_axis = 0

    def __init__(self, load: LayerLoader, width: int, heads: int) -> None:
        """Load the weights, see ``RelativeAttention``."""
        super().__init__(load, width, heads)
        self.position_scale = 1.0  # the operator scales the sum of both scores

    def attended(
        self, y: torch.Tensor, window: torch.Tensor, position: torch.Tensor, mask: torch.Tensor | None
    ) -> torch.Tensor:
        """Return the attention of the norm ``y`` before its output projection, see ``RelativeAttention``."""
        parts, keys, slots, width = window.shape
        count = len(y) // slots
        left = keys - count
        new = window[:, left:].permute(1, 2, 0, 3)  # one kernel; permuting what is copied would be another
        new.copy_(self.qkv(y).view(new.shape))
        with_u, with_v, key, value = window.unbind()
        with_v = with_v[left:].unflatten(-1, (self.heads, self.head_width)).flatten(0, 1)
        by_position = self._shifted(self._by_position(with_v, position, mask), count, slots)
        attended = torch.ops.npu.npu_fusion_attention(
            with_u[left:], key, value, self.heads, "SBH", pse=by_position, scale=self.scale
        )[0]
        return attended.view(count * slots, self.width)


class FusedConvolution(Convolution):
    """``Convolution`` whose norm and activation are one operator: a group norm of one group of all channels."""

    def _activated(self, y: torch.Tensor) -> torch.Tensor:
        """Return silu of the norm, [n, slots, width]."""
        if self.depthwise_norm is None:
            return super()._activated(y)
        return torch.ops.npu.npu_group_norm_silu(y.flatten(0, 1), *self.depthwise_norm, 1, NORM_EPSILON)[0]


class FusedLayer(ConformerLayer):
    """A ``ConformerLayer`` whose parts are added by the norm that follows them."""

    attention_class = FusedAttention
    convolution_class = FusedConvolution

    def __init__(self, load: LayerLoader, config: EncoderConfig) -> None:
        super().__init__(load, config)
        whole = load.dtype != "float32"  # npu_ffn takes float16 and bfloat16
        parts = [self.feed_forward1, self.feed_forward2]
        make = _one_operator if whole else _two_products
        self.products = [make(part.linear1, part.linear2) for part in parts]
        """Each feed-forward part, from its norm to what is added."""
        if self.convolution.depthwise_norm:
            self.convolution.depthwise_norm = _with_shift(self.convolution.depthwise_norm)
        norms = [self.attention.norm, self.convolution.norm, self.feed_forward2.norm, self.norm_out]
        self.norms = [_with_shift(norm) for norm in norms]
        """Each norm behind a sum."""

    def __call__(
        self, x: torch.Tensor, cache: LayerCache, position: torch.Tensor, mask: torch.Tensor | None
    ) -> torch.Tensor:
        """Return the layer's output for the next frames, see ``ConformerLayer``."""
        y = self.products[0](self.feed_forward1.norm(x))
        x, y = _add_norm(x, y, self.norms[0])
        y = self.attention.out(self.attention.attended(y, cache.attention, position, mask))
        x, y = _add_norm(x, y, self.norms[1])
        y = self.convolution.pointwise2(self.convolution.convolved(y, cache.convolution, cache.ends))
        x, y = _add_norm(x, y, self.norms[2])
        return _add_norm(x, self.products[1](y), self.norms[3])[1]


def _two_products(one: AnyLinear, two: AnyLinear) -> Product:
    if isinstance(two, Linear):
        two.fold_scale()
    return lambda y: two(one.silu(y))


def _one_operator(one: AnyLinear, two: AnyLinear) -> Product:
    """Return both products as one operator, which reads weights [in, out]."""
    assert isinstance(one, Linear) and isinstance(two, Linear)  # an NPU has no others
    two.fold_scale()
    for linear in (one, two):
        linear.weight = linear.weight.contiguous()
        if linear.bias is not None and linear.bias.dtype == torch.bfloat16:
            linear.bias = linear.bias.float()
    biases = {"bias1": one.bias, "bias2": two.bias}
    return lambda y: torch.ops.npu.npu_ffn(y, one.weight, two.weight, "silu", **biases, inner_precise=0)


def _with_shift(norm: Norm) -> Norm:
    return norm if norm.bias is not None else Norm(norm.weight, torch.zeros_like(norm.weight))


def _add_norm(x: torch.Tensor, y: torch.Tensor, norm: Norm) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the sum of x and y, and its norm."""
    operator = torch.ops.npu.npu_add_layer_norm
    normalized, _, _, total = operator(x, y, *norm, NORM_EPSILON, additional_output=True)
    return total, normalized
