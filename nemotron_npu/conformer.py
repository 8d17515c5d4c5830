"""A Conformer layer with its weights: feed-forward, attention, convolution, feed-forward, each added to its input.

Names of weights and formulas follow ``conformer_modules.py`` of NeMo 2.7.3.  x is [n * slots, width], frames first.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
import torch.nn.functional as F

from .attention import RelativeAttention
from .cache import LayerCache
from .checkpoint.config import EncoderConfig
from .device import trim_memory
from .linear import AnyLinear, LayerLoader

SILU_FLOOR = -0.2785  # the least value of silu is -0.27846, at -1.2785
BATCH_NORM_EPSILON = 1e-5  # torch.nn.BatchNorm1d's own


class FeedForward:
    """``norm_feed_forwardN`` and ``feed_forwardN``."""

    def __init__(self, load: LayerLoader, number: int, width: int, inner: int) -> None:
        """Load the weights of the layer's first or second feed-forward part."""
        self.norm = load.norm(f"norm_feed_forward{number}", width)
        self.linear1 = load.linear(f"feed_forward{number}.linear1", (inner, width))
        self.linear2 = load.linear(  # fc_factor: half of it is added
            f"feed_forward{number}.linear2", (width, inner), scale=0.5, floor=SILU_FLOOR
        )

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        """Return x + linear2(silu(linear1(norm(x)))) / 2."""
        return self.linear2.add(x, self.linear1.silu(self.norm(x)))


class Convolution:
    """``norm_conv`` and ``conv``: gated pointwise, depthwise over time, normalized, pointwise."""

    def __init__(self, load: LayerLoader, config: EncoderConfig) -> None:
        """Load the weights.  A batch norm is folded into the depthwise convolution."""
        width = config.d_model
        self.left, self.right = convolution_context(config)
        self.norm = load.norm("norm_conv", width)
        self.pointwise1 = load.linear("conv.pointwise_conv1", (2 * width, width, 1))
        depthwise, bias = load.weight_and_bias("conv.depthwise_conv", (width, 1, config.conv_kernel_size))
        depthwise = depthwise[:, 0]  # [width, kernel]
        self.depthwise_norm = None
        if config.conv_norm_type == "layer_norm":
            self.depthwise_norm = load.norm("conv.batch_norm", width)
        else:
            scale, shift = _batch_norm(load, config.conv_norm_type, width)
            depthwise = depthwise * scale[:, None]
            bias = shift if bias is None else shift + bias * scale
        self.depthwise = depthwise.t().contiguous()[:, None]
        """[kernel, 1, width], time first."""
        self.depthwise_bias = bias
        self.pointwise2 = load.linear("conv.pointwise_conv2", (width, width, 1), floor=SILU_FLOOR)

    def __call__(self, x: torch.Tensor, window: torch.Tensor, ends: list[int | None]) -> torch.Tensor:
        """Return ``x`` plus the convolution of its norm, [n * slots, width], see ``convolved``."""
        return self.pointwise2.add(x, self.convolved(self.norm(x), window, ends))

    def convolved(self, y: torch.Tensor, window: torch.Tensor, ends: list[int | None]) -> torch.Tensor:
        """Return the convolution of the norm ``y``, [n * slots, width], before the last pointwise one.

        ``window`` [left + n + right, slots, width] holds the left context and receives the new rows; ``ends`` are the
        frames until the end of each slot's recording, None if it does not end in this block.
        """
        slots = window.shape[1]
        count = len(y) // slots
        y = self.pointwise1(y)
        new = window[self.left :]
        torch.ops.aten.glu.out(y, -1, out=new[:count].view(count * slots, -1))
        if self.right:  # a causal convolution of a frame before the end never sees a row past it
            for slot, end in enumerate(ends):
                if end is not None:
                    new[end:, slot].zero_()
        y = self._depthwise(window, count)
        return self._activated(y).view(count * slots, -1)

    def _activated(self, y: torch.Tensor) -> torch.Tensor:
        """Return silu of the norm, if there is one."""
        return F.silu(self.depthwise_norm(y) if self.depthwise_norm else y)

    def _depthwise(self, window: torch.Tensor, count: int) -> torch.Tensor:
        """[kernel - 1 + n, slots, width] -> [n, slots, width].

        A product and a sum over a view of overlapping windows: for the few rows of a block this is less work than the
        transpositions inside conv1d.
        """
        step = window.stride(0)
        kernel = len(self.depthwise)
        windows = window.as_strided((count, kernel, *window.shape[1:]), (step, step, *window.stride()[1:]))
        y = (windows * self.depthwise).sum(1)
        return y if self.depthwise_bias is None else y + self.depthwise_bias


class ConformerLayer:
    """``layers.N`` of a checkpoint."""

    attention_class = RelativeAttention
    convolution_class = Convolution

    def __init__(self, load: LayerLoader, config: EncoderConfig) -> None:
        """Load the weights; ``config`` is the checkpoint's ``encoder`` part."""
        width = config.d_model
        inner = width * config.ff_expansion_factor
        self.feed_forward1 = FeedForward(load, 1, width, inner)
        self.attention = self.attention_class(load, width, config.n_heads)
        self.convolution = self.convolution_class(load, config)
        self.feed_forward2 = FeedForward(load, 2, width, inner)
        self.norm_out = load.norm("norm_out", width)
        trim_memory()

    def __call__(
        self, x: torch.Tensor, cache: LayerCache, position: torch.Tensor, mask: torch.Tensor | None
    ) -> torch.Tensor:
        """Return the layer's output for the next frames; ``cache`` receives their projections.

        ``position`` and ``mask`` belong to the attention, see ``RelativeAttention``.
        """
        x = self.feed_forward1(x)
        x = self.attention(x, cache.attention, position, mask)
        x = self.convolution(x, cache.convolution, cache.ends)
        x = self.feed_forward2(x)
        return self.norm_out(x)

    def linears(self) -> Iterator[AnyLinear]:
        """Yield the layer's matrix products."""
        for feed_forward in (self.feed_forward1, self.feed_forward2):
            yield feed_forward.linear1
            yield feed_forward.linear2
        yield self.attention.qkv
        yield self.attention.out
        yield self.convolution.pointwise1
        yield self.convolution.pointwise2


def convolution_context(config: EncoderConfig) -> tuple[int, int]:
    """Return (left, right) padding of the depthwise convolution (ConformerEncoder._calc_context_sizes)."""
    size = config.conv_context_size
    kernel = config.conv_kernel_size
    if size == "causal":
        return kernel - 1, 0
    if size:
        left, right = size
        return left, right
    return (kernel - 1) // 2, (kernel - 1) // 2


def _batch_norm(load: LayerLoader, norm_type: str, width: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Return scale and shift of each channel of a ``batch_norm`` or a ``fused_batch_norm``, each [width]."""
    scale = load.weights("conv.batch_norm.weight", width)
    shift = load.weights("conv.batch_norm.bias", width)
    if norm_type == "batch_norm":
        variance = load.weights("conv.batch_norm.running_var", width)
        scale = scale / torch.sqrt(variance + BATCH_NORM_EPSILON)
        shift = shift - load.weights("conv.batch_norm.running_mean", width) * scale
        load.weights.has("conv.batch_norm.num_batches_tracked")  # stored with every batch norm, and not needed
    return scale, shift
