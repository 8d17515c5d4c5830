"""Log-mel -> encoder frames: the cache-aware FastConformer, block by block, equal to NeMo's offline pass.

A block is any number of whole attention chunks, so that one path serves live streams (one chunk), long recordings
(many chunks) and batches (a recording in each slot, in lock-step).  What a block needs of the past is kept: one row
before each subsampling stage, and for every layer the projected queries, keys and values of the left context and the
inputs of the causal convolution.

Tensors are time-major inside, [frames, slots, ...]: appending to the past is then a matrix product that writes its
result in place, for any number of slots.  Names of weights and formulas follow NeMo's ``conformer_encoder.py``,
``conformer_modules.py``, ``multi_head_attention.py`` and ``subsampling.py``.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import torch
import torch.nn.functional as F

from .checkpoint.config import context_sizes
from .checkpoint.weights import Weights
from .device import traits_of, trim_memory
from .errors import Unsupported
from .graph import Recorded
from .linear import Linear, make_linear

SILU_FLOOR = -0.2785  # silu's least value is -0.27846, at -1.2785

MASKED = -10000.0  # added to the score of a key that is not to be seen: NeMo's INF_VAL; exp() of it is 0

LOADERS = 4  # layers that are prepared at once: each holds copies of its weights for a moment

DEFAULTS = {  # ConformerEncoder's own, NeMo 2.7.3
    "subsampling": "striding",
    "subsampling_factor": 4,
    "subsampling_conv_channels": -1,
    "causal_downsampling": False,
    "reduction": None,
    "feat_out": -1,
    "n_heads": 4,
    "ff_expansion_factor": 4,
    "self_attention_model": "rel_pos",
    "att_context_size": None,
    "att_context_style": "regular",
    "xscaling": True,
    "conv_kernel_size": 31,
    "conv_norm_type": "batch_norm",
    "conv_context_size": None,
}


@dataclass
class Layer:
    """The weights of one ConformerLayer; a norm is its (weight, bias)."""

    norm_ff1: tuple
    ff1_in: Linear
    ff1_out: Linear
    norm_attention: tuple
    qkv: Linear
    """Columns in the order [head, (q, k, v), d_k], so that slots and heads are one dimension of any slice."""
    bias_uv: torch.Tensor
    """[2, 1, 1, heads, d_k]: pos_bias_u and pos_bias_v."""
    position: torch.Tensor
    """linear_pos.weight, [d_model, d_model]."""
    attention_out: Linear
    norm_conv: tuple
    pointwise1: Linear
    depthwise: torch.Tensor
    """[kernel, 1, d_model], time first."""
    depthwise_bias: torch.Tensor | None
    conv_norm: tuple | None
    """None where a batch norm was folded into ``depthwise`` and its bias."""
    pointwise2: Linear
    norm_ff2: tuple
    ff2_in: Linear
    ff2_out: Linear
    norm_out: tuple


class History:
    """For each layer the last ``keep`` rows, and room behind them for the next ones: [frames, slots, width].

    The window slides along a longer buffer and is moved back to its front only when that is full.  A recorded step
    finds it at the same addresses each time: there it does not slide, but is moved back after each step.
    """

    def __init__(self, layers: int, keep: int, room: int, slots: int, width: int, slides: bool, **kind):
        self.rows = torch.empty(layers, (2 if slides else 1) * keep + room, slots, width, **kind)  # touched when needed
        self.rows[:, :keep].zero_()
        self.keep = self.end = keep
        self.slides = slides

    @property
    def kept(self) -> torch.Tensor:
        """The kept rows of all layers, [layers, keep, slots, width]."""
        return self.rows[:, self.end - self.keep : self.end]

    def reserve(self, count: int) -> None:
        """Make room for ``count`` new rows."""
        if self.end + count > self.rows.shape[1]:
            self._move_back()

    def window(self, layer: int, count: int) -> torch.Tensor:
        """The kept rows of a layer and ``count`` new ones behind them."""
        return self.rows[layer, self.end - self.keep : self.end + count]

    def advance(self, count: int) -> None:
        """Keep the last rows of what is there now, ``count`` of them new."""
        self.end += count
        if not self.slides:
            self._move_back()

    def retreat(self, count: int) -> None:
        """Undo the last ``advance``; where it does not slide, what was kept before is gone."""
        if self.slides:
            self.end -= count

    def _move_back(self) -> None:
        kept = self.kept
        if self.end < 2 * self.keep:  # it overlaps with where it goes
            kept = kept.clone()
        self.rows[:, : self.keep] = kept
        self.end = self.keep


class EncoderState:
    """What the encoder remembers of the recordings in its slots; made by ``Encoder.new_state``."""

    def __init__(self, stages: list[torch.Tensor], attention: History, convolution: History, slots: int):
        self.stages = stages
        """Input of each subsampling stage, [slots, channels, 1 + rows, features]: the row before the next ones, room
        for these, and at the sides columns that stay 0, the padding of its convolution."""
        self.attention = attention
        self.convolution = convolution
        self.position = [0] * slots
        """Encoder frames of each slot's recording so far."""
        self.recorded: dict[int, Recorded | None] = {}
        """Steady steps by their frames; None for one that was taken once, but not recorded yet."""

    @property
    def kept_rows(self) -> list[torch.Tensor]:
        """The row before each subsampling stage, which a step overwrites: a copy lets it be taken again."""
        return [rows[:, :, 0] for rows in self.stages]

    @property
    def bytes(self) -> int:
        """What it holds on the device."""
        return sum(rows.nbytes for rows in (*self.stages, self.attention.rows, self.convolution.rows))

    @torch.inference_mode()
    def restart(self, slot: int) -> None:
        """Begin a new recording in ``slot``."""
        if not self.position[slot]:  # it is as it was made
            return
        for rows in self.kept_rows:
            rows[slot].zero_()
        for history in (self.attention, self.convolution):
            history.kept[:, :, slot].zero_()
        self.position[slot] = 0

    def retreat(self, count: int) -> None:
        """Undo the last step, of so many frames, but for the row before each subsampling stage."""
        for history in (self.attention, self.convolution):
            history.retreat(count)
        self.position = [position - count for position in self.position]

    @torch.inference_mode()
    def take(self, other: EncoderState, slots: list[int]) -> None:
        """Go on with the recordings that are in these slots of another state, one in each slot of this one."""
        for mine, theirs in enumerate(slots):  # one by one: a list as an index would be copied to the device
            for rows, others in zip(self.kept_rows, other.kept_rows, strict=True):
                rows[mine] = others[theirs]
            self.attention.kept[:, :, mine] = other.attention.kept[:, :, theirs]
            self.convolution.kept[:, :, mine] = other.convolution.kept[:, :, theirs]
        self.position = [other.position[slot] for slot in slots]


class Encoder:
    """The encoder of one checkpoint on one device.

    Parameters
    ----------
    config : the checkpoint's ``encoder`` part.
    weights : the checkpoint's tensors whose names begin with ``encoder.``, for the device.
    context : [left, right] attention context in frames, one of the checkpoint's; None takes its first.
    block : frames of the largest block that will be asked for.
    dtype : of the matrix products, see ``linear.make_linear``.
    record : record steady steps and replay them, see ``graph.py``; not on a CPU.

    Raises Unsupported for an encoder that is not a cache-aware FastConformer.
    """

    def __init__(
        self,
        config: dict,
        weights: Weights,
        context: list[int] | None,
        block: int,
        dtype: str = "float32",
        record: bool = False,
    ):
        config = {**DEFAULTS, **config}
        _check(config)
        self.width = config["d_model"]
        self.heads = config["n_heads"]
        self.head_width = self.width // self.heads
        self.scale = 1 / math.sqrt(self.head_width)
        self.factor = config["subsampling_factor"]
        self.causal = config["causal_downsampling"]
        self.x_scale = math.sqrt(self.width) if config["xscaling"] else None
        self.chunked = config["att_context_style"] == "chunked_limited"
        self.conv_left, self.conv_right = _conv_context(config)
        self.most = block
        self._set_context(context or context_sizes(config["att_context_size"])[0])
        self.device = weights.device
        self.piece = traits_of(self.device).subsampled_frames or block
        self.kind = {"dtype": weights.dtype, "device": weights.device}  # of everything but the products
        self.dtype = dtype
        self.record = record
        self.mels = config["feat_in"]
        self.stages = _subsampling(weights.inside("pre_encode.conv."), config)
        features = self.mels
        for _ in self.stages:
            features = self._stage_length(features)
        subsampled = (self.width, self.stages[-1].channels * features)
        self.subsampling_out = _linear(weights, "pre_encode.out", subsampled, dtype, floor=0.0)  # of a rectifier
        with ThreadPoolExecutor(min(LOADERS, torch.get_num_threads())) as pool:  # packing keeps one core busy, no more
            self.layers = list(pool.map(lambda i: self._layer(weights, i, config), range(config["n_layers"])))
        self.out = (
            _linear(weights, "out_proj", (config["feat_out"], self.width), dtype)
            if weights.has("out_proj.weight")
            else None
        )
        self.positions = [self._project(layer, self.block) for layer in self.layers] if self.streams else None
        weights.release()
        self.observer: Callable[[int, torch.Tensor], torch.Tensor] | None = None
        """For comparisons: is shown each layer's input [n * slots, width], frames first, and at last what the last
        layer makes of its own; what it returns takes its place."""

    def _set_context(self, context: list[int]) -> None:
        """Everything that follows from the attention context but the projected positions."""
        self.left, self.right = context
        self.streams = self.left >= 0 and self.conv_right == 0 and (self.right == 0 or self.chunked and self.right > 0)
        """Whether blocks can be encoded as they come; if not, a recording is one block, as in NeMo's offline pass."""
        self.chunk = self.right + 1 if self.streams else 1
        """Frames of a chunk: blocks are multiples of it."""
        self.keep = self.left if self.streams else 0  # frames of keys and values kept
        self.block = max(self.most, self.chunk) if self.streams else 0
        self.bands = {}  # masks of the attention context alone, by (frames, slots)

    def at_context(self, context: list[int]) -> Encoder:
        """The same with another [left, right] attention context.  The weights are shared, and the positions if left is
        the same."""
        other = copy.copy(self)
        other._set_context(context)
        if other.streams and (other.keep, other.block) != (self.keep, self.block):
            other.positions = [other._project(layer, other.block) for layer in other.layers]
        return other

    # ------------------------------------------------------------------ lengths

    @property
    def lead(self) -> int:
        """Rows of silence before a recording's first feature frame.

        A causal encoder frame looks at features up to its own first one, f * i; with f - 1 rows in front, each
        encoder frame is completed by exactly f rows.
        """
        return self.factor - 1 if self.causal else 0

    def frames(self, features: int) -> int:
        """Encoder frames of a recording of so many feature frames (subsampling.calc_length)."""
        for _ in self.stages:
            features = self._stage_length(features)
        return features

    def _stage_length(self, length: int) -> int:
        """Kernel 3, stride 2, padding 2 + 1 if causal, else 1 + 1."""
        return length // 2 + 1 if self.causal else (length - 1) // 2 + 1

    def new_state(self, slots: int, block: int) -> EncoderState:
        """Empty slots for blocks of at most ``block`` frames."""
        stages, features, channels = [], self.mels, 1
        rows = min(block, self.piece) * self.factor
        sides = 3 if self.causal else 2
        for stage in self.stages:
            stages.append(torch.zeros(slots, channels, 1 + rows, features + sides, **self.kind))
            rows, features, channels = rows // 2, self._stage_length(features), stage.channels
        layers, kind = len(self.layers), {"slides": not self.record, **self.kind}
        attention = History(layers, self.keep, block, slots, 3 * self.width, **kind)
        convolution = History(layers, self.conv_left, block + self.conv_right, slots, self.width, **kind)
        return EncoderState(stages, attention, convolution, slots)

    @property
    def largest_block(self) -> int:
        """Frames of the largest block; without streams there is no such limit."""
        return self.chunk << (self.block // self.chunk).bit_length() - 1 if self.streams else 0

    def block_for(self, frames: int) -> int:
        """The block that encodes so many frames, or the largest.  Few different sizes: shapes are static."""
        if not self.streams:
            return frames
        chunks = -(-frames // self.chunk)
        return min(self.chunk << (chunks - 1).bit_length(), self.largest_block)

    # ------------------------------------------------------------------ one block

    @torch.inference_mode()
    def step(self, features: torch.Tensor, state: EncoderState, ends: list[int | None]) -> torch.Tensor:
        """Encode the next block of every slot.

        Parameters
        ----------
        features : float32 [slots, n * factor, mels] on the device: the next rows of each recording, whose first block
            begins with ``lead`` rows of silence; what lies behind a recording's end must be 0.
        state : is moved on by n frames.
        ends : for each slot the number of feature frames of its recording if that ends in this block, else None.

        Returns
        -------
        float32 [slots, n, width]; frames behind a recording's end mean nothing.
        """
        count = features.shape[1] // self.factor
        steady = min(state.position) >= max(self.keep, 1) and all(end is None for end in ends)
        if not (self.record and self.streams and steady) or self.observer:
            encoded = self._encode(features, state, ends)
        elif count not in state.recorded:  # once as ever: what is made at the first use is not to be recorded
            state.recorded[count] = None
            encoded = self._encode(features, state, ends)
        else:
            if state.recorded[count] is None:
                state.recorded[count] = Recorded(lambda x: self._encode(x, state, ends), features)
            encoded = state.recorded[count](features)
        state.position = [position + count for position in state.position]
        return encoded

    def _encode(self, features: torch.Tensor, state: EncoderState, ends: list[int | None]) -> torch.Tensor:
        """What ``step`` does on the device."""
        features = features.to(self.kind["dtype"])
        slots, rows, _ = features.shape
        count = rows // self.factor
        x = self._subsample(features, state, ends)
        x = x.transpose(0, 1).contiguous().view(count * slots, self.width)
        if self.x_scale:
            x = x * self.x_scale
        mask = self._mask(count, state, ends)
        state.attention.reserve(count)
        state.convolution.reserve(count + self.conv_right)
        for index, layer in enumerate(self.layers):
            if self.observer:
                x = self.observer(index, x)
            x = self._layer_step(index, layer, x, mask, count, slots, state, ends)
        if self.observer:
            x = self.observer(len(self.layers), x)
        if self.out is not None:
            x = self.out(x)
        encoded = x.view(count, slots, -1).transpose(0, 1).float()
        state.attention.advance(count)  # last: a step that found no memory can be taken again
        state.convolution.advance(count)
        return encoded

    @torch.inference_mode()
    def first_not_finite(
        self, features: torch.Tensor, state: EncoderState, ends: list[int | None]
    ) -> tuple[str, int, int] | None:
        """Take the last step again and look at every layer: the first part whose output is NaN or infinite, and there
        the slot and the frame of its recording.  None where all is finite.

        The arguments are those of that step; the state is of no use afterwards.
        """
        count, slots = features.shape[1] // self.factor, len(ends)
        found: list[tuple[str, torch.Tensor]] = []

        def look(index: int, x: torch.Tensor) -> torch.Tensor:
            rows = x.isfinite().all(-1)
            if not found and not bool(rows.all()):
                found.append((f"layer {index - 1}" if index else "the subsampling", rows))
            return x

        watched = copy.copy(self)
        watched.observer = look
        state.retreat(count)
        encoded = watched._encode(features, state, ends)
        if not found:
            rows = encoded.isfinite().all(-1).transpose(0, 1).flatten()
            if bool(rows.all()):
                return None
            found.append(("the output projection", rows))
        part, rows = found[0]
        row = int(rows.int().cpu().argmin())
        return part, row % slots, state.position[row % slots] + row // slots

    def _subsample(self, features: torch.Tensor, state: EncoderState, ends: list[int | None]) -> torch.Tensor:
        """[slots, n * factor, mels] -> [slots, n, width]."""
        parts, position = [], list(state.position)
        for part in features.split(self.piece * self.factor, 1):
            parts.append(self._subsample_piece(part, state, position, ends))
            position = [first + parts[-1].shape[1] for first in position]
        return parts[0] if len(parts) == 1 else torch.cat(parts, 1)

    def _subsample_piece(self, features, state: EncoderState, position: list[int], ends) -> torch.Tensor:
        """The same of a piece that begins at the encoder frames ``position`` of its recordings.

        Each stage writes what it makes into the interior of the next one's input.
        """
        slots, rows, _ = features.shape
        lengths, rate = list(ends), self.factor
        inputs = state.stages
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
            # NeMo's padding and masks are zeros at every stage, not what the stage makes of zeros
            rate //= 2
            lengths = [None if length is None else self._stage_length(length) for length in lengths]
            for slot, length in enumerate(lengths):
                first = position[slot] * rate - (rate - 1 if self.causal else 0)
                if first < 0:
                    x[slot, :, :-first].zero_()
                if length is not None:
                    x[slot, :, max(0, length - first) :].zero_()
        x = x.transpose(1, 2).contiguous().view(slots * rows, -1)
        return self.subsampling_out(x).view(slots, rows, -1)

    def _new_rows(self, rows: torch.Tensor, count: int) -> torch.Tensor:
        """Where the next ``count`` rows of a stage's input go: behind the kept one, between the zeros at the sides."""
        return rows[:, :, 1 : 1 + count, 2 if self.causal else 1 : -1]

    def _layer_step(self, index, layer: Layer, x, mask, count: int, slots: int, state: EncoderState, ends):
        """ConformerLayer.forward: x [n * slots, width] -> the same."""
        width = (self.width,)
        x = layer.ff1_out.add(x, layer.ff1_in.silu(F.layer_norm(x, width, *layer.norm_ff1)))

        window = state.attention.window(index, count)
        layer.qkv(F.layer_norm(x, width, *layer.norm_attention), out=window[self.keep :].view(count * slots, -1))
        x = layer.attention_out.add(x, self._attention(index, layer, window, mask, count, slots))

        window = state.convolution.window(index, count + self.conv_right)
        y = layer.pointwise1(F.layer_norm(x, width, *layer.norm_conv))
        new = window[self.conv_left :]
        torch.ops.aten.glu.out(y, -1, out=new[:count].view(count * slots, -1))
        if self.conv_right:
            for slot, end in enumerate(ends):
                new[self.frames(end) - state.position[slot] :, slot].zero_()
        y = self._depthwise(layer, window, count)
        if layer.conv_norm:
            y = F.layer_norm(y, width, *layer.conv_norm)
        x = layer.pointwise2.add(x, F.silu(y).view(count * slots, -1))

        x = layer.ff2_out.add(x, layer.ff2_in.silu(F.layer_norm(x, width, *layer.norm_ff2)))
        return F.layer_norm(x, width, *layer.norm_out)

    def _depthwise(self, layer: Layer, window: torch.Tensor, count: int) -> torch.Tensor:
        """[kernel - 1 + n, slots, width] -> [n, slots, width].

        A product and a sum over a view of overlapping windows: for the few rows of a block less work than conv1d's
        own transpositions.
        """
        step = window.stride(0)
        kernel = layer.depthwise.shape[0]
        windows = window.as_strided((count, kernel, *window.shape[1:]), (step, step, *window.stride()[1:]))
        y = (windows * layer.depthwise).sum(1)
        return y if layer.depthwise_bias is None else y + layer.depthwise_bias

    def _attention(self, index: int, layer: Layer, window: torch.Tensor, mask, count: int, slots: int) -> torch.Tensor:
        """RelPositionMultiHeadAttention: queries of the block over the kept and the new keys -> [n * slots, width].

        scores = ((q + u) k^T + rel_shift((q + v) p^T)) / sqrt(d_k), Transformer-XL (arXiv 1901.02860), section 3.3.
        """
        heads, d_k, keys = self.heads, self.head_width, self.keep + count
        window = window.view(keys, slots * heads, 3, d_k)
        query = window[self.keep :, :, 0].view(count, slots, heads, d_k)
        with_u, with_v = (query + layer.bias_uv).unbind(0)

        # the position score of query i for the key at distance d lies in column count - 1 - i + key: NeMo's rel_shift
        # is a view that steps one column less per row
        position = self._position(index, layer, count)  # [heads, d_k, columns]
        columns = position.shape[2]
        with_v = with_v.view(count * slots, heads, d_k).transpose(0, 1)
        by_position = torch.bmm(with_v, position) if mask is None else torch.baddbmm(mask, with_v, position)
        by_position = by_position.as_strided(
            (slots, heads, count, keys),
            (columns, count * slots * columns, slots * columns - 1, 1),
            by_position.storage_offset() + count - 1,
        ).reshape(slots * heads, count, keys)

        with_u = with_u.reshape(count, slots * heads, d_k).transpose(0, 1)
        key = window[:, :, 1].permute(1, 2, 0)
        value = window[:, :, 2].transpose(0, 1)
        scores = torch.baddbmm(by_position, with_u, key, alpha=self.scale)
        attended = torch.bmm(torch.softmax(scores, -1), value)  # [slots * heads, n, d_k]
        return attended.transpose(0, 1).contiguous().view(count * slots, self.width)

    # ------------------------------------------------------------------ positions and masks

    def _position(self, index: int, layer: Layer, count: int) -> torch.Tensor:
        if self.positions is None:
            return self._project(layer, count)
        spare = self.block - count
        return self.positions[index][:, :, spare : spare + self.keep + 2 * count - 1]

    def _project(self, layer: Layer, count: int) -> torch.Tensor:
        """linear_pos of the sinusoids for distances keep + n - 1 down to -(n - 1), over sqrt(d_k).

        RelPositionalEncoding: sin and cos of distance * 10000^(-2 i / d_model).  [heads, d_k, keep + 2 n - 1].
        """
        distances = torch.arange(self.keep + count - 1, -count, -1, dtype=torch.float32, device=self.device)
        rates = torch.exp(
            torch.arange(0, self.width, 2, dtype=torch.float32, device=self.device) * -(math.log(10000.0) / self.width)
        )
        angles = distances[:, None] * rates
        sinusoids = torch.stack([angles.sin(), angles.cos()], -1).view(len(distances), self.width)
        projected = torch.mm(sinusoids.to(layer.position.dtype), layer.position.t()) * self.scale
        return projected.view(-1, self.heads, self.head_width).permute(1, 2, 0).contiguous()

    def _mask(self, count: int, state: EncoderState, ends: list[int | None]) -> torch.Tensor | None:
        """What may not be seen, to be added to the position scores before their shift: [1, n * slots, columns] or None.

        None where each query sees every key: one chunk, the whole left context, no end.
        """
        slots = len(ends)
        begins = [max(0, self.keep - position) for position in state.position]
        band = self._band(count, slots)
        if not any(begins) and all(end is None for end in ends):
            return band
        mask = self._nothing_hidden(count, slots) if band is None else band.clone()
        shifted = self._shifted(mask, count, slots)
        for slot, (begin, end) in enumerate(zip(begins, ends, strict=True)):
            if begin:
                shifted[:, slot, :begin].fill_(MASKED)
            if end is not None:
                shifted[:, slot, self.keep + self.frames(end) - state.position[slot] :].fill_(MASKED)
        return mask

    def _nothing_hidden(self, count: int, slots: int) -> torch.Tensor:
        return torch.zeros(1, count * slots, self.keep + 2 * count - 1, **self.kind)

    def _shifted(self, mask: torch.Tensor, count: int, slots: int) -> torch.Tensor:
        """The view [n, slots, keys] of a mask that is laid out as the position scores are before their shift."""
        columns = mask.shape[2]
        return mask.as_strided((count, slots, self.keep + count), (slots * columns - 1, columns, 1), count - 1)

    def _band(self, count: int, slots: int) -> torch.Tensor | None:
        """ConformerEncoder._create_masks: the attention context alone; None if it hides nothing."""
        if self.streams and count == self.chunk:
            return None
        if (count, slots) in self.bands:
            return self.bands[count, slots]
        query = torch.arange(self.keep, self.keep + count, device=self.device)[:, None]
        key = torch.arange(self.keep + count, device=self.device)
        left, right = self.left, self.right
        hidden = torch.zeros_like(query - key, dtype=torch.bool)
        if self.chunked and right >= 0:
            chunks = query // (right + 1) - key // (right + 1)
            hidden |= chunks < 0
            if left >= 0:
                hidden |= chunks > left // (right + 1)
        else:
            if left >= 0:
                hidden |= key < query - left
            if right >= 0:
                hidden |= key > query + right
        mask = self._nothing_hidden(count, slots)
        self._shifted(mask, count, slots).masked_fill_(hidden[:, None], MASKED)
        if self.streams:  # else it is as large as the recording, and the next one is of another size
            self.bands[count, slots] = mask
        return mask

    # ------------------------------------------------------------------ weights

    def _layer(self, weights: Weights, index: int, config: dict) -> Layer:
        weights = weights.inside(f"layers.{index}.")
        width, heads, d_k = self.width, self.heads, self.head_width
        inner = width * config["ff_expansion_factor"]

        def fused(kind: str, *shape: int) -> torch.Tensor | None:
            if kind == "bias" and not weights.has("self_attn.linear_q.bias"):
                return None
            parts = [weights(f"self_attn.linear_{part}.{kind}", *shape).view(heads, d_k, -1) for part in "qkv"]
            stacked = torch.stack(parts, 1).view(3 * width, -1)
            return stacked[:, 0] if kind == "bias" else stacked

        def norm(name: str) -> tuple[torch.Tensor, torch.Tensor | None]:
            return _weight_and_bias(weights, name, (width,))

        def linear(name: str, *shape: int, scale: float = 1.0, floor: float | None = None) -> Linear:
            return _linear(weights, name, shape, self.dtype, scale, floor)

        depthwise, depthwise_bias = _weight_and_bias(
            weights, "conv.depthwise_conv", (width, 1, config["conv_kernel_size"])
        )
        depthwise = depthwise[:, 0]  # [width, kernel]
        conv_norm = norm("conv.batch_norm")
        if config["conv_norm_type"] != "layer_norm":  # a batch norm is a scale and a shift of each channel
            scale, shift = conv_norm
            if config["conv_norm_type"] == "batch_norm":
                scale = scale / torch.sqrt(weights("conv.batch_norm.running_var", width) + 1e-5)
                shift = shift - weights("conv.batch_norm.running_mean", width) * scale
                weights.has("conv.batch_norm.num_batches_tracked")
            depthwise = depthwise * scale[:, None]
            depthwise_bias = shift if depthwise_bias is None else shift + depthwise_bias * scale
            conv_norm = None
        uv = torch.stack([weights(f"self_attn.pos_bias_{part}", heads, d_k) for part in "uv"])
        layer = Layer(
            norm_ff1=norm("norm_feed_forward1"),
            ff1_in=linear("feed_forward1.linear1", inner, width),
            ff1_out=linear(
                "feed_forward1.linear2", width, inner, scale=0.5, floor=SILU_FLOOR
            ),  # half a step: fc_factor
            norm_attention=norm("norm_self_att"),
            qkv=make_linear(fused("weight", width, width), fused("bias", width), self.dtype),
            bias_uv=uv.view(2, 1, 1, heads, d_k),
            position=weights("self_attn.linear_pos.weight", width, width),
            attention_out=linear("self_attn.linear_out", width, width),
            norm_conv=norm("norm_conv"),
            pointwise1=linear("conv.pointwise_conv1", 2 * width, width, 1),
            depthwise=depthwise.t().contiguous()[:, None],
            depthwise_bias=depthwise_bias,
            conv_norm=conv_norm,
            pointwise2=linear("conv.pointwise_conv2", width, width, 1, floor=SILU_FLOOR),
            norm_ff2=norm("norm_feed_forward2"),
            ff2_in=linear("feed_forward2.linear1", inner, width),
            ff2_out=linear("feed_forward2.linear2", width, inner, scale=0.5, floor=SILU_FLOOR),
            norm_out=norm("norm_out"),
        )
        trim_memory()
        return layer


@dataclass
class Stage:
    """One halving of the time axis: a 3 x 3 convolution of stride 2; a depthwise one is followed by a 1 x 1.

    Its rectifier is the caller's, who knows where the result is wanted.
    """

    convolution: tuple
    pointwise: tuple | None

    @property
    def channels(self) -> int:
        return self.convolution[0].shape[0]

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        """[slots, channels, 2 n + 1, features], padded -> [slots, channels, n, features / 2]."""
        x = F.conv2d(x, *self.convolution, stride=2, groups=self.channels if self.pointwise else 1)
        return F.conv2d(x, *self.pointwise) if self.pointwise else x


def _subsampling(weights: Weights, config: dict) -> list[Stage]:
    """The stages of ConvSubsampling, whose modules are numbered with their activations."""
    stages, number = [], 0
    channels = config["subsampling_conv_channels"]
    channels = config["d_model"] if channels == -1 else channels
    for index in range(int(math.log2(config["subsampling_factor"]))):
        separable = index and config["subsampling"] == "dw_striding"
        convolution = _weight_and_bias(
            weights, str(number), (channels, channels if index and not separable else 1, 3, 3)
        )
        pointwise = None
        if separable:
            number += 1
            pointwise = _weight_and_bias(weights, str(number), (channels, channels, 1, 1))
        stages.append(Stage(convolution, pointwise))
        number += 2
    return stages


def _weight_and_bias(weights: Weights, name: str, shape: tuple) -> tuple[torch.Tensor, torch.Tensor | None]:
    """A weight of this shape, and the bias of its outputs if it has one."""
    weight = weights(f"{name}.weight", *shape)
    return weight, weights(f"{name}.bias", len(weight)) if weights.has(f"{name}.bias") else None


def _linear(
    weights: Weights, name: str, shape: tuple, dtype: str, scale: float = 1.0, floor: float | None = None
) -> Linear:
    weight, bias = _weight_and_bias(weights, name, shape)
    layer = make_linear(weight.view(weight.shape[0], -1), bias, dtype, scale, floor)  # so is a pointwise convolution
    weights.release()
    return layer


def _conv_context(config: dict) -> list[int]:
    """[left, right] padding of the depthwise convolution (ConformerEncoder._calc_context_sizes)."""
    size, kernel = config["conv_context_size"], config["conv_kernel_size"]
    if size == "causal":
        return [kernel - 1, 0]
    return list(size) if size else [(kernel - 1) // 2] * 2


def _check(config: dict) -> None:
    """Raise Unsupported, naming the first part that this encoder does not know."""
    factor = config["subsampling_factor"]
    for name, known in (
        ("subsampling", ("striding", "dw_striding")),
        ("self_attention_model", ("rel_pos",)),
        ("att_context_style", ("chunked_limited", "regular")),
        ("conv_norm_type", ("layer_norm", "batch_norm", "fused_batch_norm")),
        ("reduction", (None, "")),
    ):
        if config[name] not in known:
            raise Unsupported(f"encoder.{name}: {config[name]}")
    if factor < 2 or factor & (factor - 1):
        raise Unsupported(f"encoder.subsampling_factor: {factor}")
