"""Measure engines and dtypes in turn."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ..checkpoint.config_reader import read_config
from ..device import allocated_memory
from ..dtypes import instructions
from ..engine import ModelOptions
from ..errors import SetupError
from ..host.resources import thread_seconds
from ..recognizer import load_recognizer
from .machine import machine_rates
from .recordings import measure_recordings
from .results import Benchmark, Candidate
from .startup import measure_start
from .steps import measure_forward, measure_steps


@dataclass(frozen=True)
class BenchmarkOptions:
    """What to measure."""

    candidates: tuple[tuple[str, str], ...]
    """(engine, dtype) of each candidate."""
    model: ModelOptions = ModelOptions()
    """How candidates are loaded; engine and dtype are theirs.  ``chunk_ms`` is the only chunk length to measure; None
    measures all.  The rest applies to the native engine."""
    batch_slots: int | None = None
    """Slots of the batch; None takes the number that suits the engine and the device."""

    def of(self, candidate: Candidate) -> ModelOptions:
        """Return the options with which ``candidate`` is loaded."""
        if candidate.engine == "native":
            return replace(self.model, engine="native", dtype=candidate.dtype)
        model = self.model
        kept = ModelOptions(chunk_ms=model.chunk_ms, language=model.language, allow_hf32=model.allow_hf32)
        return replace(kept, engine=candidate.engine, dtype=candidate.dtype)


def benchmark(
    path: Path,
    device: torch.device,
    waveform: np.ndarray,
    options: BenchmarkOptions,
    notify: Callable[[str], None] = lambda line: None,
) -> Benchmark:
    """Measure the candidates of ``options``; ``waveform`` is the speech that streams and recordings repeat.

    Raises SetupError when a candidate cannot be measured.
    """
    candidates = [Candidate(engine, dtype) for engine, dtype in options.candidates]
    chunks = _chunks(path, options)
    ran, waited = thread_seconds()
    notify("measuring the machine ...")
    rates = machine_rates(device, {candidate.dtype for candidate in candidates})
    for candidate in candidates:
        notify(f"{candidate.name}: from the shell to the first words ...")
        arguments = command_options(path, device, options.of(candidate))
        candidate.start = measure_start(candidate.name, waveform, arguments)
    engines = []
    weights = []
    for candidate in candidates:
        notify(f"{candidate.name}: loading ...")
        before = allocated_memory(device)
        engines.append(_load(path, device, replace(options.of(candidate), chunk_ms=chunks[0])))
        weights.append(allocated_memory(device) - before)
    notify("forward pass of 1 s ...")
    measure_forward(candidates, engines)
    for candidate, engine, held in zip(candidates, engines, weights, strict=True):
        notify(f"{candidate.name}: recordings ...")
        measure_recordings(candidate, engine, waveform, options.batch_slots, notify)
        candidate.device_peak_bytes = ((candidate.device_peak_bytes or 0) + held) or None
    if all(engine.encoder.streams for engine in engines if engine.engine == "native"):
        for chunk_ms in filter(None, chunks):
            notify(f"steps of {chunk_ms} ms ...")
            at_chunk = [engine.at_chunk(chunk_ms) for engine in engines]
            measure_steps(candidates, at_chunk, chunk_ms, waveform, rates)
    ran, waited = (now - before for now, before in zip(thread_seconds(), (ran, waited), strict=True))
    share = waited / (ran + waited) if waited else 0.0
    return Benchmark(str(device), torch.get_num_threads(), chunks[0], rates, candidates, instructions(), share)


def _chunks(path: Path, options: BenchmarkOptions) -> list[int | None]:
    """Return the chunk lengths to measure, the longest first; None for a checkpoint that does not attend in chunks."""
    if options.model.chunk_ms:
        return [options.model.chunk_ms]
    offered = sorted(read_config(path).contexts, reverse=True)
    return [*offered] or [None]


def _load(path: Path, device: torch.device, options: ModelOptions) -> Any:
    engine = load_recognizer(path, device, options=options)
    if engine.engine != options.engine:
        hint = f"measure it with --engine {engine.engine}"
        raise SetupError(f"{path}", f"the {options.engine} engine does not support it", hint)
    return engine


def command_options(path: Path, device: torch.device, options: ModelOptions) -> list[object]:
    """Return the words of the command line that load a model in this way."""
    words: list[object] = ["--model_path", path, "--device", device, "--engine", options.engine]
    words += ["--dtype", options.dtype, "--threads", torch.get_num_threads()]
    if options.chunk_ms:
        words += ["--chunk_ms", options.chunk_ms]
    if options.decoder_device:
        words += ["--decoder_device", options.decoder_device]
    if options.language:
        words += ["--language", options.language]
    return words + options.switches
