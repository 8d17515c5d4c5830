"""A ``.safetensors`` file -> tensors by name, mapped, without trusting the file.

The format: the length of a header in 8 bytes, the header as JSON, and the bytes of the tensors, of which each has a
dtype, a shape and its two ends in the header.
"""

from __future__ import annotations

import math
from typing import Any, BinaryIO

import torch

from .json_file import parse_json
from .refusal import AGAIN, UNSAFE, Refusal
from .weights import Tensors, map_file

MAX_HEADER = 16 << 20  # bytes; that of 700 tensors has 0.1 MB
LENGTH = 8  # bytes of the header's length
DTYPES = {
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "F64": torch.float64,
    "I64": torch.int64,
    "I32": torch.int32,
    "I8": torch.int8,
    "U8": torch.uint8,
}


def read_safetensors(file: BinaryIO, member: str) -> Tensors:
    """Return the tensors of an open file, ``member`` in messages; raise Refusal.

    The tensors lie in the page cache, are read at their first use, and are shared between processes.
    """
    size = file.seek(0, 2)
    file.seek(0)
    length = int.from_bytes(file.read(LENGTH), "little")
    if not 0 < length <= MAX_HEADER or LENGTH + length > size:
        raise Refusal("is no safetensors file, or cut short")
    header = parse_json(file.read(length))
    header.pop("__metadata__", None)
    mapping = map_file(file)
    tensors = Tensors()
    tensors.mapping = mapping
    tensors.member = member
    taken = 0
    for name, entry in header.items():
        dtype, shape, begin, end = _checked(name, entry)
        if LENGTH + length + end > size:
            raise Refusal(f"is cut short in {name!r}", AGAIN)
        taken += end - begin
        if begin == end:
            tensors[name] = torch.empty(shape, dtype=dtype)
            continue
        count = math.prod(shape)
        tensors[name] = torch.frombuffer(mapping, dtype=dtype, count=count, offset=LENGTH + length + begin).view(shape)
    if taken > size:
        raise Refusal("gives the same bytes many names", UNSAFE)
    return tensors


def _checked(name: str, entry: object) -> tuple[torch.dtype, list[int], int, int]:
    """Return the dtype, shape and ends of a tensor; raise Refusal where they make no sense."""
    broken = Refusal(f"describes {name[:100]!r} in a way that makes no sense")
    if not isinstance(entry, dict) or entry.get("dtype") not in list(DTYPES):
        raise broken
    dtype = DTYPES[entry["dtype"]]
    shape: Any = entry.get("shape")
    ends: Any = entry.get("data_offsets")
    if not _are_counts(shape) or not _are_counts(ends) or len(ends) != 2:
        raise broken
    if math.prod(shape) * dtype.itemsize != ends[1] - ends[0]:
        raise broken
    return dtype, shape, ends[0], ends[1]


def _are_counts(values: Any) -> bool:
    return isinstance(values, list) and len(values) <= 8 and all(type(n) is int and 0 <= n < 1 << 48 for n in values)
