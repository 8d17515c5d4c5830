"""Whisper's normalizers and jiwer's alignment.  Importing this module takes 80 ms."""

from __future__ import annotations

import jiwer
from whisper_normalizer.basic import BasicTextNormalizer
from whisper_normalizer.english import EnglishTextNormalizer

__all__ = ["NORMALIZERS", "jiwer"]

REMOVED_REPLACEMENTS = ("kinda", "sorta", "dunno", "cause")
"""Contractions that the whisper-normalizer package expands, but Whisper itself does not."""


def _make_normalizer() -> EnglishTextNormalizer:
    normalizer = EnglishTextNormalizer()
    for word in REMOVED_REPLACEMENTS:
        normalizer.replacers.pop(rf"\b{word}\b", None)
    return normalizer


NORMALIZERS = {"whisper": _make_normalizer(), "basic": BasicTextNormalizer()}
