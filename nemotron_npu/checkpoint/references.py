"""``${part.key}`` and aliases in a config -> copies of the values that they stand for, limited in number."""

from __future__ import annotations

import re
from collections.abc import Collection
from typing import Any

from ..errors import shown
from .refusal import UNSAFE, Refusal

REFERENCE = re.compile(r"\$\{(\.*)([\w.\[\]-]+)\}")
MAX_VALUES = 100_000  # of all parts, written out: a vocabulary is there twice
MAX_DEPTH = 100  # of lists, mappings and references together


def write_out(values: dict[str, Any], parts: Collection[str], literal: Collection[str]) -> dict[str, Any]:
    """Return ``parts`` of a config without references: each ``${...}`` is replaced, and no two values are one object.

    As in OmegaConf, ``${a.b}`` is a key from the top, ``${.b}`` one beside the reference, ``${..b}`` one further up.
    Text below the dotted keys ``literal`` is left as it is.  Raises Refusal for a reference to a missing value, and
    for more values than a config has.
    """
    writer = _Writer(values, literal)
    return {name: writer.copy(values[name], (name,)) for name in parts if name in values}


def referenced_parts(value: object) -> set[str]:
    """Return the first keys of all ``${...}`` in a value, whatever they stand for."""
    found: set[str] = set()
    seen: set[int] = set()
    waiting = [value]
    while waiting:
        item = waiting.pop()
        if isinstance(item, str):
            found.update(keys.partition(".")[0] for _, keys in REFERENCE.findall(item))
        elif isinstance(item, (dict, list)) and id(item) not in seen:
            seen.add(id(item))
            waiting.extend(item.values() if isinstance(item, dict) else item)
    return found


class _Writer:
    def __init__(self, values: dict[str, Any], literal: Collection[str]) -> None:
        self.values = values
        self.literal = literal
        self.left = MAX_VALUES

    def copy(self, value: Any, place: tuple[Any, ...], depth: int = 0) -> Any:
        """Return a copy of the value at the keys ``place``; ``depth`` lists, mappings and references have led to it."""
        self._count(1)
        if depth > MAX_DEPTH:
            raise Refusal(f"is nested more than {MAX_DEPTH} deep, or refers to itself", UNSAFE)
        if isinstance(value, dict):
            return {key: self.copy(item, (*place, key), depth + 1) for key, item in value.items()}
        if isinstance(value, list):
            return [self.copy(item, (*place, index), depth + 1) for index, item in enumerate(value)]
        if isinstance(value, str) and "${" in value and not self._is_literal(place):
            return self._replaced(value, place, depth)
        return value

    def _count(self, values: int) -> None:
        self.left -= values
        if self.left < 0:
            raise Refusal(f"has more than {MAX_VALUES:,} values once its aliases and references are resolved", UNSAFE)

    def _is_literal(self, place: tuple[Any, ...]) -> bool:
        return any(".".join(map(str, place[:length])) in self.literal for length in range(1, len(place) + 1))

    def _replaced(self, text: str, place: tuple[Any, ...], depth: int) -> Any:
        problem = f"has {shown('.'.join(map(str, place)))}: {shown(text)}"
        match = REFERENCE.fullmatch(text)
        if match:
            found, target = self._find(match, place, problem)
            return self.copy(found, target, depth + 1)

        def written(match: re.Match[str]) -> str:
            found, target = self._find(match, place, problem)
            part = self.copy(found, target, depth + 1)
            if isinstance(part, (dict, list)):
                raise Refusal(f"{problem}, a reference to more than a value", "")
            self._count(len(str(part)))
            return str(part)

        replaced = REFERENCE.sub(written, text)
        if "${" in replaced:
            raise Refusal(f"{problem}, a reference to something outside the config", UNSAFE)
        return replaced

    def _find(self, match: re.Match[str], place: tuple[Any, ...], problem: str) -> tuple[Any, tuple[Any, ...]]:
        """Return what a reference at ``place`` stands for, and its keys."""
        dots, keys = match.groups()
        target: tuple[Any, ...] = place[: -len(dots)] if dots else ()
        target += tuple(key for key in re.split(r"[.\[\]]", keys) if key)
        found: Any = self.values
        try:
            for key in target:
                found = found[int(key)] if isinstance(found, list) else found[key]
        except (LookupError, TypeError, ValueError) as error:
            raise Refusal(f"{problem}, a reference to a missing value", "") from error
        return found, target
