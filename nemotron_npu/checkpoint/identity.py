"""Identify a model by its content, wherever its file is: a digest that reads only a small part of the weights."""

from __future__ import annotations

import hashlib
import mmap
import os
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

from .archive import (
    CONFIG,
    PORTED_CONFIG,
    SAVED_CONFIG,
    is_folder,
    is_gzipped,
    is_ported,
    is_saved,
    opened,
    opened_in_folder,
    opened_saved,
    opened_weights,
    read_member,
)
from .config import ModelConfig
from .torch_zip import Window, read_checksums, reading_zip
from .transformers_config import PROCESSOR, find_weight_files

MAX_BYTES = 32 << 20  # of a config or a tokenizer
SAMPLES = 1024  # parts of a file without checksums that are read
SAMPLE = 4096  # bytes of each


def read_identity(path: Path, config: ModelConfig) -> str:
    """Return 16 hexadecimal digits for a model: equal for a ``.nemo`` file, its copies and its extracted folder.

    They are a digest of config, tokenizers and the checksums that torch's zip has of its weights.  Neither safetensors
    nor a gzipped archive has checksums that are read at once: there at most 4 MB, evenly spread over the file, stand
    for all of it.  Training changes all weights; a change between the samples of a larger file goes unnoticed.
    Raises SetupError for a member that is missing or broken.
    """
    digest = hashlib.sha256()
    for name, content in _parts(path, config):
        digest.update(f"{name} {len(content)}\n".encode())
        digest.update(content)
    return digest.hexdigest()[:16]


def _parts(path: Path, config: ModelConfig) -> Iterator[tuple[str, bytes]]:
    """Yield the name and the content of each part of the digest."""
    if is_ported(path):
        configs = [PORTED_CONFIG, PROCESSOR] if os.path.lexists(path / PROCESSOR) else [PORTED_CONFIG]
        yield from _members(path, configs, config)
        for name in find_weight_files(path):
            with opened_in_folder(path, name) as file:
                yield name, _samples(file, 0, os.fstat(file.fileno()).st_size)
        return
    if is_saved(path):
        yield from _members(path, [SAVED_CONFIG], config)
        with opened_saved(path) as file:
            yield "weights", _samples(file, 0, os.path.getsize(path))
        return
    if not is_folder(path):
        with opened(path) as file:
            if is_gzipped(file):
                yield "archive", _samples(file.fileobj, 0, os.path.getsize(path))  # type: ignore[attr-defined]
                return
    yield from _members(path, [CONFIG], config)
    with opened_weights(path) as (file, start, size):
        with reading_zip(path), mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as mapped:
            records = read_checksums(Window(mapped, start, size))
        yield "checksums", repr(records).encode()
        if not any(checksum for _, _, checksum in records):
            yield "weights", _samples(file, start, size)


def _members(path: Path, configs: list[str], config: ModelConfig) -> Iterator[tuple[str, bytes]]:
    for name in (*configs, *(tokenizer.member for tokenizer in config.tokenizers)):
        yield name, read_member(path, name, MAX_BYTES)


def _samples(file: BinaryIO, start: int, size: int) -> bytes:
    """Return the ``size`` bytes from ``start`` if they are few, else ``size`` and evenly spaced samples."""
    number = file.fileno()
    if size <= SAMPLES * SAMPLE:
        return os.pread(number, size, start)
    offsets = ((size - SAMPLE) * index // (SAMPLES - 1) for index in range(SAMPLES))
    return b"".join([str(size).encode(), *(os.pread(number, SAMPLE, start + offset) for offset in offsets)])
