"""Errors that the user can fix.  Each message is one line: ``subject: problem (hint)``."""

from __future__ import annotations

import re

CONTROL = re.compile("[\x00-\x1f\x7f-\x9f\u2028\u2029]")
MAX_SHOWN = 80  # characters of a value in a message


class _Line(Exception):
    """An error with a message of one line: ``subject: problem (hint)``.

    ``subject`` is a file, an option or a device; ``hint`` is the remedy.  A complete line can be passed as ``subject``.
    """

    def __init__(self, subject: str, problem: str = "", hint: str = "") -> None:
        super().__init__(one_line(subject, problem, hint))


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


def printable(text: str) -> str:
    """Return any text, such as a file name, with its control characters escaped, so that it moves no cursor."""
    return CONTROL.sub(lambda match: match[0].encode("unicode_escape").decode(), text)


def one_line(subject: str, problem: str = "", hint: str = "") -> str:
    """Compose ``subject: problem (hint)`` on one line without empty parts, and escape control characters."""
    line = subject
    if problem:
        line += f": {problem}"
    if hint:
        line += f" ({hint})"
    return printable(" ".join(line.splitlines()))
