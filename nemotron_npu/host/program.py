"""The name under which the program was started, for its messages; ``app.main`` sets it."""

from __future__ import annotations

from .packages import CLONE

SCRIPT, COMMAND = "inference.py", "nemotron-npu"

name = SCRIPT if CLONE else COMMAND
"""What its errors begin with."""


def command() -> str:
    """What starts it in a shell."""
    return f"python {SCRIPT}" if name == SCRIPT else name
