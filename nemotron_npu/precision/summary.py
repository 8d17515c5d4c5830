"""The comparison as a table for a terminal."""

from __future__ import annotations

import math
from textwrap import wrap

from ..host.table import COLUMNS, format_table
from .compare import Precision
from .document import describe, drift, factor
from .probes import CACHES
from .stages import LockstepRun, Repeat, stage_names
from .tokens import Decisions

HEADING = ("", "error %", "alone %", "worst frame %", "max error", "SNR dB", "")
LABEL = len("prediction network")  # the longest name of a stage


def format_precision(precision: Precision, candidate: dict) -> str:
    """Return every stage of the whole recordings, then decisions, streams, repeats and the verdict.

    ``candidate`` describes ``device``, ``engine``, ``dtype`` and ``device_settings``.
    """
    whole = precision.totals["recording"]
    count = len(precision.recordings)
    audio = precision.recordings[0]["audio"] if count == 1 else f"{count} recordings"
    title = f"{describe(candidate)} against NeMo (cpu, float32): {audio}, {precision.seconds:.1f} s"
    streams = [(name, _stream(precision, name)) for name, total in precision.totals.items() if total.live]
    rows = [
        ("tokens", _tokens(whole.decisions)),
        ("words", _words(whole.decisions)),
        *streams,
        ("two runs", _repeats(whole, candidate["device"])),
    ]
    if explanation := precision.explanation(candidate):
        rows.append(("float32", explanation))
    rows.append(("Verdict", _verdict(precision)))
    lines = [line for label, text in rows for line in _lines(label, text)]
    return format_table(_stage_rows(whole), title=title) + "\n" + format_table(lines, left=2)


def _lines(label: str, text: str) -> list[tuple[str, str]]:
    """Return ``text`` in rows that are aligned with the stages and fit ``COLUMNS``."""
    width = COLUMNS - LABEL - len("    ")  # the table's indent and its gap
    lines = [
        line for part in text.splitlines() for line in wrap(part, width, break_long_words=False, break_on_hyphens=False)
    ]
    return [((label if number == 0 else "").ljust(LABEL), line) for number, line in enumerate(lines)]


def _stage_rows(run: LockstepRun) -> list[tuple[str, ...]]:
    rows: list[tuple[str, ...]] = [HEADING]
    for stage in stage_names(run.layers):
        tally, alone = run.accumulated.get(stage), run.alone.get(stage)
        if tally is None:
            continue
        exceeds = tally.exceeds or (alone is not None and alone.exceeds)
        rows.append(
            (
                stage,
                f"{tally.percent:.2g}",
                "-" if alone is None else f"{alone.percent:.2g}",
                f"{tally.worst.percent:.2g}" if tally.worst else "0",
                f"{tally.max_error:.2g}",
                f"{tally.snr_db:.1f}",
                "FAILED" if exceeds else "",
            )
        )
    return rows


def _tokens(d: Decisions) -> str:
    if not d.token_errors:
        return f"{d.reference_tokens:,} of {d.reference_tokens:,} equal\n{_safety(d)}"
    line = f"{d.token_errors:,} of {d.reference_tokens:,} differ ({d.token_percent:.2g} %)"
    first = d.first_difference
    if first:
        line += (
            f", the first at {first['time']:.2f} s: {first['candidate']} by {first['candidate_margin']:.2g} nats "
            f"instead of {first['reference']} by {first['reference_margin']:.2g}"
        )
        line += f" in {first['audio']}" if "audio" in first else ""
    return f"{line}\n{_safety(d)}"


def _safety(d: Decisions) -> str:
    """Describe the distance to another choice: twice the error has to reach the margin of a decision."""
    if not d.steps:
        return "no decisions"
    line = f"smallest margin {d.smallest_margin:.2g} nats, largest joint error {d.largest_error:.2g}"
    if d.undecided:
        return f"{line}: {d.undecided:,} of {d.steps:,} decisions within reach of it"
    return f"{line}: safe by a factor of {factor(d.safety)}" if math.isfinite(d.safety) else line


def _words(d: Decisions) -> str:
    line = f"{d.reference_words:,} of {d.reference_words:,} equal"
    if d.word_errors:
        line = f"{d.word_errors:,} of {d.reference_words:,} wrong against the reference ({d.word_percent:.2g} %)"
    if d.transcript_words:
        rates, normalized = d.written_percent(), d.transcript_percent()
        line += (
            f"\nWER as written {rates.candidate:.2f} %, NeMo's {rates.reference:.2f} % "
            f"({rates.candidate - rates.reference:+.2f})"
            f"\nWER normalized {normalized.candidate:.2f} %, NeMo's {normalized.reference:.2f} %"
        )
    return line


def _stream(precision: Precision, name: str) -> str:
    total = precision.totals[name]
    d = total.decisions
    line = f"encoder {total.accumulated['encoder output'].percent:.2g} %"
    moved = precision.shown and drift(precision.shown.runs[name].accumulated["encoder output"])
    if moved:
        line += f" (first tenth {moved['first_tenth_percent']:.2g} %, last {moved['last_tenth_percent']:.2g} %)"
    caches = {stage: tally.percent for stage, tally in total.accumulated.tallies.items() if stage.startswith(CACHES)}
    if caches:
        worst = max(caches, key=lambda stage: caches[stage])
        line += f"\ncaches up to {caches[worst]:.2g} % ({worst})"
    line += f"\n{d.equal_tokens:,} of {d.reference_tokens:,} tokens equal"
    return f"FAILED: {line}" if total.failures() else line


def _repeats(run: LockstepRun, device: str) -> str:
    return f"{_repeat(device, run.candidate_repeat)}, {_repeat('NeMo on the cpu', run.reference_repeat)}"


def _repeat(side: str, repeat: Repeat) -> str:
    return f"{side} differs by up to {repeat.max_error:.2g} in {repeat.stage}" if repeat.stage else f"{side} equal"


def _verdict(precision: Precision) -> str:
    failures = precision.failures
    if not failures:
        return "PASSED"
    more = f" (and {len(failures) - 1:,} more)" if len(failures) > 1 else ""
    return f"FAILED, first at {failures[0]}{more}"
