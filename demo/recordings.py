"""Recordings of spoken digits and of other speech, and the fixed strings that every model is measured on."""

from __future__ import annotations

import json
import re
from pathlib import Path

import numpy as np
import soundfile
import soxr

RATE = 16000
WORDS = ["zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine"]
CODES = dict(zip("0123456789o", [*WORDS, "zero"], strict=True))  # an "oh" is a zero
SOUND_LIKE_DIGITS = {"oh", "o", "for", "to", "too", "won", "ate", *WORDS}


def read_digits(root: Path, split: str) -> list[dict]:
    """The recordings of a split as ``{"words", "speaker", "kind", "samples"}``: float32 [n] at 16 kHz."""
    rows = [row for row in json.loads((root / "index.json").read_text()) if row["split"] == split]
    return [_recording(root / row["audio"], [row["text"]], row["speaker"], "human") for row in rows]


def read_voices(root: Path) -> list[dict]:
    """What ``voices.py`` has written, in the same form; speech without a digit has no words."""
    recordings = []
    for path in sorted(root.rglob("*.wav")):
        codes, voice, _ = path.stem.split("_")
        words = [] if codes == "x" else [CODES[code] for code in codes]
        engine = voice.split("-")[0]
        kind = engine if engine in ("kokoro", "espeak") else "other"
        # one take of a voice of Kokoro's is called kokoro-VOICE-TURN: the speaker is the voice
        recordings.append(_recording(path, words, re.sub(r"-\d$", "", voice), kind))
    return recordings


def read_speech(roots: list[Path]) -> list[dict]:
    """Utterances whose text is known and has no digit nor a word that sounds like one."""
    recordings = []
    for root in roots:
        for row in json.loads((root / "index.json").read_text()):
            text = set(re.findall(r"[a-z]+", (row.get("text") or "").lower()))
            if text and not text & SOUND_LIKE_DIGITS and row["duration"] < 15:
                recordings.append(_recording(root / row["audio"], [], row["audio"], "other"))
    return recordings


def _recording(path: Path, words: list[str], speaker: str, kind: str) -> dict:
    samples, rate = soundfile.read(path, dtype="float32")
    return {"words": words, "speaker": speaker, "kind": kind, "samples": soxr.resample(samples, rate, RATE)}


def join(pieces: list[np.ndarray], gaps: list[float]) -> tuple[np.ndarray, list[tuple[float, float]]]:
    """Join ``pieces`` with ``gaps[i]`` seconds of silence before piece i, and ``gaps[-1]`` at the end.

    Returns the samples and (start, end) of each piece in seconds.
    """
    parts, spans, position = [], [], 0
    for piece, gap in zip([*pieces, np.zeros(0, np.float32)], gaps, strict=True):
        silence = np.zeros(int(gap * RATE), np.float32)
        parts += [silence, piece]
        spans.append(((position + len(silence)) / RATE, (position + len(silence) + len(piece)) / RATE))
        position += len(silence) + len(piece)
    return np.concatenate(parts), spans[:-1]


def test_strings(digits: list[dict], count: int, seed: int = 2026) -> list[tuple[np.ndarray, str]]:
    """Return the samples and text of ``timed_strings``."""
    return [(samples, text) for samples, text, _ in timed_strings(digits, count, seed)]


def timed_strings(digits: list[dict], count: int, seed: int = 2026):
    """Make fixed strings of 3 to 8 words of one speaker with gaps of 0.1 to 0.5 s; they use every test recording.

    Returns (samples, text, (start, end) of each word in seconds) of each string.
    """
    rng = np.random.default_rng(seed)
    by_speaker: dict[str, list[dict]] = {}
    for digit in digits:
        by_speaker.setdefault(digit["speaker"], []).append(digit)
    decks = {speaker: [] for speaker in by_speaker}
    strings = []
    for i in range(count):
        speaker = sorted(by_speaker)[i % len(by_speaker)]
        chosen = []
        for _ in range(int(rng.integers(3, 9))):
            if not decks[speaker]:
                decks[speaker] = [by_speaker[speaker][j] for j in rng.permutation(len(by_speaker[speaker]))]
            chosen.append(decks[speaker].pop())
        gaps = rng.uniform(0.1, 0.5, len(chosen) + 1).tolist()
        samples, spans = join([d["samples"] for d in chosen], gaps)
        strings.append((samples, " ".join(d["words"][0] for d in chosen), spans))
    return strings
