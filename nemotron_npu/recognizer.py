"""The public class: a recognizer of one checkpoint on one device, for recordings and for live streams."""

from __future__ import annotations

import operator
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, overload

import torch

from .audio import Source, is_source
from .batching import block_frames, default_slots, transcribe_batches
from .checkpoint.load import read_checkpoint
from .device import is_out_of_memory
from .engine import STREAM_DEFAULTS, LocalEngine, ModelOptions, StreamOptions, in_input_order, nothing
from .errors import SetupError, Unsupported, first_line, one_line
from .host import signals
from .host.packages import can_import, install_command, offer_mock
from .model import DEFAULTS, Model, check_fit, to_device
from .pool import Pool
from .streaming import Stream
from .transcript import Transcript

READERS = 4  # threads that decode audio


class Recognizer(Model):
    """The native engine: a ``Model`` that transcribes recordings and live streams.

    It takes the arguments of ``Model``.  Several threads may share one recognizer, each with recordings or streams of
    its own.
    """

    engine = "native"
    readers = READERS
    """Threads that decode audio ahead of the model; with 0 it is decoded in the caller's thread."""

    @property
    def batch_slots(self) -> int:
        """Default number of recordings in a batch, see ``batching.default_slots``."""
        return default_slots(self)

    def block_frames(self, slots: int) -> int:
        """Return the encoder frames of each recording in one step, for a batch of ``slots`` recordings."""
        return block_frames(self, slots)

    @overload
    def transcribe(self, sources: Source, slots: int = 1) -> Transcript: ...  # type: ignore[overload-overlap]

    @overload
    def transcribe(self, sources: Sequence[Source], slots: int = 1) -> list[Transcript]: ...

    def transcribe(self, sources: Any, slots: int = 1) -> Transcript | list[Transcript]:
        """Transcribe one recording, or a list of them, at most ``slots`` in a batch.

        A recording is mono audio at 16 kHz (float32 in -1 .. 1 or int16, of numpy or torch, see ``audio.to_samples``),
        the path of an audio file, or an object with ``blocks()``.
        Returns its transcript; for a list, a list in the same order.  Raises the first error of ``results``.
        """
        if is_source(sources):
            return in_input_order(self.results([sources]), 1)[0]
        return in_input_order(self.results(sources, slots), len(sources))

    def results(
        self, sources: Sequence[Source], slots: int = 1, between: Callable[[], None] = nothing
    ) -> Iterator[tuple[int, Transcript | Exception]]:
        """Yield (index, transcript or error) of each recording as soon as it is done, at most ``slots`` in a batch.

        When a recording ends, its slot takes the next one, whose audio is already being decoded.  ``between`` is called
        between blocks and while the batch waits for audio; a KeyboardInterrupt that it raises ends the run.
        If memory runs out, fewer recordings continue in smaller blocks, and those in the slots restart.
        After any other error in the model, each recording of the batch is tried alone, so that one does not fail the
        others.
        """
        return transcribe_batches(self, sources, slots, between, self.readers)

    def stream(self, options: StreamOptions = STREAM_DEFAULTS) -> Stream:
        """Start a live stream: ``with recognizer.stream() as s: s.feed(samples); s.text``.

        Raises SetupError for a checkpoint whose attention needs the whole recording.
        """
        self._check_streams()
        return Stream(self, options)

    def pool(self, max_streams: int) -> Pool:
        """Return a pool of up to ``max_streams`` live streams that step together.

        Raises SetupError like ``stream``, and ValueError if ``max_streams`` is below 1.
        """
        self._check_streams()
        if operator.index(max_streams) < 1:
            raise ValueError(f"max_streams is {max_streams}: expected at least 1")
        return Pool(self, max_streams)

    def _check_streams(self) -> None:
        if not self.encoder.streams:
            raise SetupError("live stream", "this checkpoint attends to the whole recording", "transcribe files")


def load_recognizer(
    path: Path | str,
    device: torch.device | str,
    *,
    options: ModelOptions = DEFAULTS,
    announce: Callable[[str], None] = warnings.warn,
) -> LocalEngine:
    """Load the checkpoint ``path`` onto ``device``, such as ``"npu:0"``, with the engine that ``options`` names.

    A checkpoint that the native engine does not support runs on stock NeMo, and ``announce`` gets one line about it.
    Raises SetupError when the checkpoint or the device cannot be used, when the checkpoint does not offer the chunk
    length, and when NeMo is needed but not installed.
    """
    path = Path(path)
    device = to_device(device)
    if options.engine == "nemo":
        return _load_nemo(path, device, options, announce)
    try:
        return Recognizer(path, device, options=options, announce=announce)
    except Unsupported as reason:
        unsupported = f"not supported by the native engine: {reason}"
    except Exception as error:
        if not is_out_of_memory(error):
            raise
        raise SetupError(str(device), f"not enough memory for {path.name}: {first_line(error)}") from error
    if not can_import("nemo"):
        raise SetupError(path.name, f"{unsupported}; NeMo is not installed", install_command("nemo"))
    announce(one_line(path.name, unsupported, "running on NeMo"))
    return _load_nemo(path, device, options, announce)


def _load_nemo(path: Path, device: torch.device, options: ModelOptions, announce: Callable[[str], None]) -> LocalEngine:
    """Load the checkpoint in stock NeMo.  Raises SetupError for options that only the native engine supports."""
    if not can_import("nemo"):
        raise SetupError("--engine nemo", "NeMo is not installed", install_command("nemo"))
    given = {
        f"--dtype {options.dtype}": options.dtype not in (None, "float32"),
        "--graph on": options.graph,
        "--npu_fused": options.npu_fused,
        "--block_ms": options.block_ms,
        "--decoder_device": options.decoder_device,
    }
    for option, is_given in given.items():
        if is_given:
            raise SetupError(option, "needs the native engine")
    checkpoint = read_checkpoint(path)
    checkpoint.config.check_float32(path.name)
    with suppress(Unsupported):
        check_fit(path, checkpoint)
    with signals.held():  # C++ libraries do not survive an exception while they are imported
        offer_mock()
        from .nemo_engine import NemoRecognizer  # optional, and its import takes 10 s
    signals.check()
    return NemoRecognizer(path, device, options=options, announce=announce, checkpoint=checkpoint)
