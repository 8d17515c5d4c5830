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


@dataclass(frozen=True)
class Transcript:
    """What was recognised in one recording."""

    text: str
    """Words as the tokenizer spells them."""
    tokens: tuple[Token, ...] = field(repr=False)
    """In the order of emission."""
    duration: float
    """Seconds of sound."""
