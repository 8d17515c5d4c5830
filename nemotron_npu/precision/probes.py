"""A recogniser taken apart, stage by stage and block by block, for comparisons: the native engine or stock NeMo.

Both answer the same calls in the same layout, [frames, width] on the host, so that they can walk in lock-step:

    mel(waveform)                              log-mel features [features, mels]
    step(mel, first, block, state, observe)    encoder output [frames, width] of the frames from ``first`` on
    caches(state)                              what each layer remembers: keys, values, convolution inputs
    predict(ids), joint(...), recognise(...)   prediction network, joint network, the transcript

``observe(index, x)`` is shown the input [frames, width] of each layer, and at index ``layers`` the output of the last,
all on the device; what it returns takes its place.  So one pass records, and another is fed, layer by layer.
"""

from __future__ import annotations

import copy
from collections.abc import Callable

import numpy as np
import torch
import torch.nn.functional as F

from ..errors import ModelError
from ..features import FeatureStream
from ..transcript import Transcript

Observer = Callable[[int, torch.Tensor], torch.Tensor]
CACHES = ("keys", "values", "convolution cache")
JOINT_ROWS = 512  # steps of a path whose distributions are computed at once


def make_probe(recognizer):
    return NemoProbe(recognizer) if recognizer.engine == "nemo" else NativeProbe(recognizer)


class NativeProbe:
    """``recognizer.Recognizer``, by the calls that its own ``transcribe`` and ``stream`` make."""

    def __init__(self, recognizer):
        self.recognizer = recognizer
        self.use(recognizer.chunk_ms, None)

    def use(self, chunk_ms: int | None, context: list[int] | None) -> None:
        """Attend in chunks of ``chunk_ms``, which is that attention context; the weights are shared."""
        own = self.recognizer
        self.encoder = own.encoder if chunk_ms == own.chunk_ms else own.encoder.at_context(context)
        self.chunk_ms = chunk_ms
        self.streams, self.chunk = self.encoder.streams, self.encoder.chunk
        self.layers, self.factor = len(self.encoder.layers), self.encoder.factor
        self.projects = self.encoder.out is not None

    def block_for(self, frames: int) -> int:
        return self.encoder.block_for(frames)

    def frames(self, features: int) -> int:
        return self.encoder.frames(features) if features else 0

    def mel(self, waveform: np.ndarray, piece: int | None = None) -> torch.Tensor:
        """Features of samples that come all at once, or ``piece`` at a time."""
        stream = FeatureStream(self.recognizer.frontend)
        samples = torch.from_numpy(waveform)
        if not piece:
            return stream.finish(samples)
        return torch.cat([*(stream.feed(part) for part in samples.split(piece)), stream.finish()])

    def new_state(self, block: int):
        return self.encoder.new_state(1, block)

    @torch.inference_mode()
    def step(self, mel: torch.Tensor, first: int, block: int, state, observe: Observer) -> torch.Tensor:
        encoder = self.encoder
        total = encoder.frames(len(mel))
        count = min(block, total - first)
        begin = first * self.factor - encoder.lead
        end = begin + block * self.factor
        rows = mel[max(0, begin) : max(0, end)]
        before = max(0, -begin)
        rows = F.pad(rows, (0, 0, before, block * self.factor - before - len(rows)))
        encoder.observer = lambda index, x: self._show(observe, index, x, count)
        try:
            ends = [len(mel) if first + block >= total else None]
            return encoder.step(rows[None].to(encoder.device), state, ends)[0, :count].cpu()
        finally:
            encoder.observer = None

    def _show(self, observe: Observer, index: int, x: torch.Tensor, count: int) -> torch.Tensor:
        """Frames behind the end of the recording mean nothing: they are not shown, and replaced by zeros."""
        shown = x[:count]
        given = observe(index, shown)
        return x if given is shown else F.pad(given, (0, 0, 0, len(x) - count))

    def caches(self, state) -> list[tuple[torch.Tensor, ...]]:
        """For each layer ``CACHES``, [rows, width] each: the newest rows last."""
        return self.encoder.caches(state)

    @torch.inference_mode()
    def predict(self, ids: list[int]) -> torch.Tensor:
        """Output of the prediction network [tokens + 1, width]: after the start, and after each token."""
        decoder = self.recognizer.decoder
        state = decoder.new_state(1)
        outputs = [state.hidden[-1]]
        for id in ids:
            decoder.advance(state, torch.tensor([id], device=decoder.device))
            outputs.append(state.hidden[-1])
        return torch.cat(outputs).float().cpu()

    @torch.inference_mode()
    def joint(self, encoded: torch.Tensor, predicted: torch.Tensor, frames: np.ndarray, symbols: np.ndarray):
        """Yield log-probabilities [rows, vocabulary + blank] along a path, ``JOINT_ROWS`` at a time."""
        decoder = self.recognizer.decoder
        block = self.encoder.largest_block or len(encoded)  # as the search gets them
        blocks = encoded.to(decoder.device).split(block)
        enc = torch.cat([decoder.encoder_projection(part.contiguous()) for part in blocks])
        pred = decoder.prediction_projection(predicted.to(decoder.device))
        for f, u in zip(_split(frames), _split(symbols), strict=True):
            hidden = decoder.activation(enc[f.to(decoder.device)] + pred[u.to(decoder.device)])
            logits = torch.addmm(decoder.output[1], hidden, decoder.output[0])
            yield logits.float().cpu().double().log_softmax(-1)

    def recognise(self, waveform: np.ndarray, piece: int | None, encoded: torch.Tensor) -> Transcript:
        """The transcript of a recording, or of a live stream that is fed ``piece`` samples at a time.

        Where the model fails there is none, an empty one; the stages tell where.
        """
        recognizer = copy.copy(self.recognizer)
        recognizer.encoder, recognizer.chunk_ms = self.encoder, self.chunk_ms
        try:
            if not piece:
                return recognizer.transcribe([waveform])[0]
            with recognizer.stream() as stream:
                for first in range(0, len(waveform), piece):
                    stream.feed(waveform[first : first + piece])
                return stream.finish()
        except ModelError:
            return recognizer.transcript([], len(waveform))


class NemoProbe:
    """``nemo_engine.NemoRecognizer``: NeMo's modules, the encoder through its own cache-aware forward.

    A block of whole chunks is given with the features of the two encoder frames before it, which NeMo's subsampling
    needs, and NeMo drops those frames (``drop_extra_pre_encoded``).  NeMo's own loop pads with zeros where the
    recording has no two frames yet; here fewer are given and dropped, so that the result is that of the offline pass.
    """

    BLOCK_FRAMES = 128

    def __init__(self, recognizer):
        self.recognizer = recognizer
        self.model, self.device = recognizer.model, recognizer.device
        encoder = self.model.encoder
        self.layers, self.factor = len(encoder.layers), encoder.subsampling_factor
        self.projects = encoder.out_proj is not None
        self.blank = self.model.joint.num_classes_with_blank - 1
        self.observer: Observer | None = None
        for index, layer in enumerate(encoder.layers):
            layer.register_forward_pre_hook(
                lambda _, args, kwargs, i=index: self._before(i, args, kwargs), with_kwargs=True
            )
        encoder.layers[-1].register_forward_hook(self._after_last)
        self.use(recognizer.chunk_ms, None)

    def use(self, chunk_ms: int | None, context: list[int] | None) -> None:
        encoder = self.model.encoder
        if context:
            encoder.set_default_att_context_size(context)
        self.chunk_ms = chunk_ms
        left, right = encoder.att_context_size
        causal = encoder.conv_context_size[1] == 0 and getattr(encoder.pre_encode, "is_causal", False)
        chunked = encoder.att_context_style == "chunked_limited"
        self.streams = left >= 0 and causal and (right == 0 or chunked and right > 0)
        self.chunk = right + 1 if self.streams else 1
        self.keep = left

    def block_for(self, frames: int) -> int:
        if not self.streams:
            return frames
        return min(-(-frames // self.chunk), max(1, self.BLOCK_FRAMES // self.chunk)) * self.chunk

    def frames(self, features: int) -> int:
        if not features:
            return 0
        length = torch.tensor([features])
        subsampling = self.model.encoder.pre_encode
        from nemo.collections.asr.parts.submodules.subsampling import calc_length

        return int(
            calc_length(
                length,
                all_paddings=subsampling._left_padding + subsampling._right_padding,
                kernel_size=subsampling._kernel_size,
                stride=subsampling._stride,
                ceil_mode=subsampling._ceil_mode,
                repeat_num=subsampling._sampling_num,
            )
        )

    def mel(self, waveform: np.ndarray, piece: int | None = None) -> torch.Tensor:
        """NeMo has the features of whole recordings only: ``piece`` makes no difference."""
        if len(waveform) < self.recognizer.stride:
            return torch.zeros(0, self.model.cfg.preprocessor.features)
        features, lengths = self.recognizer.preprocess([waveform])
        return features[0, :, : int(lengths[0])].T.cpu().contiguous()

    def new_state(self, block: int):
        return list(self.model.encoder.get_initial_cache_state(1, device=self.device)) if self.streams else None

    @torch.inference_mode()
    def step(self, mel: torch.Tensor, first: int, block: int, state, observe: Observer) -> torch.Tensor:
        encoder = self.model.encoder
        total = self.frames(len(mel))
        drop = min(first, 2)
        begin = self.factor * (first - drop)
        end = len(mel) if first + block >= total else self.factor * (first + block - 1) + 1
        signal = mel[begin:end].T[None].to(self.device)
        length = torch.tensor([signal.shape[2]], device=self.device)
        self.observer = observe
        try:
            if state is None:
                return encoder(audio_signal=signal, length=length)[0][0].T.cpu()
            names = ("cache_last_channel", "cache_last_time", "cache_last_channel_len")
            encoder.streaming_cfg.drop_extra_pre_encoded = drop
            out, _, *after = encoder(audio_signal=signal, length=length, **dict(zip(names, state, strict=True)))
        finally:
            self.observer = None
        after[0] = after[0][:, :, -self.keep :] if self.keep else after[0][:, :, :0]
        state[:] = after
        return out[0].T.cpu()

    def _before(self, index: int, args: tuple, kwargs: dict):
        if self.observer is None:
            return None
        return args, {**kwargs, "x": self._shown(index, kwargs["x"])}

    def _after_last(self, _, args, output):
        if self.observer is None:
            return None
        if isinstance(output, tuple):
            return self._shown(self.layers, output[0]), *output[1:]
        return self._shown(self.layers, output)

    def _shown(self, index: int, x: torch.Tensor) -> torch.Tensor:
        shown = x[0]
        given = self.observer(index, shown)
        return x if given is shown else given[None]

    @torch.inference_mode()
    def caches(self, state) -> list[tuple[torch.Tensor, ...]]:
        """NeMo keeps what its keys and values are projected from: its own projections make them of that."""
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
        decoder = self.model.decoder
        start = [self.blank] if decoder.blank_as_pad else []
        symbols = torch.tensor([start + ids], dtype=torch.long, device=self.device)
        return decoder.predict(symbols, None, add_sos=not start)[0][0].cpu()

    @torch.inference_mode()
    def joint(self, encoded: torch.Tensor, predicted: torch.Tensor, frames: np.ndarray, symbols: np.ndarray):
        joint = self.model.joint
        enc = joint.project_encoder(encoded.to(self.device)[None])[0]
        pred = joint.project_prednet(predicted.to(self.device)[None])[0]
        for f, u in zip(_split(frames), _split(symbols), strict=True):
            logits = joint.joint_after_projection(enc[f.to(self.device)][:, None], pred[u.to(self.device)][:, None])
            yield logits[:, 0, 0].float().cpu().double().log_softmax(-1)  # again where NeMo has done it: no change

    def spell(self, id: int) -> str:
        """A token's piece, as the vocabulary has it, with its id."""
        return "blank" if id == self.blank else f"'{self.model.tokenizer.ids_to_tokens([id])[0]}' ({id})"

    @torch.inference_mode()
    def search(self, encoded: torch.Tensor, samples: int) -> Transcript:
        """NeMo's own greedy search over the encoder output [frames, width] of a recording of so many samples."""
        hypotheses = self.model.decoding.rnnt_decoder_predictions_tensor(
            encoder_output=encoded.to(self.device).T[None],
            encoded_lengths=torch.tensor([len(encoded)], device=self.device),
            return_hypotheses=True,
        )
        return self.recognizer._transcript(hypotheses[0], np.empty(samples, np.float32))

    def recognise(self, waveform: np.ndarray, piece: int | None, encoded: torch.Tensor) -> Transcript:
        """What the search makes of the encoder output: NeMo is not offered as a stream of sound here."""
        return self.search(encoded, len(waveform))


def _split(index: np.ndarray) -> tuple[torch.Tensor, ...]:
    return torch.from_numpy(index).split(JOINT_ROWS)
