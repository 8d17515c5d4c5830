"""Turn tokens into words with times and confidence, and words into segments.  Every engine returns these types."""

from __future__ import annotations

import re
import textwrap
import unicodedata
from bisect import bisect_left
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from itertools import accumulate
from typing import Protocol

from .tags import END_OF_BACKCHANNEL, END_OF_UTTERANCE, Event, Tag, find_tags

WORD_START = "▁"  # sentencepiece: stands for the space before a token
UNKNOWN = "<unk>"  # is spelled " ⁇ " and so is a word of its own

LINE_CHARACTERS = 42  # longest line of a subtitle
LINES = 2  # of a subtitle at most
SEGMENT_SECONDS = 7.0  # longest time to show a subtitle
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
    """The model's own, among all tokens and blank; the NeMo engine does not report it (None)."""
    confidence: float | None = None
    """From 0 (any token would have done as well) to 1, see ``confidence.py``; None if it was not measured."""


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
    """Those that the model emitted after it."""
    language: str | None = None
    """By the language tag that follows; None without one."""
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
    """That of its words."""

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
    """The tags among ``tokens``, which are no text."""

    @cached_property
    def segments(self) -> tuple[Segment, ...]:
        """``words`` in segments that fit in subtitles, see ``split_segments``."""
        return tuple(split_segments(self.words, self.duration))


class EmittedToken(Protocol):
    """A token as a decoder emits it, see ``decoder.Emission``."""

    @property
    def id(self) -> int:
        """Index in the vocabulary."""

    @property
    def frame(self) -> int:
        """Encoder frame, counted from the start of the recording."""

    @property
    def probability(self) -> float | None:
        """The model's own, among all tokens and blank."""

    @property
    def confidence(self) -> float | None:
        """From 0 to 1."""


# ---------------------------------------------------------------- spelling


@dataclass
class _Group:
    """The tokens of one written word."""

    text: str
    tokens: list[Token]
    first: int
    """Index of its first token that is more than a space."""


class Speller:
    """Spell token ids as text and words, exactly as NeMo does, except for tags, which are left out.

    Parameters
    ----------
    pieces : the vocabulary, of sentencepiece or of wordpieces (``##`` inside words).
    decode : token ids -> text, the tokenizer's own.
    frame_seconds : seconds of audio in an encoder frame.
    """

    def __init__(self, pieces: list[str], decode: Callable[[list[int]], str], frame_seconds: float) -> None:
        self.pieces = pieces
        self.decode = decode
        self.frame_seconds = frame_seconds
        self.tags = find_tags(pieces)
        self.has_wordpieces = not any(piece.startswith(WORD_START) for piece in pieces)
        marks = "".join(sorted(_punctuation(pieces)))
        self.space_before_mark = re.compile(rf"\s([{re.escape(marks)}])") if marks else None

    def transcript(self, emissions: Iterable[EmittedToken], duration: float) -> Transcript:
        """Return the result for a recording of ``duration`` seconds."""
        tokens = tuple(self._token(emission) for emission in emissions)
        text = self.text([token.id for token in tokens])
        words = tuple(word for word, _ in self._indexed(tokens, duration))
        events = tuple(Event(self.tags[token.id], token.frame, token.time) for token in tokens if token.id in self.tags)
        return Transcript(text, tokens, duration, words, events)

    def words(self, emissions: Iterable[EmittedToken], duration: float) -> list[tuple[Word, int]]:
        """Return the words of ``transcript``, each with the index of its first token."""
        return self._indexed(tuple(self._token(emission) for emission in emissions), duration)

    def continues(self, before: int, id: int) -> bool:
        """Return whether token ``id`` belongs to the word that the token ``before`` is in."""
        piece = self.pieces[before]
        if piece != WORD_START and not self._has_space_between(piece, self.pieces[id]):
            return True
        text = self.decode([id]).strip()
        return self.tidy(f" {text}") != f" {text}"

    def _indexed(self, tokens: tuple[Token, ...], duration: float) -> list[tuple[Word, int]]:
        """Return the words with their tags, each with the index of its first token."""
        indices = [index for index, token in enumerate(tokens) if token.id not in self.tags]
        found = list(self._words(tuple(tokens[index] for index in indices), duration))
        words = [word for word, _ in found]
        if len(indices) < len(tokens):
            self._tag(words, [first for _, first in found], tokens)
        return [(word, indices[first]) for word, (_, first) in zip(words, found, strict=True)]

    def text(self, ids: list[int]) -> str:
        """Return the tokenizer's text, without the space before a punctuation mark.

        This is NeMo's ``decode_tokens_to_str_with_strip_punctuation``.
        """
        return self.tidy(self.decode([id for id in ids if id not in self.tags]))

    def tidy(self, text: str) -> str:
        """Remove the space before each punctuation mark that occurs in the vocabulary."""
        return self.space_before_mark.sub(r"\1", text) if self.space_before_mark else text

    def _token(self, emission: EmittedToken) -> Token:
        return Token(
            emission.id,
            self.pieces[emission.id],
            emission.frame,
            round(emission.frame * self.frame_seconds, 3),
            emission.probability,
            emission.confidence,
        )

    def _tag(self, words: list[Word], firsts: list[int], tokens: tuple[Token, ...]) -> None:
        """Add each tag among ``tokens`` to the word before it, and a language to all words since the last one.

        ``firsts`` are the indices of the words' first tokens, tags not counted.
        """
        before = 0
        said = 0  # words whose language is known
        for token in tokens:
            tag = self.tags.get(token.id)
            if tag is None:
                before += 1
                continue
            index = bisect_left(firsts, before)
            if not index:  # nothing was said yet
                continue
            words[index - 1] = replace(words[index - 1], tags=(*words[index - 1].tags, tag))
            if tag.language:
                words[said:index] = [replace(word, language=tag.language) for word in words[said:index]]
                said = index

    def _words(self, tokens: tuple[Token, ...], duration: float) -> Iterator[tuple[Word, int]]:
        """Yield the words of the text, each with the index of its first token; a word begins after a space."""
        for group in self._spelled(tokens):
            last_frame = group.tokens[-1].frame
            end = min((last_frame + 1) * self.frame_seconds, duration)  # that frame may exceed the recording
            start = max(0.0, min(group.tokens[0].time, end - self.frame_seconds))
            measured = [token.confidence for token in group.tokens if token.confidence is not None]
            for word in self.tidy(group.text).split():
                yield Word(word, round(start, 3), round(end, 3), min(measured, default=None)), group.first

    def _spelled(self, tokens: tuple[Token, ...]) -> list[_Group]:
        """Return the tokens in groups with their text; marks are attached to the word before them."""
        groups: list[_Group] = []
        count = 0
        for group in self._split(tokens):
            first = count + next((i for i, token in enumerate(group) if token.piece != WORD_START), 0)
            count += len(group)
            text = self.decode([token.id for token in group]).strip()
            if groups and self._is_attached(text, group[0], groups[-1]):
                groups[-1].text += text
                groups[-1].tokens += group
            else:
                groups.append(_Group(text, group, first))
        return groups

    def _is_attached(self, text: str, first: Token, before: _Group) -> bool:
        """Return whether ``text`` is a mark that removes the space before it; of two spaces one remains."""
        follows_unknown = before.tokens[-1].piece == UNKNOWN and first.piece.startswith(WORD_START)
        has_two_spaces = not before.text or follows_unknown
        return not has_two_spaces and self.tidy(f" {text}") != f" {text}"

    def _split(self, tokens: tuple[Token, ...]) -> Iterator[list[Token]]:
        group: list[Token] = []
        for token in tokens:
            if group and self._has_space_between(group[-1].piece, token.piece):
                yield group
                group = []
            group.append(token)
        if group:
            yield group

    def _has_space_between(self, before: str, piece: str) -> bool:
        if self.has_wordpieces:
            return not piece.startswith("##")
        return piece.startswith(WORD_START) or UNKNOWN in (piece, before)


def _punctuation(pieces: list[str]) -> set[str]:
    """Return the punctuation marks in a vocabulary, as NeMo's ``extract_punctuation_from_vocab``."""
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
    """Yield the words of a recording of ``duration`` seconds in segments that fit in subtitles.

    A segment ends after the mark of a sentence, after a tag and before a pause of PAUSE_SECONDS.  One that needs more
    than LINES lines of LINE_CHARACTERS, or more than SEGMENT_SECONDS, is halved at the best place for a break.
    """
    parts = [part for sentence in _sentences(words) for part in _fitting(sentence)]
    next_starts = [*(part[0].start for part in parts[1:]), duration]
    for part, next_start in zip(parts, next_starts, strict=False):
        start = part[0].start
        end = max(part[-1].end, min(start + READING_SECONDS, next_start))
        yield make_segment(part, round(end, 3))


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
