"""Write live audio into pipes, and read what the command line prints to a terminal."""

from __future__ import annotations

import os
import select
import subprocess
import sys
import threading
import time

import numpy as np
from support import INFERENCE, ROOT

SECOND = 32000  # bytes of raw PCM at 16 kHz


# logs to stderr how many seconds of audio were fed; each step takes {slow} seconds longer
LOGGING = """
import sys, time, inference
from nemotron_npu.encoder import Encoder
from nemotron_npu.recognizer import Stream

step, feed = Encoder.step, Stream.feed

def slow_step(*args):
    time.sleep({slow})
    return step(*args)

def logging_feed(self, samples):
    print("fed", self.seconds + len(samples) / 16000, file=sys.stderr, flush=True)
    return feed(self, samples)

Encoder.step, Stream.feed = slow_step, logging_feed
sys.exit(inference.main())
"""


def to_pcm(samples: np.ndarray) -> bytes:
    """Return float samples as raw 16-bit PCM."""
    return np.round(samples * 32767).astype("<i2").tobytes()


class Speaker:
    """Write ``data`` to a pipe at ``speed`` times real time and close it; an ``endless`` one goes on with silence."""

    def __init__(self, pipe, data: bytes, speed: float = 1, endless: bool = False):
        self.pipe, self.data, self.speed, self.endless = pipe, data, speed, endless
        self.stopped = threading.Event()
        self.thread = threading.Thread(target=self._speak, daemon=True)

    def __enter__(self):
        self.thread.start()
        return self

    def __exit__(self, *_):
        self.stopped.set()
        self.thread.join()

    def _speak(self):
        size, began, position = SECOND // 10, time.monotonic(), 0
        try:
            while not self.stopped.is_set() and (self.endless or position < len(self.data)):
                self.pipe.write(self.data[position : position + size] or bytes(size))
                self.pipe.flush()
                position += size
                self.stopped.wait(max(0, began + position / SECOND / self.speed - time.monotonic()))
            self.pipe.close()
        except BrokenPipeError:
            pass


def start_inference(*args, stdin=subprocess.PIPE, stdout=subprocess.PIPE, slow=None) -> subprocess.Popen:
    """Start the command line; with ``slow`` it logs how much it was fed, and takes so many seconds longer a step."""
    script = [INFERENCE] if slow is None else ["-c", LOGGING.format(slow=slow)]
    return subprocess.Popen(
        [sys.executable, *map(str, script), *map(str, args)],
        stdin=stdin,
        stdout=stdout,
        stderr=subprocess.PIPE,
        start_new_session=True,  # and with it its own answer to SIGINT
        cwd=ROOT,
    )


def wait_until_fed(process: subprocess.Popen, seconds: float) -> None:
    """Wait until a process of ``start_inference(slow=...)`` logs so many seconds of audio."""
    for line in process.stderr:
        if line.startswith(b"fed") and float(line.split()[1]) >= seconds:
            return
    raise AssertionError(f"the process ended before {seconds} s were fed")


def read_terminal(number: int, until: bytes, seconds: float = 60) -> list[bytes]:
    """Return what is written to a terminal, write by write, until it ends with ``until``."""
    written, deadline = [], time.monotonic() + seconds
    while not b"".join(written).endswith(until):
        assert select.select([number], [], [], max(0, deadline - time.monotonic()))[0], written
        written.append(os.read(number, 4096))
    return written


def transcribe_pipe(cli, monkeypatch, data: bytes, *args) -> tuple[int, str, str]:
    """Run the command line in this process on a pipe into which ``data`` is written."""
    reading, writing = os.pipe()
    with os.fdopen(reading) as stdin, os.fdopen(writing, "wb") as pipe:
        monkeypatch.setattr(sys, "stdin", stdin)
        threading.Thread(target=lambda: (pipe.write(data), pipe.close())).start()
        return cli("-", "--device", "cpu", "--quiet", "--endpoint_ms", 0, *args)
