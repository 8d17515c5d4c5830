"""Live streams: audio from stdin, and files that are fed as if they were live."""

from __future__ import annotations

import re
import sys
import time
from collections.abc import Iterator
from typing import Any

import numpy as np

from ..audio import SAMPLE_RATE
from ..engine import LocalEngine
from ..errors import InputError, ModelError, SetupError
from ..formats import to_text
from ..host import signals
from ..live_input import LiveInput
from ..sources import CountedRecording
from ..transcript import Transcript
from .console import Console
from .run_info import RunInfo
from .session import Session

CATCH_UP_SECONDS = 5  # of audio, in which a stream may make up for the time of loading


def transcribe_stdin(session: Session, engine: LocalEngine, run: RunInfo, source: LiveInput) -> None:
    """Transcribe stdin until it ends or a signal comes, and notify when the engine falls behind real time.

    Raises InputError when stdin cannot be read or breaks off; the transcript until then is shown first.
    """
    with signals.held(source.stop):
        try:
            transcribe_stream(session, engine, run, 0, _live_blocks(session, source))
        except InputError:
            if not signals.came():
                raise
        except ModelError as error:
            session.results.fail(0, error)


def transcribe_as_streams(session: Session, engine: LocalEngine, run: RunInfo) -> None:
    """Transcribe the files of the session one after the other, chunk by chunk, as fast as possible."""
    results = session.results
    with session.progress(growing=sys.stdout.isatty()) as progress, signals.held():
        for index, recording in zip(results.todo, progress.counted(), strict=True):
            try:
                transcribe_stream(session, engine, run, index, _chunks(session, engine, recording))
            except (SetupError, BrokenPipeError):  # these concern all streams
                raise
            except Exception as error:
                results.fail(index, error)
            progress.finished()
            signals.check()


def _chunks(session: Session, engine: Any, recording: CountedRecording) -> Iterator[np.ndarray]:
    """Yield the audio of a recording in chunks of the native engine; a signal ends it."""
    size: int = engine.chunk_samples
    for block in recording.blocks():
        for first in range(0, len(block), size):
            if session.results.folder:
                signals.check()  # a folder takes no partial recording: --resume transcribes it again
            if signals.came():
                return
            yield block[first : first + size]


def _live_blocks(session: Session, source: LiveInput) -> Iterator[np.ndarray]:
    """Yield the audio of stdin, and notify when the engine is behind it and when it has caught up."""
    console = session.console
    line_end = "\n" if sys.stdout.isatty() else ""  # the growing text has not ended its line
    fed = 0.0  # seconds of audio
    reported = 1.0  # seconds of delay above which the next message is due
    loading = source.delay(0)  # the delay that loading has caused: reported only if it is not made up for soon
    for samples in source:
        session.results.recordings[0].info = source.format.info
        yield samples
        fed += len(samples) / SAMPLE_RATE
        delay = source.delay(fed)
        allowed = reported + loading if fed < CATCH_UP_SECONDS else reported
        if delay > allowed:
            console.notify(f"{line_end}{delay:.1f} s behind real time (no audio is lost)")
            reported = 2 * delay
        elif delay < 0.5 and reported > 1:
            console.notify(f"{line_end}caught up with real time")
            reported = 1.0


def transcribe_stream(
    session: Session, engine: LocalEngine, run: RunInfo, index: int, blocks: Iterator[np.ndarray]
) -> None:
    """Transcribe one stream.  On a terminal its words appear as they are decoded, else the result at the end.

    A live stream that breaks off keeps its transcript, since its audio cannot be read again.
    """
    results = session.results
    printer = session.printer
    growing = sys.stdout.isatty() and printer.readable
    text = LiveText(session.console, printer.prefix(results.recordings[index]))
    failure: Exception | None = None
    began = time.perf_counter()
    stream = engine.stream()
    try:
        for samples in blocks:
            stream.feed(samples)
            if growing:
                text.update(stream.text)
        transcript = stream.finish()
    except (InputError, ModelError) as error:
        if not session.options.input.live or not stream.seconds:
            text.end_line()
            raise
        transcript = _transcript_so_far(stream, error)
        failure = error
    except BaseException:
        text.end_line()
        raise
    if growing:
        text.finish(to_text(transcript))
    fields = run.result_fields(transcript.duration, time.perf_counter() - began)
    results.add(index, transcript, fields, shown=growing)
    if failure:
        raise failure


def _transcript_so_far(stream: Any, error: Exception) -> Transcript:
    """Return what was decoded before ``error``; if the model failed, it cannot finish the stream."""
    return stream.transcript() if isinstance(error, ModelError) else stream.finish()


class LiveText:
    """Text of a stream that grows on the terminal.  Decoded words are final, so that it is never taken back."""

    def __init__(self, console: Console, prefix: str) -> None:
        self._console = console
        self._prefix = prefix
        self._shown = 0  # characters on the terminal, without the prefix
        self._taken = 0  # characters of the stream's text

    def update(self, text: str) -> None:
        """Show the words that are new in ``text``."""
        text = text.rstrip()
        new = re.sub(r"\s+", " ", text[self._taken :])
        self._taken = len(text)
        self._show(new if self._shown else new.lstrip())

    def finish(self, text: str) -> None:
        """Show the rest of the final text, and end the line."""
        self._show(text[self._shown :])
        self._console.result("" if self._shown else self._prefix)

    def end_line(self) -> None:
        """End the line, if there is one, so that a message starts on its own."""
        if self._shown:
            self._console.result("")

    def _show(self, text: str) -> None:
        if text:
            self._console.result(text if self._shown else self._prefix + text, end="")
            self._shown += len(text)
