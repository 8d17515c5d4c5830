"""Live audio from a pipe: a wav stream, or raw PCM."""

from __future__ import annotations

import math
import os
import queue
import select
import subprocess
import threading
import time
from collections.abc import Iterable, Iterator
from contextlib import suppress
from dataclasses import replace
from typing import IO

import numpy as np

from .audio import CANCELS, DEFAULT, SAMPLE_RATE, AudioInfo, Mixer, Part, Selection, no_track
from .containers import (
    ARCHIVES,
    BIG_ENDIAN,
    SNIFF_BYTES,
    ForeignFormat,
    identify,
    is_text,
)
from .errors import InputError, SetupError
from .media import is_media, open_media
from .wav_stream import HEADER, HEADER_BYTES, Header, StreamFormat, held_back, read_header

READ_BYTES = 1 << 16  # what a pipe holds
PROBE_BYTES = 1 << 14  # in which a decoder looks for a format without a signature: 0.5 s of raw PCM
BACKLOG_BYTES = 1 << 23  # held of a stream that is faster than real time: four minutes of raw PCM


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
        self.header: Header | None = None
        """Of the first wav, if the stream is one that is decoded here."""
        self.ended = False
        self.is_stopped = False
        self.cut_off: str | None = None
        """How much of a wav has arrived, if not all that its header states."""
        threading.Thread(target=self._read, daemon=True).start()

    @property
    def info(self) -> AudioInfo:
        """What is known of the stream by now."""
        info = self.format.info
        return replace(info, remark=CANCELS) if self.mixer.cancels else info

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
        blocks = self._wav_blocks(self.header) if self.header else self._pcm_blocks()
        yield from Part(self.name, self.format.sample_rate).cut(self._checked(blocks), self.mixer)
        self._raise_failure()
        if self.cut_off and not self.is_stopped:
            raise InputError(self.name, f"ends after {self.cut_off}")

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
        """Return the next ``count`` bytes, which have been received, and drop them."""
        taken = bytes(self.data[:count])
        del self.data[:count]
        return taken

    def _peek(self, offset: int, count: int) -> bytes:
        """Return bytes of a wav's header without dropping them.  Raises InputError if the stream ends before."""
        self._wait_for(offset + count)
        if len(self.data) < offset + count:
            self._raise_failure()
            raise InputError(self.name, "stream ends inside the wav header")
        return bytes(self.data[offset : offset + count])

    def _raise_failure(self) -> None:
        """Raise InputError if the stream could not be read to its end."""
        if self.failure:
            raise InputError(self.name, f"cannot be read: {self.failure.strerror}")

    def _checked(self, blocks: Iterator[tuple[int, np.ndarray]]) -> Iterator[tuple[int, np.ndarray]]:
        """Yield ``blocks``.  Raises InputError if there are none."""
        is_empty = True
        for block in blocks:
            is_empty = False
            yield block
        if is_empty:
            self._raise_failure()
            raise InputError(self.name, "no audio samples arrived", "check the program that writes into the pipe")

    def _wav_blocks(self, header: Header | None) -> Iterator[tuple[int, np.ndarray]]:
        """Yield rate (Hz) and samples, float32 [samples, channels], of every wav in the stream, from ``header`` on."""
        while header:
            self._take(header.length)
            self.format = header.format
            yield from self._pcm_blocks(header.size or math.inf, is_wav=True)
            header = self._next_header()

    def _pcm_blocks(self, size: float = math.inf, *, is_wav: bool = False) -> Iterator[tuple[int, np.ndarray]]:
        """Yield rate and samples from ``size`` bytes, of a wav only up to the header of the next one.

        Some recorders begin each of their chunks with a header, of a length that nobody knows.
        """
        frame_bytes = self.format.frame_bytes
        left = size
        while left >= frame_bytes:
            following = HEADER.search(self.data) if is_wav else None
            end = len(self.data)
            if following:
                end = following.start()
            elif is_wav and not self.ended:
                end -= held_back(self.data)
            available = int(min(end, left)) // frame_bytes * frame_bytes
            if available:
                yield self.format.sample_rate, self.format.decode(self._take(available))
                left -= available
            elif following:
                return
            elif self.ended:
                self._note_cut_off(size - left, size)
                return
            else:
                self._receive()

    def _note_cut_off(self, received: float, size: float) -> None:
        if size < math.inf:
            seconds = [count / self.format.frame_bytes / self.format.sample_rate for count in (received, size)]
            self.cut_off = f"{seconds[0]:.1f} of {seconds[1]:.1f} s"

    def _next_header(self) -> Header | None:
        """Drop what is before the header of the next wav, for instance titles, and read it; None if there is none."""
        while not (start := HEADER.search(self.data)):
            self._take(max(0, len(self.data) - HEADER_BYTES + 1))
            if not self._receive():
                self.data.clear()
                return None
        self._take(start.start())
        return read_header(self._peek, self.name)

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
        if container:
            return container
        if HEADER.match(start):
            return self._foreign_wav()
        self._wait_for(PROBE_BYTES)
        start = bytes(self.data[:READ_BYTES])
        if len(start) >= SNIFF_BYTES and is_text(start):
            raise InputError(self.name, "is text, not audio")
        return "audio" if is_media(start) else None

    def _foreign_wav(self) -> str | None:
        """Return "wav" if PyAV is to decode the wav; else keep its header."""
        try:
            self.header = read_header(self._peek, self.name)
        except ForeignFormat:
            return "wav"
        return None

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
        self._raise_failure()

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
