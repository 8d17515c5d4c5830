"""Speed and memory of whole recordings, one at a time and in a batch."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import numpy as np

from ..audio import SAMPLE_RATE
from ..device import allocated_memory, peak_memory, reset_peak_memory, synchronize
from . import effort
from .results import Candidate
from .timing import measure_ms

NEMO_DECODE = "rnnt_decoder_predictions_tensor"


def measure_recordings(
    candidate: Candidate,
    engine: Any,
    waveform: np.ndarray,
    batch_slots: int | None,
    notify: Callable[[str], None],
) -> None:
    """Transcribe recordings of each length and a batch; ``waveform`` is repeated to make them.

    ``batch_slots`` None takes the engine's own.  The first recording is transcribed once before, uncounted.
    ``notify`` gets a line for each that is left out because it would take too long.
    """

    def is_short(seconds: int, what: str) -> bool:
        expected = seconds / min(candidate.rtfx.values(), default=np.inf)
        if expected <= effort.MAX_RECORDING_SECONDS:
            return True
        notify(f"{candidate.name}: {what} is left out: it would take {expected:.0f} s")
        return False

    reset_peak_memory(engine.device)
    before = allocated_memory(engine.device)
    with _decoding_clock(engine) as clock:
        for seconds in effort.OFFLINE_SECONDS:
            if candidate.engine == "nemo" and seconds > effort.MAX_NEMO_SECONDS:
                continue
            if not is_short(seconds, f"a recording of {seconds} s"):
                break
            recording = np.resize(waveform, seconds * SAMPLE_RATE)
            if not candidate.rtfx:
                engine.transcribe([recording])
            clock.ms = 0.0
            total = measure_ms(partial(engine.transcribe, [recording]), engine.device)
            candidate.rtfx[seconds] = seconds * 1000 / total
            candidate.search_share[seconds] = clock.ms / total
    if is_short(effort.BATCH * effort.BATCH_SECONDS, "the batch"):
        candidate.batch_rtfx = _batch_rtfx(engine, waveform, batch_slots)
    candidate.device_peak_bytes = peak_memory(engine.device).get("device", 0) - before


def _batch_rtfx(engine: Any, waveform: np.ndarray, batch_slots: int | None) -> float:
    recording = np.resize(waveform, effort.BATCH_SECONDS * SAMPLE_RATE)
    batch = [np.roll(recording, 1000 * index) for index in range(effort.BATCH)]
    own_slots = engine.batch_slots if engine.engine == "native" else effort.BATCH
    slots = batch_slots or own_slots
    total = measure_ms(lambda: list(engine.results(batch, slots)), engine.device)
    return effort.BATCH * effort.BATCH_SECONDS * 1000 / total


class _Clock:
    ms = 0.0


@contextmanager
def _decoding_clock(engine: Any) -> Iterator[_Clock]:
    """Add up the milliseconds that ``engine`` spends on decoding within the block."""
    if engine.engine == "native":
        decoder, name = engine.decoder, "step"
    else:
        decoder, name = engine.model.decoding, NEMO_DECODE
    decode = getattr(decoder, name)
    clock = _Clock()

    def timed(*args: Any, **kwargs: Any) -> Any:
        synchronize(engine.device)
        began = time.perf_counter()
        result = decode(*args, **kwargs)
        clock.ms += (time.perf_counter() - began) * 1000
        return result

    setattr(decoder, name, timed)
    try:
        yield clock
    finally:
        delattr(decoder, name)
