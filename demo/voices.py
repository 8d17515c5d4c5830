"""Synthesize spoken digits, and speech that has none, in many voices, for ``train.py --voices``.

    apt install espeak-ng flite festival festvox-kallpc16k festvox-kdlpc16k festvox-us-slt-hts \\
        asterisk-core-sounds-en-g722 ffmpeg
    python demo/voices.py --out VOICES espeak flite festival asterisk
    pip install kokoro-onnx && python demo/voices.py --out VOICES kokoro --model kokoro-int8.onnx --styles FOLDER
    python demo/voices.py --out READINGS espeak flite festival --text BOOK       # they read from a book instead

A file is named ``{digits}_{engine}-{voice}_{n}.wav``; ``o`` is an "oh", ``x`` is speech without a digit.  A string that
is read with pauses is cut at them into single digits.  README.md names the licences.  FOLDER has Kokoro's voices as the
npm package kokoro-js has them: raw float32 ``*.bin`` files of [510, 1, 256].
"""

from __future__ import annotations

import argparse
import io
import re
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import soundfile
import soxr

RATE = 16000
WORDS = ["zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "oh"]
NAMES = dict(zip("0123456789o", WORDS, strict=True))
# Heard by no model: five for the word-for-word tries in README.md, and Kokoro's for listening tests of one's own.
ESPEAK_HELD_OUT = ["en-us+Andy", "en-gb+belinda", "en-gb-scotland+Gene", "en-029+linda", "en-us-nyc+Michael"]
KOKORO_HELD_OUT = ["af_nova", "am_liam", "bf_lily", "bm_george"]
ESPEAK_ACCENTS = [
    "en-us", "en-gb", "en-gb-scotland", "en-gb-x-rp", "en-gb-x-gbclan", "en-gb-x-gbcwmd", "en-029", "en-us-nyc"
]  # fmt: skip
SENTENCES = """
The birch canoe slid on the smooth planks. Glue the sheet to the dark blue background.
It is easy to tell the depth of a well. These days a chicken leg is a rare dish.
Rice is often served in round bowls. The juice of lemons makes fine punch.
The box was thrown beside the parked truck. The hogs were fed chopped corn and garbage.
Large size in stockings is hard to sell. The boy was there when the sun rose.
Good morning, how are you today? Please call me back when you have a moment.
Yes, I think that would be very nice indeed. No, that is not what I wanted to say.
Can you hear me? Hello? I will try again later. Thank you very much for your help.
My name is Margaret and I live near the river. What is the weather like in Scotland?
She asked for a cup of tea and a piece of cake. We went to the market to buy apples for him.
Open the window, please, it is far too hot in here. He ate the last biscuit before I arrived.
The train to London leaves from the platform over there. I would like to speak to somebody about my account.
Send the letter to the office before noon. They won the match against all hopes.
A long time ago a king lived in a castle by the sea. Nobody knew where the old fisherman had gone.
Turn left at the corner and walk straight on. My brother plays the violin and my sister sings.
All the leaves are brown and the sky is grey. This recording was made in a quiet room.
"""


def phrases_without_digits(text: str) -> list[str]:
    """The phrases of 4 to 14 words between two punctuation marks, those that name a digit left out."""
    phrases = [" ".join(phrase.split()) for phrase in re.split(r"[^A-Za-z'\s]+", text)]
    return [p for p in phrases if 4 <= len(p.split()) <= 14 and not set(p.lower().split()) & {*WORDS, "o"}]


def plan(
    rng: np.random.Generator, strings: int, sentences: int, book: list[str], readings: int
) -> Iterator[tuple[str, str, bool]]:
    """Yield (codes, text to read, whether it is read with pauses) of what one voice says.

    Without a book these are ``strings`` of five digits and ``sentences``; with one ``readings`` of its phrases.
    """
    if book:
        for i in rng.choice(len(book), readings, replace=False):
            yield "x", book[i] + ".", False
        return
    for i in range(strings):
        codes = "".join(rng.choice(list("0123456789o"), 5, p=[0.08] + [0.096] * 9 + [0.056]))
        pauses = i % 2 == 0
        yield codes, (", " if pauses else " ").join(NAMES[code] for code in codes) + ".", pauses
    lines = [line.strip() for line in SENTENCES.strip().splitlines()]
    for i in rng.choice(len(lines), sentences, replace=False):
        yield "x", lines[i], False


def cut(samples: np.ndarray, count: int) -> list[np.ndarray]:
    """Cut at the pauses into ``count`` words, float32 [n] at RATE each; [] if there are not so many pauses."""
    hop = RATE // 100
    frames = samples[: len(samples) // hop * hop].reshape(-1, hop)
    loud = 20 * np.log10(np.sqrt((frames**2).mean(1)) + 1e-9)
    speech = np.flatnonzero(loud > loud.max() - 38)
    breaks = np.flatnonzero(np.diff(speech) > 12)  # 120 ms: longer than the closure of a stop
    starts = [speech[0], *speech[breaks + 1]]
    ends = [*speech[breaks], speech[-1]]
    if len(starts) != count:
        return []
    return [samples[max(0, a - 3) * hop : (b + 6) * hop] for a, b in zip(starts, ends, strict=True)]


def write(out: Path, voice: str, texts: Iterator, speak: Callable[[str], tuple[np.ndarray, int]]) -> None:
    """Let a voice say all texts: ``speak`` takes one and returns float32 samples and their rate in Hz."""
    for n, (codes, text, pauses) in enumerate(texts):
        samples, rate = speak(text)
        samples = soxr.resample(np.asarray(samples, np.float32), rate, RATE) if rate != RATE else samples
        words = cut(samples, len(codes)) if pauses else []
        pieces = list(zip(codes, words, strict=True)) if words else [(codes, samples)]
        for i, (code, piece) in enumerate(pieces):
            soundfile.write(out / f"{code}_{voice}_{n}{'abcde'[i]}.wav", piece, RATE, subtype="PCM_16")


def run(*command: str, text: str | None = None) -> tuple[np.ndarray, int]:
    """Run a synthesiser that writes the wav file ``OUT`` and read that."""
    with tempfile.TemporaryDirectory() as folder:
        path = f"{folder}/out.wav"
        arguments = [path if word == "OUT" else word for word in command]
        subprocess.run(arguments, input=text, text=True, check=True, capture_output=True)
        return soundfile.read(path, dtype="float32")


def espeak(out: Path, rng: np.random.Generator, args: argparse.Namespace) -> None:
    """All variants of espeak-ng, each in three accents, at 100 to 260 words a minute."""
    listed = subprocess.run(["espeak-ng", "--voices=variant"], capture_output=True, text=True, check=True).stdout
    variants = sorted(line.split("!v/")[1].split("  ")[0].split(" (")[0].strip() for line in listed.splitlines()[1:])
    held_out = {name.split("+")[1] for name in ESPEAK_HELD_OUT}
    for variant in [v for v in variants if v not in held_out and " " not in v]:
        for accent in rng.choice(ESPEAK_ACCENTS, 3, replace=False):

            def speak(text: str, voice: str = f"{accent}+{variant}") -> tuple[np.ndarray, int]:
                return run("espeak-ng", "-v", voice, "-s", str(rng.integers(100, 260)), "-w", "OUT", text)

            write(out, f"espeak-{accent}+{variant}", plan(rng, 14, 3, args.book, 3), speak)


def flite(out: Path, rng: np.random.Generator, args: argparse.Namespace) -> None:
    for voice in ("kal", "kal16", "awb", "rms", "slt"):

        def speak(text: str, voice: str = voice) -> tuple[np.ndarray, int]:
            stretch = f"duration_stretch={rng.uniform(0.7, 1.4):.2f}"
            return run("flite", "-voice", voice, "--setf", stretch, "-t", text, "-o", "OUT")

        write(out, f"flite-{voice}", plan(rng, 90, 12, args.book, 160), speak)


def festival(out: Path, rng: np.random.Generator, args: argparse.Namespace) -> None:
    for voice in ("kal_diphone", "ked_diphone", "cmu_us_slt_arctic_hts"):

        def speak(text: str, voice: str = voice) -> tuple[np.ndarray, int]:
            setting = f"(begin (voice_{voice}) (Parameter.set 'Duration_Stretch {rng.uniform(0.7, 1.4):.2f}))"
            return run("text2wave", "-eval", setting, "-o", "OUT", text=text)

        write(out, f"festival-{voice.replace('_', '-')}", plan(rng, 60, 12, args.book, 160), speak)


def asterisk(out: Path, rng: np.random.Generator, args: argparse.Namespace) -> None:
    """Allison Smith's prompts: the eleven digits, and those whose names tell of no digit."""
    root = Path("/usr/share/asterisk/sounds/en_US_f_Allison")
    digits = {f"digits/{code}": code for code in "0123456789"} | {"digits/oh": "o"}
    numbers = [
        "digits/",
        "letters/",
        "phonetic/",
        "-to-",
        "-for-",
        "press",
        "dial",
        "one",
        "two",
        "vm-",
        "conf-",
        "queue",
    ]
    for n, path in enumerate(sorted(root.rglob("*.g722"))):
        name = str(path.relative_to(root).with_suffix(""))
        if name not in digits and any(part in name for part in numbers):
            continue
        command = ["ffmpeg", "-v", "error", "-f", "g722", "-i", str(path), "-f", "wav", "-"]
        decoded = subprocess.run(command, capture_output=True, check=True).stdout
        samples, rate = soundfile.read(io.BytesIO(decoded), dtype="float32")
        if name in digits or len(samples) > RATE:
            soundfile.write(out / f"{digits.get(name, 'x')}_asterisk-allison_{n}.wav", samples, rate, subtype="PCM_16")


def kokoro(out: Path, rng: np.random.Generator, args: argparse.Namespace) -> None:
    """The 24 English voices of Kokoro-82M that are not held out, in ``--rounds`` of nine texts each."""
    from kokoro_onnx import Kokoro

    styles = {path.stem: path for path in sorted(args.styles.glob("[ab]?_*.bin")) if path.stem not in KOKORO_HELD_OUT}
    with tempfile.TemporaryDirectory() as folder:
        stacked = f"{folder}/voices.npz"
        np.savez(stacked, **{n: np.fromfile(p, np.float32).reshape(-1, 1, 256) for n, p in styles.items()})
        engine = Kokoro(args.model, stacked)
        for turn in range(args.rounds):
            for voice in styles:

                def speak(text: str, voice: str = voice) -> tuple[np.ndarray, int]:
                    accent = "en-gb" if voice[0] == "b" else "en-us"
                    return engine.create(text, voice, speed=float(rng.uniform(0.75, 1.35)), lang=accent)

                write(out, f"kokoro-{voice.replace('_', '-')}-{turn}", plan(rng, 8, 1, args.book, 6), speak)
            print(f"kokoro: round {turn + 1} of {args.rounds}", file=sys.stderr, flush=True)


ENGINES = {"espeak": espeak, "flite": flite, "festival": festival, "asterisk": asterisk, "kokoro": kokoro}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("engines", nargs="+", choices=ENGINES)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--text", type=Path, metavar="BOOK", help="let the voices read phrases of this text instead")
    parser.add_argument("--model", help="Kokoro-82M as an ONNX file")
    parser.add_argument("--styles", type=Path, help="folder of Kokoro's voices")
    parser.add_argument("--rounds", type=int, default=2, help="rounds of Kokoro's voices (default: %(default)s)")
    args = parser.parse_args()
    args.book = phrases_without_digits(args.text.read_text()) if args.text else []
    args.out.mkdir(parents=True, exist_ok=True)
    for engine in args.engines:
        ENGINES[engine](args.out, np.random.default_rng(list(ENGINES).index(engine)), args)
        print(f"{engine}: done", file=sys.stderr, flush=True)


if __name__ == "__main__":
    main()
