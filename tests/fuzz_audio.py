"""Audio files, wav streams, manifests and lists with random defects, and the check of each; see ``fuzz.py``."""

from __future__ import annotations

import functools
import json
import random
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import soundfile
from hostile_audio import ID3, chunk, clip_at, encoded, wav_of_unknown_length

from nemotron_npu.audio import blocks, check_audio
from nemotron_npu.errors import CONTROL, InputError
from nemotron_npu.live_input import LiveInput
from nemotron_npu.sources import Recording, find_recordings

NUMBERS = [0, 1, 2, 7, 127, 128, 255, 1 << 15, (1 << 16) - 1, 1 << 20, (1 << 31) - 1, 1 << 31, (1 << 32) - 1, 1 << 40]


@functools.cache
def seeds() -> dict[str, list[bytes]]:
    """Return small valid inputs by extension: audio files, streams, manifests, lists."""
    part = clip_at()[16000:18000]
    files = {}
    for kind in sorted(soundfile.available_formats()):
        for subtype in sorted(soundfile.available_subtypes(kind)):
            if soundfile.check_format(kind, subtype) and kind not in ("RAW", "SD2"):
                rate = 8000 if subtype in ("GSM610", "G721_32") or "NMS" in subtype else 16000
                samples = np.repeat(part[:, None], 2, 1) if subtype in ("PCM_24", "VORBIS", "FLOAT") else part
                for data in (samples, part):
                    try:
                        files.setdefault(kind.lower(), []).append(encoded(data, kind, subtype, rate))
                        break
                    except (soundfile.SoundFileError, ValueError, TypeError):
                        pass  # this format has one channel, or can only be read
    plain = wav_of_unknown_length(0, 0, True)[:4000]
    files["wav"] += [plain, ID3 + files["wav"][0], plain[:36] + chunk(b"junk", b"odd") + b"\0" + plain[36:]]
    files["mp3"] = [ID3 + files["mp3"][0], 2 * files["mp3"][0], files["mp3"][0][288:]] + files["mp3"]
    files["ogg"] += [2 * data for data in files["ogg"]]
    entry = {"audio_filepath": "good.wav", "offset": 0.1, "duration": 0.05, "text": "one"}
    lines = json.dumps(entry) + "\n" + json.dumps({**entry, "offset": 0}) + "\n"
    return files | {
        "stdin": files["wav"] + files["rf64"],
        "json": [lines.encode()],
        "txt": [b"good.wav\ngood\nx.txt\n"],
    }


def mutated(data: bytes, other: bytes, rng: random.Random) -> bytes:
    data = bytearray(data)
    for _ in range(rng.choice((1, 1, 1, 2, 3, 8))):
        size = len(data) or 1
        at = rng.randrange(min(size, rng.choice((16, 64, 256, size))))
        way = rng.randrange(9)
        if way == 0:
            data[at : at + 1] = bytes([rng.randrange(256)])
        elif way == 1:
            data[at : at + 1] = bytes([data[at] ^ 1 << rng.randrange(8)]) if data else b""
        elif way in (2, 3):
            number, width = rng.choice(NUMBERS), rng.choice((1, 2, 4, 8))
            by = number % (1 << 8 * width)
            data[at : at + width] = by.to_bytes(width, rng.choice(("little", "big")))
        elif way == 4:
            del data[rng.randrange(size) :]
        elif way == 5:
            del data[at : at + rng.randrange(64)]
        elif way == 6:
            data[at:at] = data[at : at + rng.choice((1, 4, 64, size))]
        elif way == 7:
            data[at:at] = rng.randbytes(rng.choice((1, 4, 64, 3000)))
        else:
            data[at:] = other[min(at, len(other)) :]
    return bytes(data)


def broken(rng: random.Random) -> tuple[str, bytes]:
    """Return extension and content of a case."""
    good = seeds()
    kinds = list(good)
    kind = rng.choice(kinds + 6 * ["wav", "flac", "ogg", "mp3", "stdin", "json"])
    return kind, mutated(rng.choice(good[kind]), rng.choice(good[rng.choice(kinds)]), rng)


def read(path: Path) -> str:
    """Read a case as the command line does; return ``read`` or ``refused``, or raise."""
    if not (path.parent / "good").exists():  # the files in lists and manifests
        (path.parent / "good").mkdir()
        for name in ("good.wav", "good/x.wav"):
            (path.parent / name).write_bytes(seeds()["wav"][0])
    outcome = "refused"
    try:
        if path.suffix == ".stdin":
            with path.open("rb") as file:
                return check(LiveInput(file.fileno()))
        if path.suffix not in (".json", ".txt"):
            check_audio(str(path))
            return check(blocks(path))
        for found in find_recordings([str(path)]):
            if isinstance(found, Recording):
                outcome = check(blocks(found))
    except InputError as error:
        assert not CONTROL.search(str(error)), f"control characters in {error!r}"
    return outcome


def check(blocks: Iterable[np.ndarray]) -> str:
    for block in blocks:
        assert block.dtype == np.float32 and block.ndim == 1 and np.isfinite(block).all(), f"gave {block}"
    return "read"
