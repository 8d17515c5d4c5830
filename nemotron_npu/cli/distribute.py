"""Transcribe the recordings of a run with workers: processes on this host or on a Ray cluster."""

from __future__ import annotations

import time
from dataclasses import replace

from ..cluster.driver import Workers
from ..cluster.worker import Setup
from ..host import signals
from ..live_input import LiveInput
from .exit_codes import OK
from .files import Observer, take_results
from .many_streams import ManyStreams, pipe_streams
from .reports import report_word_errors
from .run_info import RunInfo
from .session import Session


def distribute(session: Session, live: dict[int, LiveInput]) -> int:
    """Start workers and let them transcribe the session's recordings; return the exit code.

    With --stream these are live streams, and those of pipes are ``live``, by index.
    Recordings that fail are counted in the session, and do not change this code.
    """
    options = session.options
    cluster = options.cluster
    began = time.perf_counter()
    with Workers(_setup(session), cluster.num_workers, cluster.ray_address, session.console.notify) as workers:
        session.report_unknown(workers.info.unknown_phrases)
        load_seconds = time.perf_counter() - began
        run = RunInfo(
            session.settings,
            workers.parameters,
            workers.engine,
            workers.device,
            workers.device_name,
            workers.info.device_settings,
            load_seconds,
        )
        if options.input.stream:
            files = len(session.results.todo) - len(live)
            pools = workers.pools(options.stream, pipe_streams(session, len(live)), files)
            ManyStreams(session, run, pools, live).run()
            report_word_errors(session, run.as_dict())
            return OK
        slots = options.device.batch_size or workers.batch_slots
        with session.progress() as progress:
            transcripts = workers.results(progress.counted(), slots, signals.check)
            take_results(session, run, transcripts, progress, Observer())
    report_word_errors(session, run.as_dict())
    return OK


def _setup(session: Session) -> Setup:
    """Return what each worker loads."""
    options = session.options
    return Setup(
        path=session.checkpoint.absolute(),
        device=options.device.device or "",
        threads=options.device.threads or 0,
        options=replace(options.model, chunk_ms=session.settings.chunk_ms, language=session.settings.language),
        confidence=options.search.confidence,
        phrases=tuple(session.phrases),
        boost_alpha=options.search.boost_alpha,
    )
