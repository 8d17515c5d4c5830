"""Find the recordings that a user names: files, folders, patterns, NeMo manifests, lists.  Nothing is decoded."""

from __future__ import annotations

import glob
import json
import os
import reprlib
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace

import numpy as np

from . import audio
from .containers import open_regular
from .errors import InputError, printable
from .media_pipe import MAX_CHANNELS

MANIFESTS = {".json", ".jsonl"}
LISTS = {".txt", ".lst", ".list"}
MANIFEST_HINT = "a NeMo manifest has a JSON object with audio_filepath on each line"
LIST_HINT = "a list has the path of an audio file or folder on each line"
MAX_LINE_CHARACTERS = 1 << 24  # of manifests and lists
MAX_LINES = 2_000_000
MAX_PATH = 4096  # Linux takes no longer ones
SNIFF_CHARACTERS = 64  # of a file: blanks before its first sign
MAX_DEPTH = 100  # of nested lists and objects in a manifest
MAX_SECONDS = 1e9  # of any recording
CHANNEL = "channel_selector"  # key of a manifest
MAX_ARRAY_CHARACTERS = 1 << 26  # of a manifest that is one JSON array
MAX_TEXT_CHARACTERS = 1 << 24  # of a reference text in a file of its own
AUDIO_KEYS = ("audio_filename", "audio_filepath")  # in NeMo's order
EXTENSIONS = {  # of the files that are taken from a folder: libsndfile's, then ffmpeg's
    ".wav", ".wave", ".bwf", ".flac", ".ogg", ".oga", ".opus", ".mp3", ".mp2", ".mpga", ".aif", ".aiff", ".aifc",
    ".au", ".snd", ".caf", ".w64", ".rf64", ".sph", ".nist", ".voc",
    ".m4a", ".m4b", ".mp4", ".m4v", ".mov", ".f4v", ".3gp", ".3g2", ".mkv", ".mka", ".webm", ".weba", ".aac", ".ac3",
    ".eac3", ".dts", ".wma", ".wmv", ".asf", ".amr", ".awb", ".avi", ".flv", ".mpg", ".mpeg", ".vob", ".ts", ".mts",
    ".m2ts", ".mxf", ".wv", ".ape", ".tta", ".tak", ".mpc", ".ra", ".rm", ".qcp",
}  # fmt: skip


@dataclass(eq=False, slots=True)
class Recording:
    """One recording to transcribe: an audio file, a part of one, or samples.  There may be half a million."""

    path: str
    """As the user named it, or as it was found; for samples a title."""
    output: str
    """The path of its results below the output folder, without extension."""
    offset: float = 0.0
    """Seconds before the part to transcribe."""
    length: float | None = None
    """Seconds of that part; None for all that follow."""
    line: str | None = None
    """The manifest's own line: as text, it takes a fifth of the memory."""
    text: str | None = None
    """The reference text, if it is in a file that this line names."""
    channel: int | None = None
    """Channel of the file, from 1 on; None averages all."""
    track: int = 1
    """Audio track of the file, from 1 on."""
    samples: np.ndarray | None = field(default=None, repr=False)
    """float32 [samples] at 16 kHz, if there is no file."""
    info: audio.AudioInfo | None = field(default=None, repr=False)
    """What the file's header states; None until the file has been opened."""

    @property
    def name(self) -> str:
        """The name in messages and lines of text."""
        name = printable(self.path)
        if self.offset:
            name += f" [from {self.offset:g} s]"
        if self.track > 1:
            name += f" [track {self.track}]"
        return f"{name} [channel {self.channel}]" if self.channel else name

    @property
    def fields(self) -> dict:
        """The fields of the manifest's line."""
        return json.loads(self.line) if self.line else {}

    @property
    def reference(self) -> str | None:
        """The reference text, if the manifest has one."""
        fields = self.fields
        text = fields.get("text", fields.get("normalized_text") if self.text is None else self.text)
        return text if isinstance(text, str) else None

    @property
    def seconds(self) -> float | None:
        """The expected duration, if the manifest or the header states it."""
        if self.length:
            return self.length
        if self.samples is not None:
            return len(self.samples) / audio.SAMPLE_RATE
        if self.info is None or self.info.seconds is None:
            return None
        return max(0.0, self.info.seconds - self.offset)

    def document_fields(self) -> dict:
        """Return the fields of the JSON document that describe the input."""
        fields: dict = {"audio": self.path}
        if self.offset:
            fields["offset"] = self.offset
        if self.line:
            fields["manifest"] = self.fields
        if self.channel:
            fields["channel"] = self.channel
        if self.track > 1:
            fields["track"] = self.track
        if self.info:
            fields["sample_rate"] = self.info.sample_rate
            fields["channels"] = self.info.channels
            fields["format"] = self.info.format
        return fields

    def check(self) -> None:
        """Read the header.  Raises InputError."""
        if self.samples is None:
            self.info = audio.check_audio(self.path, self.selection)

    def blocks(self) -> Iterator[np.ndarray]:
        """Yield the audio in blocks, float32 [samples] at 16 kHz.  Raises InputError."""
        if self.samples is not None:
            return audio.split_blocks(self.samples)
        return audio.read_blocks(self.path, self.offset, self.length, selection=self.selection, on_open=self._opened)

    def of_channel(self, channel: int) -> Recording:
        """Return this recording's channel, from 1 on, as a recording of its own."""
        return replace(self, channel=channel, output=f"{self.output}.ch{channel}")

    @property
    def selection(self) -> audio.Selection:
        """Its channel and track."""
        return audio.Selection(self.channel, self.track)

    @property
    def selects_channel(self) -> bool:
        """Whether its manifest states which channel to take, or to average them."""
        return self.fields.get(CHANNEL) is not None

    def _opened(self, info: audio.AudioInfo) -> None:
        self.info = info


@dataclass(frozen=True, eq=False, slots=True)
class CountedRecording:
    """A recording that reports how much of its audio has been read."""

    recording: Recording
    on_read: Callable[[float], None]
    """Called with the seconds of each block, from the thread that reads it."""
    on_begin: Callable[[Recording], None] | None = None
    """Called when it begins to be read."""

    def blocks(self) -> Iterator[np.ndarray]:
        """Yield the recording's blocks; see ``audio.blocks``."""
        if self.on_begin:
            self.on_begin(self.recording)
        return audio.counted(self.recording.blocks(), self.on_read)


def find_recordings(arguments: list[str], left_out: Counter[str] | None = None) -> Iterator[Recording | InputError]:
    """Yield the recordings that the command line's AUDIO arguments name, in order, and an InputError for each failure.

    A folder gives the audio files below it, sorted, without hidden ones.  A name with ``*``, ``?`` or ``[`` that is no
    file is a pattern; ``**`` matches any folders.  ``.json`` and ``.jsonl`` are manifests; ``.txt``, ``.lst`` and
    ``.list`` have one file or folder per line.  The other files of folders are counted in ``left_out`` by extension.
    """
    left_out = Counter() if left_out is None else left_out
    for argument in arguments:
        try:
            yield from _find(argument, left_out)
        except InputError as error:
            yield error


def _find(argument: str, left_out: Counter[str]) -> Iterator[Recording | InputError]:
    if os.path.lexists(argument) or not glob.has_magic(argument):
        yield from _expand(argument, left_out)
        return
    found = sorted(glob.glob(argument, recursive=True)) if len(argument) <= MAX_PATH else []
    if not found:
        yield InputError(argument, "no file matches this pattern")
    for path in found:
        yield from _expand(path, left_out)


def _expand(path: str, left_out: Counter[str]) -> Iterator[Recording | InputError]:
    """Yield what a manifest, a list, a folder or an audio file holds."""
    extension = os.path.splitext(path)[1].lower()
    if os.path.isdir(path):
        yield from _walk(path, left_out)
    elif extension in MANIFESTS:
        yield from _read_manifest(path)
    elif extension in LISTS:
        yield from _read_list(path, left_out)
    else:
        yield _whole_file(path)


def _read_list(path: str, left_out: Counter[str]) -> Iterator[Recording | InputError]:
    lines = [line for _, line in _lines(path, LIST_HINT)]
    if not lines:
        raise InputError(path, "empty list", LIST_HINT)
    for line in lines:
        found = _resolve(line, path)
        if os.path.isdir(found):
            yield from _walk(found, left_out)
        else:
            yield _whole_file(found)


def _whole_file(path: str) -> Recording:
    return Recording(path, stem(path))


def stem(path: str) -> str:
    """Return the name of a file without its folder and extension."""
    return os.path.splitext(os.path.basename(path))[0]


def _walk(root: str, left_out: Counter[str]) -> Iterator[Recording | InputError]:
    """Yield the audio files in a folder and all below it."""
    errors: list[OSError] = []
    is_empty = True
    for folder, names in _folders(root, errors):
        below = os.path.relpath(folder, root)
        prefix = "" if below == "." else f"{below}/"
        for name in sorted(names):
            stem, extension = os.path.splitext(name)
            if name.startswith("."):
                continue
            if extension.lower() not in EXTENSIONS:
                left_out[extension.lower()] += 1
            else:
                is_empty = False
                yield Recording(os.path.join(folder, name), prefix + stem)
    yield from (InputError(error.filename, error.strerror or str(error)) for error in errors)
    if is_empty and not errors:
        yield InputError(root, "no audio files in this folder", f"extensions: {' '.join(sorted(EXTENSIONS))}")


def _folders(root: str, errors: list[OSError]) -> Iterator[tuple[str, list[str]]]:
    """Yield each folder from ``root`` down with the names of its files; a folder that links to itself comes once."""
    seen = set()
    for folder, subfolders, names in os.walk(root, onerror=errors.append, followlinks=True):
        try:
            status = os.stat(folder)
        except OSError as error:  # it has been removed meanwhile
            errors.append(error)
            continue
        identity = (status.st_dev, status.st_ino)
        if identity in seen:
            subfolders.clear()
            continue
        seen.add(identity)
        subfolders[:] = sorted(name for name in subfolders if not name.startswith("."))
        yield folder, names


def _read_manifest(path: str) -> Iterator[Recording | InputError]:
    """Yield the entries of a NeMo manifest (a JSON object with ``audio_filepath`` per line), then its errors.

    One JSON array of such objects is taken, too.
    """
    errors = []
    is_empty = True
    for subject, line in _read_array(path) or _numbered(path):
        try:
            recording = _parse_entry(line, path)
        except ValueError as error:
            errors.append((subject, str(error)))
            continue
        is_empty = False
        yield recording
    if is_empty:
        subject, problem = errors[0] if errors else (path, "empty manifest")
        raise InputError(subject, problem, MANIFEST_HINT)
    yield from (InputError(subject, problem) for subject, problem in errors)


def _numbered(path: str) -> Iterator[tuple[str, str]]:
    return ((f"{path}:{number}", line) for number, line in _lines(path, MANIFEST_HINT))


def _read_array(path: str) -> list[tuple[str, str]]:
    """Return (name for messages, JSON) of each element if the whole file is one JSON array, else nothing."""
    text = _start_of(path, MAX_ARRAY_CHARACTERS, sign="[")
    try:
        items = json.loads(text) if text else []
    except (ValueError, RecursionError):
        return []
    return [(f"{path}, entry {number}", json.dumps(item)) for number, item in enumerate(items, 1)]


def _start_of(path: str, characters: int, sign: str = "") -> str:
    """Return the first characters of a text file; nothing if it does not begin with ``sign``.  Raises InputError."""
    try:
        with open(open_regular(path), encoding="utf-8-sig", errors="surrogateescape") as file:
            start = file.read(SNIFF_CHARACTERS)
            return start + file.read(characters) if start.lstrip().startswith(sign) else ""
    except OSError as error:
        raise InputError(path, error.strerror or str(error)) from error


def _parse_entry(line: str, manifest: str) -> Recording:
    """Parse one line of a manifest.  Raises ValueError whose message is the problem."""
    try:
        fields = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise ValueError("not JSON") from error
    named = next((fields[key] for key in AUDIO_KEYS if key in fields), None) if isinstance(fields, dict) else None
    if not isinstance(named, str):
        raise ValueError("no audio_filepath")
    if line.count("[") + line.count("{") > MAX_DEPTH and _is_deeper(fields, MAX_DEPTH):
        raise ValueError(f"lists and objects are nested more than {MAX_DEPTH} deep")
    for name in ("offset", "duration"):
        if not is_seconds(fields.get(name)):
            raise ValueError(f"{name} {reprlib.repr(fields[name])} is not a number of seconds")
    path = _resolve(named, manifest)
    offset = float(fields["offset"]) if fields.get("offset") else 0.0  # which all entries share
    channel = _channel(fields.get(CHANNEL))
    text = _read_reference(fields, manifest)
    return Recording(path, stem(path), offset, fields.get("duration") or None, line, text, channel)


def _read_reference(fields: dict, manifest: str) -> str | None:
    """Return the text of the file that an entry names, on one line; None if it names none.  Raises ValueError."""
    path = fields.get("text_filepath")
    if "text" in fields or not isinstance(path, str):
        return None
    try:
        text = _start_of(_resolve(path, manifest), MAX_TEXT_CHARACTERS)
    except InputError as error:
        raise ValueError(f"text_filepath {error}") from error
    if "\0" in text or len(text) >= MAX_TEXT_CHARACTERS:
        raise ValueError(f"text_filepath {path}: not text")
    return " ".join(text.split())


def _channel(selector: object) -> int | None:
    """Return the channel, from 1 on, of NeMo's ``channel_selector``, which counts from 0; None averages all."""
    if isinstance(selector, list) and len(selector) == 1:
        selector = selector[0]
    if selector is None or selector == "average":
        return None
    if isinstance(selector, bool) or not isinstance(selector, int) or not 0 <= selector < MAX_CHANNELS:
        raise ValueError(f"{CHANNEL} {reprlib.repr(selector)} is not one channel, nor average")
    return selector + 1


def is_seconds(value: object) -> bool:
    """Return whether a manifest's value is a number of seconds, or null."""
    if value is None:
        return True
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return False
    return 0 <= value <= MAX_SECONDS  # False for NaN


def _resolve(path: str, listed_in: str) -> str:
    """Resolve a path in a manifest or list as NeMo's ``get_full_path`` does.

    It is relative to that file's folder if it exists there, else to the working directory; ``~`` is the home folder.
    """
    neighbor = os.path.join(os.path.dirname(listed_in), path)
    if neighbor == path and not path.startswith("~"):  # absolute, or the list is in the working directory
        return path
    if os.path.exists(neighbor):
        return neighbor
    return os.path.expanduser(path)


def _is_deeper(value: object, levels: int) -> bool:
    """Return whether lists and objects are nested more than ``levels`` deep."""
    if not isinstance(value, (dict, list)):
        return False
    if not levels:
        return True
    items = value.values() if isinstance(value, dict) else value
    return any(_is_deeper(item, levels - 1) for item in items)


def _lines(path: str, hint: str) -> Iterator[tuple[int, str]]:
    """Yield number and text of each line that is not blank.  Bytes that are no UTF-8 survive, as in file names."""
    number = 0
    try:
        with open(open_regular(path), encoding="utf-8-sig", errors="surrogateescape") as file:
            while line := file.readline(MAX_LINE_CHARACTERS):
                number += 1
                if "\0" in line or len(line) == MAX_LINE_CHARACTERS:
                    raise InputError(f"{path}:{number}", "not text, or a line without end", hint)
                if number > MAX_LINES:
                    raise InputError(path, f"more than {MAX_LINES:,} lines", "split it")
                if line := line.strip():
                    yield number, line
    except OSError as error:
        raise InputError(path, error.strerror or str(error)) from error
