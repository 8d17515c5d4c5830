"""Keep NeMo, torch and other libraries from writing to the user's terminal; their errors arrive as exceptions."""

from __future__ import annotations

import ctypes
import logging
import os
import warnings
from functools import cache


def silence_libraries(*, quiet: bool) -> None:
    """Silence logs, warnings and what C libraries print; with ``quiet`` also the bars of downloads."""
    logging.disable(logging.CRITICAL)
    warnings.simplefilter("ignore")
    _silence_c()
    if quiet:
        os.environ["HF_HUB_DISABLE_PROGRESS_BARS"] = "1"


@cache
def _silence_c() -> None:
    """Send what C libraries print to /dev/null: libsndfile's mp3 decoder writes to stderr, its SDS even to stdout.

    C's ``stdout`` and ``stderr`` are variables that may be set (The GNU C Library, 12.2, Standard Streams).  Python
    writes to the descriptors, which stay as they are, so that nothing else is lost in any thread.
    """
    try:
        if not os.confstr("CS_GNU_LIBC_VERSION"):
            return
    except (OSError, ValueError):  # a C library in which these names are constants
        return
    libc = ctypes.CDLL(None)
    libc.fopen.restype = ctypes.c_void_p
    for name in ("stdout", "stderr"):
        ctypes.c_void_p.in_dll(libc, name).value = libc.fopen(os.devnull.encode(), b"w")
