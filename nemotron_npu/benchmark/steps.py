"""Forward passes, and steps of live streams."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import torch

from ..audio import sine
from ..recognizer import Recognizer
from . import effort
from .machine import step_work
from .results import Candidate, Rates
from .timing import count_operators, measure_in_turn


def measure_forward(candidates: list[Candidate], engines: list[Any]) -> None:
    """Time preprocessor and encoder over the reference guide's sine, and count their operators."""
    device = engines[0].device
    calls = [_forward(engine) for engine in engines]
    measure_in_turn(calls, device, effort.WARM_UP_RUNS)
    times = measure_in_turn(calls, device, effort.FORWARD_RUNS)
    for candidate, call, own in zip(candidates, calls, times, strict=True):
        candidate.forward = own
        candidate.forward_operators = count_operators(call)


def _forward(engine: Any) -> Callable[[], object]:
    return lambda: engine.encode(*engine.preprocess([sine()]))


def measure_steps(
    candidates: list[Candidate], engines: list[Any], chunk_ms: int, waveform: np.ndarray, rates: Rates
) -> None:
    """Time encoder steps of all engines and live steps of the native ones, whose chunk is ``chunk_ms``."""
    device = engines[0].device
    calls = [STEPS[engine.engine](engine) for engine in engines]
    times = measure_in_turn(calls, device, effort.ROUNDS, effort.ROUND_SECONDS)
    for candidate, call, own in zip(candidates, calls, times, strict=True):
        candidate.steps[chunk_ms] = own
        candidate.step_operators[chunk_ms] = count_operators(call)
    native = [pair for pair in zip(candidates, engines, strict=True) if pair[0].engine == "native"]
    for candidate, engine in native:
        _set_bounds(candidate, engine, chunk_ms, rates)
    calls = [live_step(engine, waveform) for _, engine in native]
    times = measure_in_turn(calls, device, effort.ROUNDS, effort.ROUND_SECONDS)
    for (candidate, _), own in zip(native, times, strict=True):
        candidate.live[chunk_ms] = own


def _set_bounds(candidate: Candidate, engine: Recognizer, chunk_ms: int, rates: Rates) -> None:
    """Set the least time of a step, and of the blocks of a long recording at the first chunk size that is measured."""
    work = step_work(engine.encoder, engine.encoder.chunk)
    candidate.step_work[chunk_ms] = work
    candidate.step_bound_ms[chunk_ms] = work.bound(rates, candidate.dtype)
    if candidate.rtfx_bound is None:
        block = engine.block_frames(1)
        bound = step_work(engine.encoder, block).bound(rates, candidate.dtype)
        candidate.rtfx_bound = 1000 * block * engine.frame_seconds / bound


def steady_step(recognizer: Recognizer) -> Callable[[], torch.Tensor]:
    """Return a call that encodes the next chunk of a native live stream whose left context is full."""
    encoder = recognizer.encoder
    state = encoder.new_state(1, encoder.chunk)
    features = torch.randn(1, encoder.chunk * encoder.factor, encoder.mels).to(recognizer.device)
    while state.position[0] < encoder.keep + 2 * encoder.chunk:  # two more chunks: by then a graph has been captured
        encoder.step(features, state, [None])
    return lambda: encoder.step(features, state, [None])


def nemo_step(engine: Any) -> Callable[[], object]:
    """Return the same call for NeMo's ``cache_aware_stream_step``."""
    encoder = engine.model.encoder
    settings = encoder.streaming_cfg
    frames = settings.chunk_size[1] + settings.pre_encode_cache_size[1]
    caches = encoder.get_initial_cache_state(batch_size=1)
    features = torch.randn(1, engine.model.cfg.encoder.feat_in, frames).to(engine.device)
    length = torch.tensor([frames]).to(engine.device)

    @torch.inference_mode()
    def step() -> None:
        nonlocal caches
        caches = encoder.cache_aware_stream_step(
            processed_signal=features,
            processed_signal_length=length,
            cache_last_channel=caches[0],
            cache_last_time=caches[1],
            cache_last_channel_len=caches[2],
            keep_all_outputs=False,
            drop_extra_pre_encoded=settings.drop_extra_pre_encoded,
        )[2:]

    for _ in range(math.ceil(settings.last_channel_cache_size / settings.valid_out_len)):
        step()
    return step


STEPS: dict[str, Callable[[Any], Callable[[], object]]] = {"native": steady_step, "nemo": nemo_step}


def live_step(recognizer: Recognizer, waveform: np.ndarray) -> Callable[[], None]:
    """Return a call that feeds the next chunk of ``waveform`` to a live stream whose left context is full."""
    stream = recognizer.stream()
    size = recognizer.chunk_samples
    position = 0

    def feed() -> None:
        nonlocal position
        stream.feed(np.take(waveform, range(position, position + size), mode="wrap"))
        position += size

    while stream.seconds < effort.LIVE_WARM_UP_SECONDS:
        feed()
    return feed
