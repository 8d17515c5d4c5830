"""Mutated sound files, wav streams, manifests and lists: each gives finite samples or one line, whatever is in it.

    python tests/fuzz_audio.py --cases 100000            # counts, and every case that broke the rule
    python tests/fuzz_audio.py --only 4711 --keep x.bin  # one case again, and its bytes

Cases are made from their numbers alone.  They run in a child, so that a crash in C is seen; where one stalls or dies
the next child goes on behind it.
"""

from __future__ import annotations

import argparse
import json
import mmap
import os
import random
import resource
import signal
import struct
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

import numpy as np
import soundfile
from hostile_audio import ID3, chunk, encoded, sound, wav_of_unknown_length

from nemotron_npu.audio import LiveInput, blocks, check_audio
from nemotron_npu.errors import CONTROL, InputError
from nemotron_npu.sources import Recording, find_recordings

SLOW_SECONDS, STALL_SECONDS = 3, 10
MEMORY = 3 << 30  # address space of the child
NUMBERS = [0, 1, 2, 7, 127, 128, 255, 1 << 15, (1 << 16) - 1, 1 << 20, (1 << 31) - 1, 1 << 31, (1 << 32) - 1, 1 << 40]


def seeds() -> dict[str, list[bytes]]:
    """Small good inputs of each kind: files by extension, streams, manifests, lists."""
    part = sound()[16000:18000]
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
                        pass  # this kind has one channel, or is only read
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


def mutated(data: bytes, other: bytes, chance: random.Random) -> bytes:
    data = bytearray(data)
    for _ in range(chance.choice((1, 1, 1, 2, 3, 8))):
        size = len(data) or 1
        at = chance.randrange(min(size, chance.choice((16, 64, 256, size))))
        way = chance.randrange(9)
        if way == 0:
            data[at : at + 1] = bytes([chance.randrange(256)])
        elif way == 1:
            data[at : at + 1] = bytes([data[at] ^ 1 << chance.randrange(8)]) if data else b""
        elif way in (2, 3):
            number, width = chance.choice(NUMBERS), chance.choice((1, 2, 4, 8))
            by = number % (1 << 8 * width)
            data[at : at + width] = by.to_bytes(width, chance.choice(("little", "big")))
        elif way == 4:
            del data[chance.randrange(size) :]
        elif way == 5:
            del data[at : at + chance.randrange(64)]
        elif way == 6:
            data[at:at] = data[at : at + chance.choice((1, 4, 64, size))]
        elif way == 7:
            data[at:at] = chance.randbytes(chance.choice((1, 4, 64, 3000)))
        else:
            data[at:] = other[min(at, len(other)) :]
    return bytes(data)


def make(number: int, good: dict[str, list[bytes]]) -> tuple[str, bytes]:
    """(kind, content) of a case."""
    chance = random.Random(number)
    kinds = list(good)
    kind = chance.choice(kinds + 6 * ["wav", "flac", "ogg", "mp3", "stdin", "json"])
    return kind, mutated(chance.choice(good[kind]), chance.choice(good[chance.choice(kinds)]), chance)


def outcome(kind: str, folder: Path) -> str:
    """What becomes of the case ``folder/x.<kind>``: ``read``, ``refused``, or what is wrong."""
    path = folder / f"x.{kind}"
    result = "refused"
    try:
        if kind == "stdin":
            number = os.open(path, os.O_RDONLY)
            try:
                taken = list(LiveInput(number))
            finally:
                os.close(number)
            return _check(taken)
        if kind not in ("json", "txt"):
            check_audio(str(path))
            return _check(list(blocks(path)))
        for found in find_recordings([str(path)]):
            if isinstance(found, Recording):
                assert _check(list(blocks(found))) == "read"
                result = "read"
    except InputError as error:
        if CONTROL.search(str(error)) or "\n" in str(error):
            return f"not one line: {error!r}"
    except BaseException as error:
        return f"{type(error).__name__}: {error}"
    return result


def _check(pieces: list[np.ndarray]) -> str:
    for piece in pieces:
        if piece.dtype != np.float32 or piece.ndim != 1 or not np.isfinite(piece).all():
            return f"samples {piece.dtype} {piece.shape}, not finite?"
    return "read"


def fuzz(first: int, last: int, folder: Path) -> tuple[Counter, list[str]]:
    """Run the cases ``first`` to ``last`` - 1: how many were read and refused, and a line for each that did neither."""
    good = seeds()
    _make_good(good, folder)
    state = mmap.mmap(-1, 8 * 4)  # shared with the child: number of the case, read, refused, largest memory in KiB
    counts, broken, log = Counter(), [], folder / "log"
    while first < last:
        log.write_text("")
        child = os.fork()
        if child == 0:
            _child(first, last, good, folder, state, log)
        at, since, status = first, time.monotonic(), None
        while not status:
            ended, code = os.waitpid(child, os.WNOHANG)
            now, read, refused, memory = struct.unpack("<4q", state[:])
            if ended:
                status = code or "done"
            elif now != at:
                at, since = now, time.monotonic()
            elif time.monotonic() - since > STALL_SECONDS:
                os.kill(child, signal.SIGKILL)
                os.waitpid(child, 0)
                status = "stall"
            time.sleep(0.002)
        counts += Counter(read=read, refused=refused)
        counts["MiB"] = max(counts["MiB"], memory // 1024)
        broken += log.read_text().splitlines()
        if status != "done":
            broken.append(f"{now} {make(now, good)[0]}: {'stall' if status == 'stall' else f'died: {status}'}")
        first = last if status == "done" else now + 1
    return counts, broken


def _make_good(good: dict, folder: Path) -> None:
    """What lists and manifests name."""
    (folder / "good").mkdir()
    for path in (folder / "good.wav", folder / "good" / "x.wav"):
        path.write_bytes(good["wav"][0])


def _child(first: int, last: int, good: dict, folder: Path, state: mmap.mmap, log: Path) -> None:
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
    for number in (1, 2):  # libsndfile's decoders print there
        os.dup2(os.open(os.devnull, os.O_WRONLY), number)
    counts = Counter()
    for number in range(first, last):
        state[:] = struct.pack("<4q", number, counts["read"], counts["refused"], 0)
        kind, data = make(number, good)
        (folder / f"x.{kind}").write_bytes(data)
        began = time.monotonic()
        result = outcome(kind, folder)
        (folder / f"x.{kind}").unlink()
        if time.monotonic() - began > SLOW_SECONDS:
            result += f", in {time.monotonic() - began:.1f} s"
        counts[result] += 1
        if result not in ("read", "refused"):
            with log.open("a") as file:
                file.write(f"{number} {kind}: {' '.join(result.split())}\n")
    memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    state[:] = struct.pack("<4q", last, counts["read"], counts["refused"], memory)
    os._exit(0)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cases", type=int, default=10_000)
    parser.add_argument("--first", type=int, default=0)
    parser.add_argument("--only", type=int)
    parser.add_argument("--keep")
    args = parser.parse_args()
    began = time.monotonic()
    with tempfile.TemporaryDirectory() as folder:
        if args.only is not None:
            good = seeds()
            kind, data = make(args.only, good)
            if args.keep:
                Path(args.keep).write_bytes(data)
            (Path(folder) / f"x.{kind}").write_bytes(data)
            _make_good(good, Path(folder))
            print(kind, outcome(kind, Path(folder)))
            return 0
        counts, broken = fuzz(args.first, args.first + args.cases, Path(folder))
    print("\n".join(broken))
    print(f"{args.cases} cases in {time.monotonic() - began:.0f} s: {dict(counts)}, {len(broken)} against the rule")
    return 1 if broken else 0


if __name__ == "__main__":
    sys.exit(main())
