"""Live streams: audio from pipes, and files that are fed as if they were live."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from typing import Any

import numpy as np

from ..audio import SAMPLE_RATE
from ..engine import LocalEngine
from ..errors import InputError, ModelError, SetupError
from ..host import signals
from ..live_input import LiveInput, with_silence
from ..sources import CountedRecording
from ..transcript import Transcript
from .delay import CATCH_UP_SECONDS, DelayReport
from .live_views import LiveView, views_of
from .many_streams import LocalHost, ManyStreams
from .options import EACH
from .run_info import RunInfo
from .session import Session


def transcribe_streams(session: Session, engine: LocalEngine, run: RunInfo, live: dict[int, LiveInput]) -> None:
    """Transcribe the recordings of the session as live streams, all at once; those of pipes are ``live``, by index.

    A pipe alone raises InputError when it cannot be read or breaks off; the transcript until then is shown first.
    """
    if session.results.total > 1 or (live and session.options.input.channel == EACH):
        ManyStreams(session, run, [LocalHost(engine, session, len(live))], live).run()
    elif live:
        _transcribe_pipe(session, engine, run, live[0])
    else:
        _transcribe_file(session, engine, run)


def _transcribe_pipe(session: Session, engine: LocalEngine, run: RunInfo, source: LiveInput) -> None:
    """Transcribe a pipe until it ends or a signal comes, and notify when the engine falls behind real time."""
    with signals.held(source.stop):
        try:
            _transcribe(session, engine, run, _live_blocks(session, source), is_live=True)
        except InputError:
            if not signals.came():
                raise
        except ModelError as error:
            session.results.fail(0, error)


def _transcribe_file(session: Session, engine: LocalEngine, run: RunInfo) -> None:
    """Transcribe the one file of the session chunk by chunk, as fast as possible."""
    with session.progress(growing=sys.stdout.isatty()) as progress, signals.held():
        (recording,) = progress.counted()
        try:
            _transcribe(session, engine, run, _chunks(session, engine, recording), is_live=False)
        except (SetupError, BrokenPipeError):
            raise
        except Exception as error:
            session.results.fail(0, error)
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
    """Yield the audio of a pipe, and None where it stays silent; notify when the engine is behind and has caught up."""
    fed = 0.0  # seconds of audio
    report = DelayReport(session.console)
    loading = source.delay(0)  # the delay that loading has caused: reported only if it is not made up for soon
    for samples in with_silence(source, session.options.stream.endpoint_ms / 1000):
        yield samples
        if samples is None:
            continue
        session.results.recordings[0].info = source.info
        fed += len(samples) / SAMPLE_RATE
        report.report(source.delay(fed), loading if fed < CATCH_UP_SECONDS else 0.0)


def _transcribe(
    session: Session, engine: LocalEngine, run: RunInfo, blocks: Iterator[np.ndarray | None], *, is_live: bool
) -> None:
    """Transcribe the one stream of the session, and show and write its words as they are decoded.

    A live stream that breaks off keeps its transcript, since its audio cannot be read again.
    """
    results = session.results
    views = views_of(session, 0, grows=True)
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
    except (SetupError, BrokenPipeError):  # nothing can be written
        _end_lines(views)
        raise
    except Exception as error:
        failure = error
        if not is_live or not stream.seconds or not isinstance(error, (InputError, ModelError)):
            _fail(session, views, error)
            raise
        transcript = _transcript_so_far(stream, error)
    except BaseException:
        _end_lines(views)
        raise
    _update(stream, views)
    for view in views:
        view.finish()
    if failure:
        _fail(session, views, failure)
    fields = run.result_fields(transcript.duration, time.perf_counter() - began)
    results.add(0, transcript, fields, shown=session.printer.format == "txt")
    if failure:
        raise failure


def _update(stream: Any, views: list[LiveView]) -> None:
    events, unfinished = stream.events(), stream.unfinished
    for view in views:
        view.update(events, unfinished)


def _preview(stream: Any, views: list[LiveView]) -> None:
    words = stream.preview() if views else []
    for view in views:
        view.preview(words)


def _fail(session: Session, views: list[LiveView], error: Exception) -> None:
    """Report the error that ended the stream to the views, unless it was a signal."""
    for view in views:
        if signals.came():
            view.end_line()
        else:
            view.fail(session.results.problem(0, error))


def _end_lines(views: list[LiveView]) -> None:
    for view in views:
        view.end_line()


def _transcript_so_far(stream: Any, error: Exception) -> Transcript:
    """Return what was decoded before ``error``; if the model failed, it cannot finish the stream."""
    return stream.transcript() if isinstance(error, ModelError) else stream.finish()
