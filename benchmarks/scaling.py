#!/usr/bin/env python3
"""Measure what more workers give: time, memory, and the limits of the driver, the process that hands out the work.

    python benchmarks/scaling.py speed --files 1000 --seconds 8              # 1 worker on 1 core, then 2
    python benchmarks/scaling.py speed --files 16 --seconds 600
    python benchmarks/scaling.py memory --model_path full.nemo --workers 1 8
    python benchmarks/scaling.py memory --model_path full.nemo --workers 4 --own_weights
    python benchmarks/scaling.py limits

The recordings are made of the bundled clip; their lengths differ around the one that is asked for.  ``speed`` runs
``inference.py`` with every output format, checks that all runs write the same files apart from ``timings`` and
probabilities, and reports the seconds of transcription and those of the whole command.  As many commands at the same
time, each on a core of its own with its part of the files, show what the cores give at most.  ``memory`` adds up the
proportional set sizes of all processes of a run, so that shared pages count once; with ``--own_weights`` each worker
loads the weights for itself.  ``limits`` measures the driver with workers that transcribe nothing, and decoding.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import re
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass, replace
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import numpy as np
import soundfile

from nemotron_npu.audio import read_audio
from nemotron_npu.cli.output_folder import OutputFolder
from nemotron_npu.cli.run_info import RunSettings
from nemotron_npu.cluster.driver import Workers
from nemotron_npu.cluster.worker import Setup, WorkerInfo
from nemotron_npu.formats import FORMATS, to_document
from nemotron_npu.host.table import format_table
from nemotron_npu.sources import CountedRecording, find_recordings
from nemotron_npu.transcript import Token, Transcript, Word

HERE = Path(__file__).resolve().parent
DEMO = HERE.parent / "demo" / "demo.nemo"
CLIP = HERE.parent / "demo" / "digits.wav"
RATE = 16_000


def make_corpus(folder: Path, files: int, seconds: float) -> float:
    """Write recordings of half to one and a half times ``seconds``; return the seconds of all."""
    clip = read_audio(CLIP)
    total = 0
    for number in range(files):
        count = int(RATE * seconds * (0.5 + (number * 0.618) % 1))  # evenly, in no order
        samples = np.resize(np.roll(clip, 997 * number), count)
        soundfile.write(folder / f"{number:05}.flac", samples, RATE)
        total += count
    return total / RATE


# a keeper that shares nothing; Ray sends a class of __main__ by value
OWN_WEIGHTS = """
import sys
import inference
from nemotron_npu.cluster import driver
class Keeper:
    def load(self, setup):
        return None
driver.Keeper = Keeper
sys.exit(inference.main(sys.argv[1:]))
"""


def command(args, corpus: Path, output: Path, workers: int, core: int = 0) -> list[str]:
    """Return the command that transcribes ``corpus``: by one worker on ``core``, or by several on all cores."""
    words = ["-c", OWN_WEIGHTS] if args.own_weights else ["inference.py"]
    words += [corpus, "--output_dir", output, "--model_path", args.model_path, "--device", "cpu"]
    words += ["--dtype", args.dtype, "--num_workers", workers]
    if args.threads:
        words += ["--threads", args.threads]
    pinned = ["taskset", "-c", str(core)] if workers == 1 else []
    return [*pinned, sys.executable, *map(str, words)]


def run(*commands: list[str]) -> tuple[float, float]:
    """Return the seconds of transcription and of the whole command; of several commands, those of the slowest."""
    began = time.perf_counter()
    running = [subprocess.Popen(words, cwd=HERE.parent, stderr=subprocess.PIPE, text=True) for words in commands]
    reports = [process.communicate()[1] for process in running]
    whole = time.perf_counter() - began
    for process, text in zip(running, reports, strict=True):
        if process.returncode:
            raise SystemExit(text)
    return max(float(re.search(r"(?:sound|audio) in ([\d.]+) s", text)[1]) for text in reports), whole


def written(output: Path) -> dict[str, bytes]:
    """All files of a run, without its timings, probabilities and confidences."""
    numbers = re.compile(rb'"timings": \{[^}]*\}|"(probability|confidence)": [\d.e-]+')
    found = {}
    for file in sorted(file for file in output.rglob("*") if file.is_file()):
        content = numbers.sub(b"", file.read_bytes())
        if file.suffix == ".ctm":
            content = b"\n".join(line.rpartition(b" ")[0] for line in content.splitlines())
        found[str(file.relative_to(output))] = content
    return found


def speed(args) -> None:
    before: dict[str, bytes] = {}
    cores = sorted(os.sched_getaffinity(0))[: max(args.workers)]
    alone = f"{len(cores)} commands, a part each"
    names = {workers: f"{workers} worker{'s' * (workers > 1)}" for workers in args.workers}
    runs: dict[str, list] = {name: [] for name in [*names.values(), alone]}
    with tempfile.TemporaryDirectory() as place:
        corpus = Path(place, "corpus")
        corpus.mkdir()
        total = make_corpus(corpus, args.files, args.seconds)
        files = sorted(map(str, corpus.iterdir()))
        parts = {core: Path(place, f"part{core}.txt") for core in cores}
        for number, part in enumerate(parts.values()):
            part.write_text("\n".join(files[number :: len(cores)]))
        for turn in range(args.rounds):
            for workers, name in names.items():
                output = Path(place, f"{workers}-{turn}")
                runs[name].append(run(command(args, corpus, output, workers)))
                now = written(output)
                before = before or now
                if now != before:
                    raise SystemExit(f"{workers} workers wrote something else")
            each = (command(args, part, Path(place, f"part{core}-{turn}"), 1, core) for core, part in parts.items())
            runs[alone].append(run(*each))
    rows = [["", "seconds", "RTFx", "speed-up", "whole command, s"]]
    first = None
    for name, seconds in runs.items():
        transcribing, whole = (statistics.median(column) for column in zip(*seconds, strict=True))
        first = first or transcribing
        figures = [f"{transcribing:.2f}", f"{total / transcribing:.1f}", f"{first / transcribing:.2f}", f"{whole:.1f}"]
        rows.append([name, *figures])
    title = f"{args.files} files, {total / 3600:.2f} h, {len(before)} files written, the same results"
    print(format_table(rows, title=title))


def memory(args) -> None:
    rows = []
    for workers in args.workers:
        with tempfile.TemporaryDirectory() as place:
            corpus = Path(place, "corpus")
            corpus.mkdir()
            make_corpus(corpus, args.files or 3 * workers, args.seconds)
            process = subprocess.Popen(
                command(args, corpus, Path(place, "out"), workers), cwd=HERE.parent, start_new_session=True
            )
            peak: dict[str, int] = {}
            while process.poll() is None:
                sizes = proportional(process.pid)
                if sum(sizes.values()) > sum(peak.values()):
                    peak = sizes
                time.sleep(0.2)
            if process.returncode:
                raise SystemExit(process.returncode)
        parts = ", ".join(f"{name} {size / 1e6:.0f}" for name, size in sorted(peak.items()))
        plural = "s" if workers > 1 else ""
        rows.append((f"{workers} worker{plural}", f"{sum(peak.values()) / 1e9:.2f} GB at most (MB: {parts})"))
    weights = "own" if args.own_weights else "shared"
    print(format_table(rows, title=f"memory of {args.model_path.name}, {args.dtype}, {weights} weights", left=2))


def proportional(session: int) -> dict[str, int]:
    """Return bytes by kind of process; a page that n processes share counts 1/n for each."""
    sizes: dict[str, int] = {}
    for entry in Path("/proc").iterdir():
        with contextlib.suppress(OSError, ValueError, IndexError):
            if int((entry / "stat").read_text().rpartition(")")[2].split()[3]) != session:
                continue
            name = (entry / "cmdline").read_text()
            kind = "Ray"
            if int(entry.name) == session:
                kind = "driver"
            elif name.startswith("ray::Worker"):
                kind = "workers"
            elif name.startswith("ray::Keeper"):
                kind = "keeper"
            size = int(re.search(r"Pss: +(\d+)", (entry / "smaps_rollup").read_text())[1]) * 1024
            sizes[kind] = sizes.get(kind, 0) + size
    return sizes


@dataclass(frozen=True)
class Nothing(Setup):
    """Workers that transcribe nothing: all transcripts are equal."""

    def load(self):
        return _Nothing(), WorkerInfo(0, "none", "cpu", "none", 8)


class _Nothing:
    engine = "none"

    def results(self, sources, slots):
        transcript = spoken()
        for index, _ in enumerate(sources):
            yield index, transcript


def spoken(seconds: int = 8) -> Transcript:
    """Return a transcript as long as one of so many seconds: five tokens in two seconds."""
    tokens = tuple(Token(n, "▁seven", 5 * n, 0.4 * n, 0.987654321, 0.987654321) for n in range(seconds * 5 // 2))
    words = tuple(Word("seven", token.time, token.time + 0.08, token.confidence) for token in tokens)
    return Transcript(" ".join(["seven"] * len(words)), tokens, float(seconds), words)


def limits(args) -> None:
    """Measure what one driver and one core can do."""
    os.environ["PYTHONPATH"] = f"{HERE}:{HERE.parent}"
    rows = []
    with tempfile.TemporaryDirectory() as place:
        corpus = Path(place, "corpus")
        corpus.mkdir()
        make_corpus(corpus, 20, 8)
        some = list(find_recordings([str(corpus)]))
        began = time.perf_counter()
        for recording in some * 50:
            recording.check()
        rows.append(("headers read", f"{1000 / (time.perf_counter() - began):8.0f} files/s, one thread, local disk"))
        for kind in ("flac", "wav"):
            file = Path(place, f"decoded.{kind}")
            soundfile.write(file, np.resize(read_audio(CLIP), 600 * RATE), RATE)
            began = time.perf_counter()
            read_audio(file)
            factor = 600 / (time.perf_counter() - began)
            rows.append(
                (
                    f"{kind} decoded",
                    f"{factor:8.0f} times real time, one core; {file.stat().st_size * 6 / 1e6:.0f} MB/h",
                )
            )
        recordings = some * (args.files // 20)
        with Workers(Nothing(Path("none"), "cpu"), 2, None, lambda line: None) as workers:
            began = time.perf_counter()
            sources = [CountedRecording(recording, lambda seconds: None) for recording in recordings]
            for _ in workers.results(sources, 16):
                pass
            rows.append(("work handed out", f"{len(recordings) / (time.perf_counter() - began):8.0f} files/s"))
        for name, kinds in {"json": ["json"], "every format": [*FORMATS]}.items():
            for seconds in (8, 600):
                count = args.files * 8 // seconds // 20 * 20 or 20
                recordings = [replace(r, output=f"{n // 1000}/{n}") for n, r in enumerate(some * (count // 20))]
                settings = RunSettings("none", 1120, "float32", None, None)
                with OutputFolder(str(Path(place, f"{name} {seconds}")), kinds, settings) as folder:
                    folder.begin(recordings)
                    began = time.perf_counter()
                    for number, recording in enumerate(recordings):
                        transcript = spoken(seconds)
                        document = to_document(transcript, **recording.document_fields(), **settings.as_dict())
                        folder.write(number, transcript, document)
                    rate = count / (time.perf_counter() - began)
                figures = f"{rate:8.1f} files/s, {rate * seconds / 3600:.1f} h of audio/s"
                rows.append((f"{seconds} s each, written: {name}", figures))
    print(format_table(rows, title="limits of one driver", left=2))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["speed", "memory", "limits"])
    parser.add_argument("--files", type=int, help="recordings")
    parser.add_argument("--seconds", type=float, default=8.0, help="length of them (default: 8)")
    parser.add_argument("--workers", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--model_path", type=Path, default=DEMO)
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--threads", type=int)
    parser.add_argument("--own_weights", action="store_true", help="memory: each worker loads the weights for itself")
    parser.add_argument("--rounds", type=int, default=1)
    args = parser.parse_args()
    args.model_path = args.model_path.resolve()
    if args.what != "memory":
        args.files = args.files or 1000
    {"speed": speed, "memory": memory, "limits": limits}[args.what](args)


if __name__ == "__main__":
    main()
