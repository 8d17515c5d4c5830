"""The header of a ``.safetensors`` file: where its tensors lie, without trusting the file and without torch.

The format: the length of a header in 8 bytes, the header as JSON, and the bytes of the tensors, of which each has a
dtype, a shape and its two ends in the header.
"""

from __future__ import annotations

import math
from typing import Any, BinaryIO, NamedTuple

from ..errors import shown
from .json_file import parse_json
from .refusal import AGAIN, NOT_FLOATS, UNSAFE, Refusal

MAX_HEADER = 16 << 20  # bytes; that of 700 tensors has 0.1 MB
LENGTH = 8  # bytes of the header's length
METADATA = "__metadata__"
SIZES = {"F32": 4, "F16": 2, "BF16": 2, "F64": 8, "I64": 8, "I32": 4, "I8": 1, "U8": 1}
"""Bytes of each dtype that is read."""


class Entry(NamedTuple):
    """A tensor: ``size`` bytes from ``offset`` of the file."""

    dtype: str
    shape: list[int]
    offset: int
    size: int


def read_header(file: BinaryIO) -> dict[str, Entry]:
    """Return the tensors of an open file by their names; raise Refusal."""
    size = file.seek(0, 2)
    file.seek(0)
    length = int.from_bytes(file.read(LENGTH), "little")
    if not 0 < length <= MAX_HEADER or LENGTH + length > size:
        raise Refusal("is not a safetensors file, or cut short")
    header = parse_json(file.read(length))
    header.pop(METADATA, None)
    entries: dict[str, Entry] = {}
    for name, values in header.items():
        dtype, shape, begin, end = _checked(name, values)
        entries[name] = Entry(dtype, shape, LENGTH + length + begin, end - begin)
        if LENGTH + length + end > size:
            raise Refusal(f"is cut short in {name!r}", AGAIN)
    if sum(entry.size for entry in entries.values()) > size:
        raise Refusal("gives the same bytes many names", UNSAFE)
    return entries


def _checked(name: str, values: object) -> tuple[str, list[int], int, int]:
    """Return the dtype, shape and ends of a tensor; raise Refusal if they are invalid."""
    broken = Refusal(f"describes {name[:100]!r} in a way that makes no sense")
    if not isinstance(values, dict) or not isinstance(values.get("dtype"), str):
        raise broken
    dtype = values["dtype"]
    if dtype not in SIZES:
        raise Refusal(f"has {name[:100]!r} in {shown(dtype)}", NOT_FLOATS)
    shape: Any = values.get("shape")
    ends: Any = values.get("data_offsets")
    if not _are_counts(shape) or not _are_counts(ends) or len(ends) != 2:
        raise broken
    if math.prod(shape) * SIZES[dtype] != ends[1] - ends[0]:
        raise broken
    return dtype, shape, ends[0], ends[1]


def _are_counts(values: Any) -> bool:
    return isinstance(values, list) and len(values) <= 8 and all(type(n) is int and 0 <= n < 1 << 48 for n in values)
