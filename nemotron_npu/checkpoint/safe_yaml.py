"""Read YAML of plain values: without tags, of limited depth and size; of a large config only the used parts."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator
from typing import Any

import yaml
from yaml.constructor import SafeConstructor
from yaml.resolver import Resolver

from ..errors import shown
from .refusal import AGAIN, UNSAFE, Refusal

MAX_DEPTH = 50
MAX_DIGITS = 100
MAX_EVENTS = 500_000  # values, keys and brackets of the text
NUMBER = re.compile(r"[-+.:\w]*")
LOADER = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
TEXT, FLOAT, TIME, MERGE = (f"tag:yaml.org,2002:{name}" for name in ("str", "float", "timestamp", "merge"))


def parse_yaml(text: bytes, parts: Collection[str] | None = None) -> Any:
    """Return the values of a YAML text; of a mapping at the top only ``parts``, and what is no list or mapping.

    What is left out is read over, so that long lists of training data cost little.  An alias and its anchor are one
    object.  Raises Refusal for what is not YAML, or not plain values.
    """
    try:
        return _Reader(text, parts).document()
    except RecursionError as error:
        raise Refusal(f"is nested more than {MAX_DEPTH} deep", UNSAFE) from error
    except (yaml.YAMLError, ValueError, LookupError, TypeError, AttributeError) as error:
        mark = getattr(error, "problem_mark", None)
        line = f" (line {mark.line + 1})" if mark else ""
        raise Refusal(f"is not valid YAML{line}") from error


class _Scalars(SafeConstructor, Resolver):
    """Plain scalars as OmegaConf, NeMo's reader, takes them: 1e-05 is a number, and a date is text."""

    def __init__(self) -> None:
        SafeConstructor.__init__(self)
        Resolver.__init__(self)

    def value(self, event: yaml.ScalarEvent) -> Any:
        """Return the text, number, truth value or None that a scalar stands for."""
        if not event.implicit[0]:  # it is quoted
            return event.value
        if len(event.value) > MAX_DIGITS and NUMBER.fullmatch(event.value):
            raise Refusal(f"has a number of {len(event.value):,} digits", AGAIN)
        tag = self.resolve(yaml.ScalarNode, event.value, (True, False))
        if tag in (TEXT, MERGE):
            return event.value
        return self.construct_object(yaml.ScalarNode(tag, event.value))


_Scalars.add_implicit_resolver(
    FLOAT, re.compile(r"[-+]?[0-9][0-9_]*(\.[0-9_]*)?[eE][-+]?[0-9]+$"), list("-+0123456789")
)
_Scalars.yaml_implicit_resolvers = {
    first: [(tag, pattern) for tag, pattern in resolvers if tag != TIME]
    for first, resolvers in _Scalars.yaml_implicit_resolvers.items()
}


class _Reader:
    """Makes values of the events of one text."""

    def __init__(self, text: bytes, parts: Collection[str] | None) -> None:
        self.events = self._checked(text)
        self.parts = parts
        self.scalars = _Scalars()
        self.anchors: dict[str, Any] = {}

    @staticmethod
    def _checked(text: bytes) -> Iterator[Any]:
        """Yield the events; raise Refusal for tags and for too many of them, wherever they are."""
        for count, event in enumerate(yaml.parse(text, LOADER)):
            if count > MAX_EVENTS:
                raise Refusal(f"has more than {MAX_EVENTS:,} values", UNSAFE)
            if getattr(event, "tag", None):
                raise Refusal(f"has a tag {shown(event.tag)}", f"a config is plain values: {UNSAFE}")
            yield event

    def document(self) -> Any:
        """Return the only document."""
        value = None
        for event in self.events:
            if isinstance(event, yaml.MappingStartEvent):
                value = self._mapping(depth=0)
            elif isinstance(event, yaml.NodeEvent):
                value = self._value(event, depth=0)
        return value

    def _value(self, event: Any, depth: int) -> Any:
        """Return the value that begins with ``event``."""
        if isinstance(event, yaml.AliasEvent):
            return self.anchors[event.anchor]
        if depth > MAX_DEPTH:
            raise Refusal(f"is nested more than {MAX_DEPTH} deep", UNSAFE)
        if isinstance(event, yaml.ScalarEvent):
            value = self.scalars.value(event)
        elif isinstance(event, yaml.MappingStartEvent):
            value = self._mapping(depth + 1)
        else:
            value = []
            while not isinstance(item := next(self.events), yaml.SequenceEndEvent):
                value.append(self._value(item, depth + 1))
        if event.anchor:
            self.anchors[event.anchor] = value
        return value

    def _mapping(self, depth: int) -> dict[Any, Any]:
        """Return the mapping that has begun; ``depth`` 0 is the one at the top, of which parts are left out."""
        own: dict[Any, Any] = {}
        merged: dict[Any, Any] = {}
        while not isinstance(event := next(self.events), yaml.MappingEndEvent):
            is_merge = isinstance(event, yaml.ScalarEvent) and event.implicit[0] and event.value == "<<"
            key = self._value(event, depth)
            first = next(self.events)
            if depth == 0 and self._is_left_out(key, first):
                self._read_over(first)
                continue
            value = self._value(first, depth)
            if not is_merge:
                own[key] = value
                continue
            for mapping in reversed(value if isinstance(value, list) else [value]):
                merged.update(mapping)
        return merged | own

    def _is_left_out(self, key: Any, first: Any) -> bool:
        """Return whether the value at the top that begins with ``first`` is not wanted."""
        return self.parts is not None and key not in self.parts and isinstance(first, yaml.CollectionStartEvent)

    def _read_over(self, first: Any) -> None:
        """Skip the value that begins with ``first``, except for its anchors: other parts may refer to them."""
        if first.anchor:
            self._value(first, depth=0)
            return
        depth = 1
        while depth:
            event = next(self.events)
            if isinstance(event, yaml.CollectionEndEvent):
                depth -= 1
            elif getattr(event, "anchor", None) and not isinstance(event, yaml.AliasEvent):
                self._value(event, depth=0)
            elif isinstance(event, yaml.CollectionStartEvent):
                depth += 1


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
