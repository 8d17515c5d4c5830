"""What the user names -> recordings: files, folders, globs, NeMo manifests, lists of paths.  Nothing is decoded."""

from __future__ import annotations

import glob
import json
import os
import reprlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

import numpy as np

from . import audio
from .errors import InputError, printable

MANIFESTS = {".json", ".jsonl"}
LISTS = {".txt", ".lst", ".list"}
MANIFEST_IS = "a NeMo manifest has a JSON object with audio_filepath on each line"
LIST_IS = "a list has the path of a sound file or folder on each line"
LINE_CHARACTERS = 1 << 24  # of manifests and lists, at most
LEVELS = 100  # of lists and objects in each other in a manifest's line, at most
LONGEST = 1e9  # seconds, of any recording
SOUND = {  # what is taken from a folder
    ".wav", ".flac", ".ogg", ".oga", ".opus", ".mp3", ".mp2", ".aif", ".aiff", ".aifc", ".au", ".snd", ".caf", ".w64",
    ".rf64", ".sph", ".nist", ".voc",
    ".m4a", ".aac", ".wma", ".amr",  # not read by libsndfile, but no sound is left out without a word
}  # fmt: skip


@dataclass(eq=False)
class Recording:
    """One thing to recognise: a sound file, a part of one, or samples."""

    path: str
    """As it was named, or found; of samples, what they are called."""
    output: str
    """Where its results go: a path below the output folder, without extension."""
    offset: float = 0.0
    """Seconds in front of the part that is recognised."""
    length: float | None = None
    """Seconds of that part; None is all that follow."""
    fields: dict | None = None
    """The manifest's own line."""
    samples: np.ndarray | None = field(default=None, repr=False)
    """float32 [samples] at 16 kHz, where there is no file."""
    info: audio.AudioInfo | None = field(default=None, repr=False)
    """What the file's header states; None until the file has been opened."""

    @property
    def name(self) -> str:
        """For messages and lines of text."""
        return printable(self.path) + (f" [from {self.offset:g} s]" if self.offset else "")

    @property
    def key(self) -> tuple:
        """What makes it the same recording in another run."""
        return os.path.abspath(self.path), self.offset, self.length

    @property
    def reference(self) -> str | None:
        """What was said, where the manifest tells."""
        text = (self.fields or {}).get("text")
        return text if isinstance(text, str) else None

    @property
    def seconds(self) -> float | None:
        """How long it will be, as far as manifest or header tell."""
        if self.length or self.samples is not None:
            return self.length or len(self.samples) / audio.SAMPLE_RATE
        if self.info is None or self.info.seconds is None:
            return None
        return max(0.0, self.info.seconds - self.offset)

    def document_fields(self) -> dict:
        """Return the fields of the JSON document that describe the input."""
        fields = {"audio": self.path}
        if self.offset:
            fields["offset"] = self.offset
        if self.fields:
            fields["manifest"] = self.fields
        if self.info:
            fields["sample_rate"] = self.info.sample_rate
            fields["channels"] = self.info.channels
            fields["format"] = self.info.format
        return fields

    def check(self) -> None:
        """Look at the header.  Raises InputError."""
        if self.samples is None:
            self.info = audio.check_audio(self.path)

    def blocks(self) -> Iterator[np.ndarray]:
        """Its sound piece by piece, float32 [samples] at 16 kHz.  Raises InputError."""
        if self.samples is not None:
            return audio.pieces(self.samples)
        return audio.read_blocks(self.path, self.offset, self.length, self._opened)

    def _opened(self, info: audio.AudioInfo) -> None:
        self.info = info


@dataclass(frozen=True, eq=False)
class CountedRecording:
    """A recording that reports how much of its audio has been read."""

    recording: Recording
    on_read: Callable[[float], None]
    """Called with the seconds of each block, from the thread that reads it."""

    def blocks(self) -> Iterator[np.ndarray]:
        """Yield the recording's blocks; see ``audio.blocks``."""
        return audio.counted(self.recording.blocks(), self.on_read)


def find_recordings(arguments: list[str]) -> Iterator[Recording | InputError]:
    """The recordings that the command line's AUDIO stands for, in order; an InputError for what stands for none.

    A folder gives the sound files below it, sorted, hidden ones left out.  A name with ``*``, ``?`` or ``[`` that is
    no file is a pattern, ``**`` being any folders.  ``.json`` and ``.jsonl`` are manifests, ``.txt``, ``.lst`` and
    ``.list`` hold a file or folder a line.
    """
    for argument in arguments:
        try:
            if os.path.lexists(argument) or not glob.has_magic(argument):
                yield from _expand(argument)
                continue
            found = sorted(glob.glob(argument, recursive=True))
            if not found:
                yield InputError(f"{argument}: no file matches this pattern")
            for path in found:
                yield from _expand(path)
        except InputError as error:
            yield error


def _expand(path: str) -> Iterator[Recording | InputError]:
    kind = os.path.splitext(path)[1].lower()
    if kind in MANIFESTS and not os.path.isdir(path):
        yield from _manifest(path)
    elif kind in LISTS and not os.path.isdir(path):
        lines = [line for _, line in _lines(path, LIST_IS)]
        if not lines:
            raise InputError(f"{path}: empty: {LIST_IS}")
        for line in lines:
            yield from _files(_resolve(line, path))
    else:
        yield from _files(path)


def _files(path: str) -> Iterator[Recording | InputError]:
    """A sound file, or those of a folder and all below it; a folder that is linked into itself is walked once."""
    if not os.path.isdir(path):
        yield Recording(path, os.path.splitext(os.path.basename(path))[0])
        return
    errors: list[OSError] = []
    seen, count = set(), 0
    for folder, folders, names in os.walk(path, onerror=errors.append, followlinks=True):
        try:
            status = os.stat(folder)
        except OSError as error:  # it is gone again
            errors.append(error)
            continue
        if (status.st_dev, status.st_ino) in seen:
            folders.clear()
            continue
        seen.add((status.st_dev, status.st_ino))
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        for name in sorted(names):
            stem, kind = os.path.splitext(name)
            if kind.lower() in SOUND and not name.startswith("."):
                count += 1
                yield Recording(
                    os.path.join(folder, name), os.path.normpath(os.path.join(os.path.relpath(folder, path), stem))
                )
    yield from (InputError(f"{error.filename}: {error.strerror}") for error in errors)
    if not count and not errors:
        yield InputError(f"{path}: no sound files in this folder (looked for {', '.join(sorted(SOUND))})")


def _manifest(path: str) -> Iterator[Recording | InputError]:
    """The entries of a NeMo manifest: a JSON object a line, with ``audio_filepath`` and what else there may be."""
    errors, entries = [], 0
    for number, line in _lines(path, MANIFEST_IS):
        try:
            recording = _entry(line, path)
        except ValueError as error:
            errors.append(f"{path}:{number}: {error}")
            continue
        entries += 1
        yield recording
    if not entries:
        reason = errors[0] if errors else f"{path}: empty"
        raise InputError(f"{reason}: {MANIFEST_IS}")
    yield from map(InputError, errors)


def _entry(line: str, manifest: str) -> Recording:
    """One line of a manifest.  Raises ValueError with what is wrong with it."""
    try:
        fields = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise ValueError("not JSON") from error
    if not isinstance(fields, dict) or not isinstance(fields.get("audio_filepath"), str):
        raise ValueError("no audio_filepath")
    if _deeper(fields, LEVELS):
        raise ValueError(f"more than {LEVELS} lists and objects in each other")
    for name in ("offset", "duration"):
        value = fields.get(name)
        number = isinstance(value, (int, float)) and not isinstance(value, bool)
        if value is not None and not (number and 0 <= value <= LONGEST):  # NaN is not
            raise ValueError(f"{name} is {reprlib.repr(value)}: not a number of seconds")
    sound = _resolve(fields["audio_filepath"], manifest)
    stem = os.path.splitext(os.path.basename(sound))[0]
    return Recording(sound, stem, float(fields.get("offset") or 0), fields.get("duration") or None, fields)


def _resolve(path: str, listed_in: str) -> str:
    """A path that a manifest or list holds, as NeMo's ``get_full_path`` resolves it: relative to that file's folder if
    it is there, else to the working directory; ``~`` is the home."""
    beside = os.path.join(os.path.dirname(listed_in), path)
    return beside if not os.path.isabs(path) and os.path.exists(beside) else os.path.expanduser(path)


def _deeper(value, levels: int) -> bool:
    """Whether lists and objects are in each other in more levels."""
    if not isinstance(value, (dict, list)):
        return False
    return not levels or any(_deeper(item, levels - 1) for item in (value.values() if type(value) is dict else value))


def _lines(path: str, what: str) -> Iterator[tuple[int, str]]:
    """The lines of a text file that are not empty, with their numbers.  Any file name can be written in it."""
    number = 0
    try:
        with open(audio.open_regular(path), encoding="utf-8-sig", errors="surrogateescape") as file:
            while line := file.readline(LINE_CHARACTERS):
                number += 1
                if "\0" in line or len(line) == LINE_CHARACTERS:
                    raise InputError(f"{path}:{number}: not text, or the line has no end: {what}")
                if line := line.strip():
                    yield number, line
    except OSError as error:
        raise InputError(f"{path}: {error.strerror}") from error
