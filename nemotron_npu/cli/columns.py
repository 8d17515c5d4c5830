"""Columns: the width of a text and of the terminal, cutting and wrapping."""

from __future__ import annotations

import os
import re
import unicodedata
from typing import TextIO


def columns_of(text: str) -> int:
    """Return the columns that a terminal takes for ``text``: 2 for wide characters, 0 for combining ones."""
    return sum(_width(char) for char in text)


def _width(char: str) -> int:
    if unicodedata.category(char) in ("Mn", "Me", "Cf"):
        return 0
    return 2 if unicodedata.east_asian_width(char) in "WF" else 1


def clip(text: str, columns: int) -> str:
    """Return ``text`` if it fits, else an ellipsis and its end: the end of a path is the most specific part."""
    if columns_of(text) <= columns:
        return text
    if columns <= 0:
        return ""
    text = text[-columns:]
    while columns_of(text) >= columns:
        text = text[1:]
    return f"…{text}"


def wrapped(text: str, width: int, indent: str = "") -> str:
    """Return text in lines of less than ``width`` columns, broken between words; 0: in one line.

    ``indent`` begins the lines after the first.
    """
    if not width:
        return text
    lines, column = [""], 0
    for piece in re.findall(r" *[^ ]+", text):
        if column and column + columns_of(piece) >= width:
            lines.append(indent)
            column = len(indent)
            piece = piece.lstrip(" ")
        lines[-1] += piece
        column += columns_of(piece)
    return "\n".join(lines)


def terminal_width(stream: TextIO) -> int:
    """Return the columns of the terminal now; 0 if it does not state them."""
    try:
        return os.get_terminal_size(stream.fileno()).columns
    except (OSError, ValueError):
        return 0
