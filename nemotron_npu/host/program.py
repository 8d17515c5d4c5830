"""The name under which the program was started, for its messages, and the clone that it runs from."""

from __future__ import annotations

from pathlib import Path

PACKAGE = Path(__file__).resolve().parent.parent
CLONE = PACKAGE.parent if (PACKAGE.parent / "setup_env.sh").is_file() else None
"""The clone that this package runs from; None where pip has installed it."""

SCRIPT = "inference.py"
COMMAND = "nemotron-npu"

name = SCRIPT if CLONE else COMMAND
"""The first word of error lines; ``cli.app.main`` sets it."""


def command() -> str:
    """Return the command that starts the program in a shell."""
    return f"python {SCRIPT}" if name == SCRIPT else name
