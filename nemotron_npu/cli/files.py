"""Add the transcripts of recordings, from any engine, to the run's ``Results``."""

from __future__ import annotations

import time
from collections.abc import Generator, Iterator
from contextlib import closing
from typing import Any, cast

from ..errors import InputError
from ..sources import Recording
from ..transcript import Transcript
from .progress import Progress
from .run_info import RunInfo
from .session import Session

EngineResults = Iterator[tuple[int, Transcript | Exception]]
"""(position in the progress's recordings, transcript or error) in the order of completion."""


class Observer:
    """Measures each recording in addition to its transcription.  This base class measures nothing."""

    def fields(self, recording: Recording, transcript: Transcript) -> dict[str, Any]:
        """Return further fields of the JSON document."""
        return {}

    def failed(self, recording: Recording, error: Exception) -> None:
        """Take note of a recording that gave no transcript."""

    def shows(self, recording: Recording) -> bool:
        """Return whether the transcript is to be printed."""
        return True

    def added(self, recording: Recording) -> None:
        """Print what follows a transcript."""


def take_results(
    session: Session, run: RunInfo, transcripts: EngineResults, progress: Progress, observer: Observer
) -> None:
    """Add all ``transcripts`` to the session's results: to a folder as they come, to stdout in the order of input."""
    results = session.results
    with closing(cast(Generator, transcripts)):  # ends the engine's threads when the run is interrupted
        ordered = transcripts if results.folder else in_order(transcripts)
        began = time.perf_counter()
        for position, transcript in ordered:
            progress.finished()
            index = results.todo[position]
            recording = results.recordings[index]
            if isinstance(transcript, Exception):
                results.fail(index, transcript)
                observer.failed(recording, transcript)
                continue
            fields = run.result_fields(transcript.duration, time.perf_counter() - began)
            fields |= observer.fields(recording, transcript)
            began = time.perf_counter()  # the time of measurements does not count for the next recording
            try:
                results.add(index, transcript, fields, shown=not observer.shows(recording))
            except InputError as error:
                results.fail(index, error)
            else:
                observer.added(recording)


def in_order(transcripts: EngineResults) -> Iterator[tuple[int, Transcript | Exception]]:
    """Yield results by position; a result that is complete before its turn waits, and an interruption loses none."""
    waiting: dict[int, Transcript | Exception] = {}
    position = 0
    try:
        for completed, transcript in transcripts:
            waiting[completed] = transcript
            while position in waiting:
                yield position, waiting.pop(position)
                position += 1
    except KeyboardInterrupt:
        yield from sorted(waiting.items())
        raise
