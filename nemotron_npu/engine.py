"""The interface of the engines, and the options that choose and configure one.

This module needs no torch at run time: the command line builds ``ModelOptions`` before torch is imported.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

if TYPE_CHECKING:
    import numpy as np
    import torch

    from .boosting import Phrase
    from .checkpoint.config import ModelConfig
    from .transcript import Transcript


@dataclass(frozen=True)
class ModelOptions:
    """Options of loading a checkpoint."""

    engine: str = "native"
    """``"native"``, or ``"nemo"`` for stock NeMo."""
    chunk_ms: int | None = None
    """Length of an attention chunk in milliseconds; None takes the checkpoint's first."""
    dtype: str | None = None
    """``"float32"`` or ``"bfloat16"``; on a CPU also ``"int8"``, on other devices also ``"float16"``; None: that of a
    checkpoint that ``--save`` has written, else ``"float32"``.

    On a CPU it applies to the matrix products of encoder and prediction network, elsewhere to the whole encoder.
    """
    decoder_device: torch.device | str | None = None
    """Device of the decoder; None is the CPU, since decoding is many small operators with a synchronization each."""
    graph: bool = False
    """Whether the encoder's steady step is captured as a graph and replayed; needs an NPU or GPU."""
    block_ms: int | None = None
    """Audio of each recording in one encoder step, in milliseconds; None takes the size that suits the device."""
    allow_hf32: bool = False
    """Whether an NPU may round float32 products to HF32, and a GPU to TF32, see ``device.configure``.

    The switch is global: the model that is loaded last sets it for the process."""
    npu_fused: bool = False
    """Whether an NPU computes the encoder with torch_npu's fused operators, see ``fused.py``; experimental."""
    language: str | None = None
    """Language of the speech for a multilingual checkpoint, such as ``"en-US"``; None takes ``"auto"``."""

    @property
    def switches(self) -> list[str]:
        """The device switches that are on, as options of the command line."""
        words = ["--graph", "on"] if self.graph else []
        words += ["--allow_hf32"] if self.allow_hf32 else []
        return words + (["--npu_fused"] if self.npu_fused else [])


@dataclass(frozen=True)
class StreamOptions:
    """Options of a live stream."""

    endpoint_ms: int = 800
    """Time without a token that ends an utterance, in milliseconds; half of it after the end of a sentence; 0: never.

    A checkpoint's ``<EOU>`` always ends one."""
    reset_after_pause_ms: int = 0
    """Time without a token after which the decoder is reset, in milliseconds; 0: never (as NeMo)."""


STREAM_DEFAULTS = StreamOptions()


def nothing() -> None:
    """Do nothing: the default of ``Engine.results(between=...)``."""


def batch_of(slots: int) -> str:
    """Return "1 recording at a time" or "N recordings at a time", for messages."""
    return "1 recording at a time" if slots == 1 else f"{slots} recordings at a time"


def in_input_order(results: Iterator[tuple[int, Transcript | Exception]], count: int) -> list[Transcript]:
    """Return the transcripts of ``count`` recordings from ``Engine.results``, in the order of the recordings.

    Raises the first error among the results.
    """
    transcripts: dict[int, Transcript] = {}
    for index, result in results:
        if isinstance(result, Exception):
            raise result
        transcripts[index] = result
    return [transcripts[index] for index in range(count)]


@runtime_checkable
class Engine(Protocol):
    """Transcribes recordings: the native engine, stock NeMo, or the workers of a cluster."""

    @property
    def engine(self) -> str:
        """Name of the engine: ``"native"`` or ``"nemo"``."""

    @property
    def device(self) -> torch.device | str:
        """Device of the encoder; of workers, the kind of their devices."""

    @property
    def parameters(self) -> int:
        """Number of weights of the checkpoint."""

    @property
    def batch_slots(self) -> int:
        """Default number of recordings in a batch."""

    def results(
        self, sources: Sequence[Any], slots: int = 1, between: Callable[[], None] = nothing
    ) -> Iterator[tuple[int, Transcript | Exception]]:
        """Yield (index, transcript or error) of each recording of ``sources`` once, as soon as it is done.

        At most ``slots`` recordings are in a batch.  ``between`` is called between blocks or batches; a
        KeyboardInterrupt that it raises ends the run.
        """


@runtime_checkable
class LocalEngine(Engine, Protocol):
    """An engine whose model is in this process: the native engine and stock NeMo."""

    config: ModelConfig
    model_id: str
    """Digits that identify the model, see ``checkpoint.identity``."""
    chunk_ms: int | None
    """Length of the attention chunk in use, in milliseconds; None for a checkpoint without chunked attention."""
    readers: int
    """Threads that decode audio ahead of the model; with 0 it is decoded in the caller's thread."""
    frame_seconds: float
    """Seconds of audio of one encoder frame."""

    def transcribe(self, sources: Any, slots: int = 1) -> Any:
        """Transcribe one recording, or a list of them, ``slots`` at a time; a list gives a list in the same order.

        Raises the first error of ``results``.
        """

    def stream(self, options: StreamOptions = STREAM_DEFAULTS) -> Any:
        """Start a live stream.  Raises SetupError if the engine or the checkpoint cannot stream."""

    def at_chunk(self, chunk_ms: int) -> LocalEngine:
        """Return the engine with another attention chunk.  Raises SetupError if the checkpoint does not offer it."""

    def measure_confidence(self, method: str) -> None:
        """Measure the confidence of each token by one of ``confidence.METHODS``."""

    def boost(self, phrases: list[Phrase], alpha: float = 1.0) -> list[Phrase]:
        """Boost ``phrases`` from now on; return those that the vocabulary cannot spell."""

    def preprocess(self, waveforms: list[np.ndarray]) -> tuple[torch.Tensor, torch.Tensor]:
        """Compute log-mel features, float32 [batch, mels, features], and their lengths, int64 [batch]."""

    def encode(self, features: torch.Tensor, lengths: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Encode features; return the output, [batch, width, frames], and its lengths, int64 [batch]."""
