"""Many live streams in one encoder step: each is fed at its own pace, and all that have a chunk ready step together.

On a device a step costs the same for 1 and for 64 streams; a CPU reads the weights once for all.  Each stream keeps a
state of its own, so a stream that ends, fails or pauses does not delay the others.  A step of several streams copies
their states into the slots of one state, and the new rows back, with as many operators for 2 streams as for 64.
"""

from __future__ import annotations

import threading
import time
from copy import copy
from types import TracebackType
from typing import Any

import torch
import torch.nn.functional as F

from .audio import Samples
from .cache import EncoderState
from .decoder import DecoderState, NotFinite
from .device import is_out_of_memory, release_memory, traits_of, upload
from .engine import STREAM_DEFAULTS, StreamOptions
from .errors import SetupError, one_line
from .model import Model
from .state_store import StateStore
from .streaming import Stream
from .transcript import Transcript, Word
from .utterances import LiveEvent

MAX_WAITING = 30.0  # seconds of audio that a stream holds before it refuses more


class PooledStream(Stream):
    """One live stream of a ``Pool``: ``feed`` only takes the audio, ``Pool.step`` transcribes it.

    Each stream may be fed by a thread of its own.
    """

    def __init__(self, pool: Pool, options: StreamOptions) -> None:
        self.pool = pool
        self.place = pool.free_place()
        super().__init__(pool.model, options)
        self.lock = threading.Lock()
        """Of features and rows: one thread feeds while another steps."""
        self.ready_since: float | None = None
        """When the rows that wait for a step became a chunk, by ``time.monotonic``; None while they are none."""

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None) -> None:
        """Finish the stream; after an exception close it and drop the waiting audio."""
        if kind is None:
            self.finish()
            return
        with self.pool.stepping:  # a step that has taken it writes into its place
            self.error = self.error or ValueError("the stream was left by an exception: start a new one")
        self.pool.notice(self)

    @property
    def is_ready(self) -> bool:
        """Whether the next step can take this stream."""
        return not self.error and self.rows.ready >= (1 if self.rows.ended else self.chunk)

    @property
    def seconds_waiting(self) -> float:
        """Seconds of audio that no step has taken yet."""
        return self.rows.ready * self.model.frame_seconds

    def feed(self, samples: Samples) -> list[Word]:
        """Take the next samples, as ``Stream.feed`` does; return the words that are final since the last call.

        Raises BufferError while more than ``MAX_WAITING`` seconds wait for a step, ``error`` if the stream has failed,
        and TypeError and ValueError as ``Stream.feed`` does.
        """
        if self.error:
            raise self.error
        if self.seconds_waiting > MAX_WAITING:
            raise BufferError(f"{self.seconds_waiting:.0f} s of audio wait for Pool.step")
        with self.lock:
            words = super().feed(samples)
        self.pool.notice(self)
        return words

    def events(self) -> list[LiveEvent]:
        """Return the events since the last call, see ``Stream.events``."""
        with self.lock:
            return super().events()

    def preview(self) -> list[Word]:
        """Return the words that would follow the final ones if the audio ended here, see ``Stream.preview``."""
        with self.pool.stepping, self.lock:
            return super().preview()

    def _new_encoder_state(self) -> EncoderState:
        """Return an empty state in the memory of the pool."""
        return self.pool.store(self.block).open(self.place)

    def _advance(self) -> None:
        """Leave the chunks to ``Pool.step``."""

    def end(self) -> None:
        """End the audio: the next steps transcribe the rest."""
        with self.lock:
            if not self.rows.ended:
                self._end()
        self.pool.notice(self)

    def step_alone(self, frames: int) -> None:
        """Transcribe the next frames without other streams; an error of the model ends the stream."""
        try:
            with self.lock:
                self._step(frames)
        except Exception as error:
            self.error = error

    def finish(self) -> Transcript:
        """End the stream, step the pool until all of it is transcribed, and return the final transcript.

        Raises ``error`` if the stream failed; ``transcript`` still returns what came before.
        """
        self.end()
        while not self.is_done:
            self.pool.step()
        if self.error:
            raise self.error
        return self.transcript()


class Pool:
    """Up to ``max_streams`` live streams of one model, made by ``Recognizer.pool``.

    One thread calls ``step`` in a loop.  Meanwhile any thread may open, feed and end streams.
    """

    def __init__(self, model: Model, max_streams: int) -> None:
        self.model = model
        self.max_streams = max_streams
        self.largest = max_streams
        """Maximum streams in one step; fewer after memory ran out."""
        self.streams: list[PooledStream] = []
        """The open streams."""
        self.changed = threading.Condition()
        self.stepping = threading.Lock()
        self.stored: StateStore | None = None
        """The states of the streams."""
        self.states: dict[int, EncoderState] = {}
        """States for steps of several streams, by their number, all in the same memory."""

    def stream(self, options: StreamOptions = STREAM_DEFAULTS) -> PooledStream:
        """Open a stream.  Raises SetupError when ``max_streams`` are open."""
        with self.changed:
            self.streams = [stream for stream in self.streams if not stream.is_done]
            if len(self.streams) >= self.max_streams:
                raise SetupError("live streams", f"all {self.max_streams} are open", "finish one first")
            stream = PooledStream(self, options)
            self.streams.append(stream)
        return stream

    def free_place(self) -> int:
        """Return a place in the store that no open stream has."""
        return min(set(range(self.max_streams)) - {stream.place for stream in self.streams})

    def store(self, block: int) -> StateStore:
        """Return the store of the states, made for the first stream; ``block`` is the frames of its largest step."""
        if self.stored is None:
            self.stored = StateStore(lambda places: self.model.encoder.new_state(places, block), self.max_streams)
        return self.stored

    def step(self, patience: float = 0.0) -> list[PooledStream]:
        """Transcribe the next frames of all streams that have a chunk ready, and return these streams.

        If some open streams are not ready, it waits for them, up to ``patience`` seconds after the first became ready:
        the more streams share a step, the less each costs.  Returns [] if none is ready in that time.
        After an error in the model each stream is tried alone.  One that fails again ends with its ``error``, and the
        others go on.
        """
        with self.stepping:
            ready = self._wait(patience)
            while ready:
                try:
                    self._step(ready, together=len(ready) > 1)
                    break
                except Exception as error:
                    is_memory = is_out_of_memory(error)
                if not is_memory:
                    self._step(ready, together=False)
                    break
                ready = self._halve(ready)
            return ready

    def notice(self, stream: PooledStream) -> None:
        """Let ``step`` know that a stream has new rows, or has ended."""
        with self.changed:
            if stream.is_ready and stream.ready_since is None:
                stream.ready_since = time.monotonic()
            self.changed.notify_all()

    def _wait(self, patience: float) -> list[PooledStream]:
        """Wait for the streams of the next step; return those that have waited longest, the longest first."""
        began = time.monotonic()
        with self.changed:
            while True:
                self.streams = [stream for stream in self.streams if not stream.is_done]
                waiting = [(stream.ready_since or began, i) for i, stream in enumerate(self.streams) if stream.is_ready]
                waiting.sort()
                left = (waiting[0][0] if waiting else began) + patience - time.monotonic()
                if left <= 0 or (waiting and len(waiting) == len(self.streams)):
                    ready = [self.streams[i] for _, i in waiting[: self.largest]]
                    return [s for s in ready if s.decoder_state.boosting is ready[0].decoder_state.boosting]
                self.changed.wait(left)

    def _halve(self, ready: list[PooledStream]) -> list[PooledStream]:
        """Take half of these streams in a step from now on: memory ran out."""
        self.largest = len(ready) // 2
        self.states.clear()
        release_memory(self.model.device)
        hint = f"continuing with {self.largest} streams in a step"
        self.model.announce(one_line(str(self.model.device), "out of memory", hint))
        return ready[: self.largest]

    def _step(self, ready: list[PooledStream], *, together: bool) -> None:
        """Encode and decode the next frames of these streams; if that fails ``together``, nothing has changed."""
        waiting = []
        for stream in ready:
            with stream.lock:
                waiting.append(copy(stream.rows))
        chunk, block = ready[0].chunk, min(stream.block for stream in ready)
        frames = min(max(min(rows.ready for rows in waiting) // chunk, 1) * chunk, block)
        alone = ready
        if together:
            alone = self._step_together(ready, frames, [rows.take(frames) for rows in waiting])
        for stream in alone:
            stream.step_alone(frames)
        now = time.monotonic()
        for stream in ready:
            stream.ready_since = now if stream.is_ready else None

    def _step_together(self, streams: list[PooledStream], frames: int, taken: list[Any]) -> list[PooledStream]:
        """Step several streams; return those that have not advanced, since their values are not finite.

        ``taken`` is what ``RowBuffer.take`` returns for each.
        """
        model = self.model
        for stream in streams:
            stream.reset_after_pause()
        slots = len(streams) if traits_of(model.device).is_host else 1 << (len(streams) - 1).bit_length()
        rows, ends, counts = (list(column) for column in zip(*taken, strict=True))
        features = upload(torch.stack(rows), model.device)
        idle = slots - len(streams)  # a device gets few shapes
        if idle:
            features = F.pad(features, (0, 0, 0, 0, 0, idle))
        state = self._state(slots, streams[0].block)
        store = self.store(streams[0].block)
        places: list[int | None] = [stream.place for stream in streams]
        store.gather([stream.place for stream in streams], state)
        encoded = model.encoder.step(features, state, ends + [None] * idle)
        encoded = encoded[: len(streams)].to(model.decoder.device)
        left = list(range(len(streams)))
        failed = []
        while left:
            decoder_state = DecoderState.join([streams[slot].decoder_state for slot in left])
            try:
                emitted = model.decoder.step(encoded[left], decoder_state, [counts[slot] for slot in left])
            except NotFinite as bad:
                slot = left.pop(bad.slot)
                places[slot] = None
                failed.append(streams[slot])
                continue
            break
        store.advance(places, state, frames)
        for index, slot in enumerate(left):
            stream = streams[slot]
            with stream.lock:
                stream.decoder_state = decoder_state.part(index)
                stream.emissions += emitted[index]
                stream.rows.take(frames)
        return failed

    def _state(self, slots: int, block: int) -> EncoderState:
        """Return the state for steps of so many streams: all use the same memory."""
        if slots not in self.states:
            room = 1 << (slots - 1).bit_length()
            if room > max(self.states, default=0):
                self.states = {room: self.model.encoder.new_state(room, block)}
            self.states[slots] = self.states[max(self.states)].with_slots(slots)
        return self.states[slots]
