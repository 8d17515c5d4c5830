"""How often and how long the benchmark measures."""

from __future__ import annotations

WARM_UP_RUNS = 3
FORWARD_RUNS = 10
"""Both of the reference guide's forward pass."""

ROUNDS = 20
ROUND_SECONDS = 3.0
"""Steps: at least so many rounds, and more until the time is over."""

STARTS = 3
START_SECONDS = 15
"""Processes that are started, and the time after which no other one is."""

OFFLINE_SECONDS = (10, 60, 600)
"""Lengths of recordings."""
MAX_NEMO_SECONDS = 60
"""NeMo's longest recording: its attention takes memory with the square of the length."""

MAX_RECORDING_SECONDS = 90
"""A recording, or the batch, that would take longer by the speed of the one before is left out."""

LIVE_WARM_UP_SECONDS = 6.0
"""Audio after which the left context of a live stream is full."""

BATCH = 8
BATCH_SECONDS = 10
"""Recordings in the batch, and the length of each."""
