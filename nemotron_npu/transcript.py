"""Tokens -> the result types that every engine returns: words with times and confidence, and segments of them."""

from __future__ import annotations

import re
import textwrap
import unicodedata
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import cached_property
from itertools import accumulate

WORD_START = "▁"  # of sentencepiece: in front of a piece it is a space
UNKNOWN = "<unk>"  # is spelled " ⁇ ", so that it is a word of its own

LINE_CHARACTERS, LINES = 42, 2  # of a subtitle
SEGMENT_SECONDS = 7.0  # that a subtitle is shown at most
READING_SECONDS = 1.0  # and at least, where nothing follows sooner: a word of one token lasts one frame
PAUSE_SECONDS = 1.0  # without a token: the speaker has paused, a word of one token is said in less
SENTENCE_END = ".?!。？！"
CLAUSE_END = ",;:—，；："
ABBREVIATION = re.compile(r"(Mr|Mrs|Ms|Dr|Prof|St|vs|[A-HJ-Z])\.")  # its point ends no sentence
CLOSING = "\"')]}”’»"  # may follow the mark that ends a sentence


@dataclass(frozen=True, slots=True)
class Token:
    """One emitted BPE piece."""

    id: int
    """Index in the vocabulary."""
    piece: str
    """As in the vocabulary; ``▁`` marks the start of a word."""
    frame: int
    """Encoder frame at which it was emitted, counted from the start of the recording."""
    time: float
    """Seconds from the start of the recording: ``frame`` times the length of an encoder frame."""
    probability: float | None = None
    """The model's own, among all tokens and blank; None from the NeMo engine, which does not tell."""
    confidence: float | None = None
    """From 0 (any token would have done as well) to 1, see ``confidence.py``; None where it was not measured."""


@dataclass(frozen=True)
class Word:
    """A word as it is written, with the punctuation that is attached to it."""

    text: str
    start: float
    """Seconds: the time of its first token."""
    end: float
    """Seconds: one encoder frame after the time of its last token, or the end of the recording."""
    confidence: float | None = None
    """The least of its tokens' (NeMo's default aggregation)."""


@dataclass(frozen=True)
class Segment:
    """Words to be shown together: a sentence, or as much of it as a subtitle holds."""

    text: str
    start: float
    """Seconds: that of its first word."""
    end: float
    """Seconds: that of its last word, or later where there is time to read it."""
    words: tuple[Word, ...] = field(repr=False)
    confidence: float | None = None
    """The mean of its words'."""


@dataclass(frozen=True)
class Transcript:
    """What was recognised in one recording."""

    text: str
    """Words as the tokenizer spells them."""
    tokens: tuple[Token, ...] = field(repr=False)
    """In the order of emission."""
    duration: float
    """Seconds of sound."""
    words: tuple[Word, ...] = field(default=(), repr=False)
    """``text.split()``, with times."""

    @cached_property
    def segments(self) -> tuple[Segment, ...]:
        """``words`` in the portions of subtitles, see ``split_segments``."""
        return tuple(split_segments(self.words, self.duration))


# ---------------------------------------------------------------- spelling


class Speller:
    """Token ids -> text and words, spelled as NeMo spells them.

    Parameters
    ----------
    pieces : the vocabulary, of sentencepiece or of wordpieces (``##`` inside words).
    decode : token ids -> text, the tokenizer's own.
    frame_seconds : seconds of sound in an encoder frame.
    """

    def __init__(self, pieces: list[str], decode: Callable[[list[int]], str], frame_seconds: float):
        self.pieces, self.decode, self.frame_seconds = pieces, decode, frame_seconds
        self.wordpieces = not any(piece.startswith(WORD_START) for piece in pieces)
        marks = "".join(sorted(_punctuation(pieces)))
        self.space_before_mark = re.compile(rf"\s([{re.escape(marks)}])") if marks else None

    def transcript(self, emissions, duration: float) -> Transcript:
        """The result type of a recording of ``duration`` seconds.

        ``emissions`` have ``id``, ``frame``, ``probability`` and ``confidence``, as ``decoder.Emission`` does.
        """
        tokens = tuple(
            Token(e.id, self.pieces[e.id], e.frame, round(e.frame * self.frame_seconds, 3), e.probability, e.confidence)
            for e in emissions
        )
        return Transcript(self.text([e.id for e in emissions]), tokens, duration, tuple(self._words(tokens, duration)))

    def text(self, ids: list[int]) -> str:
        """As the tokenizer spells them, without the space before a punctuation mark (NeMo's
        ``decode_tokens_to_str_with_strip_punctuation``)."""
        return self.tidy(self.decode(ids))

    def tidy(self, text: str) -> str:
        """``text`` without the space before each mark that the vocabulary has as a piece of its own."""
        return self.space_before_mark.sub(r"\1", text) if self.space_before_mark else text

    def _words(self, tokens: tuple[Token, ...], duration: float) -> Iterator[Word]:
        """The words of ``text``, each from the tokens that begin with the one behind a space."""
        spelled: list[tuple[str, list[Token]]] = []
        for group in self._groups(tokens):
            text = self.decode([token.id for token in group]).strip()
            if spelled and self._attached(text, group[0], *spelled[-1]):
                spelled[-1] = spelled[-1][0] + text, spelled[-1][1] + group
            else:
                spelled.append((text, group))
        for text, group in spelled:
            end = min((group[-1].frame + 1) * self.frame_seconds, duration)  # the last frame may reach beyond the end
            start = max(0.0, min(group[0].time, end - self.frame_seconds))
            measured = [token.confidence for token in group if token.confidence is not None]
            for word in self.tidy(text).split():
                yield Word(word, round(start, 3), round(end, 3), min(measured, default=None))

    def _attached(self, text: str, first: Token, text_before: str, before: list[Token]) -> bool:
        """Whether ``text`` is a mark that takes away the space in front of it; where there are two, one stays."""
        two = not text_before or (before[-1].piece == UNKNOWN and first.piece.startswith(WORD_START))
        return not two and self.tidy(f" {text}") != f" {text}"

    def _groups(self, tokens: tuple[Token, ...]) -> Iterator[list[Token]]:
        group: list[Token] = []
        for token in tokens:
            if group and self._begins(token.piece, group[-1].piece):
                yield group
                group = []
            group.append(token)
        if group:
            yield group

    def _begins(self, piece: str, before: str) -> bool:
        """Whether there is a space between two pieces."""
        if self.wordpieces:
            return not piece.startswith("##")
        return piece.startswith(WORD_START) or UNKNOWN in (piece, before)


def _punctuation(pieces: list[str]) -> set[str]:
    """The punctuation marks in a vocabulary: NeMo's ``extract_punctuation_from_vocab``."""
    special = re.compile(r"\[.*\]$|<.*>$|##|▁|\s*$")
    return {
        char
        for piece in pieces
        if not special.match(piece)
        for char in piece
        if unicodedata.category(char).startswith("P")
    }


# ---------------------------------------------------------------- segments


def split_segments(words: tuple[Word, ...], duration: float) -> Iterator[Segment]:
    """The words of a recording of ``duration`` seconds in the portions of subtitles.

    A segment ends at a sentence's mark and before a pause of PAUSE_SECONDS.  One that does not fit LINES lines of
    LINE_CHARACTERS, or lasts longer than SEGMENT_SECONDS, is halved where that disturbs least.
    """
    parts = [part for sentence in _sentences(words) for part in _fitting(sentence)]
    starts = [*(part[0].start for part in parts[1:]), duration]
    for part, next_start in zip(parts, starts, strict=False):
        start = part[0].start
        end = max(part[-1].end, min(start + READING_SECONDS, next_start))
        measured = [word.confidence for word in part if word.confidence is not None]
        confidence = sum(measured) / len(measured) if measured else None
        yield Segment(_joined(part), start, round(end, 3), tuple(part), confidence)


def _sentences(words: tuple[Word, ...]) -> Iterator[list[Word]]:
    sentence: list[Word] = []
    for word in words:
        if sentence and (_ends_sentence(sentence[-1].text) or word.start - sentence[-1].end >= PAUSE_SECONDS):
            yield sentence
            sentence = []
        sentence.append(word)
    if sentence:
        yield sentence


def _ends_sentence(text: str) -> bool:
    return text.rstrip(CLOSING)[-1:] in tuple(SENTENCE_END) and not ABBREVIATION.fullmatch(text)


def _fitting(words: list[Word]) -> Iterator[list[Word]]:
    """``words`` in as few halvings as give parts that a subtitle holds."""
    before = list(accumulate(len(word.text) + 1 for word in words))  # characters up to a word's end
    if len(words) == 1 or (words[-1].end - words[0].start <= SEGMENT_SECONDS and _fits(words)):
        yield words
        return

    def fitness(cut: int) -> float:
        """How good it is to cut before word ``cut``: near the middle, after a clause, where the speaker waits."""
        clause = words[cut - 1].text.rstrip(CLOSING)[-1:] in tuple(CLAUSE_END)
        wait = max(0.0, words[cut].start - words[cut - 1].end)
        return min(before[cut - 1], before[-1] - before[cut - 1]) / before[-1] + 0.25 * clause + 0.25 * wait

    cut = max(range(1, len(words)), key=fitness)
    yield from _fitting(words[:cut])
    yield from _fitting(words[cut:])


def _fits(words: list[Word]) -> bool:
    """Whether LINES lines hold them."""
    lines = textwrap.wrap(_joined(words), LINE_CHARACTERS, break_long_words=False, break_on_hyphens=False)
    return len(lines) <= LINES


def _joined(words: list[Word]) -> str:
    return " ".join(word.text for word in words)
