"""Tokens of the vocabulary that are not text: the end of an utterance, and the language of the speech."""

from __future__ import annotations

import re
from dataclasses import dataclass

TAG = re.compile(r"▁?<(EOU|EOB|[a-z]{2,3}-[A-Z]{2})>")
END_OF_UTTERANCE, END_OF_BACKCHANNEL, LANGUAGE = "end_of_utterance", "end_of_backchannel", "language"
NAMES = {"EOU": END_OF_UTTERANCE, "EOB": END_OF_BACKCHANNEL}


@dataclass(frozen=True)
class Tag:
    """What such a token stands for."""

    event: str
    """``end_of_utterance``; ``end_of_backchannel``, such as "yes" or "mhm" while somebody else speaks; ``language``."""
    language: str | None = None
    """Of a language tag, such as ``en-US``: that of the words since the last one."""


@dataclass(frozen=True)
class Event:
    """A tag that the model has emitted."""

    tag: Tag
    frame: int
    """Encoder frame, counted from the start of the recording."""
    time: float
    """Seconds from the start of the recording."""


def find_tags(pieces: list[str]) -> dict[int, Tag]:
    """Return the tags in a vocabulary by their token ids."""
    tags = {}
    for id, piece in enumerate(pieces):
        match = TAG.fullmatch(piece)
        if match:
            name = match[1]
            tags[id] = Tag(NAMES[name]) if name in NAMES else Tag(LANGUAGE, name)
    return tags
