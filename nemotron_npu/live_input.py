"""Live audio from a pipe: a wav stream, or raw PCM."""

from __future__ import annotations

import io
import math
import os
import queue
import select
import struct
import subprocess
import threading
import time
from collections.abc import Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from typing import IO

import numpy as np
import soundfile

from .audio import DEFAULT, SAMPLE_RATE, AudioInfo, Mixer, Part, Resampler, Selection, check_samples, no_track
from .containers import (
    ARCHIVES,
    BIG_ENDIAN,
    MAX_CHUNKS,
    MAX_RATE,
    MIN_RATE,
    SNIFF_BYTES,
    ForeignFormat,
    identify,
    is_text,
)
from .errors import InputError, SetupError
from .media import is_media, open_media
from .media_pipe import MAX_CHANNELS

READ_BYTES = 1 << 16  # what a pipe holds
PROBE_BYTES = 1 << 14  # in which a decoder looks for a format without a signature: 0.5 s of raw PCM
BACKLOG_BYTES = 1 << 23  # held of a stream that is faster than real time: four minutes of raw PCM
MAX_HEADER_BYTES = 1 << 26  # of a wav
MAX_KNOWN_SIZE = 0x7FFFF000  # a wav that is written into a pipe states 0, or this and more, for "unknown"
EXTENSIBLE = 0xFFFE  # format tag of a WAVEFORMATEXTENSIBLE
SUBTYPES = {  # (format tag, bits) of a wav -> libsndfile's name
    (1, 8): "PCM_U8",
    (1, 16): "PCM_16",
    (1, 24): "PCM_24",
    (1, 32): "PCM_32",
    (3, 32): "FLOAT",
    (3, 64): "DOUBLE",
    (6, 8): "ALAW",
    (7, 8): "ULAW",
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


class LiveInput:
    """Audio from a pipe: a wav stream, what PyAV decodes, or raw 16-bit little-endian mono PCM.

    Iterate over it for blocks, float32 [samples] at 16 kHz.  A thread reads the pipe all the time, so that the program
    of a microphone never waits and no sample is lost, however late transcription is.  Of a stream that is faster than
    real time, for instance from a file, it holds at most ``BACKLOG_BYTES``.

    Bytes are raw PCM at ``rate`` (Hz, default 16 kHz) where no format is found in them, or where ``raw`` states it.
    ``selection`` is what is taken of the stream.
    Raises SetupError for a terminal.  Iteration raises InputError for a stream that cannot be decoded or has no
    samples; for one that cannot be read (any more) it does so after the blocks that have arrived.
    """

    name = "stdin"
    """The stream, for messages."""

    def __init__(
        self, descriptor: int, rate: int | None = None, *, raw: bool = False, selection: Selection = DEFAULT
    ) -> None:
        if os.isatty(descriptor):
            raise SetupError("-", "stdin is a terminal", "pipe audio into it: arecord -f S16_LE -r 16000 | ...")
        self.descriptor = descriptor
        self.format = StreamFormat(rate or SAMPLE_RATE)
        self.raw = raw
        self.mixer = Mixer(self.name, selection.channel)
        self.track = selection.track
        self.started: float | None = None
        """time.monotonic() at the arrival of the first bytes."""
        self.received = 0
        """Bytes that have been read from the pipe."""
        self.taken = 0
        """Bytes of these that the consumer has taken."""
        self.backlog = threading.Condition()
        """Guards ``taken`` for the thread that waits until the backlog is smaller."""
        self.failure: OSError | None = None
        """The error that ended reading, if any."""
        self.arrived: queue.SimpleQueue[bytes] = queue.SimpleQueue()
        """Data from the thread, in order; b"" at the end."""
        self.data = bytearray()
        """Data that the consumer has received and not yet used."""
        self.ended = False
        self.is_stopped = False
        threading.Thread(target=self._read, daemon=True).start()

    def stop(self) -> None:
        """Accept no more audio: iteration ends with what has arrived until now."""
        self.is_stopped = True
        self.arrived.put(b"")

    def delay(self, taken: float) -> float:
        """Return the seconds by which transcription is behind a live speaker once it has taken ``taken`` seconds.

        Audio that arrives faster than real time, from a file, is no delay.
        """
        if self.started is None:
            return 0.0
        return min(time.monotonic() - self.started, self._received_seconds) - taken

    def __iter__(self) -> Iterator[np.ndarray]:
        if container := self._find_container():
            yield from self._decode_media(container)
            return
        if self.track > 1:
            raise no_track("stdin", self.track)
        size = self._read_header()
        frame_bytes = self.format.frame_bytes
        resampler = Resampler(self.format.sample_rate)
        decoded = 0  # bytes
        while True:
            available = int(min(len(self.data), size - decoded))
            available -= available % frame_bytes
            if available:
                samples = self.format.decode(self._take(available))
                check_samples(samples, self.name)
                yield resampler(self.mixer(samples))
                decoded += available
            if not self._receive():
                break
            if decoded + frame_bytes > size:  # chunks after the samples
                self._take(len(self.data))
        if not decoded and not self.failure:
            raise InputError(self.name, "no audio samples arrived", "check the program that writes into the pipe")
        yield resampler.finish()
        if self.failure:
            raise InputError(self.name, f"cannot be read: {self.failure.strerror}")
        if decoded + frame_bytes <= size < math.inf and not self.is_stopped:
            seconds = [count / frame_bytes / self.format.sample_rate for count in (decoded, size)]
            raise InputError(self.name, f"breaks off after {seconds[0]:.1f} of {seconds[1]:.1f} s")

    # ------------------------------------------------------------------ the thread that reads

    def _read(self) -> None:
        try:
            while data := self._next_data():
                if self.started is None:
                    self.started = time.monotonic()
                self.received += len(data)
                self.arrived.put(data)
                with self.backlog:
                    while self._must_wait():
                        self.backlog.wait(1)
        except OSError as error:
            self.failure = error
        finally:
            self.arrived.put(b"")  # whatever ends this thread, the consumer must not wait for more

    def _next_data(self) -> bytes:
        """Return what arrives next; b"" at the end."""
        while True:
            try:
                return os.read(self.descriptor, READ_BYTES)
            except BlockingIOError:  # another program has set the pipe to non-blocking
                select.select([self.descriptor], [], [])

    def _must_wait(self) -> bool:
        """Whether an endless file would fill the memory.  A live speaker cannot be made to wait."""
        if self.received - self.taken < BACKLOG_BYTES or self.started is None:
            return False
        return self._received_seconds > time.monotonic() - self.started

    @property
    def _received_seconds(self) -> float:
        return self.received / (self.format.frame_bytes * self.format.sample_rate)

    # ------------------------------------------------------------------ the consumer

    def _receive(self) -> bool:
        """Wait for more data; return False at the end."""
        if not self.ended:
            data = self.arrived.get()
            self.ended = not data
            self.data += data
            with self.backlog:
                self.taken += len(data)
                self.backlog.notify()
        return not self.ended

    def _take(self, count: int) -> bytes:
        """Return the next ``count`` bytes and drop them.  Raises InputError if the stream ends before."""
        while len(self.data) < count:
            if not self._receive():
                reason = "stream ends inside the wav header"
                if self.failure:
                    reason = f"cannot be read: {self.failure.strerror}"
                raise InputError(self.name, reason)
        taken = bytes(self.data[:count])
        del self.data[:count]
        return taken

    def _find_container(self) -> str | None:
        """Return what PyAV is to decode; None for wav and raw PCM.  Raises InputError for an archive and for text."""
        if self.raw:
            return None
        self._wait_for(SNIFF_BYTES)
        start = bytes(self.data[:SNIFF_BYTES])
        container = identify(start)
        if container in ARCHIVES:
            raise InputError(self.name, f"is {container} data", "unpack it first")
        if container == BIG_ENDIAN:  # ffmpeg 8 takes its samples for little-endian ones
            raise InputError(self.name, f"unsupported {container} stream", "convert it: sox - -t wav -")
        if container or _is_wav(start):
            return container
        self._wait_for(PROBE_BYTES)
        start = bytes(self.data[:READ_BYTES])
        if len(start) >= SNIFF_BYTES and is_text(start):
            raise InputError(self.name, "is text, not audio")
        return "audio" if is_media(start) else None

    def _decode_media(self, container: str) -> Iterator[np.ndarray]:
        try:
            yield from self._media_blocks()
        except ForeignFormat as error:
            hint = "convert it: ffmpeg -i - -f wav -"
            raise InputError(self.name, f"unsupported {container} stream", hint) from error

    def _media_blocks(self) -> Iterator[np.ndarray]:
        with open_media(subprocess.PIPE, self.name, self.track) as media:
            threading.Thread(target=self._pass_on, args=(media.process.stdin,), daemon=True).start()
            info = media.info
            self.format = StreamFormat(info.sample_rate, info.channels, container=info.format)
            yield from Part(self.name, info.sample_rate).cut(media.blocks(), self.mixer)
        if self.failure:
            raise InputError(self.name, f"cannot be read: {self.failure.strerror}")

    def _pass_on(self, pipe: IO[bytes]) -> None:
        """Write the stream into the decoder; a thread of its own does."""
        with suppress(OSError), pipe:  # it may have ended
            while self.data or self._receive():
                pipe.write(self._take(len(self.data)))
                pipe.flush()

    def _wait_for(self, count: int) -> None:
        """Wait until the consumer has so many bytes, or the stream ends."""
        while len(self.data) < count and self._receive():
            pass

    def _read_header(self) -> float:
        """Set ``format`` from the header of a wav, which raw PCM lacks; return the bytes of the samples to come."""
        if self.raw or not _is_wav(bytes(self.data[:SNIFF_BYTES])):
            return math.inf
        self._take(12)
        return self._read_chunks() or math.inf

    def _read_chunks(self) -> int:
        """Read the chunks before a wav's samples, set ``format``; return the bytes of the samples, 0 if unknown."""
        found = None
        real_size = 0  # of the samples, in an RF64
        left = MAX_HEADER_BYTES
        for _ in range(MAX_CHUNKS):
            name = self._take(4)
            size = int.from_bytes(self._take(4), "little")
            if name == b"data":
                if found is None:
                    raise InputError(self.name, "wav stream without a fmt chunk")
                self.format = found
                return real_size or (size if size < MAX_KNOWN_SIZE else 0)
            left -= size
            if left < 0:
                break
            chunk = self._take(size + size % 2)
            if name == b"ds64" and len(chunk) >= 16:  # EBU Tech 3306
                (real_size,) = struct.unpack_from("<Q", chunk, 8)
            if name == b"fmt ":
                found = _parse_format(chunk, self.name)
        raise InputError(self.name, "wav header that does not end")


def _is_wav(start: bytes) -> bool:
    return start[:4] in (b"RIFF", b"RF64") and start[8:12] == b"WAVE"


def _parse_format(chunk: bytes, name: str) -> StreamFormat:
    """Parse the ``fmt `` chunk of the wav ``name`` (Microsoft's WAVEFORMATEX and WAVEFORMATEXTENSIBLE)."""
    if len(chunk) < 16:
        raise InputError(name, "broken fmt chunk in the wav stream")
    tag, channels, rate, _, frame_bytes, bits = struct.unpack_from("<HHIIHH", chunk)
    if tag == EXTENSIBLE and len(chunk) >= 26:
        (tag,) = struct.unpack_from("<H", chunk, 24)
    subtype = SUBTYPES.get((tag, bits))
    is_valid = 0 < channels <= MAX_CHANNELS and MIN_RATE <= rate <= MAX_RATE and frame_bytes == channels * bits // 8
    if subtype is None or not is_valid:
        problem = f"unsupported wav stream: format {tag}, {bits} bits, {channels} channels, {rate} Hz"
        raise InputError(name, problem, "pipe 16-bit PCM")
    return StreamFormat(rate, channels, subtype, frame_bytes, "WAV")


def with_silence(blocks: Iterable[np.ndarray], seconds: float) -> Iterator[np.ndarray | None]:
    """Yield ``blocks``, and None once each time that none has come for ``seconds``; 0: never.

    A thread waits for the next block.  An error of ``blocks`` is raised here.
    """
    if not seconds:
        yield from blocks
        return
    arrived: queue.Queue[np.ndarray | Exception | None] = queue.Queue(1)  # None: the end

    def take() -> None:
        try:
            for block in blocks:
                arrived.put(block)
            arrived.put(None)
        except Exception as error:
            arrived.put(error)

    threading.Thread(target=take, daemon=True).start()
    is_silent = False
    while True:
        try:
            item = arrived.get(timeout=None if is_silent else seconds)
        except queue.Empty:
            is_silent = True
            yield None
            continue
        if item is None:
            return
        if isinstance(item, Exception):
            raise item
        is_silent = False
        yield item
