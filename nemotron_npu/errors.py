"""Errors that the user can fix: each message is one line, ``subject: problem (hint)``."""

from __future__ import annotations

import re

CONTROL = re.compile("[\x00-\x1f\x7f-\x9f\u2028\u2029]")


class _Line(Exception):
    """An error whose message is one line, ``subject: problem (hint)``.

    ``subject`` is a file, an option or a device; ``hint`` is the remedy.  A finished line may stand alone.
    """

    def __init__(self, subject: str, problem: str = "", hint: str = "") -> None:
        super().__init__(one_line(subject, problem, hint))


class InputError(_Line):
    """One input (an audio file) cannot be used; the others can.  Exit code 1."""


class ModelError(_Line):
    """The model fails on one input, which is not at fault.  Exit code 1."""


class SetupError(_Line):
    """The request cannot be carried out here: checkpoint, device or environment.  Exit code 2."""


class Unsupported(Exception):
    """The native engine does not know this kind of checkpoint; stock NeMo may.  The message names the feature."""


def shown(value) -> str:
    """What a file from anywhere says, fit for a message: on one line, without control characters, not too long."""
    text = str(value)
    text = text if len(text) <= 80 else f"{text[:77]}..."
    return "".join(c if c.isprintable() else c.encode("unicode_escape", "replace").decode() for c in text)


def first_line(error: Exception) -> str:
    """What a library's error says, in one line; its type where it says nothing."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0]


def printable(text: str) -> str:
    """Any text, a file's name say, on one line that moves no cursor: control characters become their escapes."""
    return CONTROL.sub(lambda match: match[0].encode("unicode_escape").decode(), text)


def one_line(subject: str, problem: str = "", hint: str = "") -> str:
    """Compose ``subject: problem (hint)`` on one line, control characters escaped; empty parts are left out."""
    line = f"{subject}: {problem}" if problem else subject
    line = f"{line} ({hint})" if hint else line
    return printable(" ".join(line.splitlines()))
