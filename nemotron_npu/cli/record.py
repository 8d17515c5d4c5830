"""``results.jsonl``, the record of a run: one JSON line for each recording that is complete."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any, BinaryIO, NamedTuple, TypeGuard

from ..audio import Selection
from ..formats import encode
from ..host.files import Folder
from ..sources import MAX_PATH, is_seconds, stem
from .identity import Source, key_of
from .run_info import RunSettings
from .scores import reference_digest

RECORD = "results.jsonl"
BACKUP = f"{RECORD}~"  # the record of an earlier run that was not resumed
MAX_LINE = 1 << 26  # bytes; a recording of 24 hours takes about 60 MB
CUT_SHORT = "is cut short"
MAX_NAME = 255  # bytes
OPTIONAL_SETTINGS = (
    "confidence",
    "boost_words",
    "language",
    "model_id",
    "engine",
    "requested_engine",
    "subtitles",
    "wer_normalizer",
)
SOURCE = ("path", "size", "modified", "sha256")


class Line(NamedTuple):
    """Position of a line in the record, in bytes."""

    offset: int
    size: int


@dataclass(frozen=True, eq=False)
class Entry:
    """A line of the record of an earlier run."""

    key: tuple
    """See ``identity.key_of``."""
    source: Source | None
    """None in records of earlier versions."""
    output: str
    text: str
    duration: float
    reference: str
    """See ``scores.reference_digest``."""
    settings: RunSettings
    line: Line


class LineFile:
    """A file that lines are appended to; each reaches the file at once, or not at all."""

    def __init__(self, folder: Folder, name: str) -> None:
        self.file = folder.append(name)
        self.number = self.file.fileno()

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
        self.file.close()


class Fault(NamedTuple):
    """A line of a record that no run has written as it is."""

    number: int
    problem: str


def read_record(file: BinaryIO) -> tuple[list[Entry], list[Fault]]:
    """Read a record, which somebody may have edited: its entries, and the lines that are none."""
    entries: list[Entry] = []
    faults: list[Fault] = []
    outputs: dict[str, int] = {}
    offset = 0
    for number, (data, size) in enumerate(_lines(file), 1):
        try:
            entry = _entry(data, Line(offset, size))
            if entry.output in outputs:
                raise ValueError(f"has the output of line {outputs[entry.output]}")
            outputs[entry.output] = number
            entries.append(entry)
        except ValueError as error:
            faults.append(Fault(number, str(error)))
        offset += size
    return entries, faults


def _lines(file: BinaryIO) -> Iterator[tuple[bytes, int]]:
    """Yield each line and its size; of one that is too long, only the start."""
    while data := file.readline(MAX_LINE):
        size = len(data)
        rest = data
        while rest and not rest.endswith(b"\n"):
            rest = file.readline(1 << 20)
            size += len(rest)
        yield data, size


def _entry(data: bytes, line: Line) -> Entry:
    """Parse a line.  Raises ValueError whose message is the problem."""
    if line.size > MAX_LINE:
        raise ValueError(f"has more than {MAX_LINE:,} bytes")
    if not data.endswith(b"\n"):
        raise ValueError(CUT_SHORT)  # by a kill or a full disk
    try:
        document = json.loads(data)
    except (ValueError, RecursionError):
        raise ValueError("is not JSON") from None
    if not isinstance(document, dict):
        raise ValueError("is not a result")
    source = _source(document)
    key = _key(document, source)
    output, text, duration = (document.get(name) for name in ("output", "text", "duration"))
    if not (_is_path(output) and _stays_inside(output)):
        raise ValueError("its output is not a name in this folder")
    if not os.path.basename(output).startswith(stem(document["audio"])):
        raise ValueError("its output is not named after its audio")
    if not isinstance(text, str) or duration is None or not is_seconds(duration):
        raise ValueError("its text or duration is not valid")
    try:
        reference = reference_digest(document.get("manifest"), document.get("reference"))
    except RecursionError:
        raise ValueError("its manifest is nested too deep") from None
    return Entry(key, source, output, text, duration, reference, _settings(document), line)


def _source(document: dict[str, Any]) -> Source | None:
    """Return the file of a document; None for those of earlier versions.  Raises ValueError."""
    fields = document.get("source")
    if fields is None:
        return None
    path, size, modified, digest = (fields.get(name) for name in SOURCE) if isinstance(fields, dict) else [None] * 4
    if not (_is_path(path) and type(size) is int and type(modified) is int and isinstance(digest, str | None)):
        raise ValueError("its source is not valid")
    return Source(path, size, modified, digest)


def _key(document: dict[str, Any], source: Source | None) -> tuple:
    """Return ``identity.key_of`` of a document.  Raises ValueError."""
    audio, offset, manifest, channel = (document.get(name) for name in ("audio", "offset", "manifest", "channel"))
    track = document.get("track", 1)
    if not _is_path(audio):
        raise ValueError("its audio is not a path")
    if not (manifest is None or isinstance(manifest, dict)):
        raise ValueError("its manifest is not an object")
    length = (manifest or {}).get("duration")
    if not (is_seconds(offset) and is_seconds(length)):
        raise ValueError("its offset or duration is not a number of seconds")
    if not (channel is None or type(channel) is int):
        raise ValueError("its channel is not a number")
    if type(track) is not int:
        raise ValueError("its track is not a number")
    return key_of(source.path if source else audio, offset, length, Selection(channel, track))


def _settings(document: dict[str, Any]) -> RunSettings:
    chunk_ms = document.get("chunk_ms")
    optional = [document.get(name) for name in OPTIONAL_SETTINGS]
    texts = [document.get("dtype"), *(value for value in optional if value is not None)]
    is_chunk = chunk_ms is None or type(chunk_ms) is int
    if not (is_chunk and all(isinstance(text, str) for text in texts) and _is_path(document.get("model"))):
        raise ValueError("its settings are not valid")
    return RunSettings.of_document(document)


def _is_path(value: Any) -> TypeGuard[str]:
    """Return whether this can be a path on this system."""
    try:
        return isinstance(value, str) and "\0" not in value and 0 < len(os.fsencode(value)) <= MAX_PATH
    except UnicodeEncodeError:  # half of a surrogate pair
        return False


def _stays_inside(path: str) -> bool:
    parts = path.split("/")
    return {"", ".", ".."}.isdisjoint(parts) and all(len(os.fsencode(part)) <= MAX_NAME for part in parts)


def keep_lines(folder: Folder, lines: Iterable[Line]) -> None:
    """Rewrite the record with these lines only, in this order.  Raises OSError."""
    with folder.read(RECORD) as file:
        folder.write(RECORD, _copied(file, lines))


def _copied(file: BinaryIO, lines: Iterable[Line]) -> Iterator[bytes]:
    for line in lines:
        file.seek(line.offset)
        yield file.read(line.size)


def sort_lines(folder: Folder, lines: list[Line]) -> None:
    """Put ``lines`` of the record into this order, after the lines that are not among them.  Raises OSError."""
    if lines == sorted(lines):
        return
    with folder.read(RECORD) as file:
        size = os.fstat(file.fileno()).st_size
    others: list[Line] = []
    end = 0
    for line in [*sorted(lines), Line(size, 0)]:
        if line.offset > end:
            others.append(Line(end, line.offset - end))
        end = line.offset + line.size
    keep_lines(folder, others + lines)
