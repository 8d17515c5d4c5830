"""How far live streams are behind real time."""

from __future__ import annotations

from collections.abc import Iterable

from .console import Console

CATCH_UP_SECONDS = 5  # of audio, in which a stream may make up for the time of loading


def describe_chunks(chunk_ms: int, offered: Iterable[int], *, is_chosen: bool) -> str:
    """Return how often a live stream has new words and, unless the user chose the chunks, how to get them sooner."""
    line = f"live: new words every {chunk_ms / 1000:g} s"
    *others, last = [str(ms) for ms in sorted(offered) if ms < chunk_ms] or [""]
    if is_chosen or not last:
        return line
    return f"{line} (sooner: --chunk_ms {', '.join(others) + ' or ' if others else ''}{last})"


class DelayReport:
    """Notify the user when streams fall behind real time, fall further behind, and have caught up."""

    def __init__(self, console: Console) -> None:
        self.console = console
        self.limit = 1.0
        """Seconds of delay above which the next message is due."""

    def report(self, delay: float, allowance: float = 0.0) -> None:
        """Take note of a delay, in seconds, ``allowance`` of which need no message."""
        if delay > self.limit + allowance:
            self.console.notify(f"{delay:.1f} s behind real time (no audio is lost)")
            self.limit = 2 * delay
        elif delay < 0.5 and self.limit > 1:
            self.console.notify("caught up with real time")
            self.limit = 1.0
