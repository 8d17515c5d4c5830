"""Errors that are the user's to mend: each message is one line that names what is wrong and the remedy."""

from __future__ import annotations

import re

CONTROL = re.compile("[\x00-\x1f\x7f-\x9f\u2028\u2029]")


class InputError(Exception):
    """One input (an audio file) cannot be used; the others can.  Exit code 1."""

    def __init__(self, message: str):
        super().__init__(printable(message))


class ModelError(Exception):
    """The model fails on one input, which is not at fault.  Exit code 1."""


class SetupError(Exception):
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
