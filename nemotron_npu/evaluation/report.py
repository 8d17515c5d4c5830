"""Tables and alignments of an evaluation for a terminal."""

from __future__ import annotations

import os
from itertools import accumulate
from typing import TextIO

from ..errors import printable
from ..host.table import format_table
from .wer import Evaluation, Score, align_words, normalize

MAX_FILES = 10
"""Files that the report shows: those with the highest rates."""
COLORS = {"substitute": "33", "insert": "32", "delete": "31"}
"""Yellow, green and red (ECMA-48, 8.3.117)."""
MARKS = {"substitute": "S", "insert": "I", "delete": "D", "equal": ""}
MARGIN = 6
"""Columns to the left of the aligned words: two spaces, a label of three letters and a space."""

PUBLISHED = {1120: (6.93, 2.32), 560: (7.07, 2.46), 160: (7.67, 2.56), 80: (8.43, 2.80)}
"""Word error rates in % that NVIDIA's model card gives for nemotron-speech-streaming-en-0.6b, by chunk in ms:
the average of the 8 English sets of the Open ASR Leaderboard, and LibriSpeech test-clean."""
NOTE = """\
published, test-clean: NVIDIA's normalized WER of the published checkpoint, the
average of the 8 sets of the Open ASR Leaderboard, and of LibriSpeech
test-clean. Both are of other recordings, not measured in this run."""


def summary_table(evaluation: Evaluation) -> str:
    """Format the overall figures, as written and normalized."""
    overall = evaluation.overall
    rows = [["", "WER", "words", "hits", "sub", "ins", "del", "CER"]]
    for label, words, characters in (
        ("as written", overall.words, overall.characters),
        (_normalized(evaluation), overall.normalized_words, overall.normalized_characters),
    ):
        counts = (words.length, words.hits, words.substitutions, words.insertions, words.deletions)
        rows.append([label, percent(words.rate), *(f"{count:,}" for count in counts), percent(characters.rate)])
    files = _files(len(evaluation.files))
    return format_table(rows, title=f"Word errors in {files} with a reference text ({_duration(overall.duration)})")


def chunk_table(rows: list[tuple[int, Evaluation, float]], *, published: bool) -> str:
    """Format (chunk in ms, evaluation, seconds it took) of each chunk length.

    ``published``: this is the published checkpoint, whose published rates stand next to these.
    """
    normalized = _normalized(rows[0][1])
    table = [["chunk", "WER", normalized, "CER", "RTFx"]]
    if published:
        table[0] += ["published", "test-clean"]
    for chunk_ms, evaluation, seconds in rows:
        overall = evaluation.overall
        rates = (overall.words.rate, overall.normalized_words.rate, overall.characters.rate)
        row = [f"{chunk_ms:4} ms", *map(percent, rates), f"{overall.duration / seconds:.1f}"]
        if published:
            row += [f"{rate:.2f} %" for rate in PUBLISHED[chunk_ms]] if chunk_ms in PUBLISHED else ["", ""]
        table.append(row)
    first = rows[0][1]
    amount = f"{first.overall.words.length:,} words, {_duration(first.overall.duration)}"
    title = f"Word errors at each chunk length ({_files(len(first.files))}, {amount})"
    return f"{format_table(table, title=title)}\n{NOTE}" if published else format_table(table, title=title)


def alignment_report(evaluation: Evaluation, width: int = 100, *, color: bool = False) -> str:
    """Format the ``MAX_FILES`` worst files: the reference above the hypothesis, word for word.

    The texts are compared as written or normalized, whichever gives fewer errors, so that neither punctuation nor
    numbers written in another way hide the words that the model got wrong.
    """
    overall = evaluation.overall
    normalized = overall.normalized_words.rate < overall.words.rate
    measure, texts = "words", "texts as written"
    if normalized:
        measure, texts = "normalized_words", f"texts {_normalized(evaluation)}"

    def badness(file: Score) -> tuple[float, int]:
        errors = getattr(file, measure)
        return errors.rate, errors.count

    wrong = [file for file in evaluation.files if getattr(file, measure).count]
    if not wrong:
        return f"No errors, {texts}"
    worst = sorted(wrong, key=badness, reverse=True)[:MAX_FILES]
    title = f"The worst {len(worst)} of {len(evaluation.files):,} files, {texts}"
    lines = [title, "S substituted, I inserted, D deleted"]
    for file in worst:
        errors = getattr(file, measure)
        lines.append(f"\n{file.name}: {percent(errors.rate)}, {errors.count} of {errors.length} words")
        expected, heard = file.reference, file.hypothesis
        if normalized:
            expected, heard = (normalize(text, evaluation.normalizer) for text in (expected, heard))
        lines += _aligned(expected, heard, width, color=color)
    return "\n".join(lines)


def use_color(stream: TextIO) -> bool:
    """Return whether ``stream`` is a terminal that shows color and the user wants it (no-color.org)."""
    return stream.isatty() and not os.environ.get("NO_COLOR") and os.environ.get("TERM") != "dumb"


def percent(rate: float) -> str:
    """Format an error rate; without a reference there is none."""
    if rate == float("inf"):
        return "-"
    return f"{100 * rate:.2f} %"


def _normalized(evaluation: Evaluation) -> str:
    return f"normalized ({evaluation.normalizer})"


def _files(count: int) -> str:
    if count == 1:
        return "1 file"
    return f"{count:,} files"


def _duration(seconds: float) -> str:
    if seconds < 360:
        return f"{seconds:.0f} s"
    return f"{seconds / 3600:.2f} h"


def _aligned(reference: str, hypothesis: str, width: int, *, color: bool) -> list[str]:
    """Return lines of at most ``width`` columns in threes: reference, hypothesis, and a mark for each edited word."""
    lines = []
    edits = []
    for kind, expected, word in align_words(reference, hypothesis):
        expected, word = printable(expected), printable(word)
        edits.append((kind, expected or "*" * len(word), word or "*" * len(expected)))
    while edits:
        ends = accumulate(max(len(expected), len(word)) + 1 for _, expected, word in edits)
        count = max(1, sum(end - 1 <= width - MARGIN for end in ends))
        cells = [_cells(*edit, color=color) for edit in edits[:count]]
        for label, row in zip(("ref", "hyp", ""), zip(*cells, strict=True), strict=True):
            lines.append(f"  {label:<3} {' '.join(row)}".rstrip())
        edits = edits[count:]
    return [line for line in lines if line]


def _cells(kind: str, expected: str, word: str, *, color: bool) -> list[str]:
    """Return the reference word, the hypothesis word and the mark of an edit, padded to the same width."""
    width = max(len(expected), len(word))
    cells = [cell.ljust(width) for cell in (expected, word, MARKS[kind])]
    if color and kind in COLORS:
        return [f"\x1b[{COLORS[kind]}m{cell}\x1b[0m" for cell in cells]
    return cells
