"""Log-mel features -> encoder inputs: convolutions that halve the time axis, block by block.

Formulas: ``subsampling.py`` of NeMo 2.7.3 (ConvSubsampling, ``striding`` and ``dw_striding``).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F

from .checkpoint.config import EncoderConfig
from .linear import LayerLoader


@dataclass
class Stage:
    """One halving of the time axis: a 3 x 3 convolution of stride 2; a depthwise one is followed by a 1 x 1.

    The caller applies the rectifier, because it knows where the result belongs.
    """

    convolution: tuple[torch.Tensor, torch.Tensor | None]
    """Weight and bias."""
    pointwise: tuple[torch.Tensor, torch.Tensor | None] | None

    @property
    def channels(self) -> int:
        """Channels of the output."""
        return self.convolution[0].shape[0]

    @property
    def elements(self) -> int:
        """Multiplications of one output row and feature."""
        pointwise = self.pointwise[0].numel() if self.pointwise else 0
        return self.convolution[0].numel() + pointwise

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        """[slots, channels, 2 n + 1, features], padded -> [slots, channels, n, features / 2]."""
        x = F.conv2d(x, *self.convolution, stride=2, groups=self.channels if self.pointwise else 1)
        return F.conv2d(x, *self.pointwise) if self.pointwise else x


class Subsampling:
    """The ``pre_encode`` part of a checkpoint with its weights.

    ``limit`` is the number of encoder frames that are subsampled together: on a CPU their features stay in its cache.
    """

    def __init__(self, load: LayerLoader, config: EncoderConfig, limit: int) -> None:
        """Load the weights; ``config`` is the checkpoint's ``encoder`` part."""
        self.factor = config.subsampling_factor
        self.causal = config.causal_downsampling
        self.mels = config.feat_in
        self.limit = limit
        self.stages = _stages(load.inside("conv."), config)
        features = self.mels
        for _ in self.stages:
            features = self._stage_length(features)
        inner = self.stages[-1].channels * features
        self.out = load.linear("out", (config.d_model, inner), floor=0.0)  # its input comes from a rectifier

    @property
    def lead(self) -> int:
        """Rows of zeros before a recording's first feature frame.

        A causal encoder frame i looks at features up to f * i; with f - 1 rows in front, exactly f rows complete each
        encoder frame.
        """
        return self.factor - 1 if self.causal else 0

    def frames(self, features: int) -> int:
        """Return the encoder frames of a recording of so many feature frames (subsampling.calc_length)."""
        for _ in self.stages:
            features = self._stage_length(features)
        return features

    def _stage_length(self, length: int) -> int:
        """Kernel 3, stride 2, padding 2 + 1 if causal, else 1 + 1."""
        return length // 2 + 1 if self.causal else (length - 1) // 2 + 1

    def new_inputs(self, slots: int, block: int, options: dict[str, Any]) -> list[torch.Tensor]:
        """Return the inputs of the stages, [slots, channels, 1 + rows, features], for blocks of ``block`` frames.

        Each holds the row before the next ones, room for these, and at the sides columns that stay 0, the padding of
        its convolution.  ``options`` are the dtype and the device.
        """
        inputs = []
        features, channels = self.mels, 1
        rows = min(block, self.limit) * self.factor
        sides = 3 if self.causal else 2
        for stage in self.stages:
            inputs.append(torch.zeros(slots, channels, 1 + rows, features + sides, **options))
            rows //= 2
            features = self._stage_length(features)
            channels = stage.channels
        return inputs

    def __call__(
        self, features: torch.Tensor, inputs: list[torch.Tensor], position: list[int], ends: list[int | None]
    ) -> torch.Tensor:
        """Subsample the next rows of every slot: [slots, n * factor, mels] -> [slots, n, width].

        ``inputs`` come from ``new_inputs`` and are updated; ``position`` is the first encoder frame of each slot,
        ``ends`` the feature frames of its recording if it ends here, else None.
        """
        position = list(position)
        parts = []
        for part in features.split(self.limit * self.factor, 1):
            parts.append(self._part(part, inputs, position, ends))
            position = [first + parts[-1].shape[1] for first in position]
        return parts[0] if len(parts) == 1 else torch.cat(parts, 1)

    def _part(
        self, features: torch.Tensor, inputs: list[torch.Tensor], position: list[int], ends: list[int | None]
    ) -> torch.Tensor:
        """Subsample at most ``limit`` frames.  Each stage writes its output into the interior of the next input."""
        slots, rows, _ = features.shape
        rate = self.factor
        self._new_rows(inputs[0], rows).copy_(features.unsqueeze(1))
        for index, stage in enumerate(self.stages):
            source = inputs[index]
            y = stage(source[:, :, : 1 + rows])
            source[:, :, 0].copy_(source[:, :, rows])
            rows //= 2
            if index + 1 < len(self.stages):
                x = self._new_rows(inputs[index + 1], rows)
                torch.clamp(y, min=0, out=x)
            else:
                x = y.relu_()
            rate //= 2
            ends = [None if end is None else self._stage_length(end) for end in ends]
            self._clear(x, [first * rate - (rate - 1 if self.causal else 0) for first in position], ends)
        x = x.transpose(1, 2).contiguous().view(slots * rows, -1)
        return self.out(x).view(slots, rows, -1)

    def _clear(self, x: torch.Tensor, firsts: list[int], ends: list[int | None]) -> None:
        """Zero the rows outside each recording: NeMo's padding and masks are zeros at every stage.

        ``firsts`` are the positions of the first row in each slot's recording, ``ends`` their lengths.
        """
        for slot, (first, end) in enumerate(zip(firsts, ends, strict=True)):
            if first < 0:
                x[slot, :, :-first].zero_()
            if end is not None:
                x[slot, :, max(0, end - first) :].zero_()

    def _new_rows(self, rows: torch.Tensor, count: int) -> torch.Tensor:
        """Return where the next ``count`` rows of an input belong: after the kept one, between the zeros."""
        return rows[:, :, 1 : 1 + count, 2 if self.causal else 1 : -1]


def _stages(load: LayerLoader, config: EncoderConfig) -> list[Stage]:
    """Load the stages of ConvSubsampling, which numbers its modules together with their activations."""
    stages = []
    number = 0
    channels = config.channels
    for index in range(int(math.log2(config.subsampling_factor))):
        separable = index > 0 and config.subsampling == "dw_striding"
        inputs = channels if index and not separable else 1
        convolution = load.weight_and_bias(str(number), (channels, inputs, 3, 3))
        pointwise = None
        if separable:
            number += 1
            pointwise = load.weight_and_bias(str(number), (channels, channels, 1, 1))
        stages.append(Stage(convolution, pointwise))
        number += 2
    return stages
