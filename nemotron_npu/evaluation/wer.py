"""Word and character error rates of transcripts against reference texts: the same for every option that reports one."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import asdict, astuple, dataclass, field
from functools import cache
from types import ModuleType

NORMALIZERS = ("whisper", "basic")
"""Whisper's English normalizer, and the one that Whisper has for other languages: no case, no punctuation."""
APOSTROPHES = str.maketrans({"\u2019": "'", "\u02bc": "'"})
MEASURES = ("words", "characters", "normalized_words", "normalized_characters")


@dataclass(frozen=True)
class Errors:
    """Counts of the fewest edits that turn the reference into the hypothesis, in words or characters."""

    hits: int = 0
    substitutions: int = 0
    insertions: int = 0
    deletions: int = 0

    @property
    def count(self) -> int:
        """Errors of all kinds."""
        return self.substitutions + self.insertions + self.deletions

    @property
    def length(self) -> int:
        """Words or characters of the reference."""
        return self.hits + self.substitutions + self.deletions

    @property
    def rate(self) -> float:
        """Errors per word or character of the reference; infinite if it is empty, as in NeMo's ``word_error_rate``."""
        if not self.length:
            return float("inf")
        return self.count / self.length

    def __add__(self, other: Errors) -> Errors:
        return Errors(*map(sum, zip(astuple(self), astuple(other), strict=True)))

    def as_dict(self) -> dict[str, float]:
        """Return the counts with rate and length for JSON."""
        return {"rate": self.rate, "length": self.length, **asdict(self)}


@dataclass(frozen=True)
class Score:
    """The errors in one recording, or in all of them together."""

    name: str
    duration: float
    """Seconds of audio."""
    words: Errors
    """As written: case and punctuation count, as in NeMo's ``word_error_rate``."""
    characters: Errors
    """As written; spaces count as characters, as in NeMo."""
    normalized_words: Errors
    """After ``normalize``; the Open ASR Leaderboard derives its own from Whisper's."""
    normalized_characters: Errors
    reference: str = field(default="", repr=False)
    hypothesis: str = field(default="", repr=False)

    def as_dict(self) -> dict[str, dict[str, float]]:
        """Return the errors by measure for JSON."""
        return {measure: getattr(self, measure).as_dict() for measure in MEASURES}


@dataclass(frozen=True)
class Evaluation:
    """The scores of several recordings, and their sum."""

    files: tuple[Score, ...]
    overall: Score
    normalizer: str = NORMALIZERS[0]

    def as_dict(self) -> dict:
        """Return every figure for JSON, which writes the infinite rate of an empty reference as null."""
        files = [{"audio": score.name, **score.as_dict()} for score in self.files]
        return {"normalizer": self.normalizer, "overall": self.overall.as_dict(), "files": files}


def evaluate(results: Iterable[tuple[str, str, str, float]], normalizer: str = NORMALIZERS[0]) -> Evaluation:
    """Score (name, reference, hypothesis, seconds of audio) of each recording, and add the scores up."""
    files = tuple(score(*result, normalizer) for result in results)

    def total(measure: str) -> Errors:
        return sum((getattr(file, measure) for file in files), Errors())

    duration = sum(file.duration for file in files)
    words, characters, normalized_words, normalized_characters = map(total, MEASURES)
    overall = Score("", duration, words, characters, normalized_words, normalized_characters)
    return Evaluation(files, overall, normalizer)


def score(name: str, reference: str, hypothesis: str, duration: float, normalizer: str) -> Score:
    """Score the hypothesis of one recording of ``duration`` seconds."""
    normal_reference = normalize(reference, normalizer)
    normal_hypothesis = normalize(hypothesis, normalizer)
    return Score(
        name,
        duration,
        word_errors(reference, hypothesis),
        character_errors(reference, hypothesis),
        word_errors(normal_reference, normal_hypothesis),
        character_errors(normal_reference, normal_hypothesis),
        reference,
        hypothesis,
    )


def word_errors(reference: str, hypothesis: str) -> Errors:
    """Count errors in words, which white space separates."""
    if not reference.split():  # jiwer raises an error
        return Errors(insertions=len(hypothesis.split()))
    output = _english().jiwer.process_words(" ".join(reference.split()), " ".join(hypothesis.split()))
    return Errors(output.hits, output.substitutions, output.insertions, output.deletions)


def character_errors(reference: str, hypothesis: str) -> Errors:
    """Count errors in characters, spaces included."""
    if not reference:  # jiwer raises an error
        return Errors(insertions=len(hypothesis))
    jiwer = _english().jiwer
    unchanged = jiwer.Compose([jiwer.ReduceToListOfListOfChars()])
    output = jiwer.process_characters(reference, hypothesis, unchanged, unchanged)
    return Errors(output.hits, output.substitutions, output.insertions, output.deletions)


def align_words(reference: str, hypothesis: str) -> Iterator[tuple[str, str, str]]:
    """Yield (kind of edit, reference word, hypothesis word); a word that has no counterpart stands next to "".

    Kinds are ``equal``, ``substitute``, ``insert`` and ``delete``.
    """
    expected = reference.split()
    words = hypothesis.split()
    if not expected:  # jiwer raises an error
        yield from (("insert", "", word) for word in words)
        return
    for edit in _english().jiwer.process_words(" ".join(expected), " ".join(words)).alignments[0]:
        left = expected[edit.ref_start_idx : edit.ref_end_idx]
        right = words[edit.hyp_start_idx : edit.hyp_end_idx]
        if edit.type == "insert":
            left = [""] * len(right)
        elif edit.type == "delete":
            right = [""] * len(left)
        yield from ((edit.type, *pair) for pair in zip(left, right, strict=True))


def normalize(text: str, normalizer: str = NORMALIZERS[0]) -> str:
    """Apply one of ``NORMALIZERS``; a curly apostrophe is a straight one, which Whisper's do not see to.

    The English one gives lower case, no punctuation, digits, American spelling, no contractions, no fillers ("um").
    """
    return _english().NORMALIZERS[normalizer](text.translate(APOSTROPHES)).strip()


@cache
def _english() -> ModuleType:
    from . import english  # 80 ms, which only reference texts need

    return english
