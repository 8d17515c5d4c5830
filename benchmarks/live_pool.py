#!/usr/bin/env python3
"""How many live streams one process keeps up with in real time: in shared steps, and each in steps of its own.

    python benchmarks/live_pool.py --model_path model.nemo --dtype int8 --threads 1

Streams begin at random times within a chunk and get a chunk of the bundled clip each time that one would have been
spoken.  The latency of a chunk is the time from its last sample until the step that takes it has ended.  A number of
streams is kept up with if the 95th percentile is under a chunk and the audio that waits does not grow.  Both ways take
turns: one number of streams in shared steps, then the same alone.
"""

from __future__ import annotations

import argparse
import sys
import threading
import time
from pathlib import Path
from typing import NamedTuple

import numpy as np

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from nemotron_npu.audio import SAMPLE_RATE, read_audio  # noqa: E402

COUNTS = (1, 2, 3, 4, 5, 6, 8, 10, 12, 16, 20, 24, 32, 48, 64)


class Run(NamedTuple):
    """One run of so many streams."""

    latencies: np.ndarray
    """Seconds, of each chunk."""
    steps: int
    waiting: float
    """Seconds of audio that wait at the end, of the stream that is farthest behind."""

    def keeps_up(self, chunk: float) -> bool:
        """Whether the chunks of so many seconds are transcribed as they come."""
        return np.quantile(self.latencies, 0.95) < chunk and self.waiting < 2 * chunk


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model_path", type=Path, default=ROOT / "demo" / "demo.nemo")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--chunk_ms", type=int, nargs="+", default=[80, 160, 560, 1120])
    parser.add_argument("--seconds", type=float, default=20, help="length of a run (default: %(default)s)")
    parser.add_argument("--most", type=int, default=64, help="streams at most (default: %(default)s)")
    args = parser.parse_args()

    import torch

    from nemotron_npu.engine import ModelOptions
    from nemotron_npu.recognizer import Recognizer

    torch.set_num_threads(args.threads)
    model = Recognizer(args.model_path, args.device, options=ModelOptions(dtype=args.dtype))
    print(f"{args.dtype}, {args.threads} threads, {torch.backends.cpu.get_cpu_capability()}")
    print("| chunk, ms | streams | shared steps: median, p95, ms | in a step | alone: median, p95, ms |")
    print("|---|---|---|---|---|")
    most = {}
    for chunk_ms in args.chunk_ms:
        at_chunk, chunk = model.at_chunk(chunk_ms), chunk_ms / 1000
        sustained = {"shared": 0, "alone": 0}
        failed: set[str] = set()
        for count in (n for n in COUNTS if n <= args.most):
            runs = {}
            for way in [way for way in sustained if way not in failed]:
                runs[way] = listen(at_chunk, count, args.seconds, shared=way == "shared")
                if runs[way].keeps_up(chunk):
                    sustained[way] = count
                else:
                    failed.add(way)
            cells = {way: describe(run, chunk) for way, run in runs.items()}
            size = len(runs["shared"].latencies) / runs["shared"].steps if "shared" in runs else 0
            print(
                f"| {chunk_ms} | {count} | {cells.get('shared', '-')} | {size:.1f} | {cells.get('alone', '-')} |",
                flush=True,
            )
            if len(failed) == 2:
                break
        most[chunk_ms] = sustained
    for chunk_ms, sustained in most.items():
        print(f"{chunk_ms} ms: {sustained['shared']} streams in shared steps, {sustained['alone']} alone")
    return 0


def listen(model, count: int, seconds: float, *, shared: bool) -> Run:
    """Feed ``count`` streams in real time for so many seconds."""
    chunk = model.chunk_samples
    sound = np.tile(read_audio(ROOT / "demo" / "digits.wav"), 1 + int((seconds + 3) * SAMPLE_RATE / 100_000))
    chance = np.random.default_rng(0)
    pool = model.pool(count)
    if not shared:
        pool.largest = 1
    streams = [pool.stream() for _ in range(count)]
    for stream in streams:  # the first steps are not those of a live stream
        stream.feed(sound[: 2 * SAMPLE_RATE])
    while pool.step():
        pass
    began = time.perf_counter()
    due = sorted(
        (start + (k + 1) * chunk / SAMPLE_RATE, i)
        for i, start in enumerate(chance.uniform(0, chunk / SAMPLE_RATE, count))
        for k in range(int(seconds * SAMPLE_RATE / chunk))
    )
    times: dict[object, list[float]] = {stream: [] for stream in streams}  # of chunks that wait

    def feed() -> None:
        fed = [2 * SAMPLE_RATE] * count
        for at, i in due:
            time.sleep(max(0.0, began + at - time.perf_counter()))
            times[streams[i]].append(began + at)
            try:
                streams[i].feed(sound[fed[i] : fed[i] + chunk])
            except BufferError:  # hopelessly behind
                return
            fed[i] += chunk

    feeder = threading.Thread(target=feed, daemon=True)
    feeder.start()
    latencies, steps = [], 0
    patience = 0.1 * chunk / SAMPLE_RATE
    while feeder.is_alive() or any(stream.is_ready for stream in streams):
        before = {stream: stream.rows.position for stream in streams}
        stepped = pool.step(patience)
        now = time.perf_counter()
        steps += bool(stepped)
        for stream in stepped:
            for _ in range((stream.rows.position - before[stream]) // stream.chunk):
                latencies.append(now - times[stream].pop(0))
        if not feeder.is_alive():
            break
    waiting = max(stream.seconds_waiting for stream in streams)
    return Run(np.array(latencies), steps, waiting)


def describe(run: Run, chunk: float) -> str:
    """The median and the 95th percentile in ms; in brackets where the run does not keep up."""
    text = f"{1000 * np.median(run.latencies):.0f}, {1000 * np.quantile(run.latencies, 0.95):.0f}"
    return text if run.keeps_up(chunk) else f"({text})"


if __name__ == "__main__":
    sys.exit(main())
