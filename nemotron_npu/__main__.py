# PYTHON_ARGCOMPLETE_OK
"""``python -m nemotron_npu`` and the command ``nemotron-npu``."""

from __future__ import annotations

import signal


def main() -> None:
    """Run the program and end the process with its exit code."""
    if signal.getsignal(signal.SIGINT) != signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.SIG_DFL)  # ends the imports without a traceback
    from .cli.app import main
    from .host.signals import leave

    leave(main())


if __name__ == "__main__":
    main()
