"""Progress of a run on stderr: a bar on a terminal, a line a minute in a log."""

from __future__ import annotations

import os
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

from tqdm import tqdm

from ..errors import printable
from ..sources import CountedRecording, Recording
from .columns import clip, columns_of, terminal_width
from .console import Console

LINE_SECONDS = 60  # between two lines of a log
BAR_SECONDS = 0.1  # between two updates of the bar
BAR_AFTER_SECONDS = 1  # a shorter run needs no bar
BAR_COLUMNS = 9  # minimum next to the text: the percentage and a bar of two columns
NO_WIDTH = 80  # columns of a terminal that does not state its width (containers, scripts)
MIN_NAME = 12  # columns for a file's name, or all of it, before the text gets longer


class Progress:
    """Count files, and the audio that has been read; ``notify`` takes the lines of a log.

    Share and remaining time follow the audio where the length of every recording is known, else the files.
    """

    def __init__(self, recordings: list[Recording], notify: Callable[[str], None], *, quiet: bool = False) -> None:
        self.recordings = recordings
        self.notify = notify
        self.quiet = quiet
        lengths = [seconds for recording in recordings if (seconds := recording.seconds) is not None]
        self.total = sum(lengths) if len(lengths) == len(recordings) else None
        """Seconds of audio; None if a length is unknown."""
        self.files = 0
        self.audio_seconds = 0.0
        self.name = ""
        """Of the file that was begun last."""
        self.began = time.monotonic()
        self.shown = self.began
        self.lock = threading.RLock()  # threads that read audio update it
        self.bar: Any = None
        self.terminal = sys.stderr.isatty()

    def counted(self) -> Sequence[CountedRecording]:
        """Return the recordings; the audio that is read from them counts here."""
        return _Counted(self.recordings, self.read, self.begin)

    def begin(self, recording: Recording) -> None:
        """Name this recording from now on."""
        self.name = printable(os.path.basename(recording.path))

    def finished(self) -> None:
        """Count a file that is done or has failed."""
        with self.lock:
            self.files += 1
        self._show()

    def read(self, seconds: float) -> None:
        """Count audio that has been read."""
        with self.lock:
            self.audio_seconds += seconds
        self._show()

    @property
    def seconds(self) -> float:
        """Seconds since the start."""
        return time.monotonic() - self.began

    @property
    def share(self) -> float:
        """Part of the work that is done, 0 to 1."""
        done: float = self.files
        total: float = len(self.recordings)
        if self.total is not None:
            done = self.audio_seconds
            total = self.total
        return min(1.0, done / total) if total else 0.0

    def text(self, columns: int = 0) -> str:
        """Return ``120/500 files, 0.45/1.90 h of audio, RTFx 38, 2:10 left: talk.wav``, or what fits into columns.

        0 is a log, which names no file: a line a minute would name one of many.
        """
        hours = f"{self.audio_seconds / 3600:.2f}"
        if self.total is not None:
            hours += f"/{self.total / 3600:.2f}"
        rtfx = self.audio_seconds / max(self.seconds, 1e-9)
        files = f"{self.files}/{len(self.recordings)}"
        left = f", {_clock(self.seconds * (1 / self.share - 1))} left" if self.share else ""
        texts = [f"{files} files, {hours} h of audio, RTFx {rtfx:.1f}{left}", f"{files} files{left}", files]
        if not columns:
            return texts[0]
        name = min(columns_of(self.name), MIN_NAME)
        text = next((text for text in texts if columns_of(text) + 2 + name <= columns), texts[-1])
        return f"{text}: {clip(self.name, columns - len(text) - 2)}" if self.name else text

    def _show(self) -> None:
        interval = BAR_SECONDS if self.terminal else LINE_SECONDS
        with self.lock:
            now = time.monotonic()
            if self.quiet or now - self.shown < interval:
                return
            self.shown = now
            if not self.terminal:
                self.notify(self.text())
                return
            text = self.text(max((terminal_width(sys.stderr) or NO_WIDTH) - BAR_COLUMNS, 1))
            if self.bar is None and self.seconds >= BAR_AFTER_SECONDS:
                self.bar = _make_bar(text)
            if self.bar is not None:
                self.bar.n = self.share
                self.bar.set_description_str(text)

    @contextmanager
    def without_bar(self) -> Iterator[None]:
        """Remove the bar while something else is written to the terminal."""
        with self.lock:
            if self.bar is not None:
                self.bar.clear()
            try:
                yield
            finally:
                if self.bar is not None:
                    self.bar.refresh()

    def close(self) -> None:
        """Remove the bar for good."""
        with self.lock:
            if self.bar is not None:
                self.bar.close()
            self.bar = None
            self.quiet = True


class _Counted(Sequence):
    """Recordings that count; each is made when it is taken, as half a million would take 50 MB."""

    def __init__(
        self, recordings: list[Recording], on_read: Callable[[float], None], on_begin: Callable[[Recording], None]
    ) -> None:
        self.recordings = recordings
        self.calls = on_read, on_begin

    def __len__(self) -> int:
        return len(self.recordings)

    def __getitem__(self, index: Any) -> Any:
        if isinstance(index, slice):
            return [self[number] for number in range(*index.indices(len(self)))]
        return CountedRecording(self.recordings[index], *self.calls)


class Search(Progress):
    """Count inputs while folders and lists are read."""

    def text(self, columns: int = 0) -> str:
        """Return ``120,000 inputs found``, which fits anywhere."""
        return f"{self.files:,} inputs found"


def show_search(console: Console) -> AbstractContextManager[Progress]:
    """Show how many inputs have been found."""
    return _shown(console, Search([], console.notify, quiet=console.quiet))


def show_progress(
    console: Console, recordings: list[Recording], *, growing: bool = False
) -> AbstractContextManager[Progress]:
    """Show the progress of ``recordings``; there is none while live text is ``growing`` on stdout."""
    return _shown(console, Progress(recordings, console.notify, quiet=console.quiet or growing))


@contextmanager
def _shown(console: Console, progress: Progress) -> Iterator[Progress]:
    console.without_bar = progress.without_bar
    try:
        yield progress
    finally:
        console.without_bar = nullcontext
        progress.close()


def _make_bar(text: str) -> Any:
    tqdm.monitor_interval = 0  # no thread of its own: each block of audio updates the bar
    size = {"dynamic_ncols": True} if terminal_width(sys.stderr) else {"ncols": NO_WIDTH, "nrows": 24}  # else no bar
    return tqdm(total=1, leave=False, bar_format="{percentage:3.0f}%|{bar}| {desc}", desc=text, **size)


def _clock(seconds: float) -> str:
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    if hours:
        return f"{hours}:{minutes:02d}:{seconds:02d}"
    return f"{minutes}:{seconds:02d}"
