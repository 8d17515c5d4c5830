"""The header of a wav that arrives through a pipe, before its end is known."""

from __future__ import annotations

import io
import re
import struct
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import soundfile

from .audio import SAMPLE_RATE, AudioInfo
from .containers import MAX_CHUNKS, MAX_RATE, MIN_RATE, ForeignFormat
from .errors import InputError
from .media_pipe import MAX_CHANNELS

HEADER = re.compile(rb"(?:RIFF|RF64|BW64).{4}WAVE", re.DOTALL)
HEADER_BYTES = 12  # that HEADER matches
MAX_HEADER_BYTES = 1 << 26
MAX_KNOWN_SIZE = 0x7FFFF000  # a wav that is written into a pipe states 0, or this and more, for "unknown"
EXTENSIBLE = 0xFFFE  # format tag of a WAVEFORMATEXTENSIBLE
SUBTYPES = {  # (format tag, bytes of a sample) -> libsndfile's name
    (1, 1): "PCM_U8",
    (1, 2): "PCM_16",
    (1, 3): "PCM_24",
    (1, 4): "PCM_32",
    (3, 4): "FLOAT",
    (3, 8): "DOUBLE",
    (6, 1): "ALAW",
    (7, 1): "ULAW",
}


@dataclass(frozen=True)
class StreamFormat:
    """How the samples of a stream are encoded: little-endian, channels interleaved."""

    sample_rate: int = SAMPLE_RATE
    channels: int = 1
    subtype: str = "PCM_16"
    """The encoding of a sample, as libsndfile names it."""
    frame_bytes: int = 2
    """Bytes of one sample of all channels."""
    container: str = "RAW"
    """As libsndfile names it."""

    @property
    def info(self) -> AudioInfo:
        """What ``check_audio`` returns for a file."""
        return AudioInfo(self.sample_rate, self.channels, self.container)

    def decode(self, data: bytes) -> np.ndarray:
        """Decode whole samples to float32 [samples, channels]."""
        samples, _ = soundfile.read(
            io.BytesIO(data),
            samplerate=self.sample_rate,
            channels=self.channels,
            dtype="float32",
            always_2d=True,
            format="RAW",
            subtype=self.subtype,
            endian="LITTLE",
        )
        return samples


@dataclass(frozen=True)
class Header:
    """Everything before the samples of a wav."""

    format: StreamFormat
    length: int
    """Of the header, bytes."""
    size: int
    """Of the samples, bytes; 0 if it is not known."""


def read_header(peek: Callable[[int, int], bytes], name: str) -> Header:
    """Read the chunks before the samples; ``peek(offset, count)`` returns bytes of the wav ``name``, or raises.

    Raises InputError; ForeignFormat for an encoding that another decoder may know.
    """
    layout = None
    real_size = 0  # of the samples, in an RF64
    offset = HEADER_BYTES
    for _ in range(MAX_CHUNKS):
        kind = peek(offset, 4)
        size = int.from_bytes(peek(offset + 4, 4), "little")
        offset += 8
        if kind == b"data":
            if layout is None:
                raise InputError(name, "wav stream without a fmt chunk")
            size = max(0, real_size) or (size if size < MAX_KNOWN_SIZE else 0)
            return Header(_parse_format(layout, name), offset, size)
        if offset + size > MAX_HEADER_BYTES:
            break
        chunk = peek(offset, size + size % 2)
        offset += len(chunk)
        if kind == b"ds64" and len(chunk) >= 16:  # EBU Tech 3306
            (real_size,) = struct.unpack_from("<q", chunk, 8)  # -1 states that it is not known
        if kind == b"fmt ":
            layout = chunk
    raise InputError(name, "wav header that does not end")


def _parse_format(chunk: bytes, name: str) -> StreamFormat:
    """Parse the ``fmt `` chunk (Microsoft's WAVEFORMATEX and WAVEFORMATEXTENSIBLE)."""
    if len(chunk) < 16:
        raise InputError(name, "broken fmt chunk in the wav stream")
    tag, channels, rate, _, frame_bytes, bits = struct.unpack_from("<HHIIHH", chunk)
    if tag == EXTENSIBLE and len(chunk) >= 26:
        (tag,) = struct.unpack_from("<H", chunk, 24)
    is_valid = 0 < channels <= MAX_CHANNELS and MIN_RATE <= rate <= MAX_RATE
    # Samples fill whole bytes, the upper bits first: 20 bits lie in 24 or 32, and 24 may lie in 32.
    width, rest = divmod(frame_bytes, max(1, channels))
    subtype = SUBTYPES.get((tag, width))
    problem = f"unsupported wav stream: format {tag}, {bits} bits, {channels} channels, {rate} Hz"
    if not is_valid:
        raise InputError(name, problem, "pipe 16-bit PCM")
    if subtype is None or rest or not 0 < bits <= 8 * width:
        raise ForeignFormat(name, problem, "pipe 16-bit PCM")
    return StreamFormat(rate, channels, subtype, frame_bytes, "WAV")


def held_back(data: bytes | bytearray) -> int:
    """Return how many bytes at the end of ``data`` may be the beginning of a header."""
    tail = data[1 - HEADER_BYTES :]
    beginning = re.search(rb"[RB]", tail)
    return len(tail) - beginning.start() if beginning else 0
