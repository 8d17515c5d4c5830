"""``--benchmark``: the write-up's timing of preprocessor + encoder on its sine, operators, whole transcriptions."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch.utils._python_dispatch import TorchDispatchMode

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


@dataclass(frozen=True)
class Operators:
    """Dispatched operators that are not views: what decides the speed of a device that the host has to feed."""

    forward: int
    """Of preprocessor + encoder over 1 s of sound."""
    step: int | None
    """Of one encoder step of a live stream whose left context is full; None without streams."""


class _Count(TorchDispatchMode):
    """Count what reaches the kernels: composite operators by their parts, views not at all."""

    def __init__(self):
        super().__init__()
        self.operators = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        with self:
            result = function.decompose(*args, **kwargs)
        if result is not NotImplemented:
            return result
        self.operators += not (function.is_view or function is torch.ops.aten._unsafe_view.default)
        return function(*args, **kwargs)


def steady_step(recognizer: Recognizer) -> Callable[[], torch.Tensor]:
    """A call that encodes the next chunk of a native live stream whose left context is full."""
    encoder = recognizer.encoder
    state = encoder.new_state(1, encoder.chunk)
    features = torch.randn(1, encoder.chunk * encoder.factor, encoder.mels).to(recognizer.device)
    while state.position[0] < encoder.keep:
        encoder.step(features, state, [None])
    return lambda: encoder.step(features, state, [None])


def count_operators(recognizer: Recognizer) -> Operators:
    """Count the operators of the forward pass of the sine, and of a steady step in the native engine."""
    with _Count() as forward:
        recognizer.encode(*recognizer.preprocess([sine()]))
    encoder = getattr(recognizer, "encoder", None)
    if encoder is None or not encoder.streams:
        return Operators(forward.operators, None)
    encode_chunk = steady_step(recognizer)
    with _Count() as step:
        encode_chunk()
    return Operators(forward.operators, step.operators)


def benchmark_transcribe(recognizer: Recognizer, waveforms: list[np.ndarray], batch_size: int) -> Throughput:
    """Time the transcription of all ``waveforms``, ``batch_size`` at a time, after a warm-up on the first."""
    recognizer.transcribe(waveforms[:1])
    reset_peak_memory(recognizer.device)
    synchronize(recognizer.device)
    began = time.perf_counter()
    for _, result in recognizer.results(waveforms, batch_size):
        if isinstance(result, Exception):
            raise result
    synchronize(recognizer.device)
    seconds = time.perf_counter() - began
    audio_seconds = sum(len(w) for w in waveforms) / SAMPLE_RATE
    return Throughput(seconds, audio_seconds, audio_seconds / seconds, peak_memory(recognizer.device))


def to_table(forward: Forward, operators: Operators, throughput: Throughput, device: str) -> str:
    """All of them for a terminal."""
    peaks = ", ".join(f"{where} {bytes_ / 2**20:,.0f} MiB" for where, bytes_ in throughput.peak_bytes.items())
    rows = [
        ("Forward of 1 s, mean", f"{forward.mean_ms:.2f} ms (preprocessor + encoder, {RUNS} runs)"),
        ("Forward of 1 s, median", f"{forward.median_ms:.2f} ms"),
        ("Forward of 1 s, p95", f"{forward.p95_ms:.2f} ms"),
        ("Operators, forward of 1 s", f"{operators.forward:,}"),
        ("Operators, live step", f"{operators.step:,}" if operators.step else "-"),
        ("Transcription", f"{throughput.seconds:.3f} s for {throughput.audio_seconds:.2f} s of sound"),
        ("RTFx", f"{throughput.rtfx:.2f}"),
        ("Peak memory", peaks),
    ]
    return writers.to_table(f"Benchmark on {device}", rows)
