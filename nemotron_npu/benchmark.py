"""``--benchmark``: the write-up's timing of preprocessor + encoder on its sine, then whole transcriptions."""

from __future__ import annotations

import statistics
import time
from dataclasses import dataclass

import numpy as np

from . import writers
from .audio import SAMPLE_RATE, sine
from .device import peak_memory, reset_peak_memory, synchronize
from .recognizer import Recognizer

WARM_UP, RUNS = 3, 10


@dataclass(frozen=True)
class Forward:
    """Milliseconds of ``RUNS`` timed forward passes over 1 s of sound, after ``WARM_UP`` that are not counted."""

    mean_ms: float
    median_ms: float
    p95_ms: float
    runs_ms: list[float]


@dataclass(frozen=True)
class Throughput:
    """One transcription of everything: decoded audio in memory -> text."""

    seconds: float
    audio_seconds: float
    rtfx: float
    """Seconds of sound recognised in a second."""
    peak_bytes: dict[str, int]
    """``host``: resident memory of the process; ``device``: what torch held there (not on the CPU)."""


def benchmark_forward(recognizer: Recognizer) -> Forward:
    """Time preprocessor + encoder on the sine; the device is synchronised before each reading of the clock."""
    runs = []
    for _ in range(WARM_UP + RUNS):
        synchronize(recognizer.device)
        began = time.perf_counter()
        recognizer.encode(*recognizer.preprocess([sine()]))
        synchronize(recognizer.device)
        runs.append((time.perf_counter() - began) * 1000)
    runs = runs[WARM_UP:]
    return Forward(statistics.fmean(runs), statistics.median(runs), float(np.percentile(runs, 95)), runs)


def benchmark_transcribe(recognizer: Recognizer, waveforms: list[np.ndarray], batch_size: int) -> Throughput:
    """Time ``transcribe`` over all ``waveforms`` in batches of ``batch_size``, after a warm-up on the first."""
    recognizer.transcribe(waveforms[:1])
    reset_peak_memory(recognizer.device)
    synchronize(recognizer.device)
    began = time.perf_counter()
    for first in range(0, len(waveforms), batch_size):
        recognizer.transcribe(waveforms[first : first + batch_size])
    synchronize(recognizer.device)
    seconds = time.perf_counter() - began
    audio_seconds = sum(len(w) for w in waveforms) / SAMPLE_RATE
    return Throughput(seconds, audio_seconds, audio_seconds / seconds, peak_memory(recognizer.device))


def to_table(forward: Forward, throughput: Throughput, device: str) -> str:
    """Both for a terminal."""
    peaks = ", ".join(f"{where} {bytes_ / 2**20:,.0f} MiB" for where, bytes_ in throughput.peak_bytes.items())
    rows = [
        ("Forward of 1 s, mean", f"{forward.mean_ms:.2f} ms (preprocessor + encoder, {RUNS} runs)"),
        ("Forward of 1 s, median", f"{forward.median_ms:.2f} ms"),
        ("Forward of 1 s, p95", f"{forward.p95_ms:.2f} ms"),
        ("Transcription", f"{throughput.seconds:.3f} s for {throughput.audio_seconds:.2f} s of sound"),
        ("RTFx", f"{throughput.rtfx:.2f}"),
        ("Peak memory", peaks),
    ]
    return writers.to_table(f"Benchmark on {device}", rows)
