"""Many live streams at once: each input is read by a thread, and pools transcribe the new audio in shared steps.

``ManyStreams`` does all else in one thread: it passes the audio on, writes and prints.
"""

from __future__ import annotations

import math
import queue
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from functools import partial
from typing import Any, Protocol

import numpy as np

from ..audio import SAMPLE_RATE
from ..errors import InputError, SetupError
from ..host import signals
from ..live_input import LiveInput
from ..pool_exchange import Answer, PoolExchange, Request, Update
from ..sources import CountedRecording
from ..transcript import Transcript
from .delay import CATCH_UP_SECONDS, DelayReport
from .live_views import report_failure, views_of
from .options import EACH
from .run_info import RunInfo
from .session import Session
from .stream_sources import Line, StreamSource

AHEAD_SECONDS = 2.0  # of audio, beside two chunks, that a stream gets before it is transcribed
PIPE_CHANNELS, MIN_CHANNELS = 2, 16  # with --channel each: of a pipe, and of all, that there is room for
STALL_SECONDS = 30.0  # without audio from a pipe, until that is reported
AS_THEY_COME = ("txt", "events")  # formats whose lines are printed as they come; others keep the order of the inputs


class Host(Protocol):
    """A pool, here or in another process."""

    slots: int
    """Files that it is given at once."""

    def send(self, requests: list[Request], answered: Callable[[Answer | Exception], None]) -> None:
        """Have requests answered: ``answered`` is called, from any thread, with an error if the pool is lost."""

    def watch(self, lost: Callable[[Answer | Exception], None]) -> None:
        """Have ``lost`` called, from any thread, as soon as the pool is lost, whether anything is sent or not."""


class LocalHost:
    """The pool of this process: it answers before ``send`` returns."""

    def __init__(self, engine: Any, session: Session, pipes: int) -> None:
        self.slots = min(engine.batch_slots, len(session.results.todo) - pipes)
        self.pool = PoolExchange(engine, session.options.stream, pipe_streams(session, pipes) + self.slots)

    def send(self, requests: list[Request], answered: Callable[[Answer | Exception], None]) -> None:
        """Have requests answered, in this thread."""
        try:
            answered(self.pool.exchange(requests))
        except Exception as error:  # of the pool as a whole, for instance that memory is short
            answered(error)

    def watch(self, lost: Callable[[Answer | Exception], None]) -> None:
        """Do nothing: the pool is lost with this process."""


def pipe_streams(session: Session, pipes: int) -> int:
    """Return the streams that so many pipes may have."""
    return max(PIPE_CHANNELS * pipes, MIN_CHANNELS) if session.options.input.channel == EACH else pipes


class ManyStreams:
    """The streams of a run.

    Parameters
    ----------
    session, run_info : the run.
    hosts : the pools, which share the streams.
    live : the pipes, by index of the recording; all begin at once, and as many files as the pools have slots.

    """

    def __init__(self, session: Session, run_info: RunInfo, hosts: Sequence[Host], live: dict[int, LiveInput]) -> None:
        self.session = session
        self.results = session.results
        self.run_info = run_info
        self.live = live
        self.endpoint = session.options.stream.endpoint_ms / 1000 or math.inf
        """Seconds after which a pipe is silent."""
        self.chunk = (session.settings.chunk_ms or 0) / 1000
        """Seconds."""
        self.arrived: queue.SimpleQueue[tuple] = queue.SimpleQueue()
        """(method, arguments ...): messages of the threads."""
        self.outbox: dict[Host, list[Request]] = {host: [] for host in hosts}
        """Requests to the pools, which are lost with them."""
        self.working: set[Host] = set()
        """Pools that have not answered yet."""
        self.busy: set[Host] = set()
        """Pools that can make a step without more audio."""
        self.files: list[int] = []
        """Indices of the files that have not begun, the next one last."""
        self.sources: list[StreamSource] = []
        """Inputs that have begun and whose streams have not all ended."""
        self.lines: dict[int, Line] = {}
        """Streams, by number."""
        self.order = list(self.results.todo)
        """Indices of recordings, as stdout gets their documents."""
        self.ended: dict[int, Callable[[], None]] = {}
        """By index, what prints the documents that wait for their turn."""
        self.delay = DelayReport(session.console)
        self.is_stopping = False

    def run(self) -> None:
        """Transcribe all streams.  After a signal they end with what has come until then."""
        with self.session.progress(growing=bool(self.live)) as progress, signals.held(self._on_signal):
            counted = dict(zip(self.order, progress.counted(), strict=True))
            self.files = [index for index in reversed(self.order) if index not in self.live]
            for index, live in self.live.items():
                self._begin(StreamSource(index, iter(live), live))
            self._begin_files(counted)
            for host in self.outbox:
                host.watch(partial(self._answered, host))
            while self.sources:
                self._receive()
                for source in list(self.sources):
                    self._feed(source)
                    if source.is_done:
                        self.sources.remove(source)
                        progress.finished()
                        self._begin_files(counted)
                self._send()
                self.delay.report(max(self._delays(), default=0.0))
        signals.check()

    def _begin_files(self, counted: dict[int, CountedRecording]) -> None:
        """Begin as many files as there is room for, beside all pipes."""
        room = sum(host.slots for host in self.outbox) + sum(source.live is not None for source in self.sources)
        while self.files and len(self.sources) < room:
            index = self.files.pop()
            self._begin(StreamSource(index, counted[index].blocks(), None))

    def _begin(self, source: StreamSource) -> None:
        self.sources.append(source)
        source.start(
            lambda samples: self.arrived.put((source.add, samples)),
            lambda error: self.arrived.put((self._on_end, source, error)),
        )

    # ------------------------------------------------------------------ messages of the threads

    def _receive(self) -> None:
        """Wait until something happens, and take note of all that has happened."""
        now = time.monotonic()
        due = min((source.heard + self._silence_to_note(source) - now for source in self.sources), default=math.inf)
        with suppress(queue.Empty):
            method, *arguments = self.arrived.get(timeout=None if due == math.inf else max(0.0, due))
            while True:
                method(*arguments)
                method, *arguments = self.arrived.get_nowait()
        now = time.monotonic()
        for source in self.sources:
            if now - source.heard >= self._silence_to_note(source):
                self._note_silence(source)

    def _silence_to_note(self, source: StreamSource) -> float:
        """Return the seconds of silence of which the streams of a pipe, or the user, are to know next."""
        if not source.live or source.has_ended or source.pending or source.is_stalled:
            return math.inf
        return STALL_SECONDS if source.is_silent else min(self.endpoint, STALL_SECONDS)

    def _note_silence(self, source: StreamSource) -> None:
        if source.is_silent:
            source.is_stalled = True
            self.session.console.notify(f"{source.name}: no audio for {STALL_SECONDS:g} s (waiting for more)")
        source.is_silent = True
        for line in source.lines if self.endpoint < math.inf else ():
            self._ask(line, Request(line.number, is_silent=True))

    def _on_signal(self) -> None:
        self.arrived.put((self._stop,))

    def _stop(self) -> None:
        self.is_stopping = True
        self._drop_files()
        for source in self.sources:
            if not source.has_ended:
                source.stop()

    def _on_end(self, source: StreamSource, error: Exception | None) -> None:
        source.has_ended = True
        if not self.is_stopping:
            source.error = source.error or error

    def _on_answer(self, host: Host, answer: Answer | Exception) -> None:
        self.working.discard(host)
        self.busy.discard(host)
        if isinstance(answer, Exception):
            self._lose(host, answer)
            return
        if answer.is_busy:
            self.busy.add(host)
        for update in answer.updates:
            line = self.lines.get(update.stream)
            if not line:
                continue
            line.decoded = update.seconds
            for view in line.views:
                view.update(update.events, [])
                if update.partial:
                    view.preview(update.partial)
            if update.transcript is not None:
                self._finish(line, update)

    # ------------------------------------------------------------------ audio goes to the pools

    def _feed(self, source: StreamSource) -> None:
        """Hand on the audio of an input as far as its streams take it."""
        ahead = AHEAD_SECONDS + 2 * self.chunk
        while source.pending and all(line.waiting < ahead for line in source.lines):
            samples = source.take()
            try:
                lines = source.lines or self._open(source, samples)
            except InputError as error:
                source.error = error
                source.ignore()
                break
            for line, channel in zip(lines, samples.reshape(len(samples), -1).T, strict=True):
                line.fed += len(samples) / SAMPLE_RATE
                self._ask(line, Request(line.number, np.ascontiguousarray(channel)))
        if source.has_ended and not source.pending and not source.knows_end:
            source.knows_end = True
            for line in source.lines:
                self._ask(line, Request(line.number, ends=True))
            if not source.lines:
                if source.error:
                    report_failure(self.session, source.index, source.error)
                self._conclude(source.index)

    def _open(self, source: StreamSource, samples: np.ndarray) -> list[Line]:
        """Open the streams of an input, whose first block has come: one, or one for each channel."""
        recording = self.results.recordings[source.index]
        if source.live:
            recording.info = source.live.info
        numbers = [source.index]
        if samples.ndim == 2 and samples.shape[1] > 1:
            numbers = self.results.split(source.index, samples.shape[1])
            place = self.order.index(source.index)
            self.order[place : place + 1] = numbers
        for number in numbers:
            host = min(self.outbox, key=lambda host: sum(line.host is host for line in self.lines.values()))
            line = Line(number, source, host, views_of(self.session, number, grows=False))
            source.lines.append(line)
            self.lines[number] = line
        return source.lines

    def _ask(self, line: Line, request: Request) -> None:
        if not line.is_done:
            self.outbox[line.host].append(request)

    def _send(self) -> None:
        """Send what there is to pools that have answered."""
        for host, requests in self.outbox.items():
            requests = [request for request in requests if request.stream in self.lines]
            if host not in self.working and (requests or host in self.busy):
                self.outbox[host] = []
                self.working.add(host)
                host.send(requests, partial(self._answered, host))

    def _answered(self, host: Host, answer: Answer | Exception) -> None:
        self.arrived.put((self._on_answer, host, answer))

    def _delays(self) -> Iterator[float]:
        """Yield the seconds by which each stream of a pipe is behind its speaker."""
        for line in self.lines.values():
            if line.source.live and line.decoded > CATCH_UP_SECONDS:
                yield line.source.live.delay(line.decoded) - self.chunk

    # ------------------------------------------------------------------ streams end

    def _finish(self, line: Line, update: Update) -> None:
        """Write and print the result of a stream.  One that breaks off keeps its text if it cannot be read again."""
        self._close(line)
        source, transcript = line.source, update.transcript
        assert transcript is not None
        error = update.error or source.error
        is_cut = self.is_stopping and not source.live and source.is_stopped
        is_kept = bool(source.live and transcript.duration) if error else not (is_cut and self.results.folder)
        if error:
            report_failure(self.session, line.number, error, line.views)
        if is_kept:
            if not error:
                for view in line.views:
                    view.finish()
            self._conclude(line.number, partial(self._add, line, transcript, is_cut=is_cut))
        else:
            self._conclude(line.number)

    def _close(self, line: Line) -> None:
        line.is_done = True
        del self.lines[line.number]
        source = line.source
        if not source.has_ended and all(line.is_done for line in source.lines):
            source.ignore()  # the model has failed, or the pool is lost

    def _add(self, line: Line, transcript: Transcript, *, is_cut: bool) -> None:
        fields = self.run_info.result_fields(transcript.duration, time.perf_counter() - line.began)
        is_shown = self.session.printer.format == "txt"
        try:
            self.results.add(line.number, transcript, fields, shown=is_shown)
        except InputError as error:
            self.results.fail(line.number, error)
        if is_cut:
            del self.results.done[line.number]  # the end of its text is missing

    def _conclude(self, index: int, print_result: Callable[[], None] = lambda: None) -> None:
        """Write the result of a recording, and print it when those before it are."""
        if self.results.folder or self.session.printer.format in AS_THEY_COME:
            print_result()
            return
        self.ended[index] = print_result
        while self.order and self.order[0] in self.ended:
            self.ended.pop(self.order.pop(0))()

    def _drop_files(self) -> None:
        """Begin no more files."""
        while self.files:
            self._conclude(self.files.pop())

    def _lose(self, host: Host, error: Exception) -> None:
        """End the streams of a pool that is lost; the last one ends the run."""
        if host not in self.outbox:
            return
        del self.outbox[host]
        for line in list(self.lines.values()):
            if line.host is host:
                self._close(line)
                report_failure(self.session, line.number, self._lost(line.number, error), line.views)
                self._conclude(line.number)
        if self.outbox:
            return
        for source in self.sources:
            if not source.lines and not source.knows_end:
                report_failure(self.session, source.index, self._lost(source.index, error))
                self._conclude(source.index)
        self._drop_files()
        raise error

    def _lost(self, index: int, error: Exception) -> Exception:
        """Return what has ended a stream whose pool is lost: the loss of a worker, or what the pool here raised."""
        is_worker = isinstance(error, SetupError)
        return InputError(self.results.recordings[index].name, f"lost with {error}") if is_worker else error
