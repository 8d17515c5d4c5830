#!/usr/bin/env python3
"""Many pipes of unequal pace for an hour: texts, memory and delay from beginning to end.

    python benchmarks/live_hour.py --streams 32 --minutes 60 --chunk_ms 560

The program gets a named pipe for each stream.  A thread for each writes the bundled clip's utterances in random order,
in real time, in parts of random length and with pauses in which nothing comes.  ``delay`` is from the arrival of a
word's last sample to its line in ``--output_format events``; it includes the wait for the next word, which ends it.
At the end each text is compared with that of the same audio as a file.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import subprocess
import sys
import tempfile
import threading
import time
from bisect import bisect_left
from pathlib import Path

import numpy as np

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from nemotron_npu import ModelOptions, load_recognizer  # noqa: E402
from nemotron_npu.audio import SAMPLE_RATE, read_audio  # noqa: E402
from nemotron_npu.host.table import format_table  # noqa: E402

UTTERANCES = ((0.4, 1.7), (2.0, 3.9), (4.3, 5.6), (6.0, 6.8))  # of the clip, in seconds
PARTS = 10  # of the time, in the table
PAUSE_SHARE, PAUSE_SECONDS = 0.01, 3.0  # parts after which nothing comes for up to so long


class Speaker:
    """Writes audio into a pipe in real time, and notes when each sample was written."""

    def __init__(self, path: Path, data: bytes, seed: int) -> None:
        self.path = path
        self.data = data
        self.chance = random.Random(seed)
        self.ends: list[float] = []
        """Seconds of audio after each part."""
        self.times: list[float] = []
        """When it was written, by time.monotonic."""

    def speak(self) -> None:
        """Write everything."""
        with open(self.path, "wb", buffering=0) as pipe:
            began, position = time.monotonic(), 0
            while position < len(self.data):
                position += 2 * int(SAMPLE_RATE * self.chance.uniform(0.02, 0.5))
                time.sleep(max(0.0, began + position / 2 / SAMPLE_RATE - time.monotonic()))
                pipe.write(self.data[2 * round(SAMPLE_RATE * self.ends[-1]) if self.ends else 0 : position])
                self.ends.append(min(position, len(self.data)) / 2 / SAMPLE_RATE)
                self.times.append(time.monotonic())
                if self.chance.random() < PAUSE_SHARE:
                    pause = self.chance.uniform(0, PAUSE_SECONDS)
                    began += pause
                    time.sleep(pause)

    def arrival(self, seconds: float) -> float:
        """Return when the sample at so many seconds was written."""
        return self.times[min(bisect_left(self.ends, seconds), len(self.times) - 1)]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--streams", type=int, default=32)
    parser.add_argument("--minutes", type=float, default=60)
    parser.add_argument("--chunk_ms", type=int, default=560)
    parser.add_argument("--different", type=int, default=8, help="different texts (default: %(default)s)")
    args = parser.parse_args()
    sounds = [make_sound(args.minutes * 60, seed) for seed in range(min(args.different, args.streams))]
    with tempfile.TemporaryDirectory() as folder:
        speakers = []
        for number in range(args.streams):
            path = Path(folder, f"line{number}.fifo")
            os.mkfifo(path)
            data = (sounds[number % len(sounds)] * 32767).astype("<i2").tobytes()
            speakers.append(Speaker(path, data, number))
        rows, texts = listen(speakers, args)
    print(format_table(rows))
    recognizer = load_recognizer(ROOT / "demo" / "demo.nemo", "cpu", options=ModelOptions(chunk_ms=args.chunk_ms))
    quantized = [(sound * 32767).astype("<i2") for sound in sounds]
    files = [recognizer.transcribe(samples).text for samples in quantized]
    equal = sum(texts.get(f"line{number}") == files[number % len(files)] for number in range(args.streams))
    print(
        f"{equal} of {args.streams} texts equal those of the files ({sum(len(t.split()) for t in files)} words in "
        f"{len(files)} files)"
    )
    return 0 if equal == args.streams else 1


def make_sound(seconds: float, seed: int) -> np.ndarray:
    """Return the utterances of the clip in random order with pauses between them, float32 [samples]."""
    clip, chance = read_audio(str(ROOT / "demo" / "digits.wav")), np.random.default_rng(seed)
    parts, samples = [], 0
    while samples < seconds * SAMPLE_RATE:
        start, end = UTTERANCES[chance.integers(len(UTTERANCES))]
        noise = chance.normal(0, 1e-4, int(SAMPLE_RATE * chance.uniform(0.1, 1.5))).astype(np.float32)
        parts += [clip[int(start * SAMPLE_RATE) : int(end * SAMPLE_RATE)], noise]
        samples += len(parts[-1]) + len(parts[-2])
    return np.concatenate(parts)[: int(seconds * SAMPLE_RATE)]


def listen(speakers: list[Speaker], args: argparse.Namespace) -> tuple[list[list[str]], dict[str, str]]:
    """Return the table, by tenths of the time, and the text of each stream."""
    command = [sys.executable, str(ROOT / "inference.py"), "--stream", *(str(speaker.path) for speaker in speakers)]
    command += ["--raw", "--device", "cpu", "--chunk_ms", str(args.chunk_ms), "--output_format", "events"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE)
    assert process.stdout
    for speaker in speakers:
        threading.Thread(target=speaker.speak, daemon=True).start()
    by_name = {speaker.path.stem: speaker for speaker in speakers}
    began = time.monotonic()
    delays: list[list[float]] = [[] for _ in range(PARTS)]
    memory: list[float] = [0.0] * PARTS
    processor: list[float] = [0.0] * PARTS
    texts = {}
    for line in process.stdout:
        event, now = json.loads(line), time.monotonic()
        part = min(int(PARTS * (now - began) / 60 / args.minutes), PARTS - 1)
        if event["type"] == "words":
            speaker = by_name[event["source"]]
            delays[part] += [now - speaker.arrival(word["end"]) for word in event["words"]]
        elif event["type"] == "end":
            texts[event["source"]] = event["text"]
        elif event["type"] == "segment":
            memory[part], processor[part] = usage(process.pid)
    process.wait()
    rows = [["tenth", "words", "delay: median, s", "p95, s", "memory, MB", "CPU, s"]]
    for part in range(PARTS):
        quantiles = [f"{np.quantile(delays[part], q):.2f}" if delays[part] else "-" for q in (0.5, 0.95)]
        used = processor[part] - (processor[part - 1] if part else 0.0)
        rows.append([str(part + 1), str(len(delays[part])), *quantiles, f"{memory[part]:.0f}", f"{used:.0f}"])
    return rows, texts


def usage(pid: int) -> tuple[float, float]:
    """Return the resident memory (MB) and the CPU time (s) of a process."""
    pages = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
    times = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return pages * os.sysconf("SC_PAGE_SIZE") / 1e6, sum(map(int, times[11:13])) / os.sysconf("SC_CLK_TCK")


if __name__ == "__main__":
    sys.exit(main())
