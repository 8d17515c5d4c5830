"""The plot of a benchmark."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

from ..errors import printable
from ..host.files import write_file
from .results import Benchmark, Candidate

SIZE = (8, 5)
"""Inches."""
DOTS_PER_INCH = 120


def plot_steps(result: Benchmark, model: str, path: Path) -> None:
    """Write a PNG of latency against chunk size, with the line at which a stream is just live."""
    from matplotlib.figure import Figure  # only --report needs it, and requirements-native.txt lacks it

    chunks = sorted(result.candidates[0].steps)
    figure = Figure(figsize=SIZE, layout="constrained")
    axes = figure.subplots()
    axes.plot(range(len(chunks)), chunks, color="black", linestyle="--", label="real time")
    for number, candidate in enumerate(result.candidates):
        _add_candidate(axes, candidate, chunks, f"C{number}")
    axes.set_yscale("log")
    axes.yaxis.set_major_formatter("{x:g}")
    axes.set_xticks(range(len(chunks)), [f"{chunk} ms" for chunk in chunks])
    axes.set_xlabel("chunk")
    axes.set_ylabel("ms for a chunk: median, and up to the 95th percentile")
    title = printable(f"A step of a live stream: {model} on {result.title}")
    axes.set_title(title, parse_math=False)  # a name may have dollars
    axes.grid(visible=True, axis="y", which="both", alpha=0.2)
    axes.legend()
    picture = io.BytesIO()
    figure.savefig(picture, dpi=DOTS_PER_INCH)
    write_file(path, picture.getvalue())


def _add_candidate(axes: Any, candidate: Candidate, chunks: list[int], color: str) -> None:
    """Draw whole live steps where they were measured, else encoder steps."""
    steps = "encoder alone"
    if candidate.live:
        steps = "log-mel, encoder, decoder"
    times = [candidate.live.get(chunk) or candidate.steps[chunk] for chunk in chunks]
    medians = [own.median for own in times]
    above = [max(own.p95 - own.median, 0) for own in times]
    spread = [[0] * len(chunks), above]
    label = f"{candidate.name}: {steps}"
    axes.errorbar(range(len(chunks)), medians, spread, marker="o", capsize=3, color=color, label=label)
