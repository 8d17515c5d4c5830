"""SIGINT, SIGTERM and SIGHUP: the first ends a run at the next safe point, the second ends the process at once.

The first raises KeyboardInterrupt; within ``held`` it waits for ``check`` instead.  A thread answers the second, since
Python runs its handlers only when the main thread returns from the library that it is in.
"""

from __future__ import annotations

import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from types import FrameType
from typing import Any

from . import program

SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
TWICE_SECONDS = 0.2  # timeout(1) and some launchers send each signal twice: both count as the first

_received: int | None = None
"""Number of the first signal."""
_on_signal: Callable[[], None] | None = None
"""Called by the first signal within ``held``; where it is None, the signal raises KeyboardInterrupt."""


def end_on_sigint() -> None:
    """Let SIGINT end the process without a traceback until ``answered`` handles it.

    A SIGINT that the parent process ignores stays ignored.
    """
    if signal.getsignal(signal.SIGINT) != signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.SIG_DFL)


@contextmanager
def answered() -> Iterator[None]:
    """Handle the signals within the block; call it in the main thread of a program.

    A signal that the parent process ignores stays ignored: nohup ignores SIGHUP, and a script ignores SIGINT for its
    background jobs.
    """
    global _received
    _received = None
    before = {number: signal.getsignal(number) for number in SIGNALS}
    reading, writing = os.pipe()
    os.set_blocking(writing, False)
    threading.Thread(target=_end_at_the_second, args=(reading,), daemon=True).start()
    signal.set_wakeup_fd(writing, warn_on_full_buffer=False)
    for number, handler in before.items():
        if handler != signal.SIG_IGN:
            signal.signal(number, _handle)
    try:
        yield
    finally:
        _restore(before)
        signal.set_wakeup_fd(-1)
        os.close(writing)


@contextmanager
def held(stop: Callable[[], None] = lambda: None) -> Iterator[None]:
    """Let the first signal call ``stop`` within the block instead of raising; ``check`` raises where it is safe."""
    global _on_signal
    before = _on_signal
    _on_signal = stop
    try:
        yield
    finally:
        _on_signal = before


@contextmanager
def kept() -> Iterator[None]:
    """Restore all signal handlers after the block, in which a library (Ray) may set its own, in Python and in C++.

    A SystemExit that such a handler raises counts as SIGTERM, the only one of these signals that is handled so.
    """
    if threading.current_thread() is not threading.main_thread():  # only the main thread can set handlers
        yield
        return
    before = {number: signal.getsignal(number) for number in SIGNALS}
    try:
        yield
    except SystemExit:
        if before[signal.SIGTERM] == _handle:
            _handle(signal.SIGTERM, None)
        raise
    finally:
        _restore(before)


def _restore(handlers: dict[signal.Signals, Any]) -> None:
    for number, handler in handlers.items():
        if handler is not None:  # None: C code set this handler, and Python cannot set it again
            signal.signal(number, handler)


def came() -> bool:
    """Return whether a signal has been received."""
    return _received is not None


def check() -> None:
    """Raise KeyboardInterrupt if a signal has been received."""
    if came():
        raise KeyboardInterrupt


def exit_code() -> int:
    """Return the exit code that shells use: 130 for SIGINT, 143 for SIGTERM, 129 for SIGHUP."""
    return 128 + (_received or signal.SIGINT)


def leave(code: int) -> None:
    """End the process; after a signal without waiting for threads, which may be reading a pipe that stays silent."""
    if came():
        os._exit(code)
    sys.exit(code)


def _handle(number: int, _: FrameType | None) -> None:
    global _received
    if came():
        return
    _received = number
    if _on_signal is None:
        raise KeyboardInterrupt
    _on_signal()


def _end_at_the_second(pipe: int) -> None:
    """Read the numbers of the signals, which Python writes to ``pipe``, until the other end is closed."""
    first = None
    with open(pipe, "rb", buffering=0) as numbers:
        while number := numbers.read(1):
            if number[0] not in SIGNALS:
                continue
            if first is None:
                first = time.monotonic()
            if time.monotonic() - first > TWICE_SECONDS:
                with suppress(OSError):
                    os.write(2, f"{program.name}: interrupted\n".encode())
                os._exit(128 + number[0])
