"""Audio that libsndfile does not read (video, m4a, webm, wma, amr ...), decoded by PyAV in a process of its own.

If the decoder crashes, hangs or fills the memory, only its file fails.  ``media_decoder.py`` is that process.
"""

from __future__ import annotations

import json
import os
import select
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import cached_property
from importlib.util import find_spec
from typing import IO

import numpy as np

from .containers import AudioInfo, FileVersion, ForeignFormat, file_version
from .errors import InputError, shown
from .host.program import PACKAGE
from .media_pipe import BLOCK, MAX_CHANNELS, NO_TRACK, NOT_RECOGNIZED

DECODER = ["-m", f"{__package__}.media_decoder"]
MAX_SILENCE = 120  # seconds without output until a decoder of a file counts as hanging
MAX_HEADER_BYTES = 1 << 16
MAX_BLOCK_SAMPLES = 1 << 24
INSTALL_HINT = "pip install av, or convert it: ffmpeg -i FILE FILE.wav"


class Media:
    """A running decoder.  Take ``info`` first, then the ``blocks``."""

    def __init__(self, process: subprocess.Popen[bytes], name: str, version: FileVersion | None) -> None:
        self.process = process
        self.name = name
        self.version = version
        """Of the file; None for a stream, which may be silent for any time."""
        self.seconds = 0.0
        """Decoded so far."""

    @cached_property
    def info(self) -> AudioInfo:
        """What the file states about its audio.  Raises InputError."""
        line = bytearray()
        while not line.endswith(b"\n"):
            line += self._read(1)
            if len(line) > MAX_HEADER_BYTES or not line:
                raise InputError(self.name, "unsupported audio: its decoder sent invalid data")
        fields = json.loads(line)
        format_name = _format_name(fields, self.name)
        rate, channels, seconds = (fields[name] for name in ("sample_rate", "channels", "seconds"))
        return AudioInfo(rate, channels, format_name, seconds, version=self.version)

    def blocks(self) -> Iterator[tuple[int, np.ndarray]]:
        """Yield rate (Hz) and samples, float32 [samples, channels], of each decoded frame.  Raises InputError."""
        while header := self._read(BLOCK.size):
            rate, channels, count = BLOCK.unpack(header)
            if not 0 < channels <= MAX_CHANNELS or rate == 0 or channels * count > MAX_BLOCK_SAMPLES:
                raise InputError(self.name, "broken audio: its decoder sent invalid data")
            data = self._read(4 * channels * count)
            self.seconds += count / rate
            yield rate, np.frombuffer(data, "<f4").reshape(count, channels)

    def _read(self, count: int) -> bytes:
        """Return ``count`` bytes of the decoder's output; b"" at its end.  Raises InputError if it failed or hangs."""
        data = bytearray()
        output = _pipe(self.process.stdout)
        while len(data) < count:
            if self.version and not select.select([output], [], [], MAX_SILENCE)[0]:
                self.process.kill()
                raise InputError(self.name, f"its decoder gave nothing for {MAX_SILENCE:g} s")
            part = os.read(output.fileno(), count - len(data))
            if not part:
                self._check_end(complete=not data)
                break
            data += part
        return bytes(data)

    def _check_end(self, *, complete: bool) -> None:
        code = self.process.wait()
        if code == 0 and complete:
            return
        if code == NOT_RECOGNIZED:
            raise ForeignFormat(self.name, "unsupported audio format")
        lines = _pipe(self.process.stderr).read(MAX_HEADER_BYTES).decode("utf-8", "replace").split("\n")
        reason = next((line for line in reversed(lines) if line), f"its decoder failed with exit code {code}")
        if code == NO_TRACK:
            raise InputError(self.name, shown(reason))
        if code < 0:
            reason = f"its decoder crashed ({signal.Signals(-code).name})"
        if not self.seconds:
            raise InputError(self.name, f"unsupported audio: {shown(reason)}")
        problem = f"broken audio after {self.seconds:.1f} s: {shown(reason)}"
        raise InputError(self.name, problem, "keep what can be read: ffmpeg -i FILE FILE.wav")


@contextmanager
def open_media(source: int, name: str, track: int = 1, *, probe: bool = False) -> Iterator[Media]:
    """Start a decoder that reads ``source``: a descriptor (a file, from its start), or ``subprocess.PIPE``.

    ``track`` counts the audio tracks from 1.  ``probe`` decodes one frame only.  Raises InputError.
    """
    if not find_spec("av"):
        raise InputError(name, "needs the package av to be decoded", INSTALL_HINT)
    is_pipe = source == subprocess.PIPE
    if not is_pipe:
        os.lseek(source, 0, os.SEEK_SET)
    # "" is the working directory, which is another one for the decoder: the package may come from there
    folders = [*filter(None, sys.path), str(PACKAGE.parent)]
    process = subprocess.Popen(
        [sys.executable, *DECODER, "probe" if probe else "decode", str(track)],
        stdin=source,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(map(os.path.abspath, folders))},
        cwd="/",  # which Python 3.10 searches for modules first
        start_new_session=True,  # Ctrl-C is for this process: it ends the decoder
    )
    with process:
        try:
            yield Media(process, name, None if is_pipe else file_version(source))
        finally:
            process.kill()


def is_media(start: bytes) -> bool:
    """Return whether the first bytes of a stream, at most 64 KB, have audio that PyAV decodes."""
    if not start:
        return False
    try:
        with open_media(subprocess.PIPE, "stdin", probe=True) as media:
            with suppress(BrokenPipeError), _pipe(media.process.stdin) as pipe:
                pipe.write(start)
            return media.info is not None
    except InputError:
        return False


def _pipe(stream: IO[bytes] | None) -> IO[bytes]:
    assert stream is not None  # Popen was asked for a pipe
    return stream


def _format_name(fields: dict, name: str) -> str:
    """Return one of the names that ffmpeg has for a container: the file's own extension if it is one of them."""
    names = fields["format"].split(",")
    extension = os.path.splitext(name)[1][1:].lower()
    return (extension if extension in names else names[0]).upper()
