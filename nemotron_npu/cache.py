"""The past that the encoder keeps of each recording: the rows before a block, for every layer and batch slot.

Tensors are time-major, [frames, slots, ...].  So a matrix product can write the new rows directly after the kept ones,
for any number of slots.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import Any

import torch

from .graph import CapturedStep


@dataclass(frozen=True, slots=True)
class LayerCache:
    """The cached rows of one layer, and room for the rows of the next n frames."""

    attention: torch.Tensor
    """[left + n, slots, parts * width]: projected queries, keys and values, the kept ones first; with ``apart``
    [parts, left + n, slots, width]."""
    convolution: torch.Tensor
    """[left + n + right, slots, width]: inputs of the depthwise convolution, the kept ones first."""
    ends: list[int | None]
    """Frames until the end of each slot's recording; None if it does not end in this block."""


class RollingCache:
    """For each layer the last ``keep`` rows, and room behind them for the next ones: [frames, slots, width].

    The window slides along a longer buffer and moves back to its front when that is full.  A captured graph needs the
    same addresses in each step: without ``slides`` the window moves back after each step instead.
    """

    def __init__(
        self, shape: tuple[int, int, int, int], room: int, *, slides: bool, apart: int = 0, **options: Any
    ) -> None:
        """Allocate the buffer.

        ``shape`` is [layers, keep, slots, width], ``room`` the largest number of new rows; ``options`` are the dtype
        and the device.  With ``apart`` the rows of a layer consist of so many parts, each in a matrix of its own.
        """
        layers, keep, slots, width = shape
        self.apart = apart
        if apart:
            layers, width = layers * apart, width // apart
        length = (2 if slides else 1) * keep + room
        self.rows = torch.empty(layers, length, slots, width, **options)  # pages are allocated when they are touched
        self.rows[:, :keep].zero_()
        self.keep = keep
        self.end = keep
        self.slides = slides

    @property
    def kept(self) -> torch.Tensor:
        """The kept rows of all layers, [layers, keep, slots, width]; with ``apart`` [layers * apart, ...]."""
        return self.rows[:, self.end - self.keep : self.end]

    def with_slots(self, slots: int) -> RollingCache:
        """Return a cache of fewer slots in the memory of this one; its rows are undefined."""
        layers, length, _, width = self.rows.shape
        other = copy.copy(self)
        other.rows = self.rows.flatten()[: layers * length * slots * width].view(layers, length, slots, width)
        return other

    def reserve(self, count: int) -> None:
        """Make room for ``count`` new rows."""
        if self.end + count > self.rows.shape[1]:
            self._move_back()

    def window(self, layer: int, count: int) -> torch.Tensor:
        """Return the kept rows of a layer and the ``count`` new ones after them, see ``LayerCache``."""
        rows = self.rows[:, self.end - self.keep : self.end + count]
        return rows[layer * self.apart : (layer + 1) * self.apart] if self.apart else rows[layer]

    def advance(self, count: int) -> None:
        """Keep the last rows of the window, after ``count`` new ones were written."""
        self.end += count
        if not self.slides:
            self._move_back()

    def retreat(self, count: int) -> None:
        """Undo the last ``advance``.  Without ``slides`` the rows that were kept before are lost."""
        if self.slides:
            self.end -= count

    def _move_back(self) -> None:
        kept = self.kept
        if self.end < 2 * self.keep:  # source and destination overlap
            kept = kept.clone()
        self.rows[:, : self.keep] = kept
        self.end = self.keep


class EncoderState:
    """The encoder's state of the recordings in its batch slots; made by ``Encoder.new_state``."""

    def __init__(
        self, stages: list[torch.Tensor], attention: RollingCache, convolution: RollingCache, right: int
    ) -> None:
        self.stages = stages
        """Input of each subsampling stage, see ``Subsampling.new_inputs``."""
        self.attention = attention
        self.convolution = convolution
        self.right = right
        """Frames of right context of the convolution: rows of its window after those of the step."""
        self.position = [0] * len(stages[0])
        """Encoder frames of each slot's recording so far."""
        self.graphs: dict[int, CapturedStep | None] = {}
        """Captured steps by their number of frames; None after one eager step, before the capture."""

    def layer(self, index: int, count: int, ends: list[int | None]) -> LayerCache:
        """Return the cache of a layer for a step of ``count`` frames."""
        convolution = self.convolution.window(index, count + self.right)
        return LayerCache(self.attention.window(index, count), convolution, ends)

    def reserve(self, count: int) -> None:
        """Make room for a step of ``count`` frames."""
        self.attention.reserve(count)
        self.convolution.reserve(count + self.right)

    def advance(self, count: int) -> None:
        """Keep the last rows of every layer, after a step of ``count`` frames."""
        self.attention.advance(count)
        self.convolution.advance(count)

    @property
    def kept_rows(self) -> list[torch.Tensor]:
        """The row before each subsampling stage.  A step overwrites it: a copy allows to repeat the step."""
        return [rows[:, :, 0] for rows in self.stages]

    @property
    def bytes(self) -> int:
        """Bytes of the state on the device."""
        return sum(rows.nbytes for rows in (*self.stages, self.attention.rows, self.convolution.rows))

    @torch.inference_mode()
    def restart(self, slot: int) -> None:
        """Start a new recording in ``slot``."""
        if not self.position[slot]:  # nothing was written yet
            return
        for rows in self.kept_rows:
            rows[slot].zero_()
        for cache in (self.attention, self.convolution):
            cache.kept[:, :, slot].zero_()
        self.position[slot] = 0

    def retreat(self, count: int) -> None:
        """Undo the last step, of ``count`` frames, except for the row before each subsampling stage."""
        for cache in (self.attention, self.convolution):
            cache.retreat(count)
        self.position = [position - count for position in self.position]

    def with_slots(self, slots: int) -> EncoderState:
        """Return a state of fewer slots in the memory of this one, to ``gather`` in."""
        caches = self.attention.with_slots(slots), self.convolution.with_slots(slots)
        return EncoderState([rows[:slots] for rows in self.stages], *caches, self.right)

    @torch.inference_mode()
    def take(self, other: EncoderState, slots: list[int]) -> None:
        """Copy the recordings in these slots of another state, one into each slot of this one."""
        for mine, theirs in enumerate(slots):  # one by one: an index list would be copied to the device
            for rows, others in zip(self.kept_rows, other.kept_rows, strict=True):
                rows[mine] = others[theirs]
            self.attention.kept[:, :, mine] = other.attention.kept[:, :, theirs]
            self.convolution.kept[:, :, mine] = other.convolution.kept[:, :, theirs]
        self.position = [other.position[slot] for slot in slots]
