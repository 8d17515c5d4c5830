"""Sound in: files that libsndfile reads, live streams, the write-up's sine, as 16 kHz mono float32 in [-1, 1]."""

from __future__ import annotations

import io
import math
import os
import queue
import select
import stat
import struct
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
import soundfile
import soxr

from .errors import InputError, SetupError
from .host import program

SINE = "1 s sine of 440 Hz"  # what the write-up's input is called
SAMPLE_RATE = 16_000  # Hz, what the model was trained on
LEAST_RATE, LARGEST_RATE = 1000, 1_000_000  # Hz of what is taken for sound
MOST_CHANNELS = 1024  # as libsndfile has it
LOUDEST = 1000  # of float samples, where 1 is full scale: more are integers that were never scaled
BLOCK_SECONDS = 30  # of a file decoded at a time
BLOCK_VALUES = 1 << 24  # the same in samples of all channels, at most
UNKNOWN_FRAMES = 1 << 48  # of a file whose header does not tell its length, libsndfile reports at least so many
HEADER_BYTES, HEADER_CHUNKS = 1 << 26, 10_000  # of a wav, at most
BACKLOG_BYTES = 1 << 23  # that wait of a stream that comes faster than it is said: four minutes of raw PCM
KINDS = {  # of what is no wav, by the first bytes
    b"ID3": "mp3",
    b"fLaC": "flac",
    b"OggS": "ogg",
    b"RIFX": "big-endian wav",
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
WAV_SUBTYPES = {  # (format tag, bits) of a wav -> libsndfile's name
    (1, 8): "PCM_U8",
    (1, 16): "PCM_16",
    (1, 24): "PCM_24",
    (1, 32): "PCM_32",
    (3, 32): "FLOAT",
    (3, 64): "DOUBLE",
    (6, 8): "ALAW",
    (7, 8): "ULAW",
}


def sine() -> np.ndarray:
    """The write-up's test signal: 1 s of 440 Hz at amplitude 0.5, as it computes it.  float32 [16000]."""
    t = np.linspace(0, 1.0, SAMPLE_RATE, dtype=np.float32)
    return 0.5 * np.sin(2 * np.pi * 440 * t).astype(np.float32)


@dataclass(frozen=True)
class AudioInfo:
    """What the header of a file or stream states about its audio."""

    sample_rate: int
    """Hz."""
    channels: int
    format: str
    """The container, as libsndfile names it."""
    seconds: float | None = None
    """Length of the whole file; None where the header does not state it."""


def check_audio(path: str) -> AudioInfo:
    """Read the header of a file, without decoding.

    Raises InputError for a file that is known to be unreadable before a model is loaded.
    """
    with _open(path) as (_, file):
        return _info(file)


def read_audio(source) -> np.ndarray:
    """The whole of ``blocks``: float32 [samples] at 16 kHz."""
    return np.concatenate(list(blocks(source)))


def is_source(value) -> bool:
    """Whether this is one recording, as ``blocks`` takes it, and not a list of them."""
    return isinstance(value, (np.ndarray, str, os.PathLike)) or hasattr(value, "blocks")


def blocks(source) -> Iterator[np.ndarray]:
    """Sound piece by piece, float32 [samples] at 16 kHz: of such samples, a file's path, or an object that has
    ``blocks()`` of its own."""
    if isinstance(source, np.ndarray):
        return pieces(source)
    return source.blocks() if hasattr(source, "blocks") else read_blocks(str(source))


def counted(blocks: Iterable[np.ndarray], on_read: Callable[[float], None]) -> Iterator[np.ndarray]:
    """Yield ``blocks`` unchanged; call ``on_read`` with the seconds of each before it is yielded."""
    for samples in blocks:
        on_read(len(samples) / SAMPLE_RATE)
        yield samples


def read_blocks(
    path: str, offset: float = 0.0, duration: float | None = None, on_open: Callable[[AudioInfo], None] | None = None
) -> Iterator[np.ndarray]:
    """Decode ``path`` piece by piece to float32 [samples] at 16 kHz, in memory that does not grow with its length.

    Channels are averaged, other rates resampled by soxr (HQ).  Only ``duration`` seconds from ``offset`` are read,
    cut to whole samples of the file as NeMo cuts a manifest's entries; None or 0 is all that follow.  ``on_open`` gets
    what ``check_audio`` returns.
    Raises InputError: missing, unreadable, not audio, broken inside, cut while it is read, no samples, an offset behind
    the end, or samples that are not finite.
    """
    with _open(path) as (number, file):
        rate, size = file.samplerate, os.fstat(number).st_size
        if on_open:
            on_open(_info(file))
        if offset and offset * rate >= file.frames:
            raise InputError(f"{path}: an offset of {offset:g} s is behind its end ({file.frames / rate:.3f} s)")
        left = duration * rate if duration else math.inf
        left = int(left) if left < UNKNOWN_FRAMES else math.inf
        convert = Converter(rate)
        count = 0
        for part in _parts(number, file):
            if part.samplerate != rate:
                yield convert.finish()
                left = left * part.samplerate // rate if left < math.inf else left
                rate = part.samplerate
                convert = Converter(rate)
            for samples in _decode(part, path, int(offset * rate) if part is file else 0, left):
                count += len(samples)
                left -= len(samples)
                yield convert(samples)
            if not left:
                break
        if os.fstat(number).st_size < size:
            raise InputError(f"{path}: it was cut short while it was read: wait until it is written, and run again")
        if not count:
            raise InputError(f"{path}: no samples: the file holds a header but no sound")
        yield convert.finish()


def pieces(samples: np.ndarray) -> Iterator[np.ndarray]:
    """Samples at 16 kHz in pieces as long as those of ``read_blocks``."""
    size = BLOCK_SECONDS * SAMPLE_RATE
    return (samples[first : first + size] for first in range(0, len(samples), size))


class Converter:
    """Samples of any rate and number of channels -> 16 kHz mono, piece by piece."""

    def __init__(self, rate: int):
        self.resampler = soxr.ResampleStream(rate, SAMPLE_RATE, 1) if rate != SAMPLE_RATE else None

    def __call__(self, samples: np.ndarray, last: bool = False) -> np.ndarray:
        """float32 [samples, channels] -> float32 [samples'] at 16 kHz, as many as can be given yet."""
        mono = samples.mean(axis=1)
        if self.resampler:
            mono = self.resampler.resample_chunk(mono, last=last)
        return np.ascontiguousarray(mono, dtype=np.float32)

    def finish(self) -> np.ndarray:
        """What the resampler still holds."""
        return self(np.zeros((0, 1), np.float32), last=True)


@dataclass(frozen=True)
class StreamFormat:
    """How the samples of a stream are written."""

    rate: int = SAMPLE_RATE
    channels: int = 1
    subtype: str = "PCM_16"
    """As libsndfile calls it; little-endian."""
    frame_bytes: int = 2
    """Bytes of one sample of all channels."""
    kind: str = "RAW"
    """Of the container, as libsndfile calls it."""

    @property
    def info(self) -> AudioInfo:
        """What ``check_audio`` returns for a file."""
        return AudioInfo(self.rate, self.channels, self.kind)

    def decode(self, data: bytes) -> np.ndarray:
        """Whole samples -> float32 [samples, channels]."""
        kind = {"format": "RAW", "subtype": self.subtype, "endian": "LITTLE"}
        return soundfile.read(
            io.BytesIO(data), samplerate=self.rate, channels=self.channels, dtype="float32", always_2d=True, **kind
        )[0]


class LiveInput:
    """Sound from a pipe: a wav stream, or raw 16-bit little-endian mono PCM.  Iterate for float32 [samples] at 16 kHz.

    A thread reads whatever comes at once, so that a microphone's program never waits and no sample is lost, however
    late the recogniser is.  Of what comes faster than it is said, as from a file, ``BACKLOG_BYTES`` are held.

    Raises SetupError for a terminal; InputError, while it is iterated, for a stream that is neither, has no samples, or
    cannot be read (any more): then after what has come.
    """

    def __init__(self, file_number: int, rate: int | None = None):
        if os.isatty(file_number):
            raise SetupError("-: stdin is a terminal: pipe sound into it, as in arecord -f S16_LE -r 16000 | ...")
        self.file_number = file_number
        self.format = StreamFormat(rate or SAMPLE_RATE)
        self.began: float | None = None
        """When the first bytes came, by time.monotonic()."""
        self.received = 0
        """Bytes so far."""
        self.taken = 0
        """Bytes of them that the recogniser has taken."""
        self.room = threading.Condition()
        self.failure: OSError | None = None
        """What reading ended with, if not with the end."""
        self.pieces: queue.SimpleQueue[bytes] = queue.SimpleQueue()
        self.data, self.ended = bytearray(), False
        threading.Thread(target=self._read, daemon=True).start()

    def _read(self) -> None:
        try:
            while data := self._piece():
                self.began = self.began or time.monotonic()
                self.received += len(data)
                self.pieces.put(data)
                with self.room:  # else an endless file would fill the memory; a speaker cannot wait
                    while self.received - self.taken >= BACKLOG_BYTES and self._seconds > time.monotonic() - self.began:
                        self.room.wait(1)
        except OSError as error:
            self.failure = error
        finally:
            self.stop()  # whatever ends this thread, who waits for more sound is told

    def _piece(self) -> bytes:
        """What comes next; b"" at the end."""
        while True:
            try:
                return os.read(self.file_number, 1 << 16)
            except BlockingIOError:  # another program has set the pipe so
                select.select([self.file_number], [], [])

    def stop(self) -> None:
        """Take no more: iteration ends with what has come until now."""
        self.pieces.put(b"")

    def delay(self, taken: float) -> float:
        """Seconds by which a recogniser that has taken so many seconds of sound is behind a live speaker.

        Sound that comes faster than real time, from a file, is no delay.
        """
        if self.began is None:
            return 0.0
        return min(time.monotonic() - self.began, self._seconds) - taken

    @property
    def _seconds(self) -> float:
        """Of sound received."""
        return self.received / (self.format.frame_bytes * self.format.rate)

    def __iter__(self) -> Iterator[np.ndarray]:
        size = self._begin()
        convert = Converter(self.format.rate)
        count = 0
        while True:
            whole = int(min(len(self.data), size - count))
            whole -= whole % self.format.frame_bytes
            if whole:
                samples = self.format.decode(self._take(whole))
                check_samples(samples, "stdin")
                yield convert(samples)
                count += whole
            if not self._more():
                break
            if count + self.format.frame_bytes > size:  # what follows the sound
                self._take(len(self.data))
        if not count and not self.failure:
            raise InputError("stdin: no samples: nothing was recorded")
        yield convert.finish()
        if self.failure:
            raise InputError(f"stdin: cannot be read: {self.failure.strerror}")

    def _begin(self) -> float:
        """Read the header of a wav, of which raw samples have none, and set ``format``; the bytes of sound to come.

        A wav that is written into a pipe does not know its length: sizes that say so, 0 and from 2 GiB on, mean no end.
        Raises InputError for what is clearly neither wav nor raw samples.
        """
        while len(self.data) < 64 and self._more():
            pass
        name = kind_of(bytes(self.data[:64]))
        if name in ARCHIVES:
            raise InputError(f"stdin: {name}: unpack it first")
        if name:
            raise InputError(f"stdin: {name}: pipe it through ffmpeg -i - -f wav - first")
        if self.data[:4] not in (b"RIFF", b"RF64") or self.data[8:12] != b"WAVE":
            return math.inf
        found, left = None, HEADER_BYTES
        self._take(12)
        for _ in range(HEADER_CHUNKS):
            name, size = self._take(4), int.from_bytes(self._take(4), "little")
            if name == b"data":
                if found is None:
                    raise InputError("stdin: a wav stream without a format")
                self.format = found
                return size if 0 < size < 0x7FFFF000 else math.inf
            left -= size
            if left < 0:
                break
            chunk = self._take(size + size % 2)
            if name == b"fmt ":
                found = _wav_format(chunk)
        raise InputError("stdin: a wav stream whose header does not end")

    def _more(self) -> bool:
        """Wait for more data; False at the end."""
        if not self.ended:
            piece = self.pieces.get()
            self.ended = not piece
            self.data += piece
        return not self.ended

    def _take(self, count: int) -> bytes:
        """The next bytes of the header or of what is there of the sound.  Raises InputError when they do not come."""
        while len(self.data) < count:
            if not self._more():
                why = f"cannot be read: {self.failure.strerror}" if self.failure else "ends inside its header"
                raise InputError(f"stdin: a wav stream that {why}")
        taken = bytes(self.data[:count])
        del self.data[:count]
        with self.room:
            self.taken += count
            self.room.notify()
        return taken


def _wav_format(chunk: bytes) -> StreamFormat:
    """The ``fmt `` chunk of a wav (Microsoft's WAVEFORMATEX and WAVEFORMATEXTENSIBLE)."""
    if len(chunk) < 16:
        raise InputError("stdin: a wav stream with a broken format")
    tag, channels, rate, _, frame_bytes, bits = struct.unpack_from("<HHIIHH", chunk)
    if tag == 0xFFFE and len(chunk) >= 26:
        tag = struct.unpack_from("<H", chunk, 24)[0]
    subtype = WAV_SUBTYPES.get((tag, bits))
    known = subtype and 0 < channels <= MOST_CHANNELS and LEAST_RATE <= rate <= LARGEST_RATE
    if not known or frame_bytes != channels * bits // 8:
        what = f"format {tag}, {bits} bits, {channels} channels, {rate} Hz"
        raise InputError(f"stdin: a wav stream of an unknown kind ({what}): pipe 16-bit PCM")
    return StreamFormat(rate, channels, subtype, frame_bytes, "WAV")


# ---------------------------------------------------------------- files


def open_regular(path: str) -> int:
    """Open a file of known length for reading, and never wait for one: the descriptor.

    Raises InputError for what is missing or may not be read, and for folders, pipes, sockets and devices.
    """
    try:
        mode = os.stat(path).st_mode
        if stat.S_ISDIR(mode):
            raise InputError(f"{path}: is a directory: name the audio files in it")
        if stat.S_ISFIFO(mode):
            raise InputError(f"{path}: is a pipe: sound is taken from stdin too: {program.name} - < PIPE")
        if not stat.S_ISREG(mode):
            raise InputError(f"{path}: is a {'socket' if stat.S_ISSOCK(mode) else 'device'}, not a file")
        return os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)  # it may have become a pipe meanwhile
    except OSError as error:  # missing, no permission, name too long
        raise InputError(f"{path}: {error.strerror or error}") from error
    except ValueError as error:  # NUL, or half of a surrogate pair: from a manifest
        raise InputError(f"{path}: no file can have this name") from error


def kind_of(start: bytes) -> str | None:
    """What is no wav, by its first 64 bytes."""
    start = start.ljust(64, b"\0")
    if start[4:8] == b"ftyp":
        return "mp4"
    if start[:4] == b"RIFF" and start[8:12] == b"AVI ":
        return "avi"
    if start[:1] == b"\xff" and start[1] & 0xE6 == 0xE2 and (b"Xing" in start[4:64] or b"Info" in start[4:64]):
        return "mp3"  # without a tag in front
    return next((name for magic, name in KINDS.items() if start.startswith(magic)), None)


def check_samples(samples: np.ndarray, path: str) -> None:
    """Raises InputError for samples that no recogniser can take."""
    largest = max(samples.max(), -samples.min())  # NaN if one is
    if not np.isfinite(largest):
        raise InputError(f"{path}: samples are not finite (NaN or infinity): write it anew as 16-bit PCM")
    if largest > LOUDEST:
        remedy = "scale them first: ffmpeg -i FILE -af volume=1/32768 FILE.wav"
        raise InputError(f"{path}: samples as large as {largest:.2g}, where 1 is full scale: {remedy}")


@contextmanager
def _open(path: str) -> Iterator[tuple[int, soundfile.SoundFile]]:
    """A file's descriptor, and its sound.  Raises InputError."""
    number = open_regular(path)
    try:
        if not os.fstat(number).st_size:
            raise InputError(f"{path}: the file is empty")
        with _sound(number, path) as file:
            if not _has_rate(file):
                raise InputError(f"{path}: broken header: a sample rate of {file.samplerate} Hz")
            yield number, file
    finally:
        os.close(number)


def _has_rate(file: soundfile.SoundFile) -> bool:
    return LEAST_RATE <= file.samplerate <= LARGEST_RATE


def _sound(number: int, path: str) -> soundfile.SoundFile:
    """What libsndfile makes of an open file.  Raises InputError."""
    try:
        file = soundfile.SoundFile(number, closefd=False)
        if not file.frames and file.format in ("WAV", "WAVEX") and (place := _unknown_length(number)):
            file.close()
            file = soundfile.SoundFile(_Window(number, patched=place))
        return file
    except soundfile.SoundFileError as error:
        reason = _reason(error)
    try:  # some kinds are known by their name alone
        file = soundfile.SoundFile(os.fsencode(path))
        os.lseek(number, 0, os.SEEK_END)
        return file
    except soundfile.SoundFileError as error:
        start = os.pread(number, 4096, 0)
        name = kind_of(start)
        if name in ARCHIVES:
            raise InputError(f"{path}: {name}: unpack it first") from error
        if _is_text(start):
            raise InputError(f"{path}: text, not sound") from error
        name = name or ("wav" if start[8:12] == b"WAVE" else None)
        what = f"{name} that libsndfile does not read" if name else "not audio that libsndfile reads"
        remedy = "make a wav of it first: ffmpeg -i FILE FILE.wav"
        raise InputError(f"{path}: {what} ({reason}): {remedy}") from error


def _decode(file: soundfile.SoundFile, path: str, first: int, left: float) -> Iterator[np.ndarray]:
    """float32 [samples, channels] from sample ``first`` on, ``left`` of them at most, piece by piece."""
    size = min(BLOCK_SECONDS * file.samplerate, BLOCK_VALUES // file.channels)
    count = 0
    try:
        if first and file.seekable():
            file.seek(first)
        elif first:  # GSM and other codecs of telephones
            for _ in _decode(file, path, 0, first):
                pass
        while left > count and len(samples := file.read(min(size, left - count), dtype="float32", always_2d=True)):
            check_samples(samples, path)
            count += len(samples)
            yield samples
    except soundfile.SoundFileError as error:
        after = f" after {(first + count) / file.samplerate:.1f} s" if first + count else ""
        remedy = "ffmpeg -i FILE FILE.wav makes a wav of what can be read"
        raise InputError(f"{path}: broken audio{after}: {_reason(error)}: {remedy}") from error


def _parts(number: int, file: soundfile.SoundFile) -> Iterator[soundfile.SoundFile]:
    """``file``, and the sounds behind what libsndfile takes for its end: of Ogg streams that are chained, and of an mp3
    that is longer than its first frame lets expect, as several joined into one are."""
    yield file
    start = 0
    while start := _next_part(number, file.format, start):
        try:
            part = soundfile.SoundFile(_Window(number, start))
        except soundfile.SoundFileError:
            return  # tags
        with part:
            if part.format != file.format or not _has_rate(part):
                return
            yield part


def _next_part(number: int, format: str, start: int) -> int | None:
    """Where the sound goes on behind that which began at ``start`` and has been read."""
    if format == "MP3":
        at = os.lseek(number, 0, os.SEEK_CUR)
        return at if start < at < os.fstat(number).st_size else None
    inside = False
    while format == "OGG" and (page := os.pread(number, 27 + 255, start))[:4] == b"OggS" and len(page) > 27:
        if inside and page[5] & 2:  # the first page of another stream (RFC 3533, 6)
            return start
        inside = inside or not page[5] & 2
        start += 27 + page[26] + sum(page[27 : 27 + page[26]])
    return None


def _unknown_length(number: int) -> int | None:
    """Where a wav has the size of its sound, if that is 0 and sound follows: it came from a pipe, or its recorder was
    cut off.  What may follow an empty sound are chunks up to the end."""
    size, at, place = os.fstat(number).st_size, 12, None
    for _ in range(HEADER_CHUNKS):
        if at >= size:
            return None
        name, length = struct.unpack("<4sI", os.pread(number, 8, at).ljust(8, b"\0"))
        if place and (at + 8 + length > size or not name.decode("latin-1").isprintable()):
            break
        if name == b"data":
            if length:
                return None
            place = at + 4
        at += 8 + length + length % 2
    return place


def _is_text(start: bytes) -> bool:
    text = start.decode("utf-8", "replace").rstrip("\ufffd")  # the end may be half a character
    return "\ufffd" not in text and all(c.isprintable() or c in "\t\n\f\r" for c in text)


class _Window:
    """What libsndfile is to read of an open file: from byte ``first`` on, with FF for the four bytes at ``patched``."""

    def __init__(self, number: int, first: int = 0, patched: int | None = None):
        self.number, self.first, self.patched = number, first, patched
        os.lseek(number, first, os.SEEK_SET)

    def read(self, count: int) -> bytes:
        at = self.tell()
        try:
            data = bytearray(os.read(self.number, count))
        except OSError:
            return b""
        for place in range(self.patched or 0, self.patched + 4 if self.patched else 0):
            if at <= place < at + len(data):
                data[place - at] = 0xFF
        return bytes(data)

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        os.lseek(self.number, offset + (self.first if whence == os.SEEK_SET else 0), whence)
        return self.tell()

    def tell(self) -> int:
        return os.lseek(self.number, 0, os.SEEK_CUR) - self.first


def _info(file: soundfile.SoundFile) -> AudioInfo:
    known = file.frames < UNKNOWN_FRAMES
    seconds = file.frames / file.samplerate if known else None
    return AudioInfo(file.samplerate, file.channels, file.format, seconds)


def _reason(error: Exception) -> str:
    return str(getattr(error, "error_string", error)).strip().rstrip(".")
