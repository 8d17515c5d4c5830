"""--precision_compare, --benchmark and --chunk_ms all: transcribe, and measure model and device.

Importing this module imports torch and the packages of the measurements.
"""

from __future__ import annotations

from contextlib import nullcontext
from pathlib import Path

import numpy as np
import torch

from ..audio import read_audio
from ..benchmark.plot import plot_steps
from ..benchmark.run import BenchmarkOptions, benchmark
from ..benchmark.table import benchmark_table
from ..checkpoint.published import is_published
from ..dtypes import left_out, offered_dtypes
from ..engine import LocalEngine
from ..evaluation.report import chunk_table
from ..evaluation.wer import Evaluation, evaluate
from ..formats import dump
from ..host import signals
from ..precision.tolerances import Tolerances
from ..sources import Recording
from .bundled import DEMO_CLIP
from .exit_codes import OK, SOME_FAILED
from .precision_check import PrecisionCheck, load_reference
from .progress import show_progress
from .reports import report_word_errors, write_figures
from .run_info import RunInfo
from .session import Session
from .transcribe import ModelCheck, choose_run_device, load_engine, transcribe_files


def measure(session: Session, tolerances: Tolerances) -> int:
    """Transcribe the session's recordings with the measurements of its options; return the exit code."""
    device = choose_run_device(session)
    options = session.options.measure
    if options.all_chunks:
        engine, _ = load_engine(session, device)
        compare_chunks(session, engine)
        return OK
    passed, run = _transcribe(session, device, tolerances)
    report_word_errors(session, run.as_dict())
    if options.benchmark and session.results.done:
        run_benchmark(session, device, run)  # after the engines of _transcribe have been freed
    return OK if passed else SOME_FAILED


def _transcribe(session: Session, device: torch.device, tolerances: Tolerances) -> tuple[bool, RunInfo]:
    """Transcribe the recordings; with --precision_compare, return whether the comparison passed."""
    if not session.options.measure.precision_compare:
        engine, run = load_engine(session, device)
        transcribe_files(session, engine, run, ModelCheck(session, engine))
        return True, run
    reference = load_reference(session)
    engine, run = load_engine(session, device)
    check = PrecisionCheck(session, engine, reference, tolerances)
    try:
        transcribe_files(session, engine, run, check)
    finally:
        passed = check.finish(run)
    return passed, run


# ---------------------------------------------------------------- --chunk_ms all


def compare_chunks(session: Session, engine: LocalEngine) -> None:
    """Transcribe at each chunk length that the model offers, and print a table of the word errors.

    An interruption prints the rows that are complete.
    """
    results = session.results
    printer = session.printer
    indices = [index for index in results.todo if results.recordings[index].reference is not None]
    if len(indices) < len(results.todo):
        count = len(results.todo) - len(indices)
        session.console.notify(f"skipped, without a reference text: {count} of {len(results.todo)}")
    published = is_published(session.checkpoint)
    rows: list[tuple[int, Evaluation, float]] = []
    try:
        for chunk_ms in sorted(engine.config.contexts):
            session.console.notify(f"transcribing at {chunk_ms} ms ...")
            scored, seconds = _score(session, engine.at_chunk(chunk_ms), indices)
            indices = [index for index in indices if index not in results.broken]  # a failure is reported once
            if not scored:
                return
            evaluation = evaluate(scored, session.settings.wer_normalizer)
            rows.append((chunk_ms, evaluation, seconds))
            if not printer.readable:
                session.console.result(_chunk_line(chunk_ms, evaluation, seconds))
    finally:
        if rows:
            printer.table(chunk_table(rows, published=published))


def _score(
    session: Session, engine: LocalEngine, indices: list[int]
) -> tuple[list[tuple[str, str, str, float]], float]:
    """Transcribe recordings; return (name, reference, text, duration) of each for ``evaluate``, and the seconds."""
    results = session.results
    recordings = [results.recordings[index] for index in indices]
    scored = []
    slots = session.options.device.batch_size or engine.batch_slots
    holding = signals.held() if engine.engine == "native" else nullcontext()  # NeMo's batches take too long
    with show_progress(session.console, recordings) as progress, holding:
        for position, transcript in engine.results(progress.counted(), slots, signals.check):
            progress.finished()
            if isinstance(transcript, Exception):
                results.fail(indices[position], transcript)
            else:
                recording = recordings[position]
                reference = recording.reference or ""
                scored.append((recording.name, reference, transcript.text, transcript.duration))
    return scored, progress.seconds


def _chunk_line(chunk_ms: int, evaluation: Evaluation, seconds: float) -> str:
    """Return the figures of a chunk length as a JSON line."""
    overall = evaluation.overall
    figures = {"files": len(evaluation.files), "duration": overall.duration, "normalizer": evaluation.normalizer}
    return dump({"chunk_ms": chunk_ms, "seconds": seconds, **figures, **overall.as_dict()})


# ---------------------------------------------------------------- --benchmark


def run_benchmark(session: Session, device: torch.device, run: RunInfo) -> None:
    """Measure engines and dtypes, print the table, and write figures and a plot with --report."""
    options = session.options
    name = " ".join([session.checkpoint.name, *options.model.switches])
    candidates = _candidates(session, device)
    request = BenchmarkOptions(tuple(candidates), options.model, options.device.batch_size)
    result = benchmark(session.checkpoint, device, _speech(session), request, session.console.notify)
    if "native" in options.measure.engines and not options.measure.dtype:
        result.left_out = left_out(device)
    session.printer.table(benchmark_table(result, name))
    if options.measure.report:
        folder = Path(options.measure.report)
        figures = {**run.as_dict(), "benchmark": result.as_dict()}
        write_figures(folder / "benchmark.json", figures, session.checkpoint)
        if result.candidates[0].steps:  # a checkpoint for whole recordings has no steps
            plot_steps(result, name, folder / "benchmark.png")


def _candidates(session: Session, device: torch.device) -> list[tuple[str, str]]:
    """Return (engine, dtype) of all that are measured."""
    chosen = session.options.measure.dtype or session.settings.dtype
    is_only = session.options.measure.dtype or chosen != "float32"  # then it is the checkpoint's
    candidates = []
    for engine in session.options.measure.engines:
        if engine == "nemo":
            candidates.append((engine, "float32"))
            continue
        dtypes = (chosen,) if is_only else offered_dtypes(device)
        candidates += [(engine, dtype) for dtype in dtypes]
    return candidates


def _speech(session: Session) -> np.ndarray:
    """Return the audio to measure with: the recordings that this run has transcribed, or the bundled clip."""
    results = session.results
    recordings = [Recording(str(DEMO_CLIP), "clip")]
    if session.options.input.audio:
        recordings = [results.recordings[index] for index in results.todo if index in results.done]
    return np.concatenate([read_audio(recording) for recording in recordings])
