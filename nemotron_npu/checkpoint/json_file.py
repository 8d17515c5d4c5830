"""Read JSON of an untrusted checkpoint."""

from __future__ import annotations

import json
from typing import Any

from .refusal import Refusal


def parse_json(text: bytes) -> dict[str, Any]:
    """Return the mapping that ``text`` is; raise Refusal for anything else."""
    try:
        values = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise Refusal("is not JSON") from error
    if not isinstance(values, dict):
        raise Refusal("is not a mapping")
    return values
