"""Live audio from named pipes (FIFOs)."""

from __future__ import annotations

import os
import select
import stat

from .audio import DEFAULT, Selection
from .errors import InputError
from .live_input import READ_BYTES, LiveInput

BACKLOG_BYTES = 1 << 20  # held of a pipe, 32 s of raw PCM: its writer waits then, however slow it is
POLL_MS = 200  # between two looks whether the input was stopped


def is_pipe(path: str) -> bool:
    """Return whether ``path`` is a pipe, with or without a name (``/dev/fd/63`` of a shell's ``<(...)``)."""
    return pipe_identity(path) is not None


def pipe_identity(path: str) -> tuple[int, int] | None:
    """Return device and inode of the pipe ``path``, which may have other names; None if it is no pipe."""
    try:
        status = os.stat(path)
    except (OSError, ValueError):
        return None
    return (status.st_dev, status.st_ino) if stat.S_ISFIFO(status.st_mode) else None


class PipeInput(LiveInput):
    """Audio from the pipe ``path``, which is opened without waiting for a writer.

    Its writer has to wait while ``BACKLOG_BYTES`` of its audio wait.  The pipe is closed when its writer closes it and
    by ``stop``.  Raises InputError for one that cannot be opened, and otherwise as ``LiveInput`` does.
    """

    def __init__(
        self, path: str, rate: int | None = None, *, raw: bool = False, selection: Selection = DEFAULT
    ) -> None:
        self.name = path
        try:
            descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        except OSError as error:
            raise InputError(path, error.strerror or str(error)) from error
        super().__init__(descriptor, rate, raw=raw, selection=selection)

    def _read(self) -> None:
        try:
            super()._read()
        finally:
            os.close(self.descriptor)

    def _next_data(self) -> bytes:
        poll = select.poll()
        poll.register(self.descriptor, select.POLLIN)
        while not self.is_stopped:
            if poll.poll(POLL_MS):  # not before the first writer comes
                try:
                    return os.read(self.descriptor, READ_BYTES)
                except BlockingIOError:
                    continue
        return b""

    def _must_wait(self) -> bool:
        return self.received - self.taken >= BACKLOG_BYTES and not self.is_stopped
