"""How far a run is, on stderr: a bar on a terminal, a line a minute in a log."""

from __future__ import annotations

import os
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

from ..sources import CountedRecording, Recording

LINE_SECONDS = 60  # between the lines of a log
BAR_SECONDS = 0.1  # between two looks of the bar
BAR_AFTER_SECONDS = 1  # a run that is done sooner needs none


class Progress:
    """Counts files and the sound that has been read.  ``say`` takes the lines of a log.

    Share and time left are those of the sound where every recording's length is known, else those of the files.
    """

    def __init__(self, recordings: list[Recording], say, quiet: bool = False):
        self.recordings, self.say, self.quiet = recordings, say, quiet
        lengths = [recording.seconds for recording in recordings]
        self.total = None if None in lengths else sum(lengths)
        self.files, self.heard = 0, 0.0
        self.began = self.shown = time.monotonic()
        self.lock = threading.RLock()  # sound is read in threads
        self.bar = None
        self.terminal = sys.stderr.isatty()

    def watched(self) -> list[CountedRecording]:
        """Return the recordings, with the audio that is read from them counted here."""
        return [CountedRecording(recording, self.hear) for recording in self.recordings]

    def finished(self) -> None:
        """One more file is done, or has failed."""
        with self.lock:
            self.files += 1
        self._show()

    def hear(self, seconds: float) -> None:
        with self.lock:
            self.heard += seconds
        self._show()

    @property
    def seconds(self) -> float:
        """Since the start."""
        return time.monotonic() - self.began

    @property
    def share(self) -> float:
        """From 0 to 1."""
        done, of = (self.files, len(self.recordings)) if self.total is None else (self.heard, self.total)
        return min(1.0, done / of) if of else 0.0

    def text(self) -> str:
        """``120/500 files, 0.45/1.90 h of sound, RTFx 38, 2:10 left``."""
        hours = f"{self.heard / 3600:.2f}" + ("" if self.total is None else f"/{self.total / 3600:.2f}")
        left = self.seconds * (1 / self.share - 1) if self.share else None
        return (
            f"{self.files}/{len(self.recordings)} files, {hours} h of sound, "
            f"RTFx {self.heard / max(self.seconds, 1e-9):.1f}" + ("" if left is None else f", {_clock(left)} left")
        )

    def _show(self) -> None:
        with self.lock:
            now = time.monotonic()
            if self.quiet or now - self.shown < (BAR_SECONDS if self.terminal else LINE_SECONDS):
                return
            self.shown = now
            if not self.terminal:
                self.say(self.text())
                return
            if self.bar is None:
                if self.seconds < BAR_AFTER_SECONDS:
                    return
                from tqdm import tqdm

                tqdm.monitor_interval = 0  # no thread of its own: every piece of sound redraws it
                layout = "{percentage:3.0f}%|{bar}| {desc}"
                size = {"dynamic_ncols": True} if _tells_its_size() else {"ncols": 80, "nrows": 24}
                self.bar = tqdm(total=1, leave=False, bar_format=layout, desc=self.text(), **size)
            self.bar.n = self.share
            self.bar.set_description_str(self.text())

    @contextmanager
    def aside(self) -> Iterator[None]:
        """Take the bar away while something else is written on the terminal."""
        with self.lock:
            if self.bar is not None:
                self.bar.clear()
            try:
                yield
            finally:
                if self.bar is not None:
                    self.bar.refresh()

    def close(self) -> None:
        """Take the bar away for good."""
        with self.lock:
            if self.bar is not None:
                self.bar.close()
            self.bar, self.quiet = None, True


def _tells_its_size() -> bool:
    """Whether the terminal knows its width: of one with 0 columns (a container's, a script's) tqdm makes no bar."""
    try:
        return os.get_terminal_size(sys.stderr.fileno()).columns > 0
    except (OSError, ValueError):
        return False


def _clock(seconds: float) -> str:
    minutes, seconds = divmod(round(seconds), 60)
    return f"{minutes // 60}:{minutes % 60:02d}:{seconds:02d}" if minutes >= 60 else f"{minutes}:{seconds:02d}"
