"""SIGINT, SIGTERM and SIGHUP: the first ends a run where nothing is half done, the second at once.

The first raises KeyboardInterrupt; within ``held`` it waits for ``check`` instead.  The second is answered by a thread,
since Python's own handlers wait for the main thread to come back from whatever library it is in.
"""

from __future__ import annotations

import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress

from . import program

SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
TWICE_SECONDS = 0.2  # timeout(1) and some launchers send each signal twice: that is still the first

_came: int | None = None  # number of the first signal
_stop: Callable[[], None] | None = None  # what it calls within ``held``; None: it raises


@contextmanager
def answered() -> Iterator[None]:
    """Answer the signals so, in a program's main thread.

    One that the parent ignores stays ignored: nohup wants that of SIGHUP, a script of SIGINT for its background jobs.
    """
    global _came
    _came = None
    before = {number: signal.getsignal(number) for number in SIGNALS}
    reading, writing = os.pipe()
    os.set_blocking(writing, False)
    threading.Thread(target=_leave_at_the_second, args=(reading,), daemon=True).start()
    signal.set_wakeup_fd(writing, warn_on_full_buffer=False)
    for number, handler in before.items():
        if handler != signal.SIG_IGN:
            signal.signal(number, _handle)
    try:
        yield
    finally:
        _set_back(before)
        signal.set_wakeup_fd(-1)
        os.close(writing)


@contextmanager
def held(stop: Callable[[], None] = lambda: None) -> Iterator[None]:
    """Within, the first signal interrupts nothing: it calls ``stop``, and ``check`` raises where it suits."""
    global _stop
    before, _stop = _stop, stop
    try:
        yield
    finally:
        _stop = before


@contextmanager
def kept() -> Iterator[None]:
    """Within, a library may answer signals in its own way, as Ray does, in Python and in C++: it is over with it after.

    A SystemExit by which it answers one counts as that signal: of those here only SIGTERM is answered so.
    """
    if threading.current_thread() is not threading.main_thread():  # nothing can be set there
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
        _set_back(before)


def _set_back(handlers: dict) -> None:
    for number, handler in handlers.items():
        if handler is not None:  # else it was not set by Python
            signal.signal(number, handler)


def came() -> bool:
    """Whether a signal has come."""
    return _came is not None


def check() -> None:
    """Raise KeyboardInterrupt if a signal has come."""
    if came():
        raise KeyboardInterrupt


def exit_code() -> int:
    """As shells have it: 130 of SIGINT, 143 of SIGTERM, 129 of SIGHUP."""
    return 128 + (_came or signal.SIGINT)


def leave(code: int) -> None:
    """End the process.  After an interruption no thread is waited for: one may be reading a pipe that stays silent."""
    if came():
        os._exit(code)
    sys.exit(code)


def _handle(number: int, _) -> None:
    global _came
    if came():
        return
    _came = number
    if _stop is None:
        raise KeyboardInterrupt
    _stop()


def _leave_at_the_second(pipe: int) -> None:
    """Read the numbers of the signals, which Python writes there as they come, until the other end is closed."""
    first = None
    with open(pipe, "rb", buffering=0) as numbers:
        while number := numbers.read(1):
            if number[0] not in SIGNALS:
                continue
            first = first or time.monotonic()
            if time.monotonic() - first > TWICE_SECONDS:
                with suppress(OSError):
                    os.write(2, f"{program.name}: interrupted\n".encode())
                os._exit(128 + number[0])
