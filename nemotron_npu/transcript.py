"""The result for a recording: tokens, words, and segments of words.  Every engine returns these types."""

from __future__ import annotations

import re
import textwrap
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from itertools import accumulate

from .tags import END_OF_BACKCHANNEL, END_OF_UTTERANCE, Event, Tag

LINE_CHARACTERS = 42  # longest line of a subtitle
LINES = 2  # of a subtitle at most
SEGMENT_SECONDS = 7.0  # longest time to show a subtitle
FRAME_MS = 80  # of an encoder frame: the shortest time to show a subtitle
READING_SECONDS = 1.0  # shortest time, unless another follows earlier: a word of one token lasts only one frame
PAUSE_SECONDS = 1.0  # without a token: a pause of the speaker, since no word of one token takes that long
SENTENCE_END = ".?!。？！"
CLAUSE_END = ",;:—，；："
ABBREVIATION = re.compile(r"(Mr|Mrs|Ms|Dr|Prof|St|vs|[A-HJ-Z])\.")  # the period of these ends no sentence
CLOSING = "\"')]}”’»"  # may follow the mark that ends a sentence
CLAUSE_BONUS = 0.25  # of ending a segment after a clause, where 0.5 is the middle and 0 an end of the segment
PAUSE_BONUS = 0.25  # for each second of pause


@dataclass(frozen=True, slots=True)
class Token:
    """One emitted BPE token."""

    id: int
    """Index in the vocabulary."""
    piece: str
    """Its text in the vocabulary; ``▁`` marks the start of a word."""
    frame: int
    """Encoder frame at which it was emitted, counted from the start of the recording."""
    time: float
    """Seconds from the start of the recording: ``frame`` times the duration of an encoder frame."""
    probability: float | None = None
    """The model's probability, among all tokens and blank; the NeMo engine does not report it (None)."""
    confidence: float | None = None
    """From 0 (all tokens equally likely) to 1 (certain), see ``confidence.py``; None if it was not measured."""


@dataclass(frozen=True)
class Word:
    """A written word with the punctuation that is attached to it."""

    text: str
    start: float
    """Seconds: the time of its first token."""
    end: float
    """Seconds: one encoder frame after the time of its last token, or the end of the recording."""
    confidence: float | None = None
    """The minimum of its tokens' confidence (NeMo's default aggregation)."""
    tags: tuple[Tag, ...] = ()
    """The tags that the model emitted after it."""
    language: str | None = None
    """The language of the tag that follows; None without one."""
    joins: bool = False
    """Whether no space is before it: in a live stream, the rest of a word that had seemed complete."""


@dataclass(frozen=True)
class Segment:
    """Words to show together: a sentence, or as much of it as a subtitle holds."""

    text: str
    start: float
    """Seconds: the start of its first word."""
    end: float
    """Seconds: the end of its last word, or later if there is time to read it."""
    words: tuple[Word, ...] = field(repr=False)
    confidence: float | None = None
    """The mean of its words' confidence."""
    language: str | None = None
    """The language of its words."""

    @property
    def end_of_utterance(self) -> bool:
        """Whether the model emitted an end of utterance after the last word."""
        return Tag(END_OF_UTTERANCE) in self.words[-1].tags

    @property
    def end_of_backchannel(self) -> bool:
        """Whether the model emitted an end of backchannel after the last word."""
        return Tag(END_OF_BACKCHANNEL) in self.words[-1].tags


@dataclass(frozen=True)
class Transcript:
    """The result for one recording."""

    text: str
    """Words as the tokenizer spells them."""
    tokens: tuple[Token, ...] = field(repr=False)
    """In the order of emission."""
    duration: float
    """Seconds of audio."""
    words: tuple[Word, ...] = field(default=(), repr=False)
    """``text.split()``, with times."""
    events: tuple[Event, ...] = field(default=(), repr=False)
    """The tags among ``tokens``, which are not text."""

    @cached_property
    def segments(self) -> tuple[Segment, ...]:
        """``words`` in segments that fit in subtitles, see ``split_segments``."""
        return tuple(split_segments(self.words, self.duration))


# ---------------------------------------------------------------- segments


def split_segments(words: tuple[Word, ...], duration: float) -> Iterator[Segment]:
    """Yield the words of a recording of ``duration`` seconds in segments that fit in subtitles.

    A segment ends after the mark of a sentence, after a tag and before a pause of PAUSE_SECONDS.  One that needs more
    than LINES lines of LINE_CHARACTERS, or more than SEGMENT_SECONDS, is split in two at the best break.
    """
    return timed_segments([part for sentence in _sentences(words) for part in _fitting(sentence)], duration)


def timed_segments(parts: Sequence[Sequence[Word]], duration: float) -> Iterator[Segment]:
    """Yield each part as a segment that ends before the next one starts, lasts a frame or more, and ends in time.

    Words of one frame have the same time.  So a segment may begin later than its first word, and the last segments may
    begin earlier.  If ``duration`` is still too short, the first parts become one segment.
    """
    starts: list[int] = []  # ms
    for part in parts:
        starts.append(max(round(1000 * part[0].start), starts[-1] + FRAME_MS if starts else 0))
    limit = round(1000 * duration)
    for index in reversed(range(len(parts))):
        starts[index] = limit = max(0, min(starts[index], limit - FRAME_MS))
        if limit < FRAME_MS:  # there is no time for the parts before
            parts = [[word for part in parts[: index + 1] for word in part], *parts[index + 1 :]]
            starts = starts[index:]
            break
    limits = [*(start / 1000 for start in starts[1:]), duration]
    for part, start, latest in zip(parts, starts, limits, strict=False):
        end = min(max(part[-1].end, start / 1000 + READING_SECONDS), latest)
        yield replace(make_segment(part, round(end, 3)), start=start / 1000)


def make_segment(words: Sequence[Word], end: float) -> Segment:
    """Return these words as one segment."""
    first = words[0]
    return Segment(_joined(words), first.start, end, tuple(words), _mean_confidence(words), first.language)


def _mean_confidence(words: Sequence[Word]) -> float | None:
    measured = [word.confidence for word in words if word.confidence is not None]
    return sum(measured) / len(measured) if measured else None


def _sentences(words: tuple[Word, ...]) -> Iterator[list[Word]]:
    sentence: list[Word] = []
    for word in words:
        if sentence and _is_break(sentence[-1], word):
            yield sentence
            sentence = []
        sentence.append(word)
    if sentence:
        yield sentence


def _is_break(before: Word, word: Word) -> bool:
    return bool(before.tags) or ends_sentence(before.text) or word.start - before.end >= PAUSE_SECONDS


def ends_sentence(text: str) -> bool:
    """Return whether the word has the mark of a sentence at its end."""
    return text.rstrip(CLOSING)[-1:] in tuple(SENTENCE_END) and not ABBREVIATION.fullmatch(text)


def _ends_clause(text: str) -> bool:
    return text.rstrip(CLOSING)[-1:] in tuple(CLAUSE_END)


def _fitting(words: list[Word]) -> Iterator[list[Word]]:
    """Yield ``words`` in parts that each fit in a subtitle, halved as rarely as possible."""
    if len(words) == 1 or _fits(words):
        yield words
        return
    cut = _best_cut(words)
    yield from _fitting(words[:cut])
    yield from _fitting(words[cut:])


def _fits(words: list[Word]) -> bool:
    """Return whether a subtitle holds these words."""
    if words[-1].end - words[0].start > SEGMENT_SECONDS:
        return False
    lines = textwrap.wrap(_joined(words), LINE_CHARACTERS, break_long_words=False, break_on_hyphens=False)
    return len(lines) <= LINES


def _best_cut(words: list[Word]) -> int:
    """Return the index of the word to cut before: near the middle, after a clause, at a pause."""
    ends = list(accumulate(len(word.text) + 1 for word in words))  # characters up to the end of each word
    total = ends[-1]

    def fitness(cut: int) -> float:
        characters = ends[cut - 1]
        pause = max(0.0, words[cut].start - words[cut - 1].end)
        clause = CLAUSE_BONUS * _ends_clause(words[cut - 1].text)
        return min(characters, total - characters) / total + clause + PAUSE_BONUS * pause

    return max(range(1, len(words)), key=fitness)


def _joined(words: Sequence[Word]) -> str:
    return "".join(word.text if word.joins else f" {word.text}" for word in words).removeprefix(" ")
