"""The parts of ``precision.json``, as ``report.schema.json`` describes them."""

from __future__ import annotations

import math
from dataclasses import asdict

import numpy as np

from .metrics import Tally, verdict
from .stages import LockstepRun, stage_names
from .tokens import BINS

TRACE_POINTS = 400  # maximum number of points of an error over time
SWITCHES = {"allow_hf32": "HF32 or TF32 allowed", "npu_fused": "fused operators"}
"""Words for what a candidate may be asked for."""


def describe(candidate: dict) -> str:
    """Return a name of the candidate: ``npu:0 (native, float32, HF32 or TF32 allowed)``."""
    switches = [words for switch, words in SWITCHES.items() if candidate.get(switch)]
    return f"{candidate['device']} ({', '.join([candidate['engine'], candidate['dtype'], *switches])})"


def factor(value: float) -> str:
    """Return a factor of 1 or more in words: a factor of 1.4 is not "1"."""
    return f"{value:.1f}" if value < 10 else f"{value:,.0f}"


def run_as_dict(total: LockstepRun, shown: LockstepRun, audio: str) -> dict:
    """Return all recordings of one way; ``shown`` is the same way of the recording ``audio``, for the figures."""
    repeated = None
    if not total.live:
        repeated = {"candidate": asdict(total.candidate_repeat), "reference": asdict(total.reference_repeat)}
    return {
        "chunk_ms": total.chunk_ms,
        "live": total.live,
        "frames": total.frames,
        "verdict": verdict(passed=not total.failures()),
        "stages": stages_as_dict(total),
        "decisions": total.decisions.as_dict(),
        "margin_histogram": {
            "edges": BINS.tolist(),
            "margins": total.decisions.margins.tolist(),
            "errors": total.decisions.errors.tolist(),
        },
        "repeated": repeated,
        "error_over_time": {
            "audio": audio,
            **error_over_time(shown.accumulated["encoder output"], total.frame_seconds),
        },
    }


def recording_run_as_dict(run: LockstepRun) -> dict:
    """Return one recording of one way."""
    return {
        "frames": run.frames,
        "encoder_output": run.accumulated["encoder output"].as_dict(),
        "drift": drift(run.accumulated["encoder output"]),
        "decisions": run.decisions.as_dict(),
    }


def stages_as_dict(run: LockstepRun) -> list[dict]:
    """Return every measured stage, in the order in which audio passes them."""
    rows = []
    for stage in stage_names(run.layers):
        accumulated, alone = run.accumulated.get(stage), run.alone.get(stage)
        if accumulated is not None:
            exceeds = accumulated.exceeds or (alone is not None and alone.exceeds)
            rows.append(
                {
                    "stage": stage,
                    "verdict": verdict(passed=not exceeds),
                    "accumulated": accumulated.as_dict(),
                    "alone": alone and alone.as_dict(),
                }
            )
    return rows


def error_over_time(tally: Tally, frame_seconds: float) -> dict:
    """Return the error of each encoder frame; beyond ``TRACE_POINTS`` the largest of neighbors."""
    rows = _trace(tally)
    size = max(1, math.ceil(len(rows) / TRACE_POINTS))
    starts = range(0, len(rows), size)
    return {
        "seconds": [round(first * frame_seconds, 3) for first in starts],
        "percent": [float(rows[first : first + size].max()) for first in starts],
    }


def drift(tally: Tally) -> dict | None:
    """Return the mean error of the first and of the last tenth of a recording; None below ten frames."""
    rows = _trace(tally)
    tenth = len(rows) // 10
    if not tenth:
        return None
    return {"first_tenth_percent": float(rows[:tenth].mean()), "last_tenth_percent": float(rows[-tenth:].mean())}


def _trace(tally: Tally) -> np.ndarray:
    return np.concatenate(tally.trace) if tally.trace else np.zeros(0, np.float32)
