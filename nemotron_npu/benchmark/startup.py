"""Measure start-up times, in processes of their own."""

from __future__ import annotations

import json
import os
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from subprocess import PIPE
from typing import IO, cast

import numpy as np
import soundfile

from ..audio import SAMPLE_RATE
from ..errors import SetupError
from ..host import program
from . import effort
from .results import Start

END_SECONDS = 2
"""Time that a process has to end in when this one is interrupted."""
MEASURE_PEAK = """
import os, sys
child = os.spawnv(os.P_NOWAIT, sys.argv[1], sys.argv[1:])
_, status, used = os.wait4(child, 0)
print(used.ru_maxrss, file=sys.stderr)
sys.exit(os.waitstatus_to_exitcode(status))
"""
"""A process's peak is never less than that of the one that forked it: so this process, which is large, starts a small
one, which starts the command and prints the peak as the last line of stderr."""


def command() -> list[str]:
    """Return the command line as this process was started: with Python's own options, or on the tests' fake npu."""
    words = sys.orig_argv
    for index, word in enumerate(words):
        is_script = index > 0 and Path(word).name in (program.SCRIPT, program.COMMAND)
        if is_script or words[index - 1 : index + 1] == ["-m", program.PACKAGE.name]:
            return [sys.executable, *words[1 : index + 1]]
    if program.CLONE:
        return [sys.executable, str(program.CLONE / program.SCRIPT)]
    return [sys.executable, "-m", program.PACKAGE.name]


def measure_start(name: str, waveform: np.ndarray, options: Sequence[object]) -> Start:
    """Start the command line with ``options`` on 1 s of ``waveform``, several times.

    Raises SetupError with the command's own line and the candidate's ``name`` when it fails.
    """
    began = time.monotonic()
    runs: list[dict[str, float]] = []
    with tempfile.TemporaryDirectory() as folder:
        clip = os.path.join(folder, "clip.wav")
        soundfile.write(clip, np.resize(waveform, SAMPLE_RATE), SAMPLE_RATE)
        words = [*command(), clip, *options, "--output_format", "json", "--quiet"]
        while len(runs) < effort.STARTS and (not runs or time.monotonic() - began < effort.START_SECONDS):
            runs.append(_start_once(name, list(map(str, words))))
    medians = {figure: statistics.median(run[figure] for run in runs) for figure in runs[0]}
    import_s = medians["total_s"] - medians["load_s"] - medians["first_s"]
    return Start(**medians, import_s=import_s, processes=len(runs))


def _start_once(name: str, words: list[str]) -> dict[str, float]:
    started = time.monotonic()
    with child_process([sys.executable, "-I", "-S", "-c", MEASURE_PEAK, *words]) as child:
        line = cast(IO[str], child.stdout).readline()
        total = time.monotonic() - started
        _, errors = child.communicate()
    *messages, peak = errors.splitlines()
    if child.returncode:
        lines = [message.removeprefix(f"{program.name}: ") for message in messages]
        hint = "--engine native measures without it" if name.startswith("nemo") else ""
        raise SetupError(name, " ".join(lines) or "the process failed", hint)
    spent = json.loads(line)["timings"]
    return {
        "total_s": total,
        "load_s": spent["load"],
        "first_s": spent["seconds"],
        "peak_bytes": int(peak) * 1024,
    }


@contextmanager
def child_process(
    words: list[str],
    stdout: int | IO[bytes] = PIPE,
    stderr: int | IO[bytes] = PIPE,
    environ: dict[str, str] | None = None,
) -> Iterator[subprocess.Popen[str]]:
    """Run a process that ends with the block at the latest, and so do its children, when this one is interrupted.

    ``environ`` are its environment variables; None takes those of this process.
    """
    child = subprocess.Popen(words, stdout=stdout, stderr=stderr, text=True, start_new_session=True, env=environ)
    try:
        yield child
    except BaseException:
        with suppress(ProcessLookupError):
            os.killpg(child.pid, signal.SIGTERM)
        with suppress(subprocess.TimeoutExpired):
            child.communicate(timeout=END_SECONDS)
        with suppress(ProcessLookupError):
            os.killpg(child.pid, signal.SIGKILL)
        raise
