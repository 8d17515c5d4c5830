"""A ``.safetensors`` file -> tensors by name, mapped; and tensors -> the bytes of such a file."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from typing import Any, BinaryIO

import torch

from .safetensors_header import LENGTH, METADATA, read_header
from .weights import Mappings, Tensors, map_file

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
NAMES = {dtype: name for name, dtype in DTYPES.items()}
ALIGNMENT = 64  # bytes, of the first tensor


def read_safetensors(file: BinaryIO, member: str) -> Tensors:
    """Return the tensors of an open file, ``member`` in messages; raise Refusal.

    The tensors lie in the page cache, are read at their first use, and are shared between processes.
    """
    entries = read_header(file)
    mapping = map_file(file)
    tensors = Tensors()
    tensors.mappings = Mappings([mapping])
    tensors.member = member
    for name, entry in entries.items():
        dtype = DTYPES[entry.dtype]
        if not entry.size:
            tensors[name] = torch.empty(entry.shape, dtype=dtype)
            continue
        count = math.prod(entry.shape)
        tensors[name] = torch.frombuffer(mapping, dtype=dtype, count=count, offset=entry.offset).view(entry.shape)
    return tensors


def write_safetensors(tensors: dict[str, torch.Tensor], metadata: dict[str, str]) -> Iterator[bytes]:
    """Yield a file with these tensors, those of large numbers first, so that each is aligned; ``metadata`` leads."""
    ordered = sorted(tensors.items(), key=lambda item: -item[1].itemsize)  # else as they come: one model, one file
    header: dict[str, Any] = {METADATA: metadata}
    end = 0
    for name, tensor in ordered:
        begin, end = end, end + tensor.nbytes
        header[name] = {"dtype": NAMES[tensor.dtype], "shape": list(tensor.shape), "data_offsets": [begin, end]}
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-(LENGTH + len(text)) % ALIGNMENT)
    yield len(text).to_bytes(LENGTH, "little") + text
    for _, tensor in ordered:
        yield tensor.contiguous().view(-1).view(torch.uint8).numpy().tobytes()
