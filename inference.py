#!/usr/bin/env python3
# PYTHON_ARGCOMPLETE_OK
"""Transcribe speech with a cache-aware FastConformer-RNNT checkpoint (.nemo) on an Ascend NPU, a GPU or the CPU.

The program itself is ``nemotron_npu/cli/app.py``, which the command ``nemotron-npu`` runs too.
"""

from __future__ import annotations

import signal
import sys
from pathlib import Path

if __name__ == "__main__" and signal.getsignal(signal.SIGINT) != signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # until ``main`` answers it, it ends these imports without a traceback

HERE = str(Path(__file__).resolve().parent)
if HERE not in sys.path:  # python -P, python -I, PYTHONSAFEPATH
    sys.path.insert(0, HERE)


def main(argv: list[str] | None = None) -> int:
    """Run the program; return the exit code."""
    from nemotron_npu.cli import app
    from nemotron_npu.host import program

    return app.main(argv, program.SCRIPT)


if __name__ == "__main__":
    from nemotron_npu.host.signals import leave

    leave(main())
