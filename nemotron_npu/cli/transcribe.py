"""Transcribe the recordings of a run on a device of this process.  Importing this module imports torch."""

from __future__ import annotations

import time
from contextlib import nullcontext
from dataclasses import replace
from typing import Any

import torch

from ..audio import read_audio
from ..cluster.jobs import results_by_job
from ..device import check_switches, choose_device, device_name, device_settings, traits_of
from ..dtypes import check_dtype
from ..engine import LocalEngine
from ..host import signals
from ..live_input import LiveInput
from ..recognizer import load_recognizer
from ..sources import Recording
from ..transcript import Transcript
from .exit_codes import OK
from .files import Observer, take_results
from .reports import report_word_errors
from .run_info import RunInfo
from .session import Session
from .streams import transcribe_streams


def transcribe(session: Session, live: dict[int, LiveInput]) -> int:
    """Load the model, and transcribe the session's recordings; return the exit code.

    Those of pipes are ``live``, by index.
    Recordings that fail are counted in the session, and do not change this code.
    """
    device = choose_run_device(session)
    engine, run = load_engine(session, device)
    if live or session.options.input.stream:
        engine.stream()  # raises for a checkpoint that cannot stream, before any audio is read
        transcribe_streams(session, engine, run, live)
    else:
        transcribe_files(session, engine, run, ModelCheck(session, engine))
    report_word_errors(session, run.as_dict())
    return OK


def choose_run_device(session: Session) -> torch.device:
    """Return the device of the run, and set the number of CPU threads.  Raises SetupError if it is not usable."""
    options = session.options
    with signals.held():  # an exception during its import would crash torch_npu
        device, reason = choose_device(options.device.device)
        is_cpu_worker = options.cluster.num_workers and traits_of(device).is_host  # such a worker is one thread
        if options.device.threads or is_cpu_worker:
            torch.set_num_threads(options.device.threads or 1)
    signals.check()
    saved = "" if options.model.dtype else session.checkpoint.name
    check_dtype(session.settings.dtype, device, saved)
    check_switches(device.type, options.model)
    note = f"; {reason}" if reason else ""
    session.console.notify(f"device: {device}{note}")
    return device


def load_engine(session: Session, device: torch.device) -> tuple[LocalEngine, RunInfo]:
    """Load the model of the session with its decoding options."""
    options = session.options
    console = session.console
    console.notify(f"loading {session.checkpoint.name} ...")
    began = time.perf_counter()
    model_options = replace(options.model, chunk_ms=session.settings.chunk_ms, language=session.settings.language)
    engine = load_recognizer(session.checkpoint, device, options=model_options, announce=console.notify)
    if options.search.confidence:
        engine.measure_confidence(options.search.confidence)
    if session.phrases:
        session.report_unknown(engine.boost(session.phrases, options.search.boost_alpha))
    signals.check()
    load_seconds = time.perf_counter() - began
    run = RunInfo(
        session.settings,
        engine.parameters,
        engine.engine,
        str(device),
        device_name(device),
        device_settings(device),
        load_seconds,
    )
    return engine, run


def transcribe_files(session: Session, engine: LocalEngine, run: RunInfo, observer: Observer) -> None:
    """Transcribe all recordings of the session that are still to be done."""
    options = session.options
    slots = options.device.batch_size or engine.batch_slots
    # A block of the native engine is short enough to wait for after a signal; NeMo's batches and comparisons are not.
    may_hold = engine.engine == "native" and not options.measure.precision_compare
    holding = signals.held() if may_hold else nullcontext()
    with session.progress() as progress, holding:
        if options.cluster.given:
            transcripts = results_by_job(engine, progress.counted(), slots, signals.check)
        else:
            transcripts = engine.results(progress.counted(), slots, signals.check)
        take_results(session, run, transcripts, progress, observer)


class ModelCheck(Observer):
    """Adds the shapes of features and encoder output, where a model is checked on the sine."""

    def __init__(self, session: Session, engine: LocalEngine) -> None:
        self.engine = engine
        output = session.options.output
        has_place = session.options.checks_model or output.formats != ("txt",)
        self.adds_shapes = has_place and not session.options.input.audio

    def fields(self, recording: Recording, transcript: Transcript) -> dict[str, Any]:
        """Return the two shapes."""
        if not self.adds_shapes:
            return {}
        features, lengths = self.engine.preprocess([read_audio(recording)])
        encoded, _ = self.engine.encode(features, lengths)
        return {"preprocessed_shape": list(features.shape), "encoder_output_shape": list(encoded.shape)}
