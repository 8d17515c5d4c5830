"""``results.jsonl``, the record of a run: one JSON line for each recording that is complete."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from ..formats import encode
from .run_info import RunSettings

RECORD = "results.jsonl"
BACKUP_SUFFIX = "~"  # of the record of an earlier run that was not resumed


class Line(NamedTuple):
    """Position of a line in the record, in bytes."""

    offset: int
    size: int


@dataclass(frozen=True, eq=False)
class Entry:
    """A line of the record of an earlier run."""

    key: tuple
    """See ``Recording.key``."""
    output: str
    text: str
    duration: float
    settings: RunSettings
    line: Line


class LineFile:
    """A file that lines are appended to; each reaches the file at once, or not at all."""

    def __init__(self, path: Path) -> None:
        self.number = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o666)

    def append(self, text: str) -> Line:
        """Write a line without buffering; a disk that becomes full gets no part of it.  Raises OSError."""
        data = encode(text)
        line = Line(os.fstat(self.number).st_size, len(data))
        try:
            while data:
                data = data[os.write(self.number, data) :]
        except OSError:
            self.truncate(line.offset)
            raise
        return line

    def truncate(self, size: int) -> None:
        """Remove everything after the first ``size`` bytes."""
        os.ftruncate(self.number, size)

    def close(self) -> None:
        """Close the file."""
        os.close(self.number)


def read_record(path: Path) -> tuple[list[Entry], int]:
    """Read the entries of a record, and count the lines that are none: a kill leaves a partial line."""
    entries: list[Entry] = []
    broken = offset = 0
    if not path.exists():
        return entries, broken
    with open(path, "rb") as file:
        for data in file:
            try:
                if not data.endswith(b"\n"):
                    raise ValueError
                entries.append(_entry(json.loads(data), Line(offset, len(data))))
            except (ValueError, KeyError, TypeError, AttributeError):
                broken += 1
            offset += len(data)
    return entries, broken


def _entry(document: dict[str, Any], line: Line) -> Entry:
    length = (document.get("manifest") or {}).get("duration") or None
    key = (os.path.abspath(document["audio"]), document.get("offset", 0.0), length)
    settings = RunSettings.of_document(document)
    return Entry(key, document["output"], document["text"], document["duration"], settings, line)


def keep_lines(path: Path, lines: Iterable[Line], part: Path) -> None:
    """Rewrite a record with these lines only, in this order, by way of ``part``.  Raises OSError."""
    try:
        with open(path, "rb") as whole, open(part, "wb") as file:
            for line in lines:
                whole.seek(line.offset)
                file.write(whole.read(line.size))
        os.replace(part, path)
    except OSError:
        part.unlink(missing_ok=True)  # it may be large
        raise


def sort_lines(path: Path, lines: list[Line], part: Path) -> None:
    """Put ``lines`` of a record into this order, after the lines that are not among them.  Raises OSError."""
    if lines == sorted(lines):
        return
    others: list[Line] = []
    end = 0
    for line in [*sorted(lines), Line(os.path.getsize(path), 0)]:
        if line.offset > end:
            others.append(Line(end, line.offset - end))
        end = line.offset + line.size
    keep_lines(path, others + lines, part)
