"""Audio that is broken, odd or hostile, each between two good files: the rows of a table in data/messages.md."""

from __future__ import annotations

import ctypes
import gzip
import io
import json
import os
import re
import socket
import struct
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import soundfile
import soxr
from media_files import media_bytes
from robustness import Case
from support import CLIP, CLIP_WORDS

BESIDE = {"before.wav": "three", "after.wav": "one four"}
"""The good files next to each case -> their words."""
CASES: list[Case] = []
WORDS = re.escape(CLIP_WORDS)
UTTERANCES = r"\s".join(CLIP_WORDS.split())  # a stream's: one a line

Files = Callable[[Path], list | None]
"""Make the files of a case in a folder; return the inputs to transcribe, unless it is ``x.wav``."""


def case(name: str, code: int = 0, says: str | None = None, *options, **around) -> Callable[[Files], Files]:
    """Add a case whose inputs stand between two good files; without ``says`` the clip's words are expected."""

    def add(files: Files) -> Files:
        def make(folder: Path) -> list:
            for neighbour, (first, last) in zip(BESIDE, ((0, 1.0), (1.0, 2.6)), strict=True):
                soundfile.write(folder / neighbour, clip_at()[int(first * 16000) : int(last * 16000)], 16000)
            inputs = files(folder) or ["x.wav"]
            before, after = (folder / neighbour for neighbour in BESIDE)
            return [before, *(path if str(path).startswith("/") else folder / path for path in inputs), after, *options]

        beside = "|".join(f"{re.escape(name)}: {said}$" for name, said in BESIDE.items())
        expected = says if says is not None else rf"(?m)^[^:]*: {WORDS}$"
        CASES.append(Case(name, make, code, expected, beside=beside, **around))
        return files

    return add


def stream(name: str, code: int, says: str, data: Callable[[], bytes] | None, *options: str) -> None:
    """Add a case whose stdin has ``data`` and ends, or is closed if ``data`` is None."""

    @contextmanager
    def during(folder: Path) -> Iterator[None]:
        before, threads = sys.stdin, set(threading.enumerate())
        sys.stdin = (folder / "stdin").open("rb") if data else None
        try:
            yield
        finally:
            for reader in set(threading.enumerate()) - threads:  # else it may read the next file of that number
                reader.join(5)
            if sys.stdin:
                sys.stdin.close()
            sys.stdin = before

    def make(folder: Path) -> list:
        (folder / "stdin").write_bytes(data() if data else b"")
        return ["-", *options]

    CASES.append(Case(name, make, code, says, during=during))


@cache
def clip_at(rate: int = 16000) -> np.ndarray:
    """Return the bundled clip at this rate, float32 [samples]."""
    samples, own = soundfile.read(CLIP, dtype="float32")
    return soxr.resample(samples, own, rate)


def encoded(samples=None, kind: str = "WAV", subtype: str | None = None, rate: int = 16000) -> bytes:
    """Encode the clip, or other samples, as a file."""
    buffer = io.BytesIO()
    soundfile.write(buffer, clip_at() if samples is None else samples, rate, format=kind, subtype=subtype)
    return buffer.getvalue()


def wav() -> bytes:
    """Return the clip as a plain wav: 12 bytes of RIFF, 24 of format, 8 of data header, samples."""
    return encoded(subtype="PCM_16")


def chunk(name: bytes, content: bytes, size: int | None = None) -> bytes:
    return name + struct.pack("<I", len(content) if size is None else size) + content


def replaced(data: bytes, at: int, by: bytes) -> bytes:
    return data[:at] + by + data[at + len(by) :]


def wav_of_unknown_length(size: int, riff: int, notes: bool = False) -> bytes:
    """Return the clip as programs write it into a pipe; ffmpeg adds notes before the samples."""
    plain, tag = wav(), chunk(b"LIST", b"INFO" + chunk(b"ISFT", b"Lavf58.76.100\0")) if notes else b""
    return replaced(plain[:36], 4, struct.pack("<I", riff)) + tag + chunk(b"data", plain[44:], size)


def half(data: bytes) -> bytes:
    return data[: len(data) // 2]


def with_format(tag=1, channels=1, rate=16000, block=2, bits=16) -> bytes:
    """Return the clip with another format in its header."""
    return replaced(wav(), 20, struct.pack("<HHIIHH", tag, channels, rate, 2 * rate % 2**32, block, bits))


ID3 = b"ID3\x03\0\0\0\0\2\0" + b"TIT2" + struct.pack(">I", 6) + b"\0\0\0Talk\0" + bytes(256 - 16)


def simple(name: str, data: Callable[[], bytes], code: int = 0, says: str | None = None, file: str = "x.wav") -> None:
    """Add a case of one file with this content."""

    @case(name, code, says)
    def files(folder: Path) -> list:
        (folder / file).write_bytes(data())
        return [file]


# ---------------------------------------------------------------- lengths

simple("empty", lambda: b"", 1, "x.wav: the file is empty")
simple("only a header", lambda: wav()[:44], 1, "x.wav: no audio samples, only a header")
simple("half a header", lambda: wav()[:20], 1, "x.wav: unsupported wav audio: Error in WAV")
simple("1 sample", lambda: encoded(clip_at()[:1]), says="(?m)^x.wav: $")
simple("shorter than a frame (100 samples)", lambda: encoded(clip_at()[5000:5100]), says="(?m)^x.wav: $")


@case("10 hours (1.2 GB, sparse), the last 10 s asked for", says=rf"x.wav \[from 35990 s\]: {WORDS}")
def ten_hours(folder: Path) -> list:
    size = 10 * 3600 * 16000 * 2
    with open(folder / "x.wav", "wb") as file:
        file.write(wav()[:40] + struct.pack("<I", size))
        file.truncate(44 + size)
        file.seek(44 + size - len(wav()[44:]))
        file.write(wav()[44:])
    return manifest(folder, {"audio_filepath": "x.wav", "offset": 35990, "duration": 10})


@case("a folder of 1000 files, one of them broken", 1, "500.wav: is text, not audio$", "--batch_size", "100")
def a_thousand(folder: Path) -> list:
    calls = folder / "calls"
    calls.mkdir()
    soundfile.write(calls / "000.wav", clip_at()[:400], 16000)
    for i in range(1, 1000):
        os.link(calls / "000.wav", calls / f"{i:03d}.wav")
    (calls / "500.wav").unlink()
    (calls / "500.wav").write_text("not sound")
    return ["calls"]


# ---------------------------------------------------------------- samples


@case("NaN", 1, "x.wav: samples are NaN or infinite \\(re-encode it")
def nan(folder: Path, value: float = np.nan) -> None:
    samples = clip_at().copy()
    samples[30000] = value
    soundfile.write(folder / "x.wav", samples, 16000, subtype="FLOAT")


@case("infinity", 1, "x.wav: samples are NaN or infinite \\(re-encode it")
def infinity(folder: Path) -> None:
    nan(folder, -np.inf)


@case("float samples of 1e30", 1, "x.wav: samples reach ")
def huge(folder: Path) -> None:
    soundfile.write(folder / "x.wav", clip_at() * 1e30, 16000, subtype="FLOAT")


simple("float samples of 32767", lambda: encoded(32767 * clip_at(), subtype="FLOAT"), 1, "x.wav: samples reach ")
simple("all zero", lambda: encoded(0 * clip_at()), says="(?m)^x.wav: $")
simple("only DC", lambda: encoded(0 * clip_at() + 0.5), says="(?m)^x.wav: $")
simple("DC below speech", lambda: encoded(0.3 * clip_at() + 0.5))
simple("clipped (6 dB too loud)", lambda: encoded((2 * clip_at()).clip(-1, 1)))
for name, subtype in {
    "8-bit": "PCM_U8",
    "24-bit": "PCM_24",
    "32-bit int": "PCM_32",
    "float32": "FLOAT",
    "float64": "DOUBLE",
    "a-law": "ALAW",
    "mu-law": "ULAW",
    "IMA ADPCM": "IMA_ADPCM",
    "GSM 6.10": "GSM610",
}.items():
    simple(name, lambda subtype=subtype: encoded(subtype=subtype))


@case("1 to 8 channels", says=rf"(?m)(^[1-8].wav: {WORDS}\n?){{8}}")
def channels(folder: Path) -> list:
    for count in range(1, 9):
        soundfile.write(folder / f"{count}.wav", np.repeat(clip_at()[:, None], count, 1), 16000)
    return [f"{count}.wav" for count in range(1, 9)]


@case("1000 channels", says="(?m)^x.wav: three$")
def a_thousand_channels(folder: Path) -> None:
    soundfile.write(folder / "x.wav", np.repeat(clip_at()[:16000, None], 1000, 1), 16000, subtype="PCM_U8")


simple("4 kHz", lambda: encoded(clip_at(4000), rate=4000), says=r"(?m)^x.wav: .* four one five nine \w+ six$")
RATES = (8000, 11025, 16000, 22050, 44100, 48000, 96000, 192000)


@case("8 to 192 kHz", says=rf"(?m)(^\d+.wav: {WORDS}\n?){{{len(RATES)}}}")
def rates(folder: Path) -> list:
    for rate in RATES:
        soundfile.write(folder / f"{rate}.wav", clip_at(rate), rate)
    return [f"{rate}.wav" for rate in RATES]


# ---------------------------------------------------------------- headers, containers

simple("cut off in the middle: wav", lambda: half(wav()), says="(?m)^x.wav: three one four one$")
simple("cut off in the middle: ogg", lambda: half(encoded(kind="OGG")), says="x.ogg: three one", file="x.ogg")
simple("cut off in the middle: mp3", lambda: half(encoded(kind="MP3")), says="x.mp3: three one four one", file="x.mp3")
simple(
    "cut off in the middle: flac",
    lambda: half(encoded(kind="FLAC")),
    1,
    r"x.wav: broken audio: .* \(keep what can be read: ffmpeg -i ",
)
simple("zeros in the middle of a flac", lambda: replaced(encoded(kind="FLAC"), 60_000, bytes(2000)), 1, "broken audio")
simple("data size 0 and RIFF size 0: a wav from a pipe", lambda: wav_of_unknown_length(0, 0))
simple("data size 0 alone", lambda: replaced(wav(), 40, bytes(4)))
simple("data size 0xFFFFFFFF: ffmpeg's wav from a pipe", lambda: wav_of_unknown_length(2**32 - 1, 2**32 - 1, True))
simple("data size 0x7FFFF000: sox's", lambda: wav_of_unknown_length(0x7FFFF000, 0x7FFFF024))
for kind in ("RF64", "W64", "AIFF", "AU", "CAF", "FLAC", "OGG", "MP3"):
    simple(kind if kind != "OGG" else "Ogg Vorbis", lambda kind=kind: encoded(kind=kind), file=f"x.{kind.lower()}")
simple("Ogg Opus", lambda: encoded(kind="OGG", subtype="OPUS"), file="x.opus")
simple("flac with a wrong MD5", lambda: replaced(encoded(kind="FLAC"), 26, b"\1" * 16))
simple("wrong extension: an mp3 named .wav", lambda: encoded(kind="MP3"))
simple("wrong extension: a wav named .mp3", wav, file="x.mp3")
simple("no extension", wav, file="x")
simple("ID3 tag before an mp3", lambda: ID3 + encoded(kind="MP3"), file="x.mp3")
simple("ID3 tag before a wav", lambda: ID3 + wav())
simple("ID3 tag before a flac", lambda: ID3 + encoded(kind="FLAC"))
simple("ID3 tag whose size is broken", lambda: ID3[:6] + b"\xff" * 4 + ID3[10:] + encoded(kind="MP3"), file="x.mp3")
simple(
    "ID3 tag that claims 256 MB",
    lambda: ID3[:6] + b"\x7f" * 4 + encoded(kind="MP3"),
    1,
    "x.mp3: unsupported mp3",
    "x.mp3",
)
simple("SDS whose second block is broken", lambda: replaced(encoded(kind="SDS"), 21 + 127, b"\0"), file="x.sds")
simple("two mp3 joined", lambda: 2 * encoded(kind="MP3"), says=f"(?m)^x.mp3: {WORDS} {WORDS}$", file="x.mp3")
simple("mp3 without its first frame, which states the length", lambda: encoded(kind="MP3")[288:], file="x.mp3")
simple("noise before the first frame of an mp3", lambda: noise(3000) + encoded(kind="MP3"), file="x.mp3")


@case("noise between the frames of an mp3", 1, "x.mp3: broken audio")
def noise_in_mp3(folder: Path) -> list:
    data = encoded(kind="MP3")
    (folder / "x.mp3").write_bytes(data[:9792] + noise(3000) + data[9792:])
    return ["x.mp3"]


simple("two Ogg streams chained", lambda: 2 * encoded(kind="OGG"), says=f"(?m)^x.ogg: {WORDS} {WORDS}$", file="x.ogg")
simple("a chunk of odd size", lambda: wav()[:36] + chunk(b"junk", b"odd") + b"\0" + wav()[36:])
simple("a chunk that claims 4 GB", lambda: wav()[:36] + chunk(b"LIST", b"INFO", 2**32 - 1) + wav()[36:], 1, "No 'data'")
simple("a header of 20 MB", lambda: wav()[:36] + chunk(b"LIST", bytes(20_000_000)) + wav()[36:])
simple("200,000 empty chunks", lambda: wav()[:36] + chunk(b"junk", b"") * 200_000 + wav()[36:])
for name, format in {
    "0 channels": {"channels": 0},
    "65,535 channels": {"channels": 65535},
    "sample rate 0": {"rate": 0},
    "sample rate 1 Hz": {"rate": 1},
    "sample rate 2**31 - 1 Hz": {"rate": 2**31 - 1},
    "sample rate 2**31 Hz": {"rate": 2**31},
    "0 bits per sample": {"bits": 0},
    "0 bytes per block, ADPCM": {"tag": 17, "block": 0, "bits": 4},
}.items():
    simple(
        name,
        lambda format=format: with_format(**format),
        1,
        "x.wav: (unsupported wav audio: |broken header with a sample rate of |broken audio after )",
    )
simple("0 bytes per block, PCM", lambda: with_format(block=0))

# ---------------------------------------------------------------- files that are no audio


def noise(count: int) -> bytes:
    return np.random.default_rng(0).bytes(count)


simple("text", lambda: b"these are words, not sound\n" * 40, 1, "x.wav: is text, not audio")
simple("random bytes", lambda: noise(50_000), 1, "x.wav: unsupported audio format: Format not recognised")
simple("zero bytes", lambda: bytes(50_000), 1, "x.wav: unsupported audio format: Format not recognised")
simple(
    "a video: mp4",
    lambda: b"\0\0\0 ftypisom\0\0\2\0isomiso2avc1mp41" + noise(5000),
    1,
    "x.mp4: unsupported mp4 audio.*ffmpeg -i",
    "x.mp4",
)
simple(
    "a video: mkv", lambda: b"\x1aE\xdf\xa3\x01" + noise(5000), 1, "x.mkv: unsupported matroska .*ffmpeg -i", "x.mkv"
)
simple("a wav in gzip", lambda: gzip.compress(wav()), 1, r"x.wav.gz: is a gzip file \(unpack it first\)", "x.wav.gz")
simple("a wav named .txt, which is a list", wav, 1, "x.txt:1: not text", "x.txt")
simple("a wav named .json, which is a manifest", wav, 1, "x.json:1: not text", "x.json")


@case("a video that PyAV decodes: mp4 with aac")
def video(folder: Path) -> list:
    (folder / "x.mp4").write_bytes(media_bytes("mp4", video=True))
    return ["x.mp4"]


# ---------------------------------------------------------------- paths that are no readable file


@case("a directory named x.wav", 1, "x.wav: no audio files in this folder")
def directory(folder: Path) -> None:
    (folder / "x.wav").mkdir()


@case("missing", 1, "x.wav: No such file or directory")
def missing(folder: Path) -> None:
    pass


@case("a FIFO without a writer", 1, r"x.wav: is a pipe \(read it from stdin: inference.py - < PIPE\)")
def fifo(folder: Path) -> None:
    os.mkfifo(folder / "x.wav")


@contextmanager
def a_writer(folder: Path) -> Iterator[None]:
    number = os.open(folder / "x.wav", os.O_RDWR)
    os.write(number, wav()[:60_000])
    try:
        yield
    finally:
        os.close(number)


case(
    "a FIFO with a writer",
    1,
    r"x.wav: is a pipe \(read it from stdin: inference.py - < PIPE\)",
    during=a_writer,
)(fifo)


@case("a socket", 1, "x.wav: is a socket, not a file")
def a_socket(folder: Path) -> None:
    here = os.getcwd()
    os.chdir(folder)  # the names of sockets are short
    try:
        with socket.socket(socket.AF_UNIX) as file:
            file.bind("x.wav")
    finally:
        os.chdir(here)


@case("/dev/zero, /dev/random and /dev/null", 1, r"(?m)(^.*/dev/(zero|random|null): is a device, not a file\n?){3}")
def devices(folder: Path) -> list:
    return ["/dev/zero", "/dev/random", "/dev/null"]


@case("a link to itself", 1, "x.wav: Too many levels of symbolic links")
def link(folder: Path) -> None:
    (folder / "x.wav").symlink_to("x.wav")


@case("a folder that is linked into itself", says=f"(?m)^calls/x.wav: {WORDS}$")
def linked_folder(folder: Path) -> list:
    (folder / "calls").mkdir()
    (folder / "calls" / "x.wav").write_bytes(wav())
    (folder / "calls" / "loop").symlink_to(".")
    return ["calls"]


@contextmanager
def no_privileges(folder: Path) -> Iterator[None]:
    """Drop root's right to read every file in this thread (capabilities(7), CAP_DAC_OVERRIDE and _READ_SEARCH)."""
    libc = ctypes.CDLL(None, use_errno=True)
    header = struct.pack("<Ii", 0x20080522, 0)
    data = ctypes.create_string_buffer(24)
    assert libc.capget(header, data) == 0
    effective, *rest = struct.unpack("<6I", data.raw)
    try:
        libc.capset(header, struct.pack("<6I", effective & ~0b110, *rest))
        yield
    finally:
        libc.capset(header, struct.pack("<6I", effective, *rest))


@case("no permission", 1, "x.wav: Permission denied", during=no_privileges)
def forbidden(folder: Path) -> None:
    (folder / "x.wav").write_bytes(wav())
    (folder / "x.wav").chmod(0)


@contextmanager
def gone_after_the_check(folder: Path) -> Iterator[None]:
    from nemotron_npu.cli.results import Results

    check = Results.check

    def check_and_remove(*args: Any, **options: bool) -> None:
        check(*args, **options)
        (folder / "x.wav").unlink()

    Results.check = check_and_remove
    try:
        yield
    finally:
        Results.check = check


@contextmanager
def at_the_first_read(do: Callable[[], None]) -> Iterator[None]:
    read, done = soundfile.SoundFile.read, threading.Event()

    def do_and_read(file, *args, **options):
        if file.frames > 50_000 and not done.is_set():
            done.set()
            do()
        return read(file, *args, **options)

    soundfile.SoundFile.read = do_and_read
    try:
        yield
    finally:
        soundfile.SoundFile.read = read


def one_file(folder: Path) -> None:
    (folder / "x.wav").write_bytes(wav())


def cut(folder: Path):
    return at_the_first_read(lambda: os.truncate(folder / "x.wav", 100_000))


def removed(folder: Path):
    return at_the_first_read((folder / "x.wav").unlink)


case("removed before its turn", 1, "x.wav: No such file or directory", during=gone_after_the_check)(one_file)
case("removed while it is read", during=removed)(one_file)
case("truncated while it is read", 1, "x.wav: was truncated while it was read", during=cut)(one_file)

# ---------------------------------------------------------------- names

for title, name in {
    "spaces in the name": "a long  name .wav",
    "a line break in the name": "two\nlines.wav",
    "an emoji in the name": "\N{PARTY POPPER}.wav",
    "a name that is not UTF-8": os.fsdecode(b"caf\xe9.wav"),
    "terminal escape codes in the name": "\x1b[2Jx.wav",
}.items():
    simple(title, wav, file=name)


@case("a name of 255 bytes")
def long_name(folder: Path) -> list:
    (folder / ("x" * 251 + ".wav")).write_bytes(wav())
    return ["x" * 251 + ".wav"]


@case("a name of 5000 bytes", 1, "xxx: File name too long")
def too_long_name(folder: Path) -> list:
    return ["x" * 5000]


# ---------------------------------------------------------------- manifests, lists


def manifest(folder: Path, *lines: dict | str) -> list:
    text = "".join(f"{line if isinstance(line, str) else json.dumps(line)}\n" for line in lines)
    (folder / "m.json").write_bytes(text.encode("utf-8", "surrogatepass"))
    return ["m.json"]


def entry(**fields) -> dict:
    return {"audio_filepath": "x.wav", **fields}


def entries(name: str, code: int, says: str, *lines: dict | str) -> None:
    """Add a case of a manifest whose last line is good; x.wav is the clip."""

    @case(name, code, says)
    def files(folder: Path) -> list:
        one_file(folder)
        return manifest(folder, *lines, entry())


entries("offsets and durations that are not seconds", 1, r"(?m)(^.* is not a number of seconds\n?){8}$",
        '{"audio_filepath": "x.wav", "offset": NaN}', '{"audio_filepath": "x.wav", "duration": Infinity}',
        *(entry(offset=offset) for offset in (-1, "1", [], 10**400, 1e308)), entry(duration=True))  # fmt: skip
entries("an offset past the end", 1, r"x.wav: offset 1e\+08 s is past the end at 6.831 s", entry(offset=1e8))


@case("a part of a file without seeking (GSM)", says=r"(?m)^x.wav \[from 1 s\]: one four$")
def part(folder: Path) -> list:
    (folder / "x.wav").write_bytes(encoded(clip_at(8000), subtype="GSM610", rate=8000))
    return manifest(folder, entry(offset=1.0, duration=1.6))


entries("a duration past the end", 0, rf"(?m)(^x.wav: {WORDS}\n?){{2}}", entry(duration=1e9))
entries("entries that are not objects with a path", 1, r"(?m)(^.*(no audio_filepath|not JSON)\n?){6}$",
        "[]", "1", "null", "{}", '{"audio_filepath": 1}', "{")  # fmt: skip
entries("100,000 nested lists", 1, "m.json:1: not JSON$", "[" * 100_000)
entries(
    "500 nested lists",
    1,
    "m.json:1: lists and objects are nested more than 100 deep",
    entry(x=json.loads("[" * 500 + "]" * 500)),
)
entries("a reference text that is a number", 0, rf"(?m)(^x.wav: {WORDS}\n?){{2}}", entry(text=42, duration=None))
entries("a path that is a folder, or has NUL or half a character", 1,
        r"(?m)(^.*(is a directory|not a valid file name).*\n?){3}$",
        {"audio_filepath": "."}, {"audio_filepath": "a\0b"}, {"audio_filepath": "\ud800"})  # fmt: skip
entries("a manifest that names itself", 1, "m.json: is text, not audio$", {"audio_filepath": "m.json"})


@case("two manifests that name each other", 1, "n.json: is text, not audio\n.*m.json: is text, not audio$")
def each_other(folder: Path) -> list:
    manifest(folder, {"audio_filepath": "m.json"})
    os.rename(folder / "m.json", folder / "n.json")
    return [*manifest(folder, {"audio_filepath": "n.json"}), "n.json"]


@case("a manifest with a line of 17 MB", 1, "m.json:1: not text, or a line without end")
def long_line(folder: Path) -> list:
    return manifest(folder, "x" * 17_000_000)


@case("a list that names itself", 1, "x.txt: is text, not audio")
def list_of_itself(folder: Path) -> list:
    (folder / "x.txt").write_text("x.txt\n")
    return ["x.txt"]


# ---------------------------------------------------------------- stdin

stream("stdin: nothing", 1, "stdin: no audio samples arrived", lambda: b"")
stream("stdin: closed", 2, "-: stdin is closed", None)
stream("stdin: raw samples, the last one cut", 0, UTTERANCES, lambda: wav()[44:] + b"\x7f")
stream(
    "stdin: a wav of unknown length, the last sample cut", 0, UTTERANCES, lambda: wav_of_unknown_length(0, 0) + b"\x7f"
)
stream("stdin: half a header", 1, "stdin: stream ends inside the wav header", lambda: wav()[:30])
stream("stdin: a header without an end", 1, "stdin: wav header that does not end",
       lambda: wav()[:36] + chunk(b"junk", b"") * 20_000)  # fmt: skip
stream("stdin: a chunk that claims 4 GB", 1, "stdin: wav header that does not end",
       lambda: wav()[:36] + chunk(b"LIST", b"INFO", 2**32 - 1) + wav()[36:])  # fmt: skip
stream("stdin: 65,535 channels", 1, "stdin: unsupported wav stream: format 1, 8 bits, 65535 channels",
       lambda: with_format(channels=65535, block=65535, bits=8))  # fmt: skip
stream("stdin: NaN", 1, "stdin: samples are NaN or infinite", lambda: encoded(clip_at() * np.nan, subtype="FLOAT"))
stream("stdin: an mp3", 0, UTTERANCES, lambda: ID3 + encoded(kind="MP3"))
stream("stdin: half an mp4", 1, "stdin: unsupported mp4 stream", lambda: media_bytes("mp4")[:9000])
stream("stdin: a wav in gzip", 1, r"stdin: is gzip data \(unpack it first\)", lambda: gzip.compress(wav()))
stream("stdin: random bytes", 0, "", lambda: noise(200_000))
