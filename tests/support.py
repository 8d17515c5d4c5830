"""What tests import by name: where things are, and the command line in a process of its own."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
CLIP = ROOT / "demo" / "digits.wav"
GUARD = ROOT / "tests" / "guard"
CLIP_WORDS = "three one four one five nine two six"

PARITY = pytest.StashKey[dict]()
"""Largest difference from NeMo by kind, kept for the end of the report."""


def run_process(*args, **kwargs) -> subprocess.CompletedProcess:
    """Run a script with this Python in a process of its own."""
    command = [sys.executable, *map(str, args)]
    timeout = float(os.environ.get("TEST_TIMEOUT", 300))  # an emulated CPU takes longer: see other_cpus.py
    return subprocess.run(command, capture_output=True, text=True, timeout=timeout, **kwargs)


def take_certainties(value) -> list[float]:
    """Remove the probabilities and confidences from a document, and return them."""
    taken = []
    if isinstance(value, dict):
        taken = [value.pop(name) for name in ("probability", "confidence") if value.get(name) is not None]
        value = list(value.values())
    return taken + [x for item in value if isinstance(item, (dict, list)) for x in take_certainties(item)]
