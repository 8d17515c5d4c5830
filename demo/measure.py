"""Measure a digit recognizer: the table of README.md, with NeMo's own greedy decoding.

"oh" counts as zero, spoken and recognized.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np
import soundfile
import torch
from conditions import RATE, mu_law, telephone
from recordings import test_strings

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "tests"))
from checkpoints import ATT_CONTEXT_SIZES

FRAME = 0.08  # seconds of audio in one encoder frame


def recognize(model, audio: list[np.ndarray], context: list[int]) -> list[str]:
    """The text of each recording, float32 [n] at 16 kHz, by NeMo's greedy decoding with this attention context."""
    was_training, dither = model.training, model.preprocessor.featurizer.dither
    model.eval()
    model.preprocessor.featurizer.dither = 0.0
    model.encoder.set_default_att_context_size(context)
    texts = []
    with torch.inference_mode():
        for first in range(0, len(audio), 20):
            batch = audio[first : first + 20]
            lengths = torch.tensor([len(samples) for samples in batch])
            samples = torch.nn.utils.rnn.pad_sequence([torch.from_numpy(s) for s in batch], batch_first=True)
            features, feature_lengths = model.preprocessor(input_signal=samples, length=lengths)
            encoded, frames = model.encoder(audio_signal=features, length=feature_lengths)
            hypotheses = model.decoding.rnnt_decoder_predictions_tensor(encoded, frames)
            texts += [hypothesis.text for hypothesis in hypotheses]
    model.encoder.set_default_att_context_size(ATT_CONTEXT_SIZES[0])
    model.preprocessor.featurizer.dither = dither
    model.train(was_training)
    return texts


def by_chunk(measure_context) -> dict[int, float]:
    """Call ``measure_context`` with each attention context: {chunk in ms: what it returns}."""
    return {round((context[1] + 1) * FRAME * 1000): measure_context(context) for context in ATT_CONTEXT_SIZES}


def word_error_rates(model, strings: list[tuple[np.ndarray, str]]) -> dict[int, float]:
    """The WER in percent for each chunk size in ms."""
    import jiwer

    texts = [text for _, text in strings]
    audio = [samples for samples, _ in strings]
    return by_chunk(lambda context: round(100 * jiwer.wer(texts, recognize(model, audio, context)), 2))


def words_lost_after_silence(model, strings: list[tuple[np.ndarray, str]], tries: int) -> dict[int, float]:
    """In how many of ``tries`` a word is lost when 1 to 15 s of zeros are put before a string, for each chunk size.

    A word is lost if the string with the zeros has more deletions than the string without.
    """
    import jiwer

    rng = np.random.default_rng(2026)
    chosen = [strings[i % len(strings)] for i in range(tries)]
    silent = [np.concatenate([np.zeros(int(rng.uniform(1, 15) * RATE), np.float32), audio]) for audio, _ in chosen]

    def lost(context: list[int]) -> int:
        plain = recognize(model, [audio for audio, _ in chosen], context)
        after = recognize(model, silent, context)
        deletions = [
            [jiwer.process_words(text, found).deletions for (_, text), found in zip(chosen, texts, strict=True)]
            for texts in (plain, after)
        ]
        return sum(b > a for a, b in zip(*deletions, strict=True))

    return by_chunk(lost)


def single_digits_found(model, digits: list[dict]) -> dict[int, float]:
    """The share in percent of single digits that are recognised, alone, after 2 s of zeros, for each chunk size."""
    quiet = np.zeros(2 * RATE, np.float32)
    audio = [np.concatenate([quiet, digit["samples"], quiet[: RATE // 2]]) for digit in digits]

    def found(context: list[int]) -> float:
        texts = recognize(model, audio, context)
        right = sum(text.split() == digit["words"] for text, digit in zip(texts, digits, strict=True))
        return round(100 * right / len(digits), 1)

    return by_chunk(found)


def digits_in_speech(model, folder: Path) -> dict[int, float]:
    """How many digits the model hears in 10 s of the speech of ``folder``, for each chunk size."""
    rows = json.loads((folder / "index.json").read_text())
    audio = [soundfile.read(folder / row["audio"], dtype="float32")[0] for row in rows]
    seconds = sum(len(samples) for samples in audio) / RATE
    return by_chunk(
        lambda context: round(10 * sum(len(t.split()) for t in recognize(model, audio, context)) / seconds, 2)
    )


def measure(model, digits: list[dict], read: Path | None = None) -> str:
    """Measure everything on the recordings ``digits`` and the speech in ``read``: a table in Markdown."""
    strings = test_strings(digits, 240)
    on_the_phone = [(mu_law(telephone(samples)), text) for samples, text in strings]
    rows = {
        "240 strings: WER, %": word_error_rates(model, strings),
        "the same by telephone (300 to 3,400 Hz, mu-law): WER, %": word_error_rates(model, on_the_phone),
        "after 1 to 15 s of zeros: tries of 200 that lose a word": words_lost_after_silence(model, strings, 200),
        f"a digit alone after a pause, of {len(digits)}: found, %": single_digits_found(model, digits),
    }
    if read:
        rows["read speech without digits: digits heard in 10 s"] = digits_in_speech(model, read)
    chunks = sorted(next(iter(rows.values())))
    lines = ["| | " + " | ".join(f"{chunk} ms" for chunk in chunks) + " |", "|---" * (len(chunks) + 1) + "|"]
    for name, values in rows.items():
        lines.append(f"| {name} | " + " | ".join(str(values[chunk]) for chunk in chunks) + " |")
    return "\n".join(lines)
