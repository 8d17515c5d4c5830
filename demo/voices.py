"""Synthesise single digits in many voices, for ``train.py --voices``: more speakers than FSDD's six.

    pip install kokoro-onnx
    python demo/voices.py --model kokoro-int8.onnx --voices VOICES_DIR --out digits

Kokoro-82M is under Apache-2.0; VOICES_DIR holds its voices as raw float32 ``*.bin`` files of [510, 1, 256], as the npm
package kokoro-js has them; the 28 English ones are used.  Take 0 is kept at 8 kHz (as FSDD is), take 1 is slower, at
24 kHz.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
import soundfile
import soxr
from kokoro_onnx import Kokoro

WORDS = ["zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True)
    parser.add_argument("--voices", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    voices = {path.stem.replace("_", "-"): path for path in sorted(args.voices.glob("[ab]?_*.bin"))}
    stacked = args.out / "voices.npz"
    np.savez(stacked, **{n: np.fromfile(p, np.float32).reshape(-1, 1, 256) for n, p in voices.items()})
    kokoro = Kokoro(args.model, str(stacked))
    for voice in voices:
        for digit, word in enumerate(WORDS):
            for take, speed in enumerate((1.05, 0.85)):
                samples, rate = kokoro.create(word + ".", voice, speed=speed, lang="en-us")
                if take == 0:
                    samples, rate = soxr.resample(samples, rate, 8000), 8000
                soundfile.write(args.out / f"{digit}_{voice}_{take}.wav", samples, rate, subtype="PCM_16")
        print(voice, flush=True)
    stacked.unlink()


if __name__ == "__main__":
    main()
