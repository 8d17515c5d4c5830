#!/usr/bin/env python3
"""This version against another one, in turn: whole commands, live steps, recordings, tokens, memory.  One thread.

    git worktree add ../before v0.10.0
    python benchmarks/versions.py ../before --model_path full.nemo --dtype int8

Each version is a process of its own that takes one live step, recording or block of tokens at a time, never two at
once, and they change the order in each round.  Times are the CPU time of the process, less dependent on what else runs;
those of whole commands, for 1 s of speech, are of user and system.  Printed are medians, for steps with the
95th percentile, and the median of the ratios of the pairs.
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
import time
import wave
from collections.abc import Callable
from pathlib import Path

HERE = Path(__file__).resolve().parent.parent
CLIP = HERE / "demo" / "digits.wav"
ROUNDS = {"live step of 80 ms": 80, "live step of 560 ms": 40, "recording of 60 s": 4, "token": 60}
WARM_UP = 0.1  # of the rounds, which are left out
FRAMES = 7  # of a block in which every frame emits three tokens


def serve(model: Path, dtype: str) -> None:
    """Load a version's recognizer; then do what each line names, and print its CPU ms."""
    answers = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)
    import numpy as np
    import torch

    from nemotron_npu.audio import read_audio
    from nemotron_npu.model import ModelOptions
    from nemotron_npu.recognizer import Recognizer

    torch.set_num_threads(1)
    samples = np.resize(read_audio(CLIP), 60 * 16000)
    recognizer = Recognizer(model, "cpu", options=ModelOptions(dtype=dtype))
    frames = torch.randn(1, FRAMES, recognizer.encoder.width, generator=torch.Generator().manual_seed(0))
    state = None

    def live(chunk_ms: int) -> Callable[[], int]:
        stream, position, count = recognizer.at_chunk(chunk_ms).stream(), 0, 16 * chunk_ms

        def step() -> int:
            nonlocal position
            stream.feed(torch.from_numpy(np.take(samples, range(position, position + count), mode="wrap")))
            position += count
            return 1

        return step

    def recording() -> int:
        recognizer.transcribe(samples)
        return 1

    def tokens() -> int:
        nonlocal state
        if state is None:
            recognizer.decoder.output.bias[-1] = -1e4  # never blank
            recognizer.decoder.max_symbols = 3
            state = recognizer.decoder.new_state(1)
        return len(recognizer.decoder.step(frames, state, [FRAMES])[0])

    calls = dict(zip(ROUNDS, (live(80), live(560), recording, tokens), strict=True))
    answers.write("ready\n")
    for line in sys.stdin:
        began = time.process_time()
        count = calls[line.strip()]()
        answers.write(f"{(time.process_time() - began) * 1000 / count}\n")


def environment(version: Path) -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": f"{version}:{version}/nv_one_logger_mock", "OMP_NUM_THREADS": "1"}


def start(version: Path, options: argparse.Namespace) -> subprocess.Popen:
    command = [sys.executable, __file__, "--serve", str(version), "--model_path", options.model_path]
    process = subprocess.Popen(
        [*command, "--dtype", options.dtype],
        env=environment(version),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    if process.stdout.readline() != "ready\n":
        sys.exit(f"{version} does not load {options.model_path}")
    return process


def ask(process: subprocess.Popen, what: str) -> float:
    process.stdin.write(f"{what}\n")
    process.stdin.flush()
    return float(process.stdout.readline())


def command(version: Path, arguments: list[str]) -> tuple[float, float]:
    """Run a whole command; return its CPU seconds and its peak memory in GB."""
    process = subprocess.Popen(
        [sys.executable, "inference.py", *arguments],
        cwd=version,
        env=environment(version),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    _, status, usage = os.wait4(process.pid, 0)
    if status:
        sys.exit(f"{version}: inference.py {' '.join(arguments)} ends with {os.waitstatus_to_exitcode(status)}")
    return usage.ru_utime + usage.ru_stime, usage.ru_maxrss * 1024 / 1e9


def first_second(folder: str) -> str:
    path = f"{folder}/1s.wav"
    with wave.open(str(CLIP)) as whole, wave.open(path, "w") as part:
        part.setparams(whole.getparams())
        part.writeframes(whole.readframes(whole.getframerate()))
    return path


def show(what: str, pairs: list[tuple[float, float]], digits: int, *, spread: bool = False) -> None:
    before, now = (sorted(column) for column in zip(*pairs, strict=True))
    ratio = statistics.median(b / a for a, b in pairs)
    cells = [f"{statistics.median(row):.{digits}f}" for row in (before, now)]
    if spread:
        cells = [
            f"{cell}, {row[int(0.95 * len(row))]:.{digits}f}" for cell, row in zip(cells, (before, now), strict=True)
        ]
    print(f"| {what} | {cells[0]} | {cells[1]} | {ratio:.2f} |", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("before", nargs="?", type=Path, help="a checkout of the other version")
    parser.add_argument("--model_path", default=str(HERE / "demo" / "demo.nemo"))
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--repeat", type=int, default=5, help="of whole commands")
    parser.add_argument("--serve", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.serve:
        sys.path[0] = str(options.serve)
        serve(Path(options.model_path), options.dtype)
        return
    options.model_path = str(Path(options.model_path).resolve())
    versions = [options.before.resolve(), HERE]
    print(f"| {options.dtype} | before | now | ratio |\n|---|---|---|---|")
    with tempfile.TemporaryDirectory() as folder:
        arguments = [first_second(folder), "--model_path", options.model_path, "--dtype", options.dtype]
        arguments += ["--device", "cpu", "--threads", "1", "--quiet"]
        runs = [[command(version, arguments) for version in versions] for _ in range(options.repeat)]
    for index, (what, digits) in enumerate((("whole command, s", 1), ("peak memory, GB", 2))):
        show(what, [(before[index], now[index]) for before, now in runs], digits)
    processes = [start(version, options) for version in versions]
    for what, rounds in ROUNDS.items():
        pairs = []
        for number in range(rounds):
            order = processes if number % 2 else processes[::-1]
            took = {process.pid: ask(process, what) for process in order}
            pairs.append((took[processes[0].pid], took[processes[1].pid]))
        pairs = pairs[round(WARM_UP * rounds) :]
        show(f"{what}, ms", pairs, 2 if what == "token" else 1, spread="step" in what)
    for process in processes:
        process.stdin.close()
        process.wait()


if __name__ == "__main__":
    main()
