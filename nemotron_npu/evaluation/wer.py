"""Transcripts against reference texts: word and character error rates, and what was heard instead of what."""

from __future__ import annotations

import os
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field
from functools import cache
from itertools import accumulate

from ..host.table import format_table

MEASURES = ("words", "characters", "normalized_words", "normalized_characters")
WORST = 10  # files of a report
COLORS = {"substitute": "33", "insert": "32", "delete": "31"}  # yellow, green, red (ECMA-48, 8.3.117)
MARKS = {"substitute": "S", "insert": "I", "delete": "D", "equal": ""}

PUBLISHED = {1120: (6.93, 2.32), 560: (7.07, 2.46), 160: (7.67, 2.56), 80: (8.43, 2.80)}
"""NVIDIA's own word error rates of nemotron-speech-streaming-en-0.6b in %, by chunk in ms, from its model card: the
average of the Open ASR Leaderboard's 8 English sets, and LibriSpeech test-clean."""


@dataclass(frozen=True)
class Errors:
    """Of the fewest edits that make the hypothesis of the reference, in words or characters."""

    hits: int = 0
    substitutions: int = 0
    insertions: int = 0
    deletions: int = 0

    @property
    def count(self) -> int:
        return self.substitutions + self.insertions + self.deletions

    @property
    def length(self) -> int:
        """Of the reference."""
        return self.hits + self.substitutions + self.deletions

    @property
    def rate(self) -> float:
        """Errors per word or character of the reference; infinite without any (as NeMo's ``word_error_rate`` is)."""
        return self.count / self.length if self.length else float("inf")

    def __add__(self, other: Errors) -> Errors:
        return Errors(*(a + b for a, b in zip(asdict(self).values(), asdict(other).values(), strict=True)))

    def as_dict(self) -> dict:
        return {"rate": self.rate, "length": self.length, **asdict(self)}


@dataclass(frozen=True)
class Score:
    """One recording, or all of them."""

    name: str
    duration: float
    """Seconds of sound."""
    words: Errors
    """As they are written: case and punctuation count, as in NeMo's ``word_error_rate``."""
    characters: Errors
    """The same of characters, spaces among them."""
    normalized_words: Errors
    """Behind Whisper's English normalizer, which the Open ASR Leaderboard's comes from."""
    normalized_characters: Errors
    reference: str = field(default="", repr=False)
    hypothesis: str = field(default="", repr=False)

    def as_dict(self) -> dict:
        return {measure: getattr(self, measure).as_dict() for measure in MEASURES}


@dataclass(frozen=True)
class Evaluation:
    """The scores of some recordings, and of all their words together."""

    files: tuple[Score, ...]
    overall: Score

    def as_dict(self) -> dict:
        """Every figure; with a reference of no words a rate is infinite, which JSON writes as null."""
        files = [{"audio": score.name, **score.as_dict()} for score in self.files]
        return {"overall": self.overall.as_dict(), "files": files}


def evaluate(results: Iterable[tuple[str, str, str, float]]) -> Evaluation:
    """Score (name, reference, hypothesis, seconds of sound) of each recording."""
    return summarize(score(*result) for result in results)


def summarize(scores: Iterable[Score]) -> Evaluation:
    """The scores of all recordings, and their sum."""
    files = tuple(scores)
    total = [sum((getattr(one, measure) for one in files), Errors()) for measure in MEASURES]
    return Evaluation(files, Score("", sum(one.duration for one in files), *total))


def score(name: str, reference: str, hypothesis: str, duration: float) -> Score:
    """Score one recording."""
    said, heard = normalize(reference), normalize(hypothesis)
    return Score(
        name,
        duration,
        word_errors(reference, hypothesis),
        character_errors(reference, hypothesis),
        word_errors(said, heard),
        character_errors(said, heard),
        reference,
        hypothesis,
    )


def word_errors(reference: str, hypothesis: str) -> Errors:
    """Words are what is between white space, as NeMo has it."""
    import jiwer

    reference, hypothesis = reference.split(), hypothesis.split()
    if not reference:  # jiwer refuses it
        return Errors(insertions=len(hypothesis))
    return _counts(jiwer.process_words(" ".join(reference), " ".join(hypothesis)))


def character_errors(reference: str, hypothesis: str) -> Errors:
    """Spaces are characters, as NeMo has it."""
    import jiwer

    if not reference:
        return Errors(insertions=len(hypothesis))
    as_they_are = jiwer.Compose([jiwer.ReduceToListOfListOfChars()])
    return _counts(jiwer.process_characters(reference, hypothesis, as_they_are, as_they_are))


def _counts(output) -> Errors:
    return Errors(output.hits, output.substitutions, output.insertions, output.deletions)


def normalize(text: str) -> str:
    """Whisper's English normalizer: lower case, no punctuation, numbers as digits, American spelling, no "um"."""
    return _normalizer()(text).strip()


@cache
def _normalizer():
    from whisper_normalizer.english import EnglishTextNormalizer

    normalizer = EnglishTextNormalizer()
    for word in ("kinda", "sorta", "dunno", "cause"):  # the package's own additions: Whisper leaves them alone
        normalizer.replacers.pop(rf"\b{word}\b", None)
    return normalizer


# ---------------------------------------------------------------- what a person reads


def to_table(evaluation: Evaluation) -> str:
    """The overall figures."""
    overall, files = evaluation.overall, _files(len(evaluation.files))
    heading = ["", "WER", "words", "hits", "substituted", "inserted", "deleted", "CER"]
    rows = [
        [
            label,
            percent(words.rate),
            *(f"{n:,}" for n in (words.length, words.hits, words.substitutions, words.insertions, words.deletions)),
            percent(characters.rate),
        ]
        for label, words, characters in (
            ("as written", overall.words, overall.characters),
            ("normalised", overall.normalized_words, overall.normalized_characters),
        )
    ]
    title = f"Word errors in {files} with a reference text ({_hours(overall.duration)})"
    return format_table([heading, *rows], title=title)


def to_report(evaluation: Evaluation, width: int = 100, color: bool = False) -> str:
    """The WORST files: what was said above what was recognised, word for word.

    Of the texts as written or normalised, those with fewer errors are compared, so that neither punctuation nor
    numbers that are written in another way hide what was misheard.
    """
    overall = evaluation.overall
    normal = overall.normalized_words.rate < overall.words.rate
    measure = "normalized_words" if normal else "words"
    wrong = [one for one in evaluation.files if getattr(one, measure).count]
    wrong.sort(key=lambda one: (-getattr(one, measure).rate, -getattr(one, measure).count))
    kind = "normalised" if normal else "as written"
    title = f"The worst {min(len(wrong), WORST)} of {len(evaluation.files):,} files, texts {kind}"
    parts = [f"{title}: S substituted, I inserted, D deleted" if wrong else f"No errors, texts {kind}"]
    for one in wrong[:WORST]:
        errors = getattr(one, measure)
        parts.append(f"\n{one.name}: {percent(errors.rate)}, {errors.count} of {errors.length} words")
        texts = (normalize(one.reference), normalize(one.hypothesis)) if normal else (one.reference, one.hypothesis)
        parts += _aligned(*texts, width, color)
    return "\n".join(parts)


def to_chunk_table(rows: list[tuple[int, Evaluation, float]]) -> str:
    """(chunk in ms, evaluation, seconds that it took) -> the table of the model card, beside what was published."""
    heading = ["latency (chunk), ms", "WER", "normalised", "CER", "RTFx", "published: average", "test-clean"]
    table = []
    for chunk_ms, evaluation, seconds in rows:
        overall = evaluation.overall
        published = [f"{rate:.2f} %" for rate in PUBLISHED.get(chunk_ms, ())] or ["", ""]
        rates = (overall.words.rate, overall.normalized_words.rate, overall.characters.rate)
        table.append([f"{chunk_ms}", *map(percent, rates), f"{overall.duration / seconds:.1f}", *published])
    files, overall = len(rows[0][1].files), rows[0][1].overall
    return "\n".join(
        [
            "Word errors at each chunk size "
            f"({_files(files)}, {overall.words.length:,} words, {_hours(overall.duration)})",
            format_table([heading, *table]),
            "published: NVIDIA's normalised WER of nemotron-speech-streaming-en-0.6b, the average of the 8 sets of the",
            "Open ASR Leaderboard, and LibriSpeech test-clean: other recordings than these, no measurement of this run",
        ]
    )


def use_color(stream) -> bool:
    """Whether ``stream`` is a terminal that is to be coloured (no-color.org)."""
    return stream.isatty() and not os.environ.get("NO_COLOR") and os.environ.get("TERM") != "dumb"


def percent(rate: float) -> str:
    """As error rates are written; without a reference there is none."""
    return f"{100 * rate:.2f} %" if rate != float("inf") else "-"


def _files(count: int) -> str:
    return "1 file" if count == 1 else f"{count:,} files"


def _hours(seconds: float) -> str:
    return f"{seconds / 3600:.2f} h" if seconds >= 360 else f"{seconds:.0f} s"


def _aligned(reference: str, hypothesis: str, width: int, color: bool) -> list[str]:
    """Lines of at most ``width`` columns, in threes: reference, hypothesis, and what happened to each word."""
    lines, columns = [], list(_pairs(reference.split(), hypothesis.split()))
    while columns:
        ends = accumulate(max(len(said), len(heard)) + 1 for said, heard, _ in columns)
        count = max(1, sum(end <= width - 5 for end in ends))
        rows = {"ref": [], "hyp": [], "": []}
        for said, heard, kind in columns[:count]:
            size = max(len(said), len(heard))
            for row, cell in zip(rows.values(), (said, heard, MARKS[kind]), strict=True):
                cell = cell.ljust(size)
                row.append(f"\x1b[{COLORS[kind]}m{cell}\x1b[0m" if color and kind in COLORS else cell)
        lines += [f"  {label:<3} {' '.join(cells)}".rstrip() for label, cells in rows.items()]
        columns = columns[count:]
    return [line for line in lines if line]


def _pairs(reference: list[str], hypothesis: list[str]):
    """(word said, word recognised, kind of edit), with asterisks where there is none."""
    import jiwer

    if not reference:
        yield from (("*" * len(word), word, "insert") for word in hypothesis)
        return
    for chunk in jiwer.process_words(" ".join(reference), " ".join(hypothesis)).alignments[0]:
        said = reference[chunk.ref_start_idx : chunk.ref_end_idx]
        heard = hypothesis[chunk.hyp_start_idx : chunk.hyp_end_idx]
        if chunk.type == "insert":
            yield from (("*" * len(word), word, "insert") for word in heard)
        elif chunk.type == "delete":
            yield from ((word, "*" * len(word), "delete") for word in said)
        else:
            yield from ((a, b, chunk.type) for a, b in zip(said, heard, strict=True))
