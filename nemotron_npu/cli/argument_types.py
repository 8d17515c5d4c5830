"""Values of the command line: text -> a checked value, or argparse's error line."""

from __future__ import annotations

import os
from argparse import ArgumentTypeError

from ..device import DEVICE, DEVICE_NAMES
from ..formats import FORMATS
from ..media_pipe import MAX_CHANNELS
from .options import EACH, MIX

MAX_THREADS = 1024  # with more than a machine can start, OpenMP ends the process
MAX_WORKERS = 10_000
MAX_BLOCK_MS = 600_000  # memory grows with the square of the block
MAX_SUBTITLE = 1000  # as whisper's "no limit"
MAX_PAUSE_MS = 86_400_000  # a day
MIN_RATE, MAX_RATE = 4000, 384_000  # Hz


def parse_formats(text: str) -> tuple[str, ...]:
    """Parse ``"srt,vtt"`` or ``"all"``; return the formats in the order of the registry."""
    names = [name.strip() for name in text.split(",")]
    names = ["txt" if name == "text" else name for name in names]
    for name in names:
        if name not in (*FORMATS, "all"):
            raise ArgumentTypeError(f"{name!r} is none of {', '.join(FORMATS)} and all")
    return tuple(name for name, entry in FORMATS.items() if name in names or ("all" in names and not entry.live))


def positive(text: str) -> int:
    """Parse a whole number of 1 or more."""
    if not text.isascii() or not text.isdigit() or int(text) < 1:
        raise ArgumentTypeError(f"{text!r} is not a whole number of 1 or more")
    return int(text)


def subtitle_size(text: str) -> int:
    """Parse the characters, lines or words of subtitles."""
    return _at_most(positive(text), MAX_SUBTITLE)


def thread_count(text: str) -> int:
    """Parse --threads."""
    return _at_most(positive(text), MAX_THREADS)


def worker_count(text: str) -> int:
    """Parse --num_workers."""
    return _at_most(positive(text), MAX_WORKERS)


def block_length(text: str) -> int:
    """Parse --block_ms."""
    return _at_most(positive(text), MAX_BLOCK_MS)


def chunk_length(text: str) -> int | str:
    """Parse --chunk_ms: milliseconds or ``"all"``."""
    number = text.removesuffix("ms")
    if text != "all" and not (number.isascii() and number.isdigit()):
        raise ArgumentTypeError(f"{text!r} is not a number of milliseconds (80, 160, 560, 1120 or all)")
    return text if text == "all" else positive(number)


def milliseconds(text: str) -> int:
    """Parse a time of 0 or more, with or without its unit."""
    number = text.removesuffix("ms")
    if not (number.isascii() and number.isdigit()):
        raise ArgumentTypeError(f"{text!r} is not a whole number of milliseconds")
    return _at_most(int(number), MAX_PAUSE_MS)


def weight(text: str) -> float:
    """Parse a finite number above 0."""
    try:
        number = float(text)
    except ValueError:
        number = -1.0
    if not 0 < number < float("inf"):
        raise ArgumentTypeError(f"{text!r} is not a number above 0")
    return number


def sample_rate(text: str) -> int:
    """Parse --sample_rate."""
    rate = positive(text)
    if not MIN_RATE <= rate <= MAX_RATE:
        raise ArgumentTypeError(f"{rate} Hz is not a sample rate of {MIN_RATE} to {MAX_RATE}")
    return rate


def channel(text: str) -> int | str:
    """Parse --channel."""
    name = text.lower()
    if name in (MIX, EACH):
        return name
    if not text.isdecimal() or not 1 <= int(text) <= MAX_CHANNELS:
        raise ArgumentTypeError(f"{text!r} is not a channel (use {MIX}, {EACH}, or its number from 1 on)")
    return int(text)


def device_name(text: str) -> str:
    """Parse the name of a device, in any case of letters; whether it is usable is checked later."""
    name = text.lower()
    if not DEVICE.fullmatch(name):
        raise ArgumentTypeError(f"{text!r} is not a device (use {DEVICE_NAMES})")
    return name


def path(text: str) -> str:
    """Expand ``~``, which a shell leaves in quotes and behind an equals sign; a file of that very name comes first."""
    return text if os.path.lexists(text) else os.path.expanduser(text)


def _at_most(number: int, maximum: int) -> int:
    if number > maximum:
        raise ArgumentTypeError(f"{number} exceeds the maximum of {maximum}")
    return number
