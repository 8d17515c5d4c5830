"""Find the words of a live stream that are final, and the ends of its utterances."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from .spelling import WORD_START, Speller
from .tags import END_OF_UTTERANCE, Tag
from .transcript import Segment, Word, ends_sentence, make_segment

if TYPE_CHECKING:  # it loads torch, which who shows events does not need
    from .decoder import Emission

MAX_EVENTS = 10_000  # kept of a stream whose ``events`` nobody asks for


@dataclass(frozen=True)
class LiveEvent:
    """Words of a live stream that became final, or an utterance that ended."""

    type: str
    """``"words"``: the words are final; ``"segment"``: they are an utterance that has ended."""
    segment: Segment
    number: int
    """Of the utterance in its stream, from 0 on."""


class Utterances:
    """Follow the tokens of one stream.

    A word is final when the next one begins or the utterance ends.  That is after ``endpoint_ms`` without a token
    (0: never), half of it after the end of a sentence, and at the checkpoint's ``<EOU>``.  Tokens that still
    continue the word after that become a word of their own, which ``joins`` it.
    """

    def __init__(self, speller: Speller, endpoint_ms: int) -> None:
        self.speller = speller
        self.patience = endpoint_ms / 1000 or float("inf")
        """Seconds without a token that end an utterance."""
        self.first = 0
        """Index of the first token of the current utterance."""
        self.given = 0
        """Tokens whose words are final."""
        self.number = 0
        """Of the current utterance."""
        self.events: deque[LiveEvent] = deque(maxlen=MAX_EVENTS)
        """What nobody has asked for yet."""

    def update(self, emissions: Sequence[Emission], seconds: float, *, ended: bool = False) -> list[Word]:
        """Update with all tokens of the audio up to ``seconds``; return the words that have become final.

        ``ended``: there is no more audio.
        """
        found = self._spell(emissions, self.given, len(emissions), seconds)
        if not found:
            return []
        starts = [*(word.start for word, _ in found[1:]), float("inf") if ended else seconds]
        ends = [*(first for _, first in found[1:]), len(emissions)]
        new: list[Word] = []
        waiting: list[Word] = []  # final, but not in an event yet
        for (word, first), next_start, end in zip(found, starts, ends, strict=True):
            is_last = end == len(emissions)
            is_end = self._is_end(word, next_start) or (is_last and ended)
            if not is_end and not ended and (is_last or first == found[-1][1]):
                break
            new.append(word)
            waiting.append(word)
            self.given = end
            if is_end:
                self._give("words", waiting)
                waiting = []
                words = [word for word, _ in self._spell(emissions, self.first, end, seconds)]
                self._give("segment", words)
                self.first = end
                self.number += 1
        self._give("words", waiting)
        return new

    def unfinished(self, emissions: Sequence[Emission], seconds: float) -> list[Word]:
        """Return the words after the final ones, the last of which may still grow."""
        return [word for word, _ in self._spell(emissions, self.given, len(emissions), seconds)]

    def text(self, emissions: Sequence[Emission], seconds: float) -> str:
        """Return the current utterance, with the words that are not final."""
        words = [word for word, _ in self._spell(emissions, self.first, len(emissions), seconds)]
        return make_segment(words, seconds).text if words else ""

    def _spell(self, emissions: Sequence[Emission], first: int, end: int, seconds: float) -> list[tuple[Word, int]]:
        """Return the words of tokens ``first`` to ``end``, each with the index of its first token."""
        tokens = emissions[first:end]
        found = [(word, self._with_space(emissions, first + index)) for word, index in self._words(tokens, seconds)]
        if found and self._continues(emissions, found[0][1]):
            found[0] = replace(found[0][0], joins=True), found[0][1]
        return found

    def _words(self, tokens: Sequence[Emission], seconds: float) -> list[tuple[Word, int]]:
        return self.speller.words(tokens, seconds) if tokens else []

    def _with_space(self, emissions: Sequence[Emission], index: int) -> int:
        """Return the index of a word's first token, with the lone spaces before it."""
        while index and self.speller.pieces[emissions[index - 1].id] == WORD_START:
            index -= 1
        return index

    def _continues(self, emissions: Sequence[Emission], index: int) -> bool:
        """Return whether token ``index`` continues the word of the last token before it that is no tag."""
        before = index - 1
        while before >= 0 and emissions[before].id in self.speller.tags:
            before -= 1
        return before >= 0 and self.speller.continues(emissions[before].id, emissions[index].id)

    def _is_end(self, word: Word, next_start: float) -> bool:
        """Return whether the utterance ends with ``word``; no word follows before ``next_start`` (s)."""
        if Tag(END_OF_UTTERANCE) in word.tags:
            return True
        patience = self.patience / 2 if ends_sentence(word.text) else self.patience
        return next_start - word.end >= patience

    def _give(self, type: str, words: list[Word]) -> None:
        if words:
            self.events.append(LiveEvent(type, make_segment(words, words[-1].end), self.number))
