"""The messages between the sources of many live streams and the process of their pool.  This module needs no torch."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

from .errors import SetupError
from .transcript import Transcript

if TYPE_CHECKING:
    import numpy as np

    from .engine import StreamOptions
    from .pool import PooledStream
    from .transcript import Word
    from .utterances import LiveEvent

LONG_TOKENS = 1000  # from so many on, a transcript takes longer to write than the other streams are to wait
LOOK_SECONDS = 0.02  # until the next look whether one is written
STEP_STREAMS = 64  # in a step at most: more make it longer, and each stream waits for it


@dataclass(frozen=True)
class Request:
    """What has happened to a stream; the first one of its number opens it."""

    stream: int
    samples: np.ndarray | None = None
    """float32 [samples] at 16 kHz that have come."""
    ends: bool = False
    """Whether its audio has ended."""
    is_silent: bool = False
    """Whether nothing comes: what waits is to be decoded for a preview."""


@dataclass(frozen=True)
class Update:
    """What has become known of a stream."""

    stream: int
    events: list[LiveEvent]
    partial: list[Word]
    """The words that would follow if the audio ended here, where a request has asked for them."""
    seconds: float
    """Of its audio that are transcribed."""
    transcript: Transcript | None = None
    """The whole, once the stream has ended or failed; then it is forgotten."""
    error: Exception | None = None
    """Why it has failed."""


class Answer(NamedTuple):
    """The answer to a number of requests."""

    updates: list[Update]
    is_busy: bool
    """Whether a further step is possible at once."""


class PoolExchange:
    """The pool of an engine, for up to ``max_streams`` at once, which have numbers."""

    def __init__(self, engine: Any, options: StreamOptions, max_streams: int) -> None:
        self.pool = engine.pool(max_streams)
        self.pool.largest = min(max_streams, STEP_STREAMS)
        self.options = options
        self.streams: dict[int, PooledStream] = {}
        self.numbers: dict[PooledStream, int] = {}
        self.closing: dict[int, Future[Transcript]] = {}
        """Transcripts of streams that have ended, by number, which a thread writes."""
        self.writer = ThreadPoolExecutor(1)

    def exchange(self, requests: Sequence[Request]) -> Answer:
        """Take audio, make a step of the streams that have a chunk ready, and return what is known then."""
        partial: dict[int, list[Word]] = {}
        refused: dict[int, Update] = {}
        for request in requests:
            try:
                stream = self._stream(request.stream)
            except SetupError as error:  # no place
                refused[request.stream] = Update(request.stream, [], [], 0.0, Transcript("", (), 0.0), error)
                continue
            if stream.error:
                continue
            try:
                if request.samples is not None:
                    stream.feed(request.samples)
                if request.is_silent:
                    partial[request.stream] = stream.preview()
                if request.ends:
                    stream.end()
            except Exception as error:
                stream.error = error
        touched = {self.numbers[stream] for stream in self.pool.step()}
        touched.update(request.stream for request in requests if request.stream not in refused)
        updates = [self._update(number, partial.get(number, [])) for number in sorted(touched)]
        is_ready = any(stream.is_ready for stream in self.streams.values())
        if self.closing and not is_ready:
            wait(self.closing.values(), LOOK_SECONDS)
        updates += [self._last_update(number) for number, written in [*self.closing.items()] if written.done()]
        return Answer([*updates, *refused.values()], is_ready or bool(self.closing))

    def _stream(self, number: int) -> PooledStream:
        if number not in self.streams:
            stream = self.streams[number] = self.pool.stream(self.options)
            self.numbers[stream] = number
        return self.streams[number]

    def _update(self, number: int, partial: list[Word]) -> Update:
        stream = self.streams[number]
        transcript = None
        if stream.is_done and number not in self.closing:
            if len(stream.emissions) < LONG_TOKENS:
                transcript = stream.transcript()
                self._forget(number)
            else:
                self.closing[number] = self.writer.submit(stream.transcript)
        return Update(number, stream.events(), partial, stream.decoded_seconds, transcript, stream.error)

    def _last_update(self, number: int) -> Update:
        stream = self.streams[number]
        self._forget(number)
        transcript = self.closing.pop(number).result()
        return Update(number, [], [], stream.decoded_seconds, transcript, stream.error)

    def _forget(self, number: int) -> None:
        del self.numbers[self.streams.pop(number)]
