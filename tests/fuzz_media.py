"""Containers of video and phones with random defects, and the check of each; see ``fuzz.py``."""

from __future__ import annotations

import functools
import gc
import os
import random
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
from fuzz import broken_bytes
from fuzz_audio import check, mutated
from media_files import CONTAINERS, media_bytes

from nemotron_npu import media, media_decoder
from nemotron_npu.audio import blocks, check_audio
from nemotron_npu.errors import CONTROL, InputError

SILENCE = 20  # seconds without output until a decoder counts as hanging
MARKS = tuple(b"moov trak mdia stbl stsd stts stsz stsc stco esds mdat elst OggS RIFF hdrl strf idx1 movi wvpk".split())
MARKS += (b"\x1a\x45\xdf\xa3", b"\x15\x49\xa9\x66", b"\x16\x54\xae\x6b", b"\x1f\x43\xb6\x75")  # elements of Matroska
MARKS += (b"\x0b\x77", b"\xff\xf1", b"G\x40", b"0&\xb2u", b"\x91\x07\xdc\xb7")  # frames and packets; ASF's objects


class Forked:
    """A decoder like that of ``media.open_media``, but forked: the start of a process costs more than a small file."""

    def __init__(self, command: list[str], stdin: int, **_: object) -> None:
        is_pipe = stdin == subprocess.PIPE
        source, sink = os.pipe() if is_pipe else (stdin, -1)
        out, child_out = os.pipe()
        errors, child_errors = os.pipe()
        self.returncode: int | None = None
        self.pid = os.fork()
        if not self.pid:
            gc.disable()  # it would touch, and so copy, all of the parent's memory
            os.dup2(source, 0)
            os.dup2(child_out, 1)
            os.dup2(child_errors, 2)
            os.closerange(3, 256)
            _run_decoder(command[-2:])
        os.close(child_out)
        os.close(child_errors)
        self.stdin = os.fdopen(sink, "wb") if is_pipe else None
        self.stdout, self.stderr = os.fdopen(out, "rb"), os.fdopen(errors, "rb")
        if is_pipe:
            os.close(source)

    def wait(self) -> int:
        if self.returncode is None:
            self.returncode = os.waitstatus_to_exitcode(os.waitpid(self.pid, 0)[1])
        return self.returncode

    def kill(self) -> None:
        if self.returncode is None:
            os.kill(self.pid, signal.SIGKILL)

    def __enter__(self) -> Forked:
        return self

    def __exit__(self, *_: object) -> None:
        for stream in (self.stdin, self.stdout, self.stderr):
            if stream and not stream.closed:
                stream.close()
        self.wait()


def _run_decoder(arguments: list[str]) -> None:
    """Do what ``python -m nemotron_npu.media_decoder`` does, and end this process."""
    code = 70  # an exception that the decoder does not expect
    try:
        sys.argv = ["media_decoder", *arguments]
        sys.stdout, sys.stderr = os.fdopen(1, "w"), os.fdopen(2, "w")
        code = media_decoder.main()
        sys.stdout.flush()
    finally:
        sys.stderr.flush()
        os._exit(code)


@functools.cache
def seeds() -> dict[str, bytes]:
    """Return half a second of the clip in each container, with pictures beside it where these are usual."""
    kinds = {kind: media_bytes(kind, seconds=0.5, video=kind in ("mp4", "mkv", "avi", "ts")) for kind in CONTAINERS}
    return kinds | {"mka": media_bytes("mkv", seconds=0.5, tracks=2)}


def read(rng: random.Random, folder: Path) -> str:
    """Break a container and decode it as the command line does; return what became of it in a word, or raise."""
    files = seeds()
    kind = rng.choice(list(files))
    whole = files[kind]
    other = files[rng.choice(list(files))]
    path = folder / f"x.{kind}"
    path.write_bytes(mutated(whole, other, rng) if rng.random() < 0.3 else broken_bytes(rng, whole, MARKS))
    patched = media.subprocess.Popen, media.MAX_SILENCE
    media.subprocess.Popen, media.MAX_SILENCE = Forked, SILENCE
    try:
        if not rng.randrange(4):
            check_audio(str(path))
        return check(_within_an_hour(blocks(str(path))))
    except InputError as error:
        text = str(error)
        assert not CONTROL.search(text), f"control characters in {text!r}"
        assert "exit code 70" not in text, "the decoder raised an exception"
        if "crashed" in text:
            return "its decoder crashed: refused"
        return "its decoder hung: refused" if "gave nothing" in text else "refused"
    finally:
        media.subprocess.Popen, media.MAX_SILENCE = patched
        path.unlink()


def _within_an_hour(audio):
    seconds = 0.0
    for block in audio:
        seconds += len(block) / 16000
        assert seconds < 3600, "half a second became more than an hour"
        yield np.asarray(block)
