"""Log-mel -> encoder frames: the cache-aware FastConformer, block by block, equal to NeMo's offline pass.

A block is any number of whole attention chunks, so that one path serves live streams (one chunk), long recordings
(many chunks) and batches (a recording in each slot, in lock-step).  The state keeps the past that a block needs:
one row before each subsampling stage, and for every layer the projected queries, keys and values of the left context
and the inputs of the causal convolution.

Formulas follow ``conformer_encoder.py`` of NeMo 2.7.3.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch

from .attention import ContextMask, encode_positions, parts_of
from .cache import EncoderState, RollingCache
from .checkpoint.config import EncoderConfig
from .checkpoint.weights import Weights
from .conformer import ConformerLayer, convolution_context
from .device import traits_of
from .errors import Unsupported
from .fused import FusedLayer
from .graph import CapturedStep, Captures
from .linear import AnyLinear, LayerLoader
from .prompt import Prompt
from .subsampling import Subsampling

LOADERS = 4  # layers that are loaded in parallel: each holds copies of its weights for a moment

SUPPORTED = {
    "subsampling": ("striding", "dw_striding"),
    "self_attention_model": ("rel_pos",),
    "att_context_style": ("chunked_limited", "regular"),
    "conv_norm_type": ("layer_norm", "batch_norm", "fused_batch_norm"),
    "reduction": (None, ""),
}
"""Values of the config that this encoder supports."""

Observer = Callable[[int, torch.Tensor], torch.Tensor]
"""Gets the index of a layer and its input [n * slots, width], frames first, and at index ``len(layers)`` the output of
the last layer; the result takes the place of that tensor."""


@dataclass(frozen=True)
class EncoderOptions:
    """How an encoder is to run."""

    context: list[int] | None = None
    """[left, right] attention context in frames, one of the checkpoint's; None takes its first."""
    max_block: int = 1
    """Frames of the largest block."""
    dtype: str = "float32"
    """Of the matrix products, see ``linear.make_linear``."""
    npu_fused: bool = False
    """Whether the layers consist of torch_npu's fused operators, see ``fused.py``."""


class NotFinitePart(NamedTuple):
    """The first part of the encoder whose output is NaN or infinite."""

    part: str
    slot: int
    frame: int
    """Encoder frame, counted from the start of the recording."""


class Encoder:
    """The encoder of one checkpoint on one device.

    ``config`` is the checkpoint's ``encoder`` part; ``weights`` are its tensors whose names begin with ``encoder.``,
    for the device.  Raises Unsupported for an encoder that is not a cache-aware FastConformer, and SetupError as
    ``Weights`` does.
    """

    def __init__(
        self, config: EncoderConfig, weights: Weights, options: EncoderOptions, captures: Captures | None = None
    ) -> None:
        """Load the weights, several layers in parallel."""
        _check(config)
        load = LayerLoader(weights, options.dtype)
        self.device = weights.device
        self.tensor_options: dict[str, Any] = {"dtype": weights.dtype, "device": weights.device}
        """dtype and device of the state, and of everything else but the matrix products."""
        self.dtype = options.dtype
        self.npu_fused = options.npu_fused
        self.captures = captures
        """What captures steady steps, see ``graph.py``; None where all steps are eager."""
        self.max_block = options.max_block
        self.width = config.d_model
        self.heads = config.n_heads
        self.x_scale = math.sqrt(self.width) if config.xscaling else None
        self.chunked = config.chunked
        self.conv_left, self.conv_right = convolution_context(config)
        self._set_context(options.context or config.contexts[0])
        limit = traits_of(self.device).subsampled_frames or options.max_block
        self.subsampling = Subsampling(load.inside("pre_encode."), config, limit)
        self.mels = config.feat_in
        self.factor = self.subsampling.factor
        """Feature frames of an encoder frame."""
        self.lead = self.subsampling.lead
        """Rows of zeros before a recording's first feature frame."""
        loaders = [load.inside(f"layers.{index}.") for index in range(config.n_layers)]
        layer = FusedLayer if options.npu_fused else ConformerLayer
        with ThreadPoolExecutor(min(LOADERS, torch.get_num_threads())) as pool:  # packing keeps one core busy
            self.layers = list(pool.map(lambda loader: layer(loader, config), loaders))
        self.out = None
        if weights.has("out_proj.weight"):
            self.out = load.linear("out_proj", (config.feat_out, self.width))
        self.prompt: Prompt | None = None
        """What follows the encoder in a multilingual checkpoint."""
        self.positions: dict[int, list[torch.Tensor]] = {}
        """Each layer's projected positions by the frames of the block, from its first use on."""
        self.mappings = weights.tensors.mappings
        """Where the positions' weights lie on a CPU: they are read for the first block of a size alone."""
        self.mappings.release()
        self.observer: Observer | None = None
        """For comparisons; a step with an observer is never captured."""

    def _set_context(self, context: list[int]) -> None:
        """Set everything that follows from the attention context except for the projected positions."""
        left, right = context
        causal = self.conv_right == 0
        self.streams = left >= 0 and causal and (right == 0 or (self.chunked and right > 0))
        """Whether blocks can be encoded as they come; if not, a recording is one block, as in NeMo's offline pass."""
        self.chunk = right + 1 if self.streams else 1
        """Frames of a chunk: blocks are multiples of it."""
        self.keep = left if self.streams else 0
        """Frames of left context that are kept."""
        self.block = max(self.max_block, self.chunk) if self.streams else 0
        """Frames of the largest block; 0 where a recording is one block."""
        chunk = self.chunk if self.streams else None
        self.mask = ContextMask((left, right), self.chunked, self.keep, chunk, self.tensor_options)

    def at_context(self, context: list[int]) -> Encoder:
        """Return this encoder with another [left, right] attention context.

        Both share the weights, and the positions if the left context is the same.
        """
        other = copy.copy(self)
        Encoder._set_context(other, context)
        if other.keep != self.keep:
            other.positions = {}
        return other

    def frames(self, features: int) -> int:
        """Return the encoder frames of a recording of so many feature frames."""
        return self.subsampling.frames(features)

    def linears(self) -> Iterator[AnyLinear]:
        """Yield all matrix products, for counting what a step reads and computes."""
        yield self.subsampling.out
        for layer in self.layers:
            yield from layer.linears()
        if self.out is not None:
            yield self.out
        if self.prompt is not None:
            yield from self.prompt.linears()

    def new_state(self, slots: int, block: int) -> EncoderState:
        """Return empty slots for blocks of at most ``block`` frames."""
        stages = self.subsampling.new_inputs(slots, block, self.tensor_options)
        layers, slides = len(self.layers), not self.captures
        parts = len(parts_of(self.device))
        apart = parts if self.npu_fused else 0
        attention = RollingCache(
            (layers, self.keep, slots, parts * self.width), block, slides=slides, apart=apart, **self.tensor_options
        )
        convolution = RollingCache(
            (layers, self.conv_left, slots, self.width), block + self.conv_right, slides=slides, **self.tensor_options
        )
        return EncoderState(stages, attention, convolution, self.conv_right)

    @property
    def largest_block(self) -> int:
        """Frames of the largest block, chunk * 2^k; 0 where a recording is one block."""
        return self.chunk << (self.block // self.chunk).bit_length() - 1 if self.streams else 0

    def block_for(self, frames: int) -> int:
        """Return the size of a block for so many frames, at most the largest: few sizes, since shapes are static."""
        if not self.streams:
            return frames
        chunks = math.ceil(frames / self.chunk)
        return min(self.chunk << (chunks - 1).bit_length(), self.largest_block)

    @torch.inference_mode()
    def step(self, features: torch.Tensor, state: EncoderState, ends: list[int | None]) -> torch.Tensor:
        """Encode the next block of every slot, and advance ``state`` by its n frames.

        ``features`` is float32 [slots, n * factor, mels] on the device: the next rows of each recording, whose first
        block begins with ``lead`` rows of zeros; rows past the end of a recording must be 0.  ``ends`` holds for each
        slot the number of feature frames of its recording if that ends in this block, else None.
        Returns float32 [slots, n, width]; frames past the end of a recording are undefined.
        """
        count = features.shape[1] // self.factor
        captured = self._captured(count, features, state, ends)
        encoded = captured(features) if captured else self._encode(features, state, ends)
        state.position = [position + count for position in state.position]
        return encoded

    def _captured(
        self, count: int, features: torch.Tensor, state: EncoderState, ends: list[int | None]
    ) -> CapturedStep | None:
        """Return the captured step of ``count`` frames, captured now at the second such step; None for an eager one.

        Captured are steady steps of the usual blocks: the left context of every slot is full, no recording ends.
        """
        if not (self.captures and self.captures.wanted and self.streams) or self.observer:
            return None
        is_steady = min(state.position) >= max(self.keep, 1) and all(end is None for end in ends)
        if not is_steady or count != self.block_for(count):
            return None
        if count not in state.graphs:  # allocations of a first use must not be captured
            state.graphs[count] = None
        elif state.graphs[count] is None:
            state.graphs[count] = self.captures.capture(lambda x: self._encode(x, state, ends), features, count)
        return state.graphs[count]

    def _encode(self, features: torch.Tensor, state: EncoderState, ends: list[int | None]) -> torch.Tensor:
        """Do what ``step`` does on the device."""
        slots, rows, _ = features.shape
        count = rows // self.factor
        x = self.subsampling(features.to(self.tensor_options["dtype"]), state.stages, state.position, ends)
        x = x.transpose(0, 1).contiguous().view(count * slots, self.width)
        if self.x_scale:
            x = x * self.x_scale
        frames_left = [
            None if end is None else self.frames(end) - position
            for end, position in zip(ends, state.position, strict=True)
        ]
        first_keys = [max(0, self.keep - position) for position in state.position]
        end_keys = [None if left is None else self.keep + left for left in frames_left]
        mask = self.mask(count, first_keys, end_keys)
        state.reserve(count)
        positions = self._projected_positions(count)
        for index, (layer, position) in enumerate(zip(self.layers, positions, strict=True)):
            x = self._observed(index, x)
            x = layer(x, state.layer(index, count, frames_left), position, mask)
        x = self._observed(len(self.layers), x)
        if self.out is not None:
            x = self.out(x)
        if self.prompt is not None:
            x = self.prompt(x)
        encoded = x.view(count, slots, -1).transpose(0, 1).float()
        state.advance(count)  # last: a step that ran out of memory can be repeated
        return encoded

    def _observed(self, index: int, x: torch.Tensor) -> torch.Tensor:
        return self.observer(index, x) if self.observer else x

    def _projected_positions(self, count: int) -> Iterable[torch.Tensor]:
        """Return each layer's projected positions for a block of ``count`` frames.

        Those of the usual sizes of blocks are kept, and other sizes take a part of the next larger ones, so that they
        do not depend on the blocks before.
        """
        size = max(count, self.block_for(count))
        if size not in self.positions:
            sinusoids = encode_positions(self.keep, size, self.width, self.device)
            projected = (self._project(layer, sinusoids) for layer in self.layers)
            if not self.streams:  # as long as the recording: one layer's at a time
                return projected
            self.positions[size] = list(projected)
        kept = self.positions[size]
        first = size - count
        return [layer[:, :, first : first + self.keep + 2 * count - 1] for layer in kept] if first else kept

    def _project(self, layer: ConformerLayer, sinusoids: torch.Tensor) -> torch.Tensor:
        projected = layer.attention.project(sinusoids)
        self.mappings.release_one(layer.attention.position)
        return projected

    @torch.inference_mode()
    def first_not_finite(
        self, features: torch.Tensor, state: EncoderState, ends: list[int | None]
    ) -> NotFinitePart | None:
        """Repeat the last step, and find the first part whose output is NaN or infinite; None if all is finite.

        The arguments are those of that step; the state cannot be used afterwards.
        """
        count = features.shape[1] // self.factor
        slots = len(ends)
        found: list[tuple[str, torch.Tensor]] = []

        def look(index: int, x: torch.Tensor) -> torch.Tensor:
            rows = x.isfinite().all(-1)
            if not found and not bool(rows.all()):
                found.append((f"layer {index - 1}" if index else "the subsampling", rows))
            return x

        watched = copy.copy(self)
        watched.observer = look
        state.retreat(count)
        encoded = Encoder._encode(watched, features, state, ends)
        if not found:
            rows = encoded.isfinite().all(-1).transpose(0, 1).flatten()
            if bool(rows.all()):
                return None
            found.append(("the prompt" if self.prompt else "the output projection", rows))
        part, rows = found[0]
        row = int(rows.int().cpu().argmin())
        slot = row % slots
        return NotFinitePart(part, slot, state.position[slot] + row // slots)

    @torch.inference_mode()
    def caches(self, state: EncoderState) -> list[tuple[torch.Tensor, ...]]:
        """Return each layer's kept keys, values and convolution inputs of slot 0, for comparisons.

        Each is float32 [rows, width] on the host, the newest row last.
        """
        projected = state.attention.kept[:, :, 0].float().cpu()
        projected = projected.unflatten(0, (len(self.layers), -1)).transpose(1, 2).flatten(2)
        attention = self.layers[0].attention.keys_and_values(projected)
        return list(zip(*attention, state.convolution.kept[:, :, 0].float().cpu(), strict=True))


def _check(config: EncoderConfig) -> None:
    """Raise Unsupported, which names the first unsupported part."""
    for name, known in SUPPORTED.items():
        value = getattr(config, name)
        if value not in known:
            raise Unsupported(f"encoder.{name}: {value}")
    if config.unknown:
        raise Unsupported(config.unknown[0])
    factor = config.subsampling_factor
    if factor < 2 or factor & (factor - 1):
        raise Unsupported(f"encoder.subsampling_factor: {factor}")
