"""Broken files of --save, for ``fuzz.py``."""

from __future__ import annotations

import copy
import functools
import json
import random
import tempfile
from pathlib import Path

from fuzz import VALUES, broken_bytes, parts

MARKS = (b"dtype", b"shape", b"data_offsets", b"model_config.json", b"tokenizer.model", b'"encoder"', b".scales")


@functools.cache
def seed(dtype: str) -> bytes:
    """The small checkpoint of ``fuzz.base`` as --save writes it."""
    from hostile_checkpoints import packed

    from nemotron_npu.saving import save_checkpoint

    with tempfile.TemporaryDirectory() as folder:
        source = Path(folder, "m.nemo")
        source.write_bytes(packed(parts()))
        save_checkpoint(source, Path(folder, "m"), dtype)
        return Path(folder, "m").read_bytes()


def broken(rng: random.Random) -> bytes:
    """A file whose header or config has other values, or with other bytes."""
    content = seed(rng.choice(["float32", "bfloat16", "int8", "int8"]))
    match rng.randrange(3):
        case 0:
            return broken_bytes(rng, content, MARKS)
        case 1:
            return with_header(rng, content)
    return with_config(rng, content)


def split(content: bytes) -> tuple[dict, bytes]:
    """The header, and the bytes after it."""
    length = int.from_bytes(content[:8], "little")
    return json.loads(content[8 : 8 + length]), content[8 + length :]


def joined(header: object, data: bytes) -> bytes:
    text = json.dumps(header, separators=(",", ":")).encode()
    return len(text).to_bytes(8, "little") + text + data


def with_header(rng: random.Random, content: bytes) -> bytes:
    """Entries with other dtypes, shapes and ends, of other tensors, gone, or with another name."""
    header, data = split(content)
    names = [name for name in header if name != "__metadata__"]
    for _ in range(rng.choice([1, 1, 2, 5])):
        name = rng.choice(names)
        entry = header.get(name)
        if not isinstance(entry, dict):
            continue
        match rng.randrange(6):
            case 0:
                entry[rng.choice(list(entry) or ["x"])] = copy.deepcopy(rng.choice([*VALUES, "F32", "I8", "U8", "F64"]))
            case 1:
                header[name] = copy.deepcopy(rng.choice([header[rng.choice(list(header))], *VALUES]))
            case 2:
                del header[name]
            case 3:
                header[rng.choice(["x", name + ".scales", "\x1b[2J", rng.choice(names)])] = header.pop(name)
            case 4:
                part = rng.choice([entry.get("shape"), entry.get("data_offsets")])
                if isinstance(part, list) and part:
                    number = rng.choice(part)
                    part[rng.randrange(len(part))] = rng.choice([0, 1, -1, 2**40, 2**63, number, 0.5, True, None])
            case 5:
                header["__metadata__"] = copy.deepcopy(rng.choice([*VALUES, {"nemotron_npu": rng.choice(VALUES)}]))
    return joined(header, data)


def with_config(rng: random.Random, content: bytes) -> bytes:
    """A config with other values, in the file's place for it."""
    from fuzz import changed

    header, data = split(content)
    begin, end = header["model_config.json"]["data_offsets"]
    config = changed(rng, json.loads(data[begin:end]))
    text = json.dumps(config).encode()
    if rng.random() < 0.1:
        text = broken_bytes(rng, text)
    header["model_config.json"] |= {"shape": [len(text)], "data_offsets": [len(data), len(data) + len(text)]}
    return joined(header, data + text)
