"""Open audio files with libsndfile, and read the parts of their containers that it misses.  Nothing is decoded here."""

from __future__ import annotations

import os
import stat
import struct
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass

import soundfile

from .errors import InputError
from .host import program
from .host.files import is_of_kernel

MIN_RATE = 1000  # Hz
MAX_RATE = 1_000_000
MAX_CHUNKS = 10_000  # of a wav header
MAX_FMT_BYTES = 1 << 16
WRAP = 1 << 32  # bytes that the sizes in a wav cannot count
UNKNOWN_SIZE = WRAP - 1  # what a wav states that was written into a pipe
UNKNOWN_FRAMES = 1 << 48  # libsndfile reports at least so many where the header does not state a length
OGG_HEADER_BYTES = 27  # of a page, before its table of up to 255 segment lengths
SNIFF_BYTES = 64  # enough to identify a container
BIG_ENDIAN = "big-endian wav"
MAGIC = {  # first bytes -> container, for all but wav
    b"ID3": "mp3",
    b"fLaC": "flac",
    b"OggS": "ogg",
    b"RIFX": BIG_ENDIAN,
    b"FORM": "aiff",
    b".snd": "au",
    b"caff": "caf",
    b"riff": "w64",
    b"\x1aE\xdf\xa3": "matroska or webm",
    b"0&\xb2u\x8ef\xcf\x11": "wma or wmv",
    b"FLV\x01": "flv",
    b"#!AMR": "amr",
    b"\x1f\x8b\x08": "gzip",
    b"PK\x03\x04": "zip",
}
ARCHIVES = {"gzip", "zip"}


FileVersion = tuple[int, int]
"""Size in bytes, and time of the last change in nanoseconds since 1970."""


class ForeignFormat(InputError):
    """libsndfile does not read this file."""


@dataclass(frozen=True)
class AudioInfo:
    """What the header of a file or stream states about its audio."""

    sample_rate: int
    """Hz."""
    channels: int
    format: str
    """The container, as libsndfile or ffmpeg names it."""
    seconds: float | None = None
    """Length of the whole file; None where the header does not state it."""
    remark: str | None = None
    """What is odd about the header, though the audio can be read."""
    version: FileVersion | None = None
    """Of the file that was opened."""


@dataclass(frozen=True)
class AudioFile:
    """An open file, and libsndfile's view of it."""

    path: str
    descriptor: int
    sound: soundfile.SoundFile
    remark: str | None = None
    """See ``AudioInfo.remark``."""

    def size(self) -> int:
        """Return the bytes that the file has now."""
        return os.fstat(self.descriptor).st_size

    @property
    def has_parts(self) -> bool:
        """Whether more audio may follow than the header states."""
        return self.sound.format in ("MP3", "OGG")

    def parts(self) -> Iterator[soundfile.SoundFile]:
        """Yield the file, then the audio that follows after what libsndfile takes for its end.

        Chained Ogg streams have such parts, and so does an mp3 that is longer than its first frame states, for instance
        several that were joined.  Read each part to its end before taking the next.
        """
        yield self.sound
        start = 0
        while (following := self._next_part(start)) is not None:
            start = following
            try:
                part = soundfile.SoundFile(_FileView(self.descriptor, start))
            except soundfile.SoundFileError:  # tags
                return
            with part:
                if part.format != self.sound.format or not _is_valid_rate(part):
                    return
                yield part

    def _next_part(self, start: int) -> int | None:
        """Return the offset at which the audio continues after the part that began at ``start``."""
        if self.sound.format == "MP3":
            offset = os.lseek(self.descriptor, 0, os.SEEK_CUR)
            return offset if start < offset < self.size() else None
        if self.sound.format == "OGG":
            return _next_ogg_stream(self.descriptor, start)
        return None


@contextmanager
def open_audio(path: str) -> Iterator[AudioFile]:
    """Open a file whose audio libsndfile can decode.  Raises InputError; ForeignFormat where another may."""
    descriptor = open_regular(path)
    try:
        if not os.fstat(descriptor).st_size:
            raise InputError(path, "the file is empty")
        with _open_sound(descriptor, path) as sound:
            if not _is_valid_rate(sound):
                raise InputError(path, f"broken header with a sample rate of {sound.samplerate} Hz")
            with _long_wav(descriptor, sound) as (whole, remark):
                yield AudioFile(path, descriptor, whole, remark)
    finally:
        os.close(descriptor)


def open_regular(path: str) -> int:
    """Open a regular file for reading without ever waiting for it; return the descriptor.

    Raises InputError for a missing or forbidden file, and for folders, pipes, sockets and devices.
    """
    try:
        _check_regular(path, os.stat(path).st_mode)
        if is_of_kernel(path):
            raise InputError(path, "is a kernel file, not a file on disk")
        return os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)  # by now it may be a pipe
    except OSError as error:  # missing, no permission, name too long
        raise InputError(path, error.strerror or str(error)) from error
    except ValueError as error:  # NUL, or half of a surrogate pair: manifests can have them
        raise InputError(path, "not a valid file name") from error


def file_version(descriptor: int) -> FileVersion:
    """Return size and time of an open file: another version of it differs in them."""
    status = os.fstat(descriptor)
    return status.st_size, status.st_mtime_ns


def identify(start: bytes) -> str | None:
    """Return the container that the first SNIFF_BYTES of a file show, if it is not wav and known."""
    start = start.ljust(SNIFF_BYTES, b"\0")
    if start[4:8] == b"ftyp":
        return "mp4"
    if start[:4] == b"RIFF" and start[8:12] == b"AVI ":
        return "avi"
    if _is_untagged_mp3(start):
        return "mp3"
    return next((name for magic, name in MAGIC.items() if start.startswith(magic)), None)


def _check_regular(path: str, mode: int) -> None:
    if stat.S_ISDIR(mode):
        raise InputError(path, "is a directory", "name the audio files in it")
    if stat.S_ISFIFO(mode):
        raise InputError(path, "is a pipe", f"read it from stdin: {program.name} - < PIPE")
    if stat.S_ISSOCK(mode):
        raise InputError(path, "is a socket, not a file")
    if not stat.S_ISREG(mode):
        raise InputError(path, "is a device, not a file")


def _is_untagged_mp3(start: bytes) -> bool:
    """Whether this is the header of an mp3 frame (MPEG layer III) with the Xing or Info tag of encoders."""
    is_frame = start[:1] == b"\xff" and start[1] & 0xE6 == 0xE2
    return is_frame and (b"Xing" in start[4:] or b"Info" in start[4:])


def _is_valid_rate(sound: soundfile.SoundFile) -> bool:
    return MIN_RATE <= sound.samplerate <= MAX_RATE


def _open_sound(descriptor: int, path: str) -> soundfile.SoundFile:
    """Open a descriptor by libsndfile.  Raises InputError."""
    try:
        sound = soundfile.SoundFile(descriptor, closefd=False)
        size_offset = None
        if sound.format == "FLAC" and sound.frames >= UNKNOWN_FRAMES:  # libsndfile cannot decode it without a length
            sound.close()
            raise ForeignFormat(path, "FLAC of unknown length", "convert it: ffmpeg -i FILE FILE.wav")
        if not sound.frames and sound.format in ("WAV", "WAVEX"):
            size_offset = _unknown_size_offset(descriptor)
        if size_offset:
            sound.close()
            sound = soundfile.SoundFile(_FileView(descriptor, patched=size_offset))
        return sound
    except soundfile.SoundFileError as error:
        reason = library_reason(error)
    try:  # libsndfile knows some formats by the file's name alone
        sound = soundfile.SoundFile(os.fsencode(path))
        os.lseek(descriptor, 0, os.SEEK_END)
        return sound
    except soundfile.SoundFileError as error:
        raise _unsupported(descriptor, path, reason) from error


@contextmanager
def _long_wav(descriptor: int, sound: soundfile.SoundFile) -> Iterator[tuple[soundfile.SoundFile, str | None]]:
    """Yield ``sound``, or all of a wav that is too long for the 32 bits of its size; and a remark on that size."""
    view = None
    if sound.format in ("WAV", "WAVEX") and os.fstat(descriptor).st_size > WRAP:
        view = _view_long_wav(descriptor)
    if view is None:
        yield sound, None
        return
    with soundfile.SoundFile(view) as whole:
        seconds = whole.frames / whole.samplerate
        yield whole, f"longer than a wav header can state: read to its end at {seconds:,.1f} s"


def _view_long_wav(descriptor: int) -> _FileView | None:
    """Return a wav of more than 4 GB as an RF64 (EBU Tech 3306); None if the size that it states is right.

    It is not where it has lost its upper bits, or means "unknown".
    """
    file_size = os.fstat(descriptor).st_size
    stated, samples, layout = 0, 0, b""
    for name, offset, length in _wav_chunks(descriptor):
        if name == b"fmt " and length < MAX_FMT_BYTES:
            layout = os.pread(descriptor, 8 + length, offset)
        if name == b"data":
            stated, samples = length, offset + 8
            break
    rest = file_size - samples
    if not layout or not samples or rest <= WRAP:
        return None
    size = rest
    if 0 < stated < UNKNOWN_SIZE:
        size = stated + (rest - stated) // WRAP * WRAP
    if size == stated:
        return None
    sizes = struct.pack("<4sIQQQI", b"ds64", 28, file_size, size, 0, 0)
    header = struct.pack("<4sI4s", b"RF64", UNKNOWN_SIZE, b"WAVE") + sizes + layout
    return _FileView(descriptor, samples, header=header + struct.pack("<4sI", b"data", UNKNOWN_SIZE))


def _unsupported(descriptor: int, path: str, reason: str) -> InputError:
    """Return the error for a file that libsndfile refuses for this reason."""
    start = os.pread(descriptor, 4096, 0)
    container = identify(start[:SNIFF_BYTES])
    if container in ARCHIVES:
        return InputError(path, f"is a {container} file", "unpack it first")
    if is_text(start):
        return InputError(path, "is text, not audio")
    if start[8:12] == b"WAVE":
        container = container or "wav"
    problem = f"unsupported {container} audio" if container else "unsupported audio format"
    return ForeignFormat(path, f"{problem}: {reason}", "convert it: ffmpeg -i FILE FILE.wav")


def is_text(start: bytes) -> bool:
    """Return whether the first bytes of a file are text in UTF-8."""
    text = start.decode("utf-8", "replace").rstrip("\ufffd")  # the last character may be cut
    return "\ufffd" not in text and all(c.isprintable() or c in "\t\n\f\r" for c in text)


def library_reason(error: Exception) -> str:
    """Return libsndfile's own words."""
    return str(getattr(error, "error_string", error)).strip().rstrip(".")


def _next_ogg_stream(descriptor: int, start: int) -> int | None:
    """Return the offset of the first page of the stream that is chained after the one at ``start`` (RFC 3533, 6)."""
    after_first_page = False
    while len(page := os.pread(descriptor, OGG_HEADER_BYTES + 255, start)) > OGG_HEADER_BYTES:
        if page[:4] != b"OggS":
            return None
        begins_stream = bool(page[5] & 2)
        if after_first_page and begins_stream:
            return start
        after_first_page = after_first_page or not begins_stream
        segments = page[26]
        start += OGG_HEADER_BYTES + segments + sum(page[OGG_HEADER_BYTES : OGG_HEADER_BYTES + segments])
    return None


def _unknown_size_offset(descriptor: int) -> int | None:
    """Return the offset of the size of a wav's samples if that size is 0 although samples follow.

    Programs that write into a pipe leave it at 0, and so does a recorder that is cut off.  After a data chunk that
    really is empty, valid chunks follow up to the end of the file.
    """
    file_size = os.fstat(descriptor).st_size
    size_offset = None
    for name, offset, length in _wav_chunks(descriptor):
        if offset >= file_size:
            return None
        is_chunk = offset + 8 + length <= file_size and name.decode("latin-1").isprintable()
        if size_offset and not is_chunk:
            break
        if name == b"data":
            if length:
                return None
            size_offset = offset + 4
    return size_offset


def _wav_chunks(descriptor: int) -> Iterator[tuple[bytes, int, int]]:
    """Yield name, offset and stated bytes of each chunk of a wav, also past its end: the last one may lie."""
    offset = 12
    for _ in range(MAX_CHUNKS):
        name, length = struct.unpack("<4sI", os.pread(descriptor, 8, offset).ljust(8, b"\0"))
        yield name, offset, length
        offset += 8 + length + length % 2


class _FileView:
    """The part of an open file from byte ``first`` on, as a file for libsndfile; before it comes ``header``.

    The four bytes at ``patched`` read as FF: in a wav, "size unknown".
    """

    def __init__(self, descriptor: int, first: int = 0, patched: int | None = None, header: bytes = b"") -> None:
        self.descriptor = descriptor
        self.first = first
        self.header = header
        self.patched = range(patched, patched + 4) if patched else range(0)
        self.position = 0
        self.seek(0)

    def read(self, count: int) -> bytes:
        start = self.position
        data = bytearray(self.header[start : start + count])
        if not data:
            with suppress(OSError):
                data += os.read(self.descriptor, count)
        for offset in self.patched:
            if start <= offset < start + len(data):
                data[offset - start] = 0xFF
        self.seek(start + len(data))
        return bytes(data)

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        if whence == os.SEEK_CUR:
            offset += self.position
        elif whence == os.SEEK_END:
            offset += len(self.header) + os.fstat(self.descriptor).st_size - self.first
        self.position = max(0, offset)
        os.lseek(self.descriptor, self.first + max(0, self.position - len(self.header)), os.SEEK_SET)
        return self.position

    def tell(self) -> int:
        return self.position
