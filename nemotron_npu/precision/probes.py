"""Access to the stages of a recognizer, block by block, for comparisons: the native engine or stock NeMo.

Both probes answer the same calls in the same layout, [frames, width] on the host, so that two of them can encode the
same recording in lockstep.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any, Protocol, cast

import numpy as np
import torch
import torch.nn.functional as F

from ..engine import LocalEngine
from ..errors import ModelError
from ..features import FeatureStream
from ..recognizer import Recognizer
from ..transcript import Transcript

if TYPE_CHECKING:
    from ..nemo_engine import NemoRecognizer

Observer = Callable[[int, torch.Tensor], torch.Tensor]
"""Called as ``observe(index, x)`` with the input [frames, width] of each layer, and with index ``layers`` and the
output of the last layer, all on the device.  The returned tensor replaces ``x``: one pass records, and another is fed
layer by layer."""

Caches = list[tuple[torch.Tensor, ...]]
CACHES = ("keys", "values", "convolution cache")
JOINT_ROWS = 512  # decoding steps whose log-probabilities are computed in one product


class Probe(Protocol):
    """The stages of one recognizer at one chunk length."""

    recognizer: Any
    chunk_ms: int | None
    chunk: int
    """Encoder frames of a chunk."""
    streams: bool
    """Whether blocks can be encoded one by one; if not, a recording is one block."""
    layers: int
    factor: int
    """Feature frames of one encoder frame."""
    projects: bool
    """Whether a projection follows the last layer."""

    def use(self, chunk_ms: int | None) -> None:
        """Attend in chunks of ``chunk_ms`` from now on."""

    def block_for(self, frames: int) -> int:
        """Return the size of the block that encodes so many frames, or of the largest block."""

    def frames(self, features: int) -> int:
        """Return the number of encoder frames of so many feature frames."""

    def mel(self, waveform: np.ndarray, block_samples: int | None = None) -> torch.Tensor:
        """Compute log-mel features [features, mels] of all samples, or of ``block_samples`` at a time."""

    def new_state(self, block: int) -> Any:
        """Return the state of a new recording, for blocks of at most so many frames."""

    def step(self, mel: torch.Tensor, frames: range, state: Any, observe: Observer) -> torch.Tensor:
        """Encode one block.

        ``mel``: the features of the whole recording.  ``frames``: the block's encoder frames, which may go past the
        end of the recording.  Returns the encoder output [frames, width] up to that end.
        """

    def caches(self, state: Any) -> Caches:
        """Return for each layer the tensors of ``CACHES``, [rows, width] each, the newest rows last."""

    def predict(self, ids: list[int]) -> torch.Tensor:
        """Return the prediction network's output [tokens + 1, width]: at the start, and after each token."""

    def joint(
        self, encoded: torch.Tensor, predicted: torch.Tensor, frames: np.ndarray, symbols: np.ndarray
    ) -> Iterator[torch.Tensor]:
        """Yield log-probabilities float64 [rows, vocabulary + blank] of the pairs (frame, symbol), ``JOINT_ROWS`` each.

        ``encoded``: encoder output [frames, width].  ``predicted``: output of ``predict``.
        """

    def transcribe(self, waveform: np.ndarray, block_samples: int | None, encoded: torch.Tensor) -> Transcript:
        """Transcribe a recording, or a live stream that is fed ``block_samples`` at a time."""


def make_probe(recognizer: LocalEngine) -> Probe:
    """Return the probe for the recognizer's engine."""
    if recognizer.engine == "nemo":
        return NemoProbe(cast("NemoRecognizer", recognizer))
    return NativeProbe(cast(Recognizer, recognizer))


class NativeProbe:
    """Probe of ``recognizer.Recognizer``; makes the same calls as its own ``transcribe`` and ``stream``."""

    def __init__(self, recognizer: Recognizer) -> None:
        self.recognizer = recognizer
        self.use(recognizer.chunk_ms)

    def use(self, chunk_ms: int | None) -> None:
        """See ``Probe``; the weights are shared with the recognizer."""
        own = self.recognizer
        self.current = own if chunk_ms in (None, own.chunk_ms) else own.at_chunk(cast(int, chunk_ms))
        self.encoder = self.current.encoder
        self.chunk_ms = chunk_ms
        self.streams, self.chunk = self.encoder.streams, self.encoder.chunk
        self.layers, self.factor = len(self.encoder.layers), self.encoder.factor
        self.projects = self.encoder.out is not None or self.encoder.prompt is not None

    def block_for(self, frames: int) -> int:
        """See ``Probe``."""
        return self.encoder.block_for(frames)

    def frames(self, features: int) -> int:
        """See ``Probe``."""
        return self.encoder.frames(features) if features else 0

    def mel(self, waveform: np.ndarray, block_samples: int | None = None) -> torch.Tensor:
        """See ``Probe``."""
        stream = FeatureStream(self.recognizer.frontend)
        samples = torch.from_numpy(waveform)
        if not block_samples:
            return stream.finish(samples)
        return torch.cat([*(stream.feed(block) for block in samples.split(block_samples)), stream.finish()])

    def new_state(self, block: int) -> Any:
        """See ``Probe``."""
        return self.encoder.new_state(1, block)

    @torch.inference_mode()
    def step(self, mel: torch.Tensor, frames: range, state: Any, observe: Observer) -> torch.Tensor:
        """See ``Probe``."""
        encoder = self.encoder
        total = encoder.frames(len(mel))
        count = min(frames.stop, total) - frames.start
        begin = frames.start * self.factor - encoder.lead
        end = begin + len(frames) * self.factor
        before = max(0, -begin)
        rows = mel[max(0, begin) : max(0, end)]
        rows = F.pad(rows, (0, 0, before, len(frames) * self.factor - before - len(rows)))
        ends = [len(mel) if frames.stop >= total else None]
        encoder.observer = lambda index, x: _observe_rows(observe, index, x, count)
        try:
            return encoder.step(rows[None].to(encoder.device), state, ends)[0, :count].cpu()
        finally:
            encoder.observer = None

    def caches(self, state: Any) -> Caches:
        """See ``Probe``."""
        return self.encoder.caches(state)

    @torch.inference_mode()
    def predict(self, ids: list[int]) -> torch.Tensor:
        """See ``Probe``."""
        decoder = self.recognizer.decoder
        state = decoder.zero_state()
        inputs = torch.tensor([decoder.blank, *ids], device=decoder.device)
        return torch.cat([decoder.advance(state, token) for token in inputs.split(1)]).float().cpu()

    @torch.inference_mode()
    def joint(
        self, encoded: torch.Tensor, predicted: torch.Tensor, frames: np.ndarray, symbols: np.ndarray
    ) -> Iterator[torch.Tensor]:
        """See ``Probe``."""
        decoder = self.recognizer.decoder
        block = self.encoder.largest_block or len(encoded)  # the decoder gets the same blocks in use
        blocks = encoded.to(decoder.device).split(block)
        enc = torch.cat([decoder.encoder_projection(part.contiguous()) for part in blocks])
        pred = decoder.products[-1](predicted.to(decoder.device))[:, 4 * decoder.width :]
        for f, u in zip(_split(frames), _split(symbols), strict=True):
            hidden = decoder.activation(enc[f.to(decoder.device)] + pred[u.to(decoder.device)])
            logits = decoder.output(hidden)
            yield logits.float().cpu().double().log_softmax(-1)

    def transcribe(self, waveform: np.ndarray, block_samples: int | None, encoded: torch.Tensor) -> Transcript:
        """See ``Probe``.  A model that fails gives an empty transcript; the stages show where it fails."""
        try:
            if not block_samples:
                return cast(list, self.current.transcribe([waveform]))[0]
            with self.current.stream() as stream:
                for first in range(0, len(waveform), block_samples):
                    stream.feed(waveform[first : first + block_samples])
                return stream.finish()
        except ModelError:
            return self.current.transcript([], len(waveform))


class NemoProbe:
    """Probe of ``nemo_engine.NemoRecognizer``: NeMo's modules, the encoder by its own cache-aware forward.

    A block of whole chunks is given with the features of the two encoder frames before it, which NeMo's subsampling
    needs, and NeMo drops those frames (``drop_extra_pre_encoded``).  NeMo's own streaming loop pads with zeros where
    the recording has fewer than two frames before the block.  This probe gives and drops fewer frames there, so that
    the result is that of the offline pass.
    """

    BLOCK_FRAMES = 128

    def __init__(self, recognizer: NemoRecognizer) -> None:
        self.recognizer = recognizer
        recognizer.decode_greedily()  # what the native engine is compared with
        self.model, self.device = recognizer.model, recognizer.device
        encoder = self.model.encoder
        self.layers, self.factor = len(encoder.layers), encoder.subsampling_factor
        self.projects = encoder.out_proj is not None or recognizer.language is not None
        self.blank = self.model.joint.num_classes_with_blank - 1
        self.observer: Observer | None = None
        for index, layer in enumerate(encoder.layers):
            layer.register_forward_pre_hook(
                lambda _, args, kwargs, i=index: self._before_layer(i, args, kwargs), with_kwargs=True
            )
        encoder.layers[-1].register_forward_hook(self._after_last_layer)
        self.use(recognizer.chunk_ms)

    def use(self, chunk_ms: int | None) -> None:
        """See ``Probe``; the recognizer itself changes, since NeMo has one context a model."""
        if chunk_ms not in (None, self.recognizer.chunk_ms):
            self.recognizer.at_chunk(cast(int, chunk_ms))
        encoder = self.model.encoder
        self.chunk_ms = chunk_ms
        left, right = encoder.att_context_size
        causal = encoder.conv_context_size[1] == 0 and getattr(encoder.pre_encode, "is_causal", False)
        chunked = encoder.att_context_style == "chunked_limited"
        self.streams = left >= 0 and causal and (right == 0 or (chunked and right > 0))
        self.chunk = right + 1 if self.streams else 1
        self.keep = left

    def block_for(self, frames: int) -> int:
        """See ``Probe``."""
        if not self.streams:
            return frames
        chunks = math.ceil(frames / self.chunk)
        return min(chunks, max(1, self.BLOCK_FRAMES // self.chunk)) * self.chunk

    def frames(self, features: int) -> int:
        """See ``Probe``."""
        if not features:
            return 0
        # a host without NeMo imports this module for the native engine
        from nemo.collections.asr.parts.submodules.subsampling import calc_length

        subsampling = vars(self.model.encoder.pre_encode)  # NeMo's own sizes have no public names
        length = calc_length(
            torch.tensor([features]),
            all_paddings=subsampling["_left_padding"] + subsampling["_right_padding"],
            kernel_size=subsampling["_kernel_size"],
            stride=subsampling["_stride"],
            ceil_mode=subsampling["_ceil_mode"],
            repeat_num=subsampling["_sampling_num"],
        )
        return int(length)

    def mel(self, waveform: np.ndarray, block_samples: int | None = None) -> torch.Tensor:
        """See ``Probe``.  NeMo computes the features of whole recordings only: ``block_samples`` has no effect."""
        if len(waveform) < self.recognizer.stride:
            return torch.zeros(0, self.model.cfg.preprocessor.features)
        features, lengths = self.recognizer.preprocess([waveform])
        return features[0, :, : int(lengths[0])].T.cpu().contiguous()

    def new_state(self, block: int) -> list[torch.Tensor] | None:
        """See ``Probe``."""
        if not self.streams:
            return None
        return list(self.model.encoder.get_initial_cache_state(1, device=self.device))

    @torch.inference_mode()
    def step(
        self, mel: torch.Tensor, frames: range, state: list[torch.Tensor] | None, observe: Observer
    ) -> torch.Tensor:
        """See ``Probe``."""
        encoder = self.model.encoder
        drop = min(frames.start, 2)
        begin = self.factor * (frames.start - drop)
        end = self.factor * (frames.stop - 1) + 1
        if frames.stop >= self.frames(len(mel)):
            end = len(mel)
        signal = mel[begin:end].T[None].to(self.device)
        length = torch.tensor([signal.shape[2]], device=self.device)
        self.observer = observe
        try:
            if state is None:
                return self.recognizer.prompted(encoder(audio_signal=signal, length=length)[0])[0].T.cpu()
            names = ("cache_last_channel", "cache_last_time", "cache_last_channel_len")
            encoder.streaming_cfg.drop_extra_pre_encoded = drop
            out, _, *after = encoder(audio_signal=signal, length=length, **dict(zip(names, state, strict=True)))
        finally:
            self.observer = None
        after[0] = after[0][:, :, -self.keep :] if self.keep else after[0][:, :, :0]
        state[:] = after
        return self.recognizer.prompted(out)[0].T.cpu()

    def _before_layer(self, index: int, args: tuple, kwargs: dict) -> tuple[tuple, dict] | None:
        if self.observer is None:
            return None
        return args, {**kwargs, "x": self._observe(index, kwargs["x"])}

    def _after_last_layer(self, _: torch.nn.Module, args: tuple, output: Any) -> Any:
        if self.observer is None:
            return None
        if isinstance(output, tuple):
            return self._observe(self.layers, output[0]), *output[1:]
        return self._observe(self.layers, output)

    def _observe(self, index: int, x: torch.Tensor) -> torch.Tensor:
        assert self.observer is not None
        rows = x[0]
        given = self.observer(index, rows)
        return x if given is rows else given[None]

    @torch.inference_mode()
    def caches(self, state: list[torch.Tensor]) -> Caches:
        """See ``Probe``.  NeMo keeps the inputs of its key and value projections: these are applied here."""
        channel, time, _ = state
        return [
            (
                layer.self_attn.linear_k(channel[index, 0]).cpu(),
                layer.self_attn.linear_v(channel[index, 0]).cpu(),
                time[index, 0].T.cpu(),
            )
            for index, layer in enumerate(self.model.encoder.layers)
        ]

    @torch.inference_mode()
    def predict(self, ids: list[int]) -> torch.Tensor:
        """See ``Probe``."""
        decoder = self.model.decoder
        start = [self.blank] if decoder.blank_as_pad else []
        symbols = torch.tensor([start + ids], dtype=torch.long, device=self.device)
        return decoder.predict(symbols, None, add_sos=not start)[0][0].cpu()

    @torch.inference_mode()
    def joint(
        self, encoded: torch.Tensor, predicted: torch.Tensor, frames: np.ndarray, symbols: np.ndarray
    ) -> Iterator[torch.Tensor]:
        """See ``Probe``."""
        joint = self.model.joint
        enc = joint.project_encoder(encoded.to(self.device)[None])[0]
        pred = joint.project_prednet(predicted.to(self.device)[None])[0]
        for f, u in zip(_split(frames), _split(symbols), strict=True):
            logits = joint.joint_after_projection(enc[f.to(self.device)][:, None], pred[u.to(self.device)][:, None])
            yield logits[:, 0, 0].float().cpu().double().log_softmax(-1)  # no change where NeMo has done it already

    def spell(self, token: int) -> str:
        """Return a token as the vocabulary spells it, with its id."""
        if token == self.blank:
            return "blank"
        return f"'{self.model.tokenizer.ids_to_tokens([token])[0]}' ({token})"

    @torch.inference_mode()
    def decode(self, encoded: torch.Tensor, samples: int) -> Transcript:
        """Run NeMo's own greedy decoding on the encoder output [frames, width] of a recording of so many samples."""
        hypotheses = self.model.decoding.rnnt_decoder_predictions_tensor(
            encoder_output=encoded.to(self.device).T[None],
            encoded_lengths=torch.tensor([len(encoded)], device=self.device),
            return_hypotheses=True,
        )
        return self.recognizer.transcript(hypotheses[0], samples)

    def transcribe(self, waveform: np.ndarray, block_samples: int | None, encoded: torch.Tensor) -> Transcript:
        """See ``Probe``.  NeMo offers no live streams here: its decoding gets the encoder output."""
        return self.decode(encoded, len(waveform))


def _observe_rows(observe: Observer, index: int, x: torch.Tensor, count: int) -> torch.Tensor:
    """Show the first ``count`` frames only: those past the end of the recording have no meaning and become zeros."""
    rows = x[:count]
    given = observe(index, rows)
    return x if given is rows else F.pad(given, (0, 0, 0, len(x) - count))


def _split(index: np.ndarray) -> tuple[torch.Tensor, ...]:
    return torch.from_numpy(index).split(JOINT_ROWS)
