"""Sound in: files that libsndfile reads, live streams, the write-up's sine, as 16 kHz mono float32 in [-1, 1]."""

from __future__ import annotations

import io
import math
import os
import queue
import struct
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
import soundfile
import soxr

from .errors import InputError, SetupError

SINE = "1 s sine of 440 Hz"  # what the write-up's input is called
SAMPLE_RATE = 16_000  # Hz, what the model was trained on
HEADER_BYTES = 1 << 24  # of a wav stream, at most
BACKLOG_BYTES = 1 << 23  # that wait of a stream that comes faster than it is said: four minutes of raw sound
BACKLOG_SECONDS = 0.05  # between two looks whether there is room again
BLOCK_SECONDS = 30  # of a file decoded at a time
UNKNOWN_FRAMES = 1 << 48  # of a file whose header does not tell its length, libsndfile reports at least so many
OTHER_KINDS = {  # of streams, by their first bytes
    b"ID3": "mp3",
    b"fLaC": "flac",
    b"OggS": "ogg",
    b"RIFX": "big-endian wav",
    b"FORM": "aiff",
    b".snd": "au",
    b"caff": "caf",
    b"riff": "w64",
    b"\x1aE\xdf\xa3": "matroska or webm",
}
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


def check_audio(path: str) -> dict:
    """Look at the header only: ``sample_rate`` (Hz), ``channels``, ``format`` and ``seconds`` (None: it does not tell).

    Raises InputError for what can be known to be unreadable before a model is loaded.
    """
    with _open(path) as file:
        return _facts(file)


def read_audio(source) -> np.ndarray:
    """The whole of ``blocks``: float32 [samples] at 16 kHz."""
    return np.concatenate(list(blocks(source)))


def blocks(source) -> Iterator[np.ndarray]:
    """Sound piece by piece, float32 [samples] at 16 kHz: of such samples, a file's path, or an object that has
    ``blocks()`` of its own."""
    if isinstance(source, np.ndarray):
        return pieces(source)
    return source.blocks() if hasattr(source, "blocks") else read_blocks(str(source))


def read_blocks(
    path: str, offset: float = 0.0, duration: float | None = None, opened: Callable[[dict], None] | None = None
) -> Iterator[np.ndarray]:
    """Decode ``path`` piece by piece to float32 [samples] at 16 kHz, in memory that does not grow with its length.

    Channels are averaged, other rates resampled by soxr (HQ).  Only ``duration`` seconds from ``offset`` are read,
    cut to whole samples of the file as NeMo cuts a manifest's entries; None or 0 is all that follow.  ``opened`` is
    told what ``check_audio`` returns.
    Raises InputError: missing, unreadable, not audio, broken inside, no samples, an offset behind the end, or samples
    that are not finite.
    """
    with _open(path) as file:
        rate = file.samplerate
        if opened:
            opened(_facts(file))
        if first := int(offset * rate):
            if first >= file.frames:
                raise InputError(f"{path}: an offset of {offset:g} s is behind its end ({file.frames / rate:.3f} s)")
            file.seek(first)
        left = int(duration * rate) if duration else math.inf
        convert = Converter(rate)
        count = 0
        while left:
            try:
                samples = file.read(min(BLOCK_SECONDS * rate, left), dtype="float32", always_2d=True)
            except soundfile.SoundFileError as error:
                raise InputError(f"{path}: broken audio: {_reason(error)}") from error
            if not len(samples):
                break
            if not np.isfinite(samples).all():
                raise InputError(f"{path}: samples are not finite (NaN or infinity): export the file again")
            count += len(samples)
            left -= len(samples)
            yield convert(samples)
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

    def facts(self) -> dict:
        """As ``check_audio`` has them of a file."""
        return {"sample_rate": self.rate, "channels": self.channels, "format": self.kind, "seconds": None}

    def decode(self, data: bytes) -> np.ndarray:
        """Whole samples -> float32 [samples, channels]."""
        kind = {"format": "RAW", "subtype": self.subtype, "endian": "LITTLE"}
        return soundfile.read(
            io.BytesIO(data), samplerate=self.rate, channels=self.channels, dtype="float32", always_2d=True, **kind
        )[0]


class LiveInput:
    """Sound from a pipe: a wav stream, or raw 16-bit little-endian mono PCM.  Iterate for float32 [samples] at 16 kHz.

    A thread reads whatever comes at once, so that a microphone's program does not wait and no sample is lost, however
    late the recogniser is.  Of what comes faster than it is said, as from a file, ``BACKLOG_BYTES`` are held.

    Raises SetupError for a terminal; InputError, while it is iterated, for a stream that is neither, has no samples, or
    cannot be read (any more).
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
        self.failure: OSError | None = None
        """What reading ended with, if not with the end."""
        self.pieces: queue.SimpleQueue[bytes] = queue.SimpleQueue()
        threading.Thread(target=self._read, daemon=True).start()

    def _read(self) -> None:
        try:
            while data := os.read(self.file_number, 1 << 16):
                self.began = self.began or time.monotonic()
                self.received += len(data)
                self.pieces.put(data)
                while self.received - self.taken > BACKLOG_BYTES and self._seconds > time.monotonic() - self.began:
                    time.sleep(BACKLOG_SECONDS)
        except OSError as error:
            self.failure = error
        finally:
            self.stop()  # whatever ends this thread, who waits for more sound is told

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
        pieces = iter(self._take, b"")
        data, header = b"", None
        while header is None and (piece := next(pieces, b"")):
            data += piece
            header = _stream_header(data, self.format)
            if header is None and len(data) > HEADER_BYTES:
                raise InputError("stdin: a wav stream whose header does not end")
        if header is None and len(data) >= 12 and not self.failure:
            raise InputError("stdin: a wav stream that ends inside its header")
        start, size, self.format = header or (0, math.inf, self.format)
        data = data[start:]
        convert = Converter(self.format.rate)
        count = 0
        while True:
            whole = int(min(len(data), size - count))
            whole -= whole % self.format.frame_bytes
            if whole:
                samples = self.format.decode(data[:whole])
                if not np.isfinite(samples).all():
                    raise InputError("stdin: samples are not finite (NaN or infinity)")
                yield convert(samples)
                count += whole
            data = data[whole:]
            piece = next(pieces, b"")
            if not piece:
                break
            data += piece
        if not count and not self.failure:
            raise InputError("stdin: no samples: nothing was recorded")
        yield convert.finish()
        if self.failure:
            raise InputError(f"stdin: cannot be read: {self.failure.strerror}")

    def _take(self) -> bytes:
        piece = self.pieces.get()
        self.taken += len(piece)
        return piece


def _stream_header(data: bytes, raw: StreamFormat) -> tuple[int, float, StreamFormat] | None:
    """(first byte of the sound, bytes of it, its format) of a stream that begins with ``data``; None: more is needed.

    A wav that is written into a pipe does not know its length: sizes that say so, 0 and from 2 GiB on, mean no end.
    Raises InputError for what is clearly neither wav nor raw samples.
    """
    if len(data) < 12:
        return None
    name = next((name for magic, name in OTHER_KINDS.items() if data.startswith(magic)), None)
    if data[4:8] == b"ftyp":
        name = "mp4"
    elif data[0] == 0xFF and data[1] & 0xE6 == 0xE2 and (b"Xing" in data[4:64] or b"Info" in data[4:64]):
        name = "mp3"  # without a tag in front
    if name:
        raise InputError(f"stdin: {name}: pipe it through ffmpeg -i - -f wav - first")
    if data[:4] not in (b"RIFF", b"RF64") or data[8:12] != b"WAVE":
        return 0, math.inf, raw
    at, found = 12, None
    while at + 8 <= len(data):
        name, size = data[at : at + 4], int.from_bytes(data[at + 4 : at + 8], "little")
        at += 8
        if name == b"data":
            if found is None:
                raise InputError("stdin: a wav stream without a format")
            return at, size if 0 < size < 0x7FFFF000 else math.inf, found
        if name == b"fmt " and at + size <= len(data):
            found = _wav_format(data[at : at + size])
        at += size + size % 2
    return None


def _wav_format(chunk: bytes) -> StreamFormat:
    """The ``fmt `` chunk of a wav (Microsoft's WAVEFORMATEX and WAVEFORMATEXTENSIBLE)."""
    if len(chunk) < 16:
        raise InputError("stdin: a wav stream with a broken format")
    tag, channels, rate, _, frame_bytes, bits = struct.unpack_from("<HHIIHH", chunk)
    if tag == 0xFFFE and len(chunk) >= 26:
        tag = struct.unpack_from("<H", chunk, 24)[0]
    subtype = WAV_SUBTYPES.get((tag, bits))
    if subtype is None or not channels or not 1000 <= rate <= 1_000_000 or frame_bytes != channels * bits // 8:
        raise InputError(f"stdin: a wav stream of an unknown kind (format {tag}, {bits} bits): pipe 16-bit PCM")
    return StreamFormat(rate, channels, subtype, frame_bytes, "WAV")


def _open(path: str) -> soundfile.SoundFile:
    if os.path.isdir(path):
        raise InputError(f"{path}: is a directory: name the audio files in it")
    try:
        if os.stat(path).st_size == 0:
            raise InputError(f"{path}: the file is empty")
        return soundfile.SoundFile(os.fsencode(path))  # soundfile itself fails on names that are not text
    except OSError as error:  # missing, no permission, name too long
        raise InputError(f"{path}: {error.strerror or error}") from error
    except soundfile.SoundFileError as error:
        if not os.access(path, os.R_OK):
            raise InputError(f"{path}: Permission denied") from error
        raise InputError(
            f"{path}: not audio that libsndfile reads ({_reason(error)}): convert it to wav or flac first"
        ) from error


def _facts(file: soundfile.SoundFile) -> dict:
    known = file.frames < UNKNOWN_FRAMES
    return {
        "sample_rate": file.samplerate,
        "channels": file.channels,
        "format": file.format,
        "seconds": file.frames / file.samplerate if known else None,
    }


def _reason(error: Exception) -> str:
    return str(getattr(error, "error_string", error)).strip().rstrip(".")
