"""The inputs of live streams: a thread reads each, a little ahead of the streams that take it."""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from ..audio import SAMPLE_RATE
from ..live_input import LiveInput
from .live_views import LiveView

BLOCKS_AHEAD = 4  # that a thread has read and no stream has taken


@dataclass(eq=False)
class Line:
    """One live stream as the command line sees it: of an input, or of a channel of it."""

    number: int
    """Index of its recording."""
    source: StreamSource
    host: Any
    """The pool that transcribes it, see ``many_streams.Host``."""
    views: list[LiveView]
    began: float = field(default_factory=time.perf_counter)
    fed: float = 0.0
    """Seconds of audio given to the pool."""
    decoded: float = 0.0
    """Seconds of these that are transcribed, as far as it is known."""
    is_done: bool = False

    @property
    def waiting(self) -> float:
        """Seconds of audio that no step has taken yet."""
        return 0.0 if self.is_done else self.fed - self.decoded


class StreamSource:
    """One input.

    Parameters
    ----------
    index : of its recording.
    blocks : its audio, float32 [samples] or [samples, channels].
    live : what ``blocks`` come from if it is a pipe, whose writer may be slow, silent or dead.

    """

    def __init__(self, index: int, blocks: Iterator[np.ndarray], live: LiveInput | None) -> None:
        self.index = index
        self.name = live.name if live else ""
        self.blocks = blocks
        self.live = live
        self.room = threading.Semaphore(BLOCKS_AHEAD)
        self.pending: deque[np.ndarray] = deque()
        """Blocks that no stream has taken yet."""
        self.lines: list[Line] = []
        """Its streams, from the first block on."""
        self.heard = time.monotonic()
        """When the last block came or was taken."""
        self.is_silent = False
        """Whether its streams know that nothing comes."""
        self.is_stalled = False
        """Whether the user knows."""
        self.has_ended = False
        self.error: Exception | None = None
        """What ended it."""
        self.is_stopped = False
        self.is_ignored = False
        self.knows_end = False
        """Whether its streams know that it has ended."""

    @property
    def is_done(self) -> bool:
        """Whether all its streams have ended."""
        return self.knows_end and all(line.is_done for line in self.lines)

    def start(self, on_block: Callable[[np.ndarray], None], on_end: Callable[[Exception | None], None]) -> None:
        """Read it in a thread, which calls ``on_block`` with each second of it and ``on_end`` with what ended it."""
        threading.Thread(target=self._read, args=(on_block, on_end), daemon=True).start()

    def stop(self) -> None:
        """End it: a pipe with what has arrived, a file at once."""
        self.is_stopped = True
        if self.live:
            self.live.stop()
        else:
            self.ignore()

    def ignore(self) -> None:
        """Drop its audio from now on."""
        self.is_ignored = True
        while self.pending:
            self.take()
        if not self.is_stopped:
            self.stop()

    def add(self, samples: np.ndarray) -> None:
        """Take note of a block that its thread has read."""
        self.pending.append(samples)
        self.heard = time.monotonic()
        self.is_silent = False
        if self.is_ignored:
            self.take()

    def take(self) -> np.ndarray:
        """Return the next block."""
        self.room.release()
        self.heard = time.monotonic()
        return self.pending.popleft()

    def _read(self, on_block: Callable[[np.ndarray], None], on_end: Callable[[Exception | None], None]) -> None:
        failure = None
        try:
            for block in self.blocks:
                for first in range(0, len(block), SAMPLE_RATE):
                    self.room.acquire()
                    if self.is_ignored:
                        return
                    on_block(block[first : first + SAMPLE_RATE])
        except Exception as error:
            failure = error
        finally:
            if self.live:
                self.live.stop()  # its writer need not wait any more
            on_end(failure)
