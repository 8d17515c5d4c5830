"""YAML of plain values: no tags, no aliases, bounded depth."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

import yaml

from ..errors import shown
from .refusal import AGAIN, UNSAFE, Refusal

MAX_DEPTH = 20
MAX_DIGITS = 100
NUMBER = re.compile(r"[-+.:\w]*")
LOADER = getattr(yaml, "CSafeLoader", yaml.SafeLoader)


def parse_yaml(text: bytes) -> Any:
    """Return the values of a YAML text; raise Refusal for what is not YAML, or not plain values."""
    try:
        _check_events(text)
        return yaml.load(text, LOADER)
    except (yaml.YAMLError, ValueError, LookupError, TypeError, AttributeError) as error:
        mark = getattr(error, "problem_mark", None)
        line = f" (line {mark.line + 1})" if mark else ""
        raise Refusal(f"is not valid YAML{line}") from error


def _check_events(text: bytes) -> None:
    """Raise Refusal for tags, aliases, deep nesting and huge numbers before any value is made."""
    depth = 0
    for event in yaml.parse(text, LOADER):
        if isinstance(event, yaml.AliasEvent) or getattr(event, "anchor", None):
            raise Refusal("has aliases, which NeMo does not write and which can stand for more than fits", UNSAFE)
        if getattr(event, "tag", None):
            raise Refusal(f"has a tag {shown(event.tag)}", f"a config is plain values: {UNSAFE}")
        if isinstance(event, yaml.ScalarEvent):
            _check_digits(event)
        elif isinstance(event, yaml.CollectionStartEvent):
            depth += 1
            if depth > MAX_DEPTH:
                raise Refusal(f"is nested more than {MAX_DEPTH} deep", UNSAFE)
        elif isinstance(event, yaml.CollectionEndEvent):
            depth -= 1


def _check_digits(event: yaml.ScalarEvent) -> None:
    plain = event.implicit[0] and len(event.value) > MAX_DIGITS
    if plain and NUMBER.fullmatch(event.value):
        raise Refusal(f"has a number of {len(event.value):,} digits", AGAIN)


def walk(value: object, key: str = "") -> Iterator[tuple[str, object]]:
    """Yield (dotted key, value) of every value inside that is no mapping or list."""
    if isinstance(value, dict):
        items = list(value.items())
    elif isinstance(value, list):
        items = list(enumerate(value))
    else:
        yield key, value
        return
    for name, item in items:
        yield from walk(item, f"{key}.{name}" if key else str(name))
