"""The terminal: messages on stderr, results on stdout."""

from __future__ import annotations

import sys
import traceback
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext, suppress

from ..errors import SetupError, one_line, printable, without_password
from ..host import program
from .columns import terminal_width, wrapped


class Console:
    """Write messages to stderr and results to stdout, with control characters escaped unless they are ``colored``.

    A stderr that cannot be written (full disk, closed pipe) loses no result.
    """

    def __init__(self, *, quiet: bool = False, debug: bool = False) -> None:
        self.quiet = quiet
        self.debug = debug
        self.without_bar: Callable[[], AbstractContextManager] = nullcontext
        """Hides the progress bar while something else is written."""
        self.is_growing = False
        """Whether the cursor is inside a line of text on the terminal."""
        self.waiting: list[tuple[str, bool]] = []
        """Messages, and whether they are colored, that wait for the end of that line."""

    def notify(self, message: str, *, colored: bool = False) -> None:
        """Write a message, unless --quiet is given."""
        if not self.quiet:
            self.note(message, colored=colored)

    def note(self, message: str, *, colored: bool = False) -> None:
        """Write a message, also with --quiet; on a terminal it waits until a line that grows has ended."""
        if self.is_growing and sys.stderr.isatty():
            self.waiting.append((message, colored))
            return
        with self.without_bar(), suppress(OSError):
            text = without_password(message)
            self._write(text if colored else printable(text, lines=True))

    def error(self, message: str, cause: Exception | None = None) -> None:
        """Write an error line; with --debug the traceback of ``cause`` before it."""
        self.close_line()
        with self.without_bar(), suppress(OSError):
            if self.debug and cause:
                self.note("".join(traceback.format_exception(cause)).rstrip())
            self._write(f"{program.name}: {one_line(message)}")

    def _write(self, text: str) -> None:
        """Write to stderr; on a terminal a long line breaks between words; lines of a table do not."""
        is_table = "\n" in text
        print(text if is_table else wrapped(text, terminal_width(sys.stderr)), file=sys.stderr, flush=True)

    def result(self, text: str, end: str = "\n", *, colored: bool = False) -> None:
        """Write a result.

        Raises SetupError when stdout cannot be written, BrokenPipeError when its reader has closed it.
        """
        with self.without_bar():
            try:
                print(text if colored else printable(text, lines=True), end=end, flush=True)
            except BrokenPipeError:
                raise
            except OSError as error:
                raise SetupError("stdout", f"cannot be written: {error.strerror}") from error

    def grow(self, text: str) -> None:
        """Write a part of a line to the terminal.  Raises as ``result`` does."""
        self.is_growing = True
        self.result(text, end="", colored=True)

    def close_line(self) -> None:
        """End the line that has grown, if there is one, and write the messages that have waited for it."""
        if not self.is_growing:
            return
        self.is_growing = False
        self.result("")
        waiting, self.waiting = self.waiting, []
        for message, colored in waiting:
            self.note(message, colored=colored)
