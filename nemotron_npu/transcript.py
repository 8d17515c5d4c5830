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
    words: tuple[Word, ...] = field(default=(), repr=False)
    """``text``, split at its spaces."""
