"""Splits the weights of a model of transformers into several files, as its hub keeps large ones."""

from __future__ import annotations

import json
import struct
from pathlib import Path

from nemotron_npu.checkpoint.transformers_config import INDEX, WEIGHTS


def sharded(folder: Path) -> dict:
    """Split the weights of a folder into three files and an index, and return the index."""
    content = (folder / WEIGHTS).read_bytes()
    length = int.from_bytes(content[:8], "little")
    header, data = json.loads(content[8 : 8 + length]), content[8 + length :]
    header.pop("__metadata__", None)
    placed: dict = {}
    for number in range(3):
        file = f"model-0000{number + 1}-of-00003.safetensors"
        part, blocks = {}, b""
        for name, entry in list(header.items())[number::3]:
            begin, end = entry["data_offsets"]
            part[name] = {**entry, "data_offsets": [len(blocks), len(blocks) + end - begin]}
            blocks += data[begin:end]
            placed[name] = file
        text = json.dumps(part).encode()
        (folder / file).write_bytes(struct.pack("<Q", len(text)) + text + blocks)
    (folder / WEIGHTS).unlink()
    index = {"metadata": {"total_size": len(data)}, "weight_map": placed}
    (folder / INDEX).write_text(json.dumps(index))
    return index
