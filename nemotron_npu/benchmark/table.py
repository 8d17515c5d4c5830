"""The table of a benchmark for a terminal."""

from __future__ import annotations

from collections.abc import Callable
from textwrap import fill

from ..host.table import COLUMNS, format_table
from . import effort
from .results import Benchmark, Candidate, Start, Times

BUSY = 0.03  # part of the time that may be spent waiting for a core on a quiet machine


def benchmark_table(result: Benchmark, model: str) -> str:
    """Format all figures, a column a candidate; after a time or speed follows how many times faster than NeMo it is."""
    table = _Table(result.candidates)
    _add_start(table)
    _add_forward(table)
    for chunk_ms in sorted(result.candidates[0].steps):
        _add_steps(table, chunk_ms)
    for seconds in sorted({seconds for candidate in result.candidates for seconds in candidate.rtfx}):
        _add_recording(table, seconds)
    batch = f"batch of {effort.BATCH} x {effort.BATCH_SECONDS} s, RTFx"
    table.add(batch, lambda candidate: _number(candidate.batch_rtfx))
    table.add("RTFx, upper limit here", lambda candidate: _number(candidate.rtfx_bound))
    rates = ", ".join(f"{dtype} {rate:g}" for dtype, rate in result.rates.gflop_s.items())
    brackets = "; in brackets: how many times as fast as NeMo" if table.compares else ""
    lines = [
        f"Benchmark of {model} on {result.title}",
        fill(f"This machine reads {result.rates.read_gb_s:g} GB/s and multiplies with {rates} GFLOP/s.", COLUMNS),
        f"Times are in ms unless marked s{brackets}.",
        format_table(table.rows),
    ]
    if result.waited > BUSY:
        busy = (
            f"Other programs used the CPU: {result.waited:.0%} of its time the measuring thread waited for a core. "
            "Times are too long, rates too low."
        )
        lines.append(fill(busy, COLUMNS))
    lines += [fill(f"{dtype} is left out: {reason}.", COLUMNS) for dtype, reason in result.left_out.items()]
    return "\n".join(lines)


class _Table:
    """Rows of cells; the first candidate is the baseline if it is NeMo."""

    def __init__(self, candidates: list[Candidate]) -> None:
        self.candidates = candidates
        self.rows = [
            ["", *(candidate.engine for candidate in candidates)],
            ["", *(candidate.dtype for candidate in candidates)],
        ]
        self.has_baseline = candidates[0].engine == "nemo"
        self.compares = self.has_baseline and len(candidates) > 1

    def add(self, label: str, cell: Callable[[Candidate], str | None]) -> None:
        """Add a row, unless no candidate has the figure."""
        cells = [cell(candidate) for candidate in self.candidates]
        if any(cells):
            self.rows.append([label, *(text or "-" for text in cells)])

    def add_times(self, label: str, figure: Callable[[Candidate], float | None], digits: int = 1) -> None:
        """Add a row of times with the speed-up over the baseline."""
        self.add(label, lambda candidate: self._compared(candidate, figure, digits, lambda own, nemo: nemo / own))

    def add_speeds(self, label: str, figure: Callable[[Candidate], float | None]) -> None:
        """Add a row of speeds with the speed-up over the baseline."""
        self.add(label, lambda candidate: self._compared(candidate, figure, 1, lambda own, nemo: own / nemo))

    def _compared(
        self,
        candidate: Candidate,
        figure: Callable[[Candidate], float | None],
        digits: int,
        gain: Callable[[float, float], float],
    ) -> str | None:
        own = figure(candidate)
        if own is None:
            return None
        cell = f"{own:.{digits}f}"
        baseline = self.candidates[0]
        if self.has_baseline and candidate is not baseline and (nemo := figure(baseline)):
            cell += f" ({gain(own, nemo):.1f})"
        return cell


def _add_start(table: _Table) -> None:
    def megabytes(figure: float | None) -> str | None:
        return _number(figure and figure / 1e6, digits=0)

    table.add_times("start to first words, s", lambda row: _start(row).total_s, 2)
    table.add("  import, s", lambda row: f"{_start(row).import_s:.2f}")
    table.add("  load, s", lambda row: f"{_start(row).load_s:.2f}")
    table.add("  transcribe 1 s, s", lambda row: f"{_start(row).first_s:.2f}")
    table.add("  peak memory, MB", lambda row: megabytes(_start(row).peak_bytes))
    table.add("device memory, MB", lambda row: megabytes(row.device_peak_bytes))


def _start(candidate: Candidate) -> Start:
    if candidate.start is None:
        raise ValueError(f"{candidate.name} has not been started")
    return candidate.start


def _add_forward(table: _Table) -> None:
    table.add_times("forward pass of 1 s, mean", lambda row: _figure(row.forward, "mean"))
    table.add("  median", lambda row: _number(_figure(row.forward, "median")))
    table.add("  p95", lambda row: _number(_figure(row.forward, "p95")))
    table.add("  operators", lambda row: f"{row.forward_operators:,}")


def _add_steps(table: _Table, chunk_ms: int) -> None:
    def megabytes(row: Candidate) -> str | None:
        if chunk_ms not in row.step_work:
            return None
        return f"{row.step_work[chunk_ms].bytes / 1e6:,.0f}"

    def part_of_chunk(row: Candidate) -> str | None:
        if chunk_ms not in row.live:
            return None
        return f"{100 * row.live[chunk_ms].p95 / chunk_ms:.0f} %"

    table.add_times(f"encoder step {chunk_ms} ms, median", lambda row: row.steps[chunk_ms].median)
    table.add("  p95", lambda row: _number(row.steps[chunk_ms].p95))
    table.add("  max", lambda row: _number(row.steps[chunk_ms].max))
    table.add("  lower limit (its share, %)", lambda row: _bound(row, chunk_ms))
    table.add("  operators", lambda row: f"{row.step_operators[chunk_ms]:,}")
    table.add("  MB read", megabytes)
    table.add(f"live step {chunk_ms} ms, median", lambda row: _number(_figure(row.live.get(chunk_ms), "median")))
    table.add("  p95", lambda row: _number(_figure(row.live.get(chunk_ms), "p95")))
    table.add("  max", lambda row: _number(_figure(row.live.get(chunk_ms), "max")))
    table.add("  p95, share of the chunk", part_of_chunk)


def _add_recording(table: _Table, seconds: int) -> None:
    def share(row: Candidate) -> str | None:
        if seconds not in row.search_share:
            return None
        return f"{100 * row.search_share[seconds]:.1f} %"

    table.add_speeds(f"recording of {seconds} s, RTFx", lambda row: row.rtfx.get(seconds))
    table.add("  share of decoding", share)


def _bound(candidate: Candidate, chunk_ms: int) -> str | None:
    """Return the least time of a step, and its share of the measured one in percent."""
    bound = candidate.step_bound_ms.get(chunk_ms)
    if bound is None:
        return None
    return f"{bound:.1f} ({100 * bound / candidate.steps[chunk_ms].median:.0f})"


def _figure(times: Times | None, name: str) -> float | None:
    return None if times is None else getattr(times, name)


def _number(figure: float | None, *, digits: int = 1) -> str | None:
    return None if figure is None else f"{figure:.{digits}f}"
