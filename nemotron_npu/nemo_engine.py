"""Stock NeMo behind the calls of ``recognizer.py``: ``restore_from``, its preprocessor, encoder and ``transcribe``."""

from __future__ import annotations

import copy
import math
import tempfile
import warnings
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np
import torch
from nemo.collections.asr.models import EncDecRNNTBPEModel
from nemo.collections.asr.parts.context_biasing.boosting_graph_batched import GPUBoostingTreeModel
from nemo.collections.asr.parts.context_biasing.context_graph_universal import ContextGraph
from nemo.collections.asr.parts.mixins.transcription import TranscribeConfig
from nemo.core.connectors.save_restore_connector import SaveRestoreConnector
from omegaconf import OmegaConf

from .audio import SAMPLE_RATE, is_source, read_audio
from .boosting import ALPHA, DEPTH, SCORE, Phrase, spell
from .checkpoint.archive import read_member
from .checkpoint.config import TOKENIZER_FILES, USED, tokenizer_parts
from .checkpoint.load import MOST_TOKENIZER, Checkpoint, choose_context, frame_seconds, read_checkpoint
from .checkpoint.weights import Tensors, Weights
from .confidence import ALPHA as CONFIDENCE_ALPHA
from .decoder import MOST_SYMBOLS, Emission
from .device import is_out_of_memory, release_memory, too_little_memory
from .engine import ModelOptions, nothing
from .errors import InputError, ModelError, SetupError, first_line, shown
from .transcript import Speller, Transcript

DEFAULTS = ModelOptions("nemo")


class NemoRecognizer:
    """A NeMo model on one device; see ``recognizer.Recognizer`` for the calls."""

    engine = "nemo"
    batch_slots = 1  # unless more are asked for: a batch is padded to its longest

    def __init__(
        self,
        path: Path,
        device: torch.device,
        *,
        options: ModelOptions = DEFAULTS,
        announce: Callable[[str], None] = warnings.warn,
        checkpoint: Checkpoint | None = None,
    ):
        checkpoint = checkpoint or read_checkpoint(path)
        config = checkpoint.config
        chunk_ms, context = choose_context(config, options.chunk_ms)
        model = _restore(path, checkpoint)
        self.config = config
        self.device = device
        self.chunk_ms = chunk_ms
        self.frame_seconds = frame_seconds(config)
        self.parameters = sum(p.numel() for p in model.parameters())
        if context:
            model.encoder.set_default_att_context_size(context)
        featurizer = model.preprocessor.featurizer
        featurizer.dither = 0.0  # noise that would make two runs differ
        featurizer.pad_to = 0
        self.stride = featurizer.hop_length
        self.model = model.to(device).eval()
        self.model.encoder.register_forward_hook(self._check_finite, with_kwargs=True)
        self.announce = announce
        self.most_slots = math.inf
        """What memory held, once it has run out: recordings side by side."""
        self.speller = Speller(list(model.tokenizer.vocab), model.tokenizer.ids_to_text, self.frame_seconds)
        self.method: str | None = None
        self.tree: GPUBoostingTreeModel | None = None
        self.alpha = ALPHA

    # ------------------------------------------------------------------ settings

    def measure_confidence(self, method: str) -> None:
        """Have NeMo measure the tokens' confidence; without it there is none."""
        self.method = method
        self._set_decoding()

    def boost(self, phrases: list[Phrase], alpha: float = ALPHA) -> list[Phrase]:
        """NeMo's own boosting tree of ``phrases``; those that the vocabulary cannot spell are returned."""
        tokenizer = self.model.tokenizer
        spelled, unknown = spell(phrases, tokenizer.text_to_ids, tokenizer.unk_id)
        self.tree, self.alpha = None, alpha
        if spelled:
            graph = ContextGraph(context_score=SCORE, depth_scaling=DEPTH)
            graph.build([tokens for tokens, _ in spelled], scores=[score for _, score in spelled])
            self.tree = GPUBoostingTreeModel.from_context_graph(graph, tokenizer.vocab_size, uniform_weights=False)
            self.tree.to(self.device)
        self._set_decoding()
        return unknown

    def _set_decoding(self) -> None:
        """Build NeMo's search anew with the confidence and the boosting tree in use."""
        decoding = OmegaConf.create(OmegaConf.to_container(self.model.cfg.decoding))
        if self.method:
            entropy = self.method != "max_prob"
            method = {"name": "entropy" if entropy else "max_prob", "alpha": CONFIDENCE_ALPHA if entropy else 1.0}
            if entropy:
                method |= {"entropy_type": self.method, "entropy_norm": "exp"}
            decoding.confidence_cfg = {"preserve_token_confidence": True, "method_cfg": method}
        if self.tree:
            decoding.strategy = "greedy_batch"  # the only one that NeMo boosts
        self.model.change_decoding_strategy(decoding, verbose=False)
        if self.tree:
            search = self.model.decoding.decoding.decoding_computer
            search.fusion_models, search.fusion_models_alpha = [self.tree], [self.alpha]

    def at_chunk(self, chunk_ms: int) -> NemoRecognizer:
        """This one, with another chunk of attention.  Raises SetupError if it is not offered."""
        self.chunk_ms, context = choose_context(self.config, chunk_ms)
        self.model.encoder.set_default_att_context_size(context)
        return self

    # ------------------------------------------------------------------ recognising

    def preprocess(self, waveforms: list[np.ndarray]) -> tuple[torch.Tensor, torch.Tensor]:
        lengths = torch.tensor([len(w) for w in waveforms])
        samples = torch.zeros(len(waveforms), int(lengths.max()))
        for row, waveform in zip(samples, waveforms, strict=True):
            row[: len(waveform)] = torch.from_numpy(waveform)
        with torch.inference_mode():
            return self.model.preprocessor(input_signal=samples.to(self.device), length=lengths.to(self.device))

    def encode(self, features: torch.Tensor, lengths: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        with torch.inference_mode():
            return self.model.encoder(audio_signal=features, length=lengths)

    def results(
        self, sources: Sequence, slots: int = 1, between: Callable[[], None] = nothing
    ) -> Iterator[tuple[int, Transcript | Exception]]:
        """Yield (index, transcript or what went wrong), ``slots`` recordings at a time, in order.

        ``between`` is called between batches; a KeyboardInterrupt that it raises ends the run.
        A batch that fails is tried again file by file, so that one recording costs no other; one for which there is
        not enough memory by halves, and those that follow are as small.
        """
        first = 0
        while first < len(sources):
            between()
            size, batch = min(slots, self.most_slots), {}
            for index, source in enumerate(sources[first : first + size], first):
                try:
                    batch[index] = source if isinstance(source, np.ndarray) else read_audio(source)
                except InputError as error:
                    yield index, error
            first += size
            if batch:
                yield from self._batch(batch)

    def _batch(self, batch: dict[int, np.ndarray]) -> Iterator[tuple[int, Transcript | Exception]]:
        results, error = [], None
        try:
            results = self._transcribe_batch(list(batch.values()))
        except Exception as failure:
            error = failure
        if error is None:
            yield from zip(batch, results, strict=True)
            return
        short = is_out_of_memory(error)
        if len(batch) == 1:
            yield next(iter(batch)), too_little_memory(self.device, error) if short else error
            return
        del error  # and with it what the batch holds on the device
        size = 1
        if short:
            release_memory(self.device)
            size = len(batch) // 2
            if size < self.most_slots:
                self.most_slots = size
                many = f"{size} recording{'s' * (size > 1)} at a time"
                self.announce(f"{self.device} is out of memory: going on with {many}")
        indices = list(batch)
        for first in range(0, len(indices), size):
            yield from self._batch({index: batch[index] for index in indices[first : first + size]})

    def _check_finite(self, encoder, args: tuple, kwargs: dict, output: tuple) -> None:
        """A hook: raise ModelError, naming the first layer, when the encoder's output is not finite."""
        if bool(output[0].isfinite().all()):
            return
        found: list[int] = []

        def look(index: int, result) -> None:
            if not bool((result[0] if isinstance(result, tuple) else result).isfinite().all()):
                found.append(index)

        hooks = [
            layer.register_forward_hook(lambda *call, index=index: look(index, call[-1]))
            for index, layer in enumerate(encoder.layers)
        ]
        try:
            encoder.forward(*args, **kwargs)
        finally:
            for hook in hooks:
                hook.remove()
        first = f", first that of layer {found[0]}" if found else ""
        raise ModelError(f"the encoder's output is not finite (NaN or infinity){first}: the checkpoint may be damaged")

    def stream(self):
        """NeMo's own streaming differs from its offline pass and is not offered here."""
        raise SetupError("live streams need the native engine (--engine native)")

    def transcribe(self, sources, slots: int = 1) -> Transcript | list[Transcript]:
        """Transcribe one recording, or a list of them, ``slots`` in a batch; see ``Recognizer.transcribe``."""
        if is_source(sources):
            return self.transcribe([sources])[0]
        results: list = [None] * len(sources)
        for index, result in self.results(sources, slots):
            if isinstance(result, Exception):
                raise result
            results[index] = result
        return results

    def _transcribe_batch(self, waveforms: list[np.ndarray]) -> list[Transcript]:
        """The transcripts of recordings float32 [samples], mono, 16 kHz, as one batch."""
        # shorter than one mel frame: nothing to recognise, and NeMo fails on a batch without any frame
        audible = [i for i, waveform in enumerate(waveforms) if len(waveform) >= self.stride]
        transcripts = [Transcript("", (), len(waveform) / SAMPLE_RATE) for waveform in waveforms]
        if audible:
            options = TranscribeConfig(batch_size=len(audible), return_hypotheses=True, verbose=False)
            options.pad_min_duration = (
                0.0  # else NeMo centres short recordings in 1 s of silence, which moves all times
            )
            hypotheses = self.model.transcribe([waveforms[i] for i in audible], override_config=options)
            self.model.eval()  # transcribe() leaves its parts in training mode, with dropout
            for i, hypothesis in zip(audible, hypotheses, strict=True):
                transcripts[i] = self._transcript(hypothesis, waveforms[i])
        return transcripts

    def _transcript(self, hypothesis, waveform: np.ndarray) -> Transcript:
        ids = [int(i) for i in hypothesis.y_sequence]
        frames = [int(frame) for frame in hypothesis.timestamp]
        measured = [float(c) for c in hypothesis.token_confidence] if self.method else [None] * len(ids)
        emissions = [Emission(*emission) for emission in zip(ids, frames, [None] * len(ids), measured, strict=True)]
        return self.speller.transcript(emissions, len(waveform) / SAMPLE_RATE)


def _restore(path: Path, checkpoint: Checkpoint) -> EncDecRNNTBPEModel:
    """NeMo's ``restore_from``, of what ``read_checkpoint`` has checked: NeMo itself never opens the file.

    It is given the parts of the config that recognising needs, the tensors, and a folder with the tokenizer's files,
    which is gone afterwards.  Raises SetupError if the weights do not fit the model that NeMo makes of the config.
    """
    config = copy.deepcopy({part: checkpoint.config[part] for part in USED if part in checkpoint.config})
    config.pop("labels", None)  # NeMo takes them from the tokenizer
    config["joint"].pop("vocabulary", None)
    decoding = config["decoding"] = config.get("decoding") or {"strategy": "greedy_batch"}
    greedy = decoding["greedy"] = decoding.get("greedy") or {}
    if not greedy.get("max_symbols") and not greedy.get("max_symbols_per_step"):
        greedy["max_symbols"] = MOST_SYMBOLS
    try:
        with tempfile.TemporaryDirectory() as folder:
            for part in tokenizer_parts(config):
                part["dir"] = folder
                for key in TOKENIZER_FILES:
                    if part.get(key):
                        name = part[key].removeprefix("nemo:")
                        content, part[key] = read_member(path, name, MOST_TOKENIZER), f"{folder}/{name}"
                        Path(part[key]).write_bytes(content)
            connector = _Connector(path, checkpoint.tensors)
            connector.model_extracted_dir = folder
            return EncDecRNNTBPEModel.restore_from(
                str(path), OmegaConf.create(config), map_location="cpu", save_restore_connector=connector
            )
    except SetupError:
        raise
    except Exception as error:
        raise SetupError(f"{path}: NeMo cannot restore this checkpoint: {shown(first_line(error))}") from error


class _Connector(SaveRestoreConnector):
    """Gives NeMo tensors that were read already, once each is found to fit."""

    def __init__(self, path: Path, tensors: Tensors):
        super().__init__()
        self.path, self.tensors = path, tensors

    def _load_state_dict_from_disk(self, *_, **__) -> Tensors:
        tensors, self.tensors = self.tensors, None  # NeMo keeps its connector
        return tensors

    def load_instance_with_state_dict(self, instance, state_dict: Tensors, strict: bool) -> None:
        weights = Weights(state_dict, torch.device("cpu"), None)
        try:
            for name, weight in instance.state_dict().items():
                if weight.is_floating_point() or not weights.has(name):
                    weights(name, *weight.shape)
            weights.check_all_taken()
        except SetupError as error:
            raise SetupError(f"{self.path}: {error}") from error
        super().load_instance_with_state_dict(instance, state_dict, strict)
