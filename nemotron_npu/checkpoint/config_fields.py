"""Fields of the config's dataclasses: each has the values that it may take, and NeMo's default."""

from __future__ import annotations

import re
from dataclasses import MISSING, dataclass, field, fields
from typing import Any, TypeVar

from ..errors import shown
from .refusal import Refusal

WORD = re.compile(r"[\w.+-]{0,100}")
Part = TypeVar("Part")


@dataclass(frozen=True)
class Rule:
    """The values that a field may take: numbers from ``low`` to ``high``, or one of a kind."""

    kind: str
    low: float = 0
    high: float = 0
    nullable: bool = False

    def allows(self, value: object) -> bool:
        """Return whether the field may have this value, None aside."""
        if self.kind == "anything":
            return True
        if self.kind == "flag":
            return isinstance(value, bool)
        if self.kind == "word":
            return isinstance(value, str) and WORD.fullmatch(value) is not None
        if isinstance(value, bool) or not isinstance(value, (int, float)):
            return False
        if self.kind == "integer" and not isinstance(value, int):
            return False
        return self.low <= value <= self.high

    def __str__(self) -> str:
        if self.kind == "flag":
            return "true or false"
        if self.kind == "word":
            return "a word"
        return str(self.low) if self.low == self.high else f"{self.low} to {self.high}"


def number(low: float, high: float, default: Any = MISSING, *, nullable: bool = False) -> Any:
    """Define a number from ``low`` to ``high``: an integer if both are; one that defaults to None may be null."""
    kind = "integer" if isinstance(low, int) and isinstance(high, int) else "float"
    return _field(Rule(kind, low, high, nullable or default is None), default)


def word(default: Any = MISSING, *, key: str = "") -> Any:
    """Define a short text of letters, digits and ``.+-``; ``key`` is its name in the config where that differs."""
    return _field(Rule("word", nullable=default is None), default, key=key)


def flag(*, default: bool) -> Any:
    """Define true or false."""
    return _field(Rule("flag"), default)


def anything(default: Any) -> Any:
    """Define a value that ``config_reader`` or its user checks."""
    return _field(Rule("anything", nullable=True), default)


def part(kind: type) -> Any:
    """Define a part with fields of its own."""
    return field(metadata={"part": kind})


def _field(rule: Rule, default: Any, key: str = "") -> Any:
    return field(default=default, metadata={"rule": rule, "key": key})


def read_part(kind: type[Part], values: object, place: str) -> Part:
    """Return the dataclass ``kind`` made of the mapping ``values``, whose dotted key is ``place``.

    A dataclass with a field ``unknown`` gets there, as ``key: value``, what it neither has nor calls ``HARMLESS``;
    null and false switch nothing on and do not count.
    Raises Refusal for a required value that is missing and for one that is not allowed.
    """
    if values is None:
        values = {}
    if not isinstance(values, dict):
        raise Refusal(f"has {shown(values)} for {place}, not its parts")
    found: dict[str, Any] = {}
    known: set[str] = set(getattr(kind, "HARMLESS", ()))
    for each in fields(kind):  # type: ignore[arg-type]
        key = each.metadata.get("key") or each.name
        known.add(key)
        name = f"{place}.{key}"
        if each.name == "unknown":
            continue
        if "part" in each.metadata:
            found[each.name] = read_part(each.metadata["part"], values.get(key), name)
            continue
        value = values.get(key)
        required = each.default is MISSING
        if required and value is None:
            raise Refusal(f"lacks {name}")
        if key in values:
            found[each.name] = _checked(each.metadata["rule"], value, name)
    if hasattr(kind, "HARMLESS"):
        found["unknown"] = tuple(
            f"{place}.{shown(key)}: {shown(value)}"
            for key, value in values.items()
            if key not in known and value is not None and value is not False
        )
    return kind(**found)


def _checked(rule: Rule, value: object, name: str) -> object:
    if value is None:
        if rule.nullable:
            return None
        raise Refusal(f"has {name}: null, not {rule}", "")
    if not rule.allows(value):
        raise Refusal(f"has {name}: {shown(value)}, not {rule}", "")
    return value
