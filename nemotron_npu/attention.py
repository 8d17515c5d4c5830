"""Relative-position multi-head attention over a cached left context, with its positions and masks.

Formulas: ``multi_head_attention.py`` and ``conformer_encoder.py`` of NeMo 2.7.3; Transformer-XL (arXiv 1901.02860).

The scores of the positions are laid out as [slots * heads, n, columns] before their shift, where the score of query i
for key k lies in column n - 1 - i + k.  NeMo's ``rel_shift`` is then a view that steps one column less per row.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any

import torch

from .checkpoint.weights import Quantized
from .device import traits_of, upload
from .linear import LayerLoader, make_linear

MASKED = -10000.0  # added to the score of a hidden key, NeMo's INF_VAL; exp() of it is 0 in float32


def parts_of(device: torch.device) -> str:
    """Return what the projections of a frame consist of: a query, a key and a value on a CPU.

    A device that waits for launches gets both queries, q + u and q + v, from one product with two biases; a CPU would
    read more weights for that.
    """
    return "qkv" if traits_of(device).is_host else "qqkv"


class RelativeAttention:
    """One layer's ``norm_self_att`` and ``self_attn`` with their weights (RelPositionMultiHeadAttention)."""

    parts_axis = 1
    """Of the projections of a frame, which are [heads, parts, head_width]."""

    def __init__(self, load: LayerLoader, width: int, heads: int) -> None:
        """Load the weights of ``width`` channels in ``heads`` heads."""
        self.width = width
        self.heads = heads
        self.head_width = width // heads
        self.scale = self.position_scale = 1 / math.sqrt(self.head_width)
        self.norm = load.norm("norm_self_att", width)
        self.parts = parts_of(load.weights.device)
        """What ``qkv`` gives for each head."""
        uv = torch.stack([load.weights(f"self_attn.pos_bias_{part}", heads, self.head_width) for part in "uv"], 1)
        bias = None
        if load.weights.has("self_attn.linear_q.bias"):
            bias = self._stacked([load.weights(f"self_attn.linear_{part}.bias", width) for part in self.parts])[:, 0]
        if len(self.parts) == 4:
            bias = uv.new_zeros(len(self.parts) * width) if bias is None else bias
            u_and_v = [*uv.unbind(1), *torch.zeros_like(uv).unbind(1)]
            bias = bias + self._stacked([part.reshape(width) for part in u_and_v])[:, 0]
        weights = [load.matrix(f"self_attn.linear_{part}", width, width) for part in self.parts]
        self.qkv = make_linear(self._stacked_weights(weights), bias, load.dtype)
        """Columns in the order [head, part, head_width], so that slots and heads are one dimension of a slice."""
        self.bias_uv = uv.transpose(0, 1).reshape(2, 1, 1, heads, self.head_width)
        """``pos_bias_u`` and ``pos_bias_v``."""
        position = load.matrix("self_attn.linear_pos", width, width)
        self.position_scales: torch.Tensor | float = 1.0
        if isinstance(position, Quantized):
            position, self.position_scales = position
        self.position = position
        self.out = load.linear("self_attn.linear_out", (width, width))

    def _stacked_weights(self, parts: list[torch.Tensor | Quantized]) -> torch.Tensor | Quantized:
        quantized = [part for part in parts if isinstance(part, Quantized)]
        if quantized:
            levels, scales = zip(*quantized, strict=True)
            return Quantized(self._stacked(list(levels)), self._stacked(list(scales))[:, 0])
        return self._stacked([part for part in parts if isinstance(part, torch.Tensor)])

    def _stacked(self, parts: list[torch.Tensor]) -> torch.Tensor:
        """Return the rows of ``linear_q``, ``linear_k`` and ``linear_v`` in the order of ``qkv``."""
        stacked = torch.stack([part.view(self.heads, self.head_width, -1) for part in parts], self.parts_axis)
        return stacked.view(len(parts) * self.width, -1)

    def __call__(
        self, x: torch.Tensor, window: torch.Tensor, position: torch.Tensor, mask: torch.Tensor | None
    ) -> torch.Tensor:
        """Return ``x`` plus the attention of its norm, [n * slots, width], see ``attended``."""
        return self.out.add(x, self.attended(self.norm(x), window, position, mask))

    def attended(
        self, y: torch.Tensor, window: torch.Tensor, position: torch.Tensor, mask: torch.Tensor | None
    ) -> torch.Tensor:
        """Return the attention of the norm ``y``, [n * slots, width], before the output projection.

        ``window`` [left + n, slots, parts * width] holds the projections of the left context and receives those of the
        block; ``position`` [heads, head_width, left + 2 n - 1] comes from ``project``; ``mask`` from ``ContextMask``.
        """
        keys, slots, _ = window.shape
        count = len(y) // slots
        left = keys - count
        self.qkv(y, out=window[left:].view(count * slots, -1))
        attend = self._attend if len(self.parts) == 3 else self._attend_by_few_kernels
        return attend(window, left, position, mask)

    def _attend(
        self, window: torch.Tensor, left: int, position: torch.Tensor, mask: torch.Tensor | None
    ) -> torch.Tensor:
        """Attend from the queries of the block to the kept and the new keys -> [n * slots, width].

        scores = ((q + u) k^T + rel_shift((q + v) p^T)) / sqrt(head_width), Transformer-XL, section 3.3.
        """
        keys, slots, _ = window.shape
        count, heads, d_k = keys - left, self.heads, self.head_width
        window = window.view(keys, slots * heads, 3, d_k)
        query = window[left:, :, 0].view(count, slots, heads, d_k)
        with_u, with_v = (query + self.bias_uv).unbind(0)

        by_position = self._by_position(with_v.view(count * slots, heads, d_k), position, mask)
        by_position = self._shifted(by_position, count, slots).reshape(slots * heads, count, keys)
        with_u = with_u.reshape(count, slots * heads, d_k).transpose(0, 1)
        key = window[:, :, 1].permute(1, 2, 0)
        value = window[:, :, 2].transpose(0, 1)
        scores = torch.baddbmm(by_position, with_u, key, alpha=self.scale)
        attended = torch.bmm(torch.softmax(scores, -1), value)  # [slots * heads, n, head_width]
        return attended.transpose(0, 1).contiguous().view(count * slots, self.width)

    def _attend_by_few_kernels(
        self, window: torch.Tensor, left: int, position: torch.Tensor, mask: torch.Tensor | None
    ) -> torch.Tensor:
        """Do the same where a product first copies each strided factor: one copy makes keys and values contiguous.

        A sum of two matrices is one kernel less by itself than inside baddbmm, which multiplies one of them by 1.
        """
        keys, slots, _ = window.shape
        count, heads, d_k = keys - left, self.heads, self.head_width
        window = window.view(keys, slots * heads, len(self.parts), d_k)
        with_u, with_v = window[left:, :, 0].transpose(0, 1), window[left:, :, 1]
        key, value = window[:, :, 2:].permute(2, 1, 0, 3).contiguous()
        by_position = self._by_position(with_v.view(count * slots, heads, d_k), position, mask)
        by_position = self._shifted(by_position, count, slots)
        scores = torch.bmm(with_u, key.transpose(1, 2)).view(by_position.shape)
        torch.add(by_position, scores, alpha=self.scale, out=scores)
        attended = value.new_empty(count, slots * heads, d_k)
        weights = torch.softmax(scores, -1).view(slots * heads, count, keys)
        torch.bmm(weights, value, out=attended.transpose(0, 1))
        return attended.view(count * slots, self.width)

    def _by_position(self, with_v: torch.Tensor, position: torch.Tensor, mask: torch.Tensor | None) -> torch.Tensor:
        """Return the scores of the positions before their shift, [heads, n * slots, columns], plus the mask."""
        with_v = with_v.transpose(0, 1)
        return torch.bmm(with_v, position) if mask is None else torch.baddbmm(mask, with_v, position)

    def _shifted(self, by_position: torch.Tensor, count: int, slots: int) -> torch.Tensor:
        """Return the view [slots, heads, n, left + n] of the scores of the positions."""
        columns = by_position.shape[2]
        return by_position.as_strided(
            (slots, self.heads, count, columns - count + 1),
            (columns, count * slots * columns, slots * columns - 1, 1),
            by_position.storage_offset() + count - 1,
        )

    def keys_and_values(self, rows: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the keys and the values of rows of a window, [..., parts * width], each [..., width]."""
        shape = [self.heads, self.head_width]
        shape.insert(self.parts_axis, len(self.parts))
        *_, key, value = rows.unflatten(-1, shape).unbind(self.parts_axis - 3)
        return key.flatten(-2), value.flatten(-2)

    def project(self, sinusoids: torch.Tensor) -> torch.Tensor:
        """Return ``linear_pos`` of ``encode_positions``, over sqrt(head_width), [heads, head_width, positions].

        It is computed in the dtype of the state: a product that is kept needs no fast kernel.
        """
        dtype = self.bias_uv.dtype
        projected = torch.mm(sinusoids.to(dtype), self.position.to(dtype).t())
        projected = projected * (self.position_scales * self.position_scale)
        return projected.view(-1, self.heads, self.head_width).permute(1, 2, 0).contiguous()


def encode_positions(left: int, count: int, width: int, device: torch.device) -> torch.Tensor:
    """Return the sinusoids of the distances left + n - 1 down to -(n - 1), float32 [left + 2 n - 1, width].

    RelPositionalEncoding: sin and cos of distance * 10000^(-2 i / width).
    """
    distances = torch.arange(left + count - 1, -count, -1, dtype=torch.float32, device=device)
    columns = torch.arange(0, width, 2, dtype=torch.float32, device=device)
    rates = torch.exp(columns * -(math.log(10000.0) / width))
    angles = distances[:, None] * rates
    return torch.stack([angles.sin(), angles.cos()], -1).view(len(distances), width)


@dataclass(frozen=True)
class ContextMask:
    """Masks of one attention context (ConformerEncoder._create_masks).

    They are made on the host, since each slot whose recording begins or ends here differs, and copied to the device.
    """

    context: tuple[int, int]
    """[left, right] in frames; -1 is no limit."""
    chunked: bool
    """Whether queries see whole chunks (``chunked_limited``) or a band (``regular``)."""
    keep: int
    """Frames of left context that are kept from block to block."""
    chunk: int | None
    """Frames of a chunk where blocks are encoded as they come; None where a recording is one block."""
    options: dict[str, Any]
    """dtype and device."""
    bands: dict[tuple[int, int], tuple[torch.Tensor, torch.Tensor]] = field(default_factory=dict)
    """Masks of the attention context alone on the host and on the device, by (frames, slots)."""

    def __call__(self, count: int, first_keys: list[int], end_keys: list[int | None]) -> torch.Tensor | None:
        """Return the mask for a block of ``count`` frames, to be added to the position scores before their shift.

        ``first_keys`` and ``end_keys`` bound the keys of each slot's recording; None is no end.  Returns
        [1, n * slots, columns]; None where each query sees every key: one chunk, the whole left context, no end.
        """
        slots = len(first_keys)
        band = self._band(count, slots)
        if not any(first_keys) and all(end is None for end in end_keys):
            return band and band[1]
        mask = self._empty(count, slots) if band is None else band[0].clone()
        shifted = self._shifted(mask, count, slots)
        for slot, (first, end) in enumerate(zip(first_keys, end_keys, strict=True)):
            if first:
                shifted[:, slot, :first].fill_(MASKED)
            if end is not None:
                shifted[:, slot, end:].fill_(MASKED)
        return upload(mask, self.options["device"])

    def _empty(self, count: int, slots: int) -> torch.Tensor:
        return torch.zeros(1, count * slots, self.keep + 2 * count - 1, dtype=self.options["dtype"])

    def _shifted(self, mask: torch.Tensor, count: int, slots: int) -> torch.Tensor:
        """Return the view [n, slots, keys] of a mask that is laid out as the position scores before their shift."""
        columns = mask.shape[2]
        return mask.as_strided((count, slots, self.keep + count), (slots * columns - 1, columns, 1), count - 1)

    def _band(self, count: int, slots: int) -> tuple[torch.Tensor, torch.Tensor] | None:
        """Return the mask of the attention context alone, see ``bands``; None if it hides nothing."""
        if count == self.chunk:
            return None
        if (count, slots) in self.bands:
            return self.bands[count, slots]
        mask = self._empty(count, slots)
        self._shifted(mask, count, slots).masked_fill_(self._hidden(count)[:, None], MASKED)
        band = mask, upload(mask, self.options["device"])
        if self.chunk:  # otherwise the mask is as large as the recording, and the next recording has another size
            self.bands[count, slots] = band
        return band

    def _hidden(self, count: int) -> torch.Tensor:
        """Return which keys the attention context hides, bool [n, keys]."""
        left, right = self.context
        query = torch.arange(self.keep, self.keep + count)[:, None]
        key = torch.arange(self.keep + count)
        hidden = torch.zeros_like(query - key, dtype=torch.bool)
        if self.chunked and right >= 0:
            chunks = query // (right + 1) - key // (right + 1)
            hidden |= chunks < 0
            if left >= 0:
                hidden |= chunks > left // (right + 1)
            return hidden
        if left >= 0:
            hidden |= key < query - left
        if right >= 0:
            hidden |= key > query + right
        return hidden
