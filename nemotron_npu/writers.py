"""Results -> text: one pure function per format."""

from __future__ import annotations

import json
import math
from dataclasses import asdict

from .transcript import Transcript


def to_text(transcript: Transcript) -> str:
    """The words on one line."""
    return " ".join(transcript.text.split())


def to_json(transcript: Transcript, **facts) -> str:
    """One JSON document on one line: ``facts`` (audio, model, device, ...), then the transcript's own fields."""
    return dump({**facts, **asdict(transcript)})


def to_table(title: str, rows: list[tuple[str, str]]) -> str:
    """A title and, indented below it, labels with their values aligned."""
    width = max(len(label) for label, _ in rows)
    return "\n".join([title] + [f"  {label:<{width}}  {value}" for label, value in rows])


def dump(document, indent: int | None = None) -> str:
    """Valid JSON, also of figures that are not finite: they become null."""
    return json.dumps(_finite(document), ensure_ascii=False, allow_nan=False, indent=indent)


def _finite(value):
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, dict):
        return {key: _finite(item) for key, item in value.items()}
    return [_finite(item) for item in value] if isinstance(value, (list, tuple)) else value
