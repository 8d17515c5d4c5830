"""Tokens -> the result types that every engine returns."""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass(frozen=True)
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
    """0 (the model was guessing among all tokens) to 1, by the measure asked for; None where none was computed."""


@dataclass(frozen=True)
class Word:
    """A word as it is written, with the punctuation that is attached to it."""

    text: str
    start: float
    """Seconds: when its first token was emitted, see ``Token.frame``."""
    end: float
    """Seconds: one encoder frame after its last token was emitted."""
    confidence: float | None = None
    """The least of its tokens'."""


@dataclass(frozen=True)
class Segment:
    """Words to be shown together: a sentence, or as much of it as a subtitle can hold."""

    text: str
    start: float
    end: float
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

    @property
    def words(self) -> tuple[Word, ...]:
        """The tokens, joined up to where ``▁`` starts the next word."""
        words: list[Word] = []
        for token in self.tokens:
            piece, end = token.piece.lstrip("▁"), round(min(token.time + 0.08, max(self.duration, token.time)), 3)
            if words and not token.piece.startswith("▁"):
                before = words.pop()
                sure = None if token.probability is None else min(before.confidence, token.probability)
                words.append(Word(before.text + piece, before.start, end, sure))
            else:
                words.append(Word(piece, token.time, end, token.probability))
        return tuple(word for word in words if word.text)

    @property
    def segments(self) -> tuple[Segment, ...]:
        """The words between pauses, 12 at most."""
        groups: list[list[Word]] = []
        for word in self.words:
            if not groups or len(groups[-1]) == 12 or word.start - groups[-1][-1].end > 1:
                groups.append([])
            groups[-1].append(word)
        return tuple(
            Segment(" ".join(w.text for w in words), words[0].start, words[-1].end, tuple(words), None)
            for words in groups
        )
