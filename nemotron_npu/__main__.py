# PYTHON_ARGCOMPLETE_OK
"""``python -m nemotron_npu`` and the command ``nemotron-npu``."""

from __future__ import annotations

from .host import program, signals


def main() -> None:
    """Run the program and end the process with its exit code."""
    signals.end_on_sigint()
    from .cli import app  # after end_on_sigint(): Ctrl-C during this import prints no traceback

    signals.leave(app.main(None, program.COMMAND))


if __name__ == "__main__":
    main()
