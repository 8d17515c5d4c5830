"""Live streams: audio from stdin, and files that are fed as if they were live."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from functools import partial
from typing import Any

import numpy as np

from ..audio import SAMPLE_RATE
from ..engine import LocalEngine
from ..errors import InputError, ModelError, SetupError
from ..host import signals
from ..live_input import LiveInput, with_silence
from ..sources import CountedRecording
from ..transcript import Transcript
from .live_views import EventLines, GrowingText, LiveView, TextLines
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


def _live_blocks(session: Session, source: LiveInput) -> Iterator[np.ndarray | None]:
    """Yield the audio of stdin, and None where it stays silent; notify when the engine is behind and has caught up."""
    console = session.console
    fed = 0.0  # seconds of audio
    reported = 1.0  # seconds of delay above which the next message is due
    loading = source.delay(0)  # the delay that loading has caused: reported only if it is not made up for soon
    for samples in with_silence(source, session.options.stream.endpoint_ms / 1000):
        yield samples
        if samples is None:
            continue
        session.results.recordings[0].info = source.format.info
        fed += len(samples) / SAMPLE_RATE
        delay = source.delay(fed)
        allowed = reported + loading if fed < CATCH_UP_SECONDS else reported
        if delay > allowed:
            console.notify(f"{delay:.1f} s behind real time (no audio is lost)")
            reported = 2 * delay
        elif delay < 0.5 and reported > 1:
            console.notify("caught up with real time")
            reported = 1.0


def transcribe_stream(
    session: Session, engine: LocalEngine, run: RunInfo, index: int, blocks: Iterator[np.ndarray | None]
) -> None:
    """Transcribe one stream, and show and write its words as they are decoded.

    A live stream that breaks off keeps its transcript, since its audio cannot be read again.
    """
    results = session.results
    views = _views(session, index)
    failure: Exception | None = None
    began = time.perf_counter()
    stream = engine.stream(session.options.stream)
    try:
        for samples in blocks:
            if samples is None:
                _preview(stream, views)
            else:
                stream.feed(samples)
                _update(stream, views)
        transcript = stream.finish()
    except (InputError, ModelError) as error:
        if not session.options.input.live or not stream.seconds:
            _end_lines(views)
            raise
        transcript = _transcript_so_far(stream, error)
        failure = error
    except BaseException:
        _end_lines(views)
        raise
    _update(stream, views)
    for view in views:
        view.finish()
    fields = run.result_fields(transcript.duration, time.perf_counter() - began)
    results.add(index, transcript, fields, shown=session.printer.format == "txt")
    if failure:
        raise failure


def _views(session: Session, index: int) -> list[LiveView]:
    """Return what shows and writes this stream as it goes."""
    recording = session.results.recordings[index]
    console, printer, folder = session.console, session.printer, session.results.folder
    views: list[LiveView] = []
    if printer.readable and sys.stdout.isatty():
        views.append(GrowingText(console, printer.prefix(recording)))
    elif not folder and printer.format == "txt":
        views.append(TextLines(console, printer.prefix(recording)))
    elif not folder and printer.format == "events":
        views.append(EventLines(partial(console.result, end=""), recording.path))
    if folder:
        folder.add_event(index, "", first=True)
        views.append(EventLines(partial(folder.add_event, index), recording.path))
    return views


def _update(stream: Any, views: list[LiveView]) -> None:
    events, unfinished = stream.events(), stream.unfinished
    for view in views:
        view.update(events, unfinished)


def _preview(stream: Any, views: list[LiveView]) -> None:
    words = stream.preview() if views else []
    for view in views:
        view.preview(words)


def _end_lines(views: list[LiveView]) -> None:
    for view in views:
        view.end_line()


def _transcript_so_far(stream: Any, error: Exception) -> Transcript:
    """Return what was decoded before ``error``; if the model failed, it cannot finish the stream."""
    return stream.transcript() if isinstance(error, ModelError) else stream.finish()
