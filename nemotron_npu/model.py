"""One loaded checkpoint on one device: log-mel features, encoder, decoder and spelling."""

from __future__ import annotations

import copy
import math
import sys
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import numpy as np
import torch
import torch.nn.functional as F

from .audio import SAMPLE_RATE
from .boosting import ALPHA, BoostingTree, Phrase, spell
from .cache import EncoderState
from .checkpoint.load import Checkpoint, read_checkpoint
from .checkpoint.saved import is_scale
from .checkpoint.tokenizer import pieces_of
from .checkpoint.weights import Weights
from .decoder import Decoder, DecoderState, Emission, NotFinite
from .device import check_switches, choose_device, configure, traits_of
from .dtypes import check_dtype
from .encoder import Encoder, EncoderOptions
from .engine import ModelOptions
from .errors import ModelError, SetupError, Unsupported, one_line
from .features import FeatureStream, Frontend
from .fused import check_fused
from .graph import Captures, check_graphs
from .prompt import Prompt
from .spelling import Speller
from .transcript import Transcript

BLOCK_FRAMES = 128  # encoder frames in one step of a recording, at most: large products in bounded memory
BUFFERS = ("running_mean", "running_var", "num_batches_tracked")  # of a batch norm: stored, but no parameters
CPU = torch.device("cpu")
DEFAULTS = ModelOptions()
ModelType = TypeVar("ModelType", bound="Model")
NO_LIMIT = sys.maxsize


@dataclass(frozen=True)
class MemoryLimits:
    """The batch that fits into memory, known once memory has run out."""

    slots: int = NO_LIMIT
    """Batch slots."""
    frames: int = NO_LIMIT
    """Encoder frames of each recording in one step."""
    reported: bool = True
    """Whether the user has been told of these limits."""


class Step(NamedTuple):
    """The arguments of one encoder step."""

    features: torch.Tensor
    """float32 [slots, frames * factor, mels], on the encoder's device."""
    state: EncoderState
    ends: list[int | None]
    """For each slot, the number of features of its recording if it ends in this step; else None."""


class Model:
    """A checkpoint's features, encoder, decoder and speller, ready on their devices.

    Parameters
    ----------
    path : the checkpoint: a ``.nemo`` file, a folder or a file of ``--save``.
    device : device of the encoder, a torch.device or ``"npu:0"``, ``"cuda:0"``, ``"cpu"``.  Log-mel features are
        computed on the CPU.
    options : chunk length, dtype, decoder device, graph capture and block length; ``options.engine`` is ignored.
    announce : called with one line if a part of the checkpoint is left out, if its decoding is not greedy, if memory
        has run out and smaller batches or blocks follow, and about graph capture.

    Raises SetupError if the checkpoint or the device cannot be used, Unsupported if the native engine lacks a feature
    of the checkpoint.
    """

    def __init__(
        self,
        path: Path | str,
        device: torch.device | str,
        *,
        options: ModelOptions = DEFAULTS,
        announce: Callable[[str], None] = warnings.warn,
    ) -> None:
        path = Path(path)
        device = to_device(device)
        check_switches(device.type, options)
        if options.graph:
            check_graphs(device)
        if options.npu_fused:
            check_fused(graph=options.graph)
        configure(device, allow_hf32=options.allow_hf32)
        checkpoint = read_checkpoint(path)
        config = checkpoint.config
        self.dtype = config.choose_dtype(options.dtype)
        check_dtype(self.dtype, device, saved=path.name if config.dtype else "")
        self.config = config
        self.device = device
        self.chunk_ms, context = config.choose_context(options.chunk_ms)
        """Length of the attention chunk in milliseconds; None for a checkpoint without chunked attention."""
        self.language = config.choose_language(options.language)
        """Name of the prompt in use; None for a checkpoint without prompts."""
        self.frame_seconds = config.frame_seconds
        """Seconds of audio of one encoder frame."""
        if config.multilingual:
            raise Unsupported("a tokenizer for each language")
        self.tokenizer = checkpoint.tokenizers[0]
        self.speller = Speller(pieces_of(self.tokenizer), self.tokenizer.decode, self.frame_seconds)
        self.has_fixed_block = bool(options.block_ms)
        """Whether the user has chosen the block length."""
        try:
            self._build(checkpoint, context, options, Captures(announce) if options.graph else None)
        except SetupError as error:
            raise SetupError(str(path), str(error)) from error
        if config.left_out:
            announce(one_line(path.name, config.left_out))
        if not config.decoding.is_greedy:
            problem = f"decoding.strategy: {config.decoding.strategy} is not supported by the native engine"
            announce(one_line(path.name, problem, "decoding greedily; --engine nemo has it"))
        self.parameters = count_parameters(checkpoint.tensors)
        """Number of weights."""
        self.model_id = checkpoint.identity
        """Digits that name the model, see ``checkpoint.identity``."""
        self.announce = announce
        self.limits = MemoryLimits()

    def _build(
        self, checkpoint: Checkpoint, context: list[int] | None, options: ModelOptions, captures: Captures | None
    ) -> None:
        """Build the parts from the checkpoint's tensors.  Raises SetupError if the tensors do not fit the config."""
        config, tensors = checkpoint.config, checkpoint.tensors
        traits = traits_of(self.device)
        taken: set[str] = set()
        on_host = Weights(tensors, CPU, torch.float32, taken=taken)
        decoder_device = to_device(options.decoder_device or CPU)
        if decoder_device.type != self.device.type:
            configure(decoder_device)
        for_decoder = Weights(tensors, decoder_device, torch.float32, taken=taken)
        for_encoder = Weights(tensors, self.device, traits.storage_dtype(self.dtype), "encoder.", taken)
        frames = BLOCK_FRAMES
        if options.block_ms:
            frames = round(options.block_ms / 1000 / self.frame_seconds)
        self.frontend = Frontend(config.preprocessor, on_host.inside("preprocessor.featurizer."))
        self.decoder = Decoder(config, for_decoder, self.dtype if traits.is_host else "float32")
        encoder_options = EncoderOptions(context, frames, self.dtype, options.npu_fused)
        self.encoder = Encoder(config.encoder, for_encoder, encoder_options, captures)
        if self.language:
            weights = Weights(tensors, self.device, traits.storage_dtype(self.dtype), "prompt_kernel.", taken)
            self.encoder.prompt = Prompt(weights, config.model_defaults, config.prompts[self.language], self.dtype)
        on_host.check_all_taken()

    @property
    def chunk_samples(self) -> int:
        """Samples of a chunk at 16 kHz."""
        return round(self.encoder.chunk * self.frame_seconds * SAMPLE_RATE)

    # ------------------------------------------------------------------ settings

    def measure_confidence(self, method: str) -> None:
        """Measure the tokens' confidence by one of ``confidence.METHODS``; the default is ``"max_prob"``."""
        self.decoder.confidence = method

    def boost(self, phrases: list[Phrase], alpha: float = ALPHA) -> list[Phrase]:
        """Boost ``phrases`` in the recordings and streams that start from now on; an empty list ends the boosting.

        ``alpha`` is the weight of the boosting scores.  Returns the phrases that the vocabulary cannot spell.
        """
        spelled, unknown = spell(phrases, self.tokenizer.encode, self.tokenizer.unk_id())
        tree = BoostingTree(spelled, self.decoder.blank, alpha, self.decoder.device)
        self.decoder.boosting = tree if spelled else None
        return unknown

    def at_chunk(self: ModelType, chunk_ms: int) -> ModelType:
        """Return the model with another attention chunk; the weights are shared.

        Raises SetupError if the checkpoint does not offer this chunk length.
        """
        other = copy.copy(self)
        other.chunk_ms, context = self.config.choose_context(chunk_ms)
        if context:
            other.encoder = self.encoder.at_context(context)
        return other

    # ------------------------------------------------------------------ stages

    def preprocess(self, waveforms: list[np.ndarray]) -> tuple[torch.Tensor, torch.Tensor]:
        """Compute log-mel features of float32 waveforms [samples], mono, 16 kHz.

        Returns float32 [batch, mels, features] and the valid lengths, int64 [batch], on the encoder's device.  As in
        NeMo there is one feature more than the longest has; features past a length are 0.
        """
        features = [FeatureStream(self.frontend).finish(torch.from_numpy(waveform)) for waveform in waveforms]
        lengths = torch.tensor([len(f) for f in features])
        padded = torch.zeros(len(features), max(map(len, features)) + 1, self.frontend.mels)
        for row, f in zip(padded, features, strict=True):
            row[: len(f)] = f
        return padded.transpose(1, 2).to(self.device), lengths.to(self.device)

    def encode(self, features: torch.Tensor, lengths: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Encode whole recordings, given as ``preprocess`` returns them.

        Returns the encoder output, [batch, width, frames], and its valid lengths, int64 [batch], on the encoder's
        device.
        """
        encoder = self.encoder
        valid = lengths.tolist()
        frames = [encoder.frames(length) for length in valid]
        block = encoder.block_for(max(frames))
        total = math.ceil(max(frames) / block) * block
        missing = max(0, total * encoder.factor - encoder.lead - features.shape[2])
        rows = F.pad(features.transpose(1, 2), (0, 0, encoder.lead, missing))
        state = encoder.new_state(len(valid), block)
        outputs = []
        for first in range(0, total, block):
            ends = [length if count <= first + block else None for length, count in zip(valid, frames, strict=True)]
            part = rows[:, first * encoder.factor : (first + block) * encoder.factor]
            outputs.append(encoder.step(part, state, ends))
        encoded = torch.cat(outputs, 1) if len(outputs) > 1 else outputs[0]
        return encoded[:, : max(frames)].transpose(1, 2), torch.tensor(frames).to(self.device)

    def decode(self, encoded: torch.Tensor, state: DecoderState, counts: list[int], step: Step) -> list[list[Emission]]:
        """Decode the output of one encoder step.

        encoded : [slots, frames, width], on any device.
        counts : of each slot, the frames that belong to its recording.
        step : the arguments of the encoder step, to explain values that are not finite.

        Returns the tokens of each slot.  Raises ModelError when the model's values are NaN or infinite.
        """
        try:
            return self.decoder.step(encoded.to(self.decoder.device), state, counts)
        except NotFinite as bad:
            raise self._not_finite(bad, step) from bad

    def _not_finite(self, bad: NotFinite, step: Step) -> ModelError:
        """Compose the error for an encoder step in whose output the decoder has met values that are not finite."""
        found = self.encoder.first_not_finite(*step)
        if found:
            part, _, frame = found
            problem = f"not finite (NaN or infinity), first in {part}"
            subject = "encoder output"
        else:
            frame = bad.frame
            problem = "not finite (NaN or infinity)"
            subject = "token scores"
        return ModelError(subject, f"{problem}, at {frame * self.frame_seconds:.2f} s", self._hint_not_finite())

    def _hint_not_finite(self) -> str:
        if self.dtype == "float16":
            return "float16 ends at 65504: use --dtype bfloat16 or float32"
        if traits_of(self.device).is_host:
            return "the checkpoint may be damaged"
        return "the checkpoint may be damaged: compare with --device cpu"

    def transcript(self, emissions: list[Emission], samples: int) -> Transcript:
        """Return the transcript of a recording of ``samples`` samples."""
        return self.speller.transcript(emissions, samples / SAMPLE_RATE)


def to_device(device: torch.device | str) -> torch.device:
    """Return ``device``, or the device with that name.  Raises SetupError when it is not usable."""
    return choose_device(device)[0] if isinstance(device, str) else device


def check_fit(path: Path, checkpoint: Checkpoint) -> None:
    """Check that the weights fit the config.

    Builds its parts from the tensors, without copies where possible; NeMo would take many seconds for the same answer.
    Raises SetupError where a weight is missing, has another shape or is left over, and Unsupported where the native
    engine does not know what there should be.
    """
    config = checkpoint.config
    weights = Weights(checkpoint.tensors, CPU, torch.float32)
    try:
        Frontend(config.preprocessor, weights.inside("preprocessor.featurizer."))
        Decoder(config, weights, "plain")
        Encoder(config.encoder, weights.inside("encoder."), EncoderOptions(dtype="plain"))
        if config.prompts:
            Prompt(weights.inside("prompt_kernel."), config.model_defaults, 0, "plain")
        weights.check_all_taken()
    except SetupError as error:
        raise SetupError(str(path), str(error)) from error


def count_parameters(tensors: dict[str, Any]) -> int:
    """Return the number of parameters; a tensor that two layers share counts once."""
    parameters = {
        tensor.data_ptr(): tensor.numel()
        for name, tensor in tensors.items()
        if not name.startswith("preprocessor.") and not name.endswith(BUFFERS) and not is_scale(name)
    }
    return sum(parameters.values())
