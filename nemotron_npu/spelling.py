"""Spell tokens as text and words with times and confidence, exactly as NeMo does."""

from __future__ import annotations

import re
import unicodedata
from bisect import bisect_left
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from typing import Protocol

from .tags import Event, find_tags
from .transcript import Token, Transcript, Word

WORD_START = "▁"  # sentencepiece: stands for the space before a token
UNKNOWN = "<unk>"  # is spelled " ⁇ " and so is a word of its own


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
