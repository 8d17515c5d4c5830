"""Errors that the user can fix.  Each message is one line: ``subject: problem (hint)``."""

from __future__ import annotations

import re

INVISIBLE = (
    "\x7f-\x9f\u2028\u2029"  # C1 controls, line separators
    "\u061c\u200e\u200f\u202a-\u202e\u2066-\u2069"  # bidi controls
    "\xad\u180e\u200b\u2060-\u2065\u206a-\u206f\ufeff\ufff9-\ufffb\U000e0000-\U000e007f"  # of no width
)
JOINERS = "(?<![\u0620-\u1fff])[\u200c\u200d]"  # but where a script needs them: Persian, Hindi ...
CONTROL = re.compile(f"[\x00-\x1f{INVISIBLE}]|{JOINERS}")
CONTROL_IN_LINES = re.compile(f"[\x00-\x08\x0b-\x1f{INVISIBLE}]|{JOINERS}")
CREDENTIALS = re.compile(r"(?<=://)[^/\s]+@")
MAX_SHOWN = 80  # characters of a value in a message
MAX_LINE, START, END = 1000, 600, 300  # characters of a message, and of both ends of a longer one


class _Line(Exception):
    """An error with a message of one line: ``subject: problem (hint)``.

    ``subject`` is a file, an option or a device; ``hint`` is the remedy.  A complete line can be passed as ``subject``.
    """

    def __init__(self, subject: str, problem: str = "", hint: str = "") -> None:
        super().__init__(one_line(subject, problem, hint))
        self.subject = subject


class InputError(_Line):
    """One input, such as an audio file, cannot be used; the others can.  Exit code 1."""


class ModelError(_Line):
    """The model fails on one input that is valid.  Exit code 1."""


class SetupError(_Line):
    """The checkpoint, the device or the environment cannot do what was requested.  Exit code 2."""


class Unsupported(Exception):
    """The native engine lacks a feature of this checkpoint, which the message names; stock NeMo may have it."""


def shown(value: object) -> str:
    """Return an untrusted value for a message: on one line, without control characters, of limited length."""
    text = str(value)
    if len(text) > MAX_SHOWN:
        text = f"{text[: MAX_SHOWN - 3]}..."
    return "".join(c if c.isprintable() else c.encode("unicode_escape", "replace").decode() for c in text)


def first_line(error: Exception) -> str:
    """Return the first line of a library's error message, or its type if the message is empty."""
    lines = str(error).strip().splitlines()
    return lines[0] if lines else type(error).__name__


def printable(text: str, *, lines: bool = False) -> str:
    """Return any text, such as a file name, with its control, bidi and zero-width characters escaped.

    Such text moves no cursor and reads as it is stored.  Line breaks and tabs stay in a text of several ``lines``.
    """
    pattern = CONTROL_IN_LINES if lines else CONTROL
    return pattern.sub(lambda match: match[0].encode("unicode_escape").decode(), text)


def without_password(text: str) -> str:
    """Return text with what stands before the ``@`` of a URL left out."""
    return CREDENTIALS.sub("...@", text)


def one_line(subject: str, problem: str = "", hint: str = "") -> str:
    """Compose ``subject: problem (hint)`` on one short line without empty parts, and escape control characters."""
    line = subject
    if problem:
        line += f": {problem}"
    if hint:
        line += f" ({hint})"
    line = printable(without_password(" ".join(line.splitlines())))
    return line if len(line) <= MAX_LINE else f"{line[:START]} ... {line[-END:]}"
