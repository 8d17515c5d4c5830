#!/usr/bin/env python3
"""Many live streams in one process, fed in turn at random: each must give the same text as alone.

    python benchmarks/many_streams.py --streams 200

Each stream is another part of the bundled clip, repeated, 5 to 30 s long; a block of up to 2 s goes to any of them
until all have ended.  Tokens and their frames are compared with those of the same audio as the only stream, fed a chunk
at a time, and as a recording.  Exit code 1 if one differs.
"""

from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path

import numpy as np

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from nemotron_npu.audio import SAMPLE_RATE, read_audio  # noqa: E402


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--streams", type=int, default=200)
    parser.add_argument("--chunk_ms", type=int, default=560)
    parser.add_argument("--model_path", type=Path, default=ROOT / "demo" / "demo.nemo")
    args = parser.parse_args()

    import torch

    from nemotron_npu.engine import ModelOptions
    from nemotron_npu.recognizer import Recognizer

    recognizer = Recognizer(args.model_path, torch.device("cpu"), options=ModelOptions(chunk_ms=args.chunk_ms))
    chance = np.random.default_rng(0)
    clip = np.tile(read_audio(ROOT / "demo" / "digits.wav"), 6)
    sounds = [np.roll(clip, chance.integers(len(clip))) for _ in range(args.streams)]
    sounds = [sound[: chance.integers(5 * SAMPLE_RATE, 30 * SAMPLE_RATE)] for sound in sounds]

    began = time.perf_counter()
    streams, fed, feeds = [recognizer.stream() for _ in sounds], [0] * len(sounds), 0
    unfinished = list(range(len(sounds)))
    while unfinished:
        i = unfinished[chance.integers(len(unfinished))]
        size = int(chance.integers(1, 2 * SAMPLE_RATE))
        streams[i].feed(sounds[i][fed[i] : fed[i] + size])
        fed[i], feeds = fed[i] + size, feeds + 1
        if fed[i] >= len(sounds[i]):
            unfinished.remove(i)
    together = [tokens(stream.finish()) for stream in streams]
    seconds = time.perf_counter() - began

    alone = [tokens(listen(recognizer, sound)) for sound in sounds]
    recordings = [tokens(transcript) for transcript in recognizer.transcribe(sounds, recognizer.batch_slots)]
    wrong = sum(len({*same}) > 1 for same in zip(together, alone, recordings, strict=True))
    spoken, count = sum(map(len, sounds)) / SAMPLE_RATE, sum(map(len, alone))
    print(
        f"{len(sounds)} streams, {spoken / 3600:.2f} h, {count} tokens, in {feeds} feeds of any size: {seconds:.0f} s"
    )
    print(f"{wrong} differ from the stream alone or the recording")
    return 1 if wrong else 0


def listen(recognizer, sound: np.ndarray):
    """The transcript of a stream that is fed a chunk at a time."""
    with recognizer.stream() as stream:
        for first in range(0, len(sound), recognizer.chunk_samples):
            stream.feed(sound[first : first + recognizer.chunk_samples])
    return stream.finish()


def tokens(transcript) -> tuple[tuple[int, int], ...]:
    return tuple((token.id, token.frame) for token in transcript.tokens)


if __name__ == "__main__":
    sys.exit(main())
