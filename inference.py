#!/usr/bin/env python3
# PYTHON_ARGCOMPLETE_OK
"""Transcribe speech with a cache-aware FastConformer-RNNT checkpoint (.nemo) on an Ascend NPU, a GPU or the CPU.

This file is the entry point of a clone.  The program is ``nemotron_npu/cli/app.py``, which the command
``nemotron-npu`` runs too.
"""

from __future__ import annotations

import sys
from pathlib import Path

HERE = str(Path(__file__).resolve().parent)
if HERE not in sys.path:  # python -P, python -I and PYTHONSAFEPATH leave the script's folder out
    sys.path.insert(0, HERE)

from nemotron_npu.host import program, signals  # noqa: E402  after the path is set


def main(argv: list[str] | None = None) -> int:
    """Run the program with these arguments, else with those of the process; return the exit code."""
    from nemotron_npu.cli import app  # after end_on_sigint(): Ctrl-C during this import prints no traceback

    return app.main(argv, program.SCRIPT)


if __name__ == "__main__":
    signals.end_on_sigint()
    signals.leave(main())
