#!/usr/bin/env python3
"""A live stream of hours: memory, the time of each feed, and the same text as from a recording.

    python benchmarks/long_stream.py --hours 8 --speed 30 --data FSDD

The command line (``inference.py -``) reads a pipe into which the audio is written, ``--speed`` times faster than real
time; 0 is as fast as it is read.  The audio is joined at random from the bundled clip, or the recordings in
``--data``, with pauses of up to a second of faint noise.  Exit code 1 if the texts differ.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from array import array
from collections.abc import Iterator
from pathlib import Path

import numpy as np

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from nemotron_npu.audio import SAMPLE_RATE, read_audio  # noqa: E402

HOUR = 3600 * SAMPLE_RATE
PIECE_SECONDS = 0.56  # of one write: of a chunk


class Sound:
    """So many samples, the same at each pass: int16 values as float32, as a stream of 16-bit PCM gives them."""

    def __init__(self, clips: list[np.ndarray], samples: int):
        self.clips, self.samples = clips, samples

    def blocks(self) -> Iterator[np.ndarray]:
        chance, left = np.random.default_rng(0), self.samples
        while left:
            clip = self.clips[chance.integers(len(self.clips))] * chance.uniform(0.5, 1)
            pause = chance.normal(0, 1e-4, int(chance.uniform(0.05, 1) * SAMPLE_RATE))
            block = np.round(np.concatenate([clip, pause]).clip(-1, 1)[:left] * 32767)
            left -= len(block)
            yield (block / 32768).astype(np.float32)

    def pieces(self, size: int) -> Iterator[bytes]:
        """As raw 16-bit PCM, cut to so many samples."""
        held = b""
        for block in self.blocks():
            held += (block * 32768).astype("<i2").tobytes()
            while len(held) >= 2 * size:
                yield held[: 2 * size]
                held = held[2 * size :]
        yield held


def listen(figures: str, arguments: list[str]) -> int:
    """The command line, and in the file ``figures`` a line for each hour of sound."""
    import inference
    from nemotron_npu.recognizer import Stream

    feed, times, hour = Stream.feed, [array("d"), array("d")], 0

    def watched(stream, samples):
        nonlocal hour
        clocks = time.perf_counter(), time.process_time()
        feed(stream, samples)
        for own, clock, began in zip(times, (time.perf_counter, time.process_time), clocks, strict=True):
            own.append(1000 * (clock() - began))
        if stream.features.samples // HOUR > hour:
            hour += 1
            document = {"hour": hour, "mb": resident(), "tokens": len(stream.emissions), "feeds": len(times[0])}
            for name, own in zip(("wall_ms", "cpu_ms"), times, strict=True):
                document[name] = [round(float(value), 2) for value in np.percentile(own, [50, 95, 99])]
                del own[:]
            with open(figures, "a") as file:
                print(json.dumps(document), file=file)

    Stream.feed = watched
    return inference.main(arguments)


def resident() -> float:
    with open("/proc/self/status") as status:
        return next(int(line.split()[1]) / 1000 for line in status if line.startswith("VmRSS:"))


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--hours", type=int, default=8)
    parser.add_argument("--speed", type=float, default=0, help="times faster than real time (default: as it is taken)")
    parser.add_argument("--data", help="a folder of recordings to join (default: the bundled clip)")
    parser.add_argument("--chunk_ms", type=int, default=560)
    parser.add_argument("--model_path", type=Path, default=ROOT / "demo" / "demo.nemo")
    args = parser.parse_args()

    from nemotron_npu.sources import find_recordings

    clips = [read_audio(recording) for recording in find_recordings([args.data or str(ROOT / "demo" / "digits.wav")])]
    sound = Sound(clips, args.hours * HOUR)
    options = ["--model_path", str(args.model_path), "--chunk_ms", str(args.chunk_ms), "--device", "cpu"]
    with tempfile.TemporaryDirectory() as folder:
        figures = Path(folder, "figures")
        command = [sys.executable, __file__, "--listen", str(figures), "-", *options, "--threads", "1", "--quiet"]
        began = time.monotonic()
        with tempfile.TemporaryFile() as text:
            process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=text)
            for number, piece in enumerate(sound.pieces(int(PIECE_SECONDS * SAMPLE_RATE))):
                process.stdin.write(piece)
                process.stdin.flush()
                if args.speed:
                    time.sleep(max(0.0, began + number * PIECE_SECONDS / args.speed - time.monotonic()))
            process.stdin.close()
            if process.wait():
                return 1
            seconds = time.monotonic() - began
            text.seek(0)
            live = text.read().decode().split()
        print("hour  resident, MB   tokens   feeds   feed, ms: median, p95, p99    CPU ms: median, p95, p99")
        hours = [json.loads(line) for line in figures.read_text().splitlines()]
        for hour in hours:
            wall, cpu = (", ".join(f"{value:6.2f}" for value in hour[name]) for name in ("wall_ms", "cpu_ms"))
            counts = f"{hour['hour']:>4}  {hour['mb']:>12.1f}  {hour['tokens']:>7}  {hour['feeds']:>6}"
            print(f"{counts}  {wall:>28}  {cpu:>26}")
    growth = hours[-1]["mb"] / hours[0]["mb"] - 1
    print(f"resident memory after hour {len(hours)} against hour 1: {100 * growth:+.1f} %")

    import torch

    from nemotron_npu.engine import ModelOptions
    from nemotron_npu.recognizer import Recognizer

    recognizer = Recognizer(args.model_path, torch.device("cpu"), options=ModelOptions(chunk_ms=args.chunk_ms))
    offline = recognizer.transcribe([sound])[0].text.split()
    verdict = "equal to" if live == offline else "NOT"
    print(f"{args.hours} h in {seconds:.0f} s; {len(live)} words, {verdict} those of the recording")
    return 0 if live == offline else 1


if __name__ == "__main__":
    if sys.argv[1:2] == ["--listen"]:
        sys.exit(listen(sys.argv[2], sys.argv[3:]))
    sys.exit(main())
