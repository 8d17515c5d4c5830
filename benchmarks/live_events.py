#!/usr/bin/env python3
"""Delay of the words of a live stream, from a pipe in real time to the lines of ``--output_format events``.

    python benchmarks/live_events.py [--repeat 5]

The bundled clip is written to the program in blocks of 10 ms.  A word is final with the first token of the next one:
``step`` is the time from the arrival of the sample that completes the deciding chunk (found with the library) to the
line, ``beyond`` what of it is not the model's step (as the library takes for it), and ``word`` the time from the end of
the word to its line.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from nemotron_npu import ModelOptions, StreamOptions, load_recognizer  # noqa: E402
from nemotron_npu.audio import SAMPLE_RATE, read_audio  # noqa: E402
from nemotron_npu.host.table import format_table  # noqa: E402

BLOCK = 160  # samples
QUIET_SECONDS = 15  # of digital silence first, in which the model is loaded


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeat", type=int, default=5, help="times that the clip is spoken")
    options = parser.parse_args()
    clip = read_audio(str(ROOT / "demo" / "digits.wav"))
    audio = np.concatenate([np.zeros(QUIET_SECONDS * SAMPLE_RATE, np.float32), *[clip] * options.repeat])
    rows = [["--chunk_ms", "step: median", "p95, s", "beyond: median", "p95, s", "word: median", "p95, s", "words"]]
    for chunk_ms in (80, 160, 560, 1120):
        delays = listen(audio, chunk_ms)
        figures = [f"{np.quantile(delay, q):.3f}" for delay in delays for q in (0.5, 0.95)]
        rows.append([str(chunk_ms), *figures, str(len(delays[0]))])
    print(format_table(rows))


def listen(audio: np.ndarray, chunk_ms: int) -> tuple[list[float], list[float], list[float]]:
    """Speak ``audio`` in real time; return the three delays of each word, in seconds."""
    command = [sys.executable, str(ROOT / "inference.py"), "-", "--device", "cpu", "--quiet", "--raw"]
    command += ["--output_format", "events", "--chunk_ms", str(chunk_ms), "--endpoint_ms", "0"]
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    began = time.monotonic()
    threading.Thread(target=speak, args=(process.stdin, audio, began), daemon=True).start()
    arrivals = []  # (word, s)
    assert process.stdout
    for line in process.stdout:
        event = json.loads(line)
        if event["type"] == "words":
            arrivals += [(word, time.monotonic() - began) for word in event["words"]]
    decided = decisions(audio, chunk_ms)
    steps = [arrived - seconds for (_, arrived), (seconds, _) in zip(arrivals, decided, strict=False)]
    beyond = [delay - seconds for delay, (_, seconds) in zip(steps, decided, strict=False)]
    words = [arrived - word["end"] for word, arrived in arrivals[: len(decided)]]
    return steps, beyond, words


def decisions(audio: np.ndarray, chunk_ms: int) -> list[tuple[float, float]]:
    """Return the seconds of audio after which each word is final, but for those that the end decides.

    Beside them are the seconds that the step takes.
    """
    recognizer = load_recognizer(ROOT / "demo" / "demo.nemo", "cpu", options=ModelOptions(chunk_ms=chunk_ms))
    stream = recognizer.stream(StreamOptions(endpoint_ms=0))
    found = []
    for first in range(0, len(audio), BLOCK):
        began = time.perf_counter()
        words = stream.feed(audio[first : first + BLOCK])
        taken = time.perf_counter() - began
        found += [(min(first + BLOCK, len(audio)) / SAMPLE_RATE, taken) for _ in words]
    return found


def speak(pipe: object, audio: np.ndarray, began: float) -> None:
    data = (audio * 32767).astype("<i2").tobytes()
    for first in range(0, len(data), 2 * BLOCK):
        end = first + 2 * BLOCK
        time.sleep(max(0.0, began + end / 2 / SAMPLE_RATE - time.monotonic()))
        pipe.write(data[first:end])  # type: ignore[attr-defined]
        pipe.flush()  # type: ignore[attr-defined]
    pipe.close()  # type: ignore[attr-defined]


if __name__ == "__main__":
    main()
