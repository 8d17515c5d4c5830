"""What a person reads while it runs."""

from __future__ import annotations

import sys
from contextlib import nullcontext, suppress

from ..errors import SetupError, printable
from ..host import program


class Console:
    """What a person reads while it runs, on stderr.  Results are printed to stdout.

    A stderr that takes no more, a full disk or a closed pipe, costs no result.
    """

    def __init__(self, quiet: bool, debug: bool):
        self.quiet, self.debug = quiet, debug
        self.aside = nullcontext
        """Makes way for what is written meanwhile: a progress bar's."""

    def say(self, message: str) -> None:
        if not self.quiet:
            with self.aside(), suppress(OSError):
                print(message, file=sys.stderr, flush=True)

    def error(self, message: str, cause: Exception | None = None) -> None:
        """One line; with --debug the traceback of ``cause`` before it."""
        with self.aside(), suppress(OSError):
            if self.debug and cause:
                import traceback

                traceback.print_exception(cause)
            line = printable(" ".join(message.splitlines()))
            print(f"{program.name}: {line}", file=sys.stderr, flush=True)

    def result(self, text: str, end: str = "\n") -> None:
        """Raises SetupError when stdout does not take it, BrokenPipeError when its reader has seen enough."""
        with self.aside():
            try:
                print(text, end=end, flush=True)
            except BrokenPipeError:
                raise
            except OSError as error:
                raise SetupError(f"stdout: cannot be written: {error.strerror}") from error
