"""Stock NeMo as a ``LocalEngine``: its ``restore_from``, preprocessor, encoder and ``transcribe``."""

from __future__ import annotations

import functools
import sys
import warnings
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NoReturn, overload

import numpy as np
import torch
import torch.nn.functional as F
from nemo.collections.asr.parts.context_biasing.boosting_graph_batched import GPUBoostingTreeModel
from nemo.collections.asr.parts.context_biasing.context_graph_universal import ContextGraph
from nemo.collections.asr.parts.submodules import rnnt_beam_decoding
from nemo.collections.asr.parts.utils.rnnt_utils import Hypothesis
from omegaconf import OmegaConf

from .audio import SAMPLE_RATE, Source, is_source, read_audio
from .boosting import ALPHA, DEPTH, SCORE, Phrase, spell
from .checkpoint.load import Checkpoint, read_checkpoint
from .confidence import ALPHA as CONFIDENCE_ALPHA
from .decoder import Emission
from .device import check_switches, configure, is_out_of_memory, release_memory, too_little_memory
from .engine import STREAM_DEFAULTS, ModelOptions, StreamOptions, batch_of, in_input_order, nothing
from .errors import InputError, ModelError, SetupError, one_line
from .nemo_restore import restore
from .spelling import Speller
from .transcript import Transcript

DEFAULTS = ModelOptions("nemo")
rnnt_beam_decoding.tqdm = functools.partial(rnnt_beam_decoding.tqdm, disable=True)  # NeMo has no option for it


class NemoRecognizer:
    """A NeMo model on one device, a ``LocalEngine``; see ``recognizer.Recognizer`` for the arguments.

    Of ``options`` only the chunk length, the language and ``allow_hf32`` are used.  ``checkpoint`` is what
    ``read_checkpoint`` has returned for ``path``, if it has been read already.
    """

    engine = "nemo"
    batch_slots = 1  # a batch is padded to its longest recording, so larger ones are an option
    readers = 0

    def __init__(
        self,
        path: Path,
        device: torch.device,
        *,
        options: ModelOptions = DEFAULTS,
        announce: Callable[[str], None] = warnings.warn,
        checkpoint: Checkpoint | None = None,
    ) -> None:
        checkpoint = checkpoint or read_checkpoint(path)
        config = checkpoint.config
        check_switches(device.type, options)
        configure(device, allow_hf32=options.allow_hf32)
        self.config = config
        self.device = device
        self.chunk_ms, context = config.choose_context(options.chunk_ms)
        self.language = config.choose_language(options.language)
        self.frame_seconds = config.frame_seconds
        model = restore(path, checkpoint)
        if config.left_out:
            announce(one_line(path.name, config.left_out))
        self.model_id = checkpoint.identity
        self.parameters = sum(p.numel() for p in model.parameters())
        if context:
            model.encoder.set_default_att_context_size(context)
        featurizer = model.preprocessor.featurizer
        featurizer.dither = 0.0  # noise, which would make two runs differ
        featurizer.pad_to = 0
        self.stride = featurizer.hop_length
        """Samples of one mel frame."""
        self.model = model.to(device).eval()
        self.model.encoder.register_forward_hook(self._check_finite, with_kwargs=True)
        self.announce = announce
        self.max_slots = sys.maxsize
        """Recordings in a batch that fit into memory, known once memory has run out."""
        self.speller = Speller(list(model.tokenizer.vocab), model.tokenizer.ids_to_text, self.frame_seconds)
        self.method: str | None = None
        self.tree: GPUBoostingTreeModel | None = None
        self.alpha = ALPHA
        self.greedy = False

    # ------------------------------------------------------------------ settings

    def measure_confidence(self, method: str) -> None:
        """Have NeMo measure the tokens' confidence; by default it measures none."""
        self.method = method
        self._set_decoding()

    def boost(self, phrases: list[Phrase], alpha: float = ALPHA) -> list[Phrase]:
        """Boost ``phrases`` by NeMo's own boosting tree; return those that the vocabulary cannot spell."""
        tokenizer = self.model.tokenizer
        spelled, unknown = spell(phrases, tokenizer.text_to_ids, tokenizer.unk_id)
        self.tree = None
        self.alpha = alpha
        if spelled:
            graph = ContextGraph(context_score=SCORE, depth_scaling=DEPTH)
            graph.build([tokens for tokens, _ in spelled], scores=[score for _, score in spelled])
            self.tree = GPUBoostingTreeModel.from_context_graph(graph, tokenizer.vocab_size, uniform_weights=False)
            self.tree.to(self.device)
        self._set_decoding()
        return unknown

    def decode_greedily(self) -> None:
        """Decode greedily from now on, as the native engine does, whatever the checkpoint asks for."""
        if not self.config.decoding.is_greedy:
            self.greedy = True
            self._set_decoding()

    def _set_decoding(self) -> None:
        """Build NeMo's decoding again, with the confidence and the boosting tree in use."""
        decoding = OmegaConf.create(OmegaConf.to_container(self.model.cfg.decoding))
        if self.method:
            decoding.confidence_cfg = {"preserve_token_confidence": True, "method_cfg": _confidence(self.method)}
        if self.tree or self.greedy:
            decoding.strategy = "greedy_batch"  # the only one that NeMo boosts
        self.model.change_decoding_strategy(decoding, verbose=False)
        if self.tree:
            computer = self.model.decoding.decoding.decoding_computer
            computer.fusion_models = [self.tree]
            computer.fusion_models_alpha = [self.alpha]

    def at_chunk(self, chunk_ms: int) -> NemoRecognizer:
        """Set another attention chunk, and return this engine.  Raises SetupError if it is not offered."""
        self.chunk_ms, context = self.config.choose_context(chunk_ms)
        self.model.encoder.set_default_att_context_size(context)
        return self

    # ------------------------------------------------------------------ stages

    def preprocess(self, waveforms: list[np.ndarray]) -> tuple[torch.Tensor, torch.Tensor]:
        """Compute log-mel features of float32 waveforms [samples], mono, 16 kHz.

        Returns float32 [batch, mels, features] and the valid lengths, int64 [batch], on the device.
        """
        lengths = torch.tensor([len(w) for w in waveforms])
        samples = torch.zeros(len(waveforms), int(lengths.max()))
        for row, waveform in zip(samples, waveforms, strict=True):
            row[: len(waveform)] = torch.from_numpy(waveform)
        with torch.inference_mode():
            return self.model.preprocessor(input_signal=samples.to(self.device), length=lengths.to(self.device))

    def encode(self, features: torch.Tensor, lengths: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Encode whole recordings, given as ``preprocess`` returns them.

        Returns float32 [batch, width, frames] and the valid lengths, int64 [batch], on the device.
        """
        with torch.inference_mode():
            encoded, counts = self.model.encoder(audio_signal=features, length=lengths)
            return self.prompted(encoded), counts

    def prompted(self, encoded: torch.Tensor) -> torch.Tensor:
        """Apply the layers of the prompt, if there are any, to encoder output [batch, width, frames]."""
        if not self.language:
            return encoded
        index = torch.full(encoded[:, 0].shape, self.config.prompts[self.language], device=encoded.device)
        prompt = F.one_hot(index, self.config.model_defaults.num_prompts).to(encoded.dtype)
        return self.model.prompt_kernel(torch.cat([encoded.transpose(1, 2), prompt], -1)).transpose(1, 2)

    def _check_finite(self, encoder: Any, args: tuple, kwargs: dict, output: tuple) -> None:
        """Raise ModelError, naming the first layer, when the encoder's output is not finite (a forward hook)."""
        if _is_finite(output[0]):
            return
        found: list[int] = []

        def check(index: int, output: torch.Tensor | tuple) -> None:
            if not _is_finite(output[0] if isinstance(output, tuple) else output):
                found.append(index)

        hooks = [
            layer.register_forward_hook(lambda *call, index=index: check(index, call[-1]))
            for index, layer in enumerate(encoder.layers)
        ]
        try:
            encoder.forward(*args, **kwargs)
        finally:
            for hook in hooks:
                hook.remove()
        problem = "not finite (NaN or infinity)"
        if found:
            problem += f", first in layer {found[0]}"
        raise ModelError("encoder output", problem, "the checkpoint may be damaged")

    # ------------------------------------------------------------------ recordings

    def stream(self, options: StreamOptions = STREAM_DEFAULTS) -> NoReturn:
        """Raise SetupError: NeMo's own streaming differs from its offline pass and is not offered here."""
        raise SetupError("live stream", "needs the native engine", "use --engine native")

    @overload
    def transcribe(self, sources: Source, slots: int = 1) -> Transcript: ...  # type: ignore[overload-overlap]

    @overload
    def transcribe(self, sources: Sequence[Source], slots: int = 1) -> list[Transcript]: ...

    def transcribe(self, sources: Any, slots: int = 1) -> Transcript | list[Transcript]:
        """Transcribe one recording, or a list of them, ``slots`` in a batch; see ``Recognizer.transcribe``."""
        if is_source(sources):
            return in_input_order(self.results([sources]), 1)[0]
        return in_input_order(self.results(sources, slots), len(sources))

    def results(
        self, sources: Sequence[Source], slots: int = 1, between: Callable[[], None] = nothing
    ) -> Iterator[tuple[int, Transcript | Exception]]:
        """Yield (index, transcript or error), ``slots`` recordings in a batch, in order.

        ``between`` is called between batches; a KeyboardInterrupt that it raises ends the run.
        After an error the recordings of the batch are tried alone, so that one costs no other.  Where memory runs out,
        the batch is halved, and so are those that follow.
        """
        first = 0
        while first < len(sources):
            between()
            size = min(slots, self.max_slots)
            batch: dict[int, np.ndarray] = {}
            for index, source in enumerate(sources[first : first + size], first):
                try:
                    batch[index] = source if isinstance(source, np.ndarray) else read_audio(source)
                except InputError as error:
                    yield index, error
            first += size
            if batch:
                yield from self._batch(batch)

    def _batch(self, batch: dict[int, np.ndarray]) -> Iterator[tuple[int, Transcript | Exception]]:
        results: list[Transcript] = []
        error = None
        try:
            results = self._transcribe_batch(list(batch.values()))
        except Exception as failure:
            error = failure
        if error is None:
            yield from zip(batch, results, strict=True)
            return
        ran_out = is_out_of_memory(error)
        if len(batch) == 1:
            yield next(iter(batch)), too_little_memory(self.device, error) if ran_out else error
            return
        del error  # its traceback holds what the batch has on the device
        size = 1
        if ran_out:
            size = len(batch) // 2
            self._limit_slots(size)
        indices = list(batch)
        for first in range(0, len(indices), size):
            yield from self._batch({index: batch[index] for index in indices[first : first + size]})

    def _limit_slots(self, slots: int) -> None:
        """Free device memory and, from now on, put at most ``slots`` recordings in a batch."""
        release_memory(self.device)
        if slots < self.max_slots:
            self.max_slots = slots
            self.announce(one_line(str(self.device), "out of memory", f"continuing with {batch_of(slots)}"))

    def _transcribe_batch(self, waveforms: list[np.ndarray]) -> list[Transcript]:
        """Transcribe recordings, float32 [samples], mono, 16 kHz, as one batch."""
        # NeMo fails on a batch in which every recording is shorter than one mel frame
        audible = [i for i, waveform in enumerate(waveforms) if len(waveform) >= self.stride]
        transcripts = [Transcript("", (), len(waveform) / SAMPLE_RATE) for waveform in waveforms]
        if audible:
            options = self.model.get_transcribe_config()
            options.batch_size = len(audible)
            options.return_hypotheses = True
            options.verbose = False
            if self.language:
                options.target_lang = self.language
            # else NeMo centers short recordings in 1 s of silence, which moves all times
            options.pad_min_duration = 0.0
            hypotheses = self.model.transcribe([waveforms[i] for i in audible], override_config=options)
            self.model.eval()  # transcribe() leaves its parts in training mode, with dropout
            for i, hypothesis in zip(audible, hypotheses, strict=True):
                transcripts[i] = self.transcript(hypothesis, len(waveforms[i]))
        return transcripts

    def transcript(self, hypothesis: Hypothesis | list[Hypothesis], samples: int) -> Transcript:
        """Return the transcript of a recording of ``samples`` samples that NeMo has decoded to ``hypothesis``.

        Of several hypotheses, which a beam search may give, the first is the best.
        """
        if isinstance(hypothesis, list):
            hypothesis = hypothesis[0]
        ids = [int(i) for i in hypothesis.y_sequence]
        frames = [int(frame) for frame in hypothesis.timestamp]
        confidences: list = [None] * len(ids)
        if self.method:
            confidences = [float(confidence) for confidence in hypothesis.token_confidence]
        emissions = [
            Emission(id, frame, None, confidence)  # type: ignore[arg-type]  # NeMo reports no probability
            for id, frame, confidence in zip(ids, frames, confidences, strict=True)
        ]
        return self.speller.transcript(emissions, samples / SAMPLE_RATE)


def _is_finite(values: torch.Tensor) -> bool:
    return bool(values.isfinite().all())


def _confidence(method: str) -> dict:
    """Return NeMo's config of a confidence method."""
    if method == "max_prob":
        return {"name": "max_prob", "alpha": 1.0}
    return {"name": "entropy", "alpha": CONFIDENCE_ALPHA, "entropy_type": method, "entropy_norm": "exp"}
