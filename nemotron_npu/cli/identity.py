"""Identify a recording across runs by its path, the part of it that is used, and the content of the file."""

from __future__ import annotations

import hashlib
import os
import unicodedata
from contextlib import suppress
from dataclasses import asdict, dataclass
from functools import lru_cache
from typing import Any

from ..audio import Selection
from ..containers import FileVersion, file_version, open_regular
from ..errors import InputError
from ..sources import Recording

BLOCK_BYTES = 1 << 20


@dataclass(frozen=True)
class Source:
    """The file of a recording, as it was when it was transcribed."""

    path: str
    """Absolute, without links."""
    size: int
    """Bytes."""
    modified: int
    """Time of the last change, in nanoseconds since 1970."""
    sha256: str | None
    """Of the content; None if the file was changed meanwhile."""

    def as_dict(self) -> dict[str, Any]:
        """Return the fields for the record of a run."""
        return asdict(self)

    @property
    def version(self) -> FileVersion:
        """Size and time."""
        return self.size, self.modified


def key_of(path: str, offset: float | None, length: float | None, selection: Selection) -> tuple:
    """Return what identifies a recording in every run, however its path is encoded: ä may be one code point or two."""
    return unicodedata.normalize("NFC", resolve(path)), offset or 0.0, length or None, selection


def resolve(path: str) -> str:
    """Return an absolute path without links."""
    folder, name = os.path.split(os.path.abspath(path))
    resolved = os.path.join(_resolve_folder(folder), name)
    return os.path.realpath(resolved) if os.path.islink(resolved) else resolved


@lru_cache(1 << 14)
def _resolve_folder(path: str) -> str:
    return os.path.realpath(path)


def source_of(recording: Recording) -> Source | None:
    """Return the file of a recording that has been read; None if there is none."""
    read = recording.info.version if recording.info else None
    if read is None:
        return None
    digest = None
    with suppress(InputError, OSError):
        digest = _sha256(recording.path, read)
    return Source(resolve(recording.path), *read, digest)


def is_unchanged(path: str, source: Source) -> bool:
    """Return whether a file still has the same content; a file that is missing now counts as unchanged.

    The content is read only if just the time differs, so that a copied corpus is not transcribed again.
    """
    try:
        status = os.stat(path)
        now = status.st_size, status.st_mtime_ns
        if now == source.version or now[0] != source.size:
            return now == source.version
        return _sha256(path, now) == source.sha256
    except (InputError, OSError, ValueError):
        return True


def _sha256(path: str, version: FileVersion) -> str | None:
    """Return the hash of a file, in hexadecimal digits; None if it is not of this version, before or after."""
    descriptor = open_regular(path)
    try:
        digest = hashlib.sha256()
        if file_version(descriptor) != version:
            return None
        while block := os.read(descriptor, BLOCK_BYTES):
            digest.update(block)
        return digest.hexdigest() if file_version(descriptor) == version else None
    finally:
        os.close(descriptor)
