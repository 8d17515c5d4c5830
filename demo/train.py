"""Train ``demo.nemo``: connected spoken digits, all four chunk sizes at once, on a CPU.

    python demo/train.py --data FSDD --out demo/demo.nemo          # train, then measure
    python demo/train.py --data FSDD --evaluate demo/demo.nemo     # measure only

FSDD is the free-spoken-digit-dataset with an ``index.json`` (audio, text, speaker, split).  Recordings 0-4 of every
speaker and digit are the test split; training never sees them.  ``--voices DIR`` adds more single digits, named
``{digit}_{voice}_{n}.wav``.  ``--leave_out SPEAKER`` trains without that speaker and measures that speaker alone.

The model learns in an hour because the script joins the recordings itself and so knows when each word is spoken.
A helper head on the encoder first learns that alignment frame by frame, then becomes a CTC loss next to the RNN-T loss;
the checkpoint leaves it out.  Strings grow longer, noisier and more varied with every step.
"""

from __future__ import annotations

import argparse
import json
import math
import random
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import scipy.signal
import soundfile
import soxr
import torch
import torch.nn.functional as F

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "tests"))
from checkpoints import ATT_CONTEXT_SIZES, build_model, train_tokenizer

WORDS = ["zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine"]
RATE = 16000
FRAME = 0.08  # seconds of audio in one encoder frame
SIZE = dict(mels=80, channels=32, layers=5, width=128, heads=4, predictor=96, predictor_layers=1, joint=128, pieces=52)
SPEEDS = (0.85, 0.92, 1.0, 1.08, 1.18)


# ---------------------------------------------------------------- data


def read_digits(root: Path, split: str, voices: Path | None = None) -> list[dict]:
    """Single digits as ``{"word", "speaker", "human", "samples"}``: one float32 [n] at 16 kHz for each of SPEEDS."""
    rows = [
        (root / row["audio"], row["text"], row["speaker"], True)
        for row in json.loads((root / "index.json").read_text())
        if row["split"] == split
    ]
    if voices:
        for path in sorted(voices.glob("*.wav")):
            digit, voice, _ = path.stem.split("_")
            rows.append((path, WORDS[int(digit)], voice, False))
    digits = []
    for path, word, speaker, human in rows:
        audio, rate = soundfile.read(path, dtype="float32")
        speeds = SPEEDS if split == "train" else (1.0,)
        samples = [soxr.resample(audio, rate * s, RATE) for s in speeds]
        digits.append({"word": word, "speaker": speaker, "human": human, "samples": samples})
    return digits


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


def draw_speaker(by_speaker: dict[str, list[dict]], rng: np.random.Generator) -> str:
    """Draw a speaker, a human one in 70 of 100 draws however many voices are synthetic."""
    human = rng.random() < 0.7
    speakers = [name for name, digits in by_speaker.items() if digits[0]["human"] == human] or list(by_speaker)
    return speakers[rng.integers(len(speakers))]


def training_string(by_speaker: dict[str, list[dict]], rng: np.random.Generator, hard: float, count: int):
    """Draw a string of ``count`` words; ``hard`` is from 0 (clean) to 1 (fast, noisy, far from the microphone)."""
    speaker = draw_speaker(by_speaker, rng)
    speed = int(rng.integers(len(SPEEDS))) if rng.random() < hard else SPEEDS.index(1.0)
    connected = rng.random() < 0.5  # one pace through the string, or gaps of every length
    pace = rng.uniform(0.0, 0.25)
    words, pieces, gaps = [], [], [rng.choice([0.0, rng.uniform(0.0, 0.6), rng.uniform(0, 1.2 * hard + 0.3)])]
    level = rng.uniform(0, 6 * hard)
    for _ in range(count):
        if rng.random() < 0.15 * hard:
            speaker = draw_speaker(by_speaker, rng)
        digit = by_speaker[speaker][rng.integers(len(by_speaker[speaker]))]
        words.append(digit["word"])
        gain = 10 ** (rng.uniform(-level, level) / 20)
        pieces.append(digit["samples"][speed] * np.float32(gain))
        gap = pace + rng.uniform(0, 0.1) if connected else rng.exponential(0.3)
        gaps.append(min(gap, 1.5))
    gaps[-1] = rng.choice([0.0, rng.uniform(0.0, 0.3), rng.uniform(0, 1.2 * hard + 0.3)], p=[0.35, 0.35, 0.3])
    samples, spans = join(pieces, gaps)
    peak = np.abs(samples).max() + 1e-6
    if rng.random() < hard:  # tilt the spectrum: another microphone, another room
        tilt = rng.uniform(-0.4, 0.4)
        samples = scipy.signal.lfilter([1.0, -tilt], [1.0], samples).astype(np.float32)
    wanted = 10 ** (rng.uniform(-26, -1) / 20) if rng.random() < 0.7 else peak
    samples = samples * np.float32(wanted / (np.abs(samples).max() + 1e-6))
    if rng.random() < 0.6:  # the other 40 % keep digital silence between the words
        color = rng.uniform(-0.9, 0.3)  # from brownish to slightly blue
        noise = scipy.signal.lfilter([1.0], [1.0, color], rng.standard_normal(len(samples)))
        loudness = wanted * 10 ** (rng.uniform(-60, -60 + 42 * hard) / 20)
        samples = samples + (noise * loudness / (noise.std() + 1e-9)).astype(np.float32)
    return samples.astype(np.float32), words, spans


class Batches(torch.utils.data.Dataset):
    """Batches by training step; a seed always gives the same ones, with any number of workers."""

    def __init__(self, digits: list[dict], steps: int, batch_size: int, ramp: int, seed: int):
        self.by_speaker: dict[str, list[dict]] = {}
        for digit in digits:
            self.by_speaker.setdefault(digit["speaker"], []).append(digit)
        self.steps, self.batch_size, self.ramp, self.seed = steps, batch_size, ramp, seed

    def __len__(self) -> int:
        return self.steps

    def __getitem__(self, step: int):
        rng = np.random.default_rng((self.seed, step))
        hard = min(1.0, step / self.ramp)
        words = int(rng.integers(1, 3 + int(hard * 10)))  # about as many in each string: little padding
        if hard == 1 and rng.random() < 0.1:
            words = int(rng.integers(16, 32))  # longer than the attention's left context
        strings, longest = [], 0
        while len(strings) < self.batch_size:
            string = training_string(self.by_speaker, rng, hard, max(1, words + int(rng.integers(-1, 2))))
            longest = max(longest, len(string[0]))
            if strings and longest * (len(strings) + 1) > self.batch_size * 4 * RATE:  # 4 s a string, padding included
                break
            strings.append(string)
        lengths = torch.tensor([len(s[0]) for s in strings])
        samples = torch.zeros(len(strings), int(lengths.max()))
        for row, (wave, _, _) in zip(samples, strings, strict=True):
            row[: len(wave)] = torch.from_numpy(wave)
        return samples, lengths, [s[1] for s in strings], [s[2] for s in strings]


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
        samples, spans = join([d["samples"][0] for d in chosen], gaps)
        strings.append((samples, " ".join(d["word"] for d in chosen), spans))
    return strings


# ---------------------------------------------------------------- losses


def rnnt_loss(log_probs, labels, frames, label_lengths, blank: int):
    """Return the RNN-T loss of each row, [B].

    log_probs [B, T, U+1, V] float32, labels [B, U], frames [B], label_lengths [B].

    Graves 2012, equation 16: alpha(t, u) = alpha(t-1, u) blank(t-1, u) + alpha(t, u-1) label(t, u-1).  Going along u
    is a cumulative sum of label log-probabilities, so one ``logcumsumexp`` does a whole frame.
    """
    blanks = log_probs[..., blank]
    index = labels[:, None, :, None].expand(-1, log_probs.shape[1], -1, 1)
    emits = log_probs[:, :, :-1].gather(3, index).squeeze(3)
    along = F.pad(emits.cumsum(2), (1, 0))  # [B, T, U+1]
    alpha = along[:, 0]
    alphas = [alpha]
    for t in range(1, log_probs.shape[1]):
        alpha = along[:, t] + torch.logcumsumexp(alpha + blanks[:, t - 1] - along[:, t], 1)
        alphas.append(alpha)
    row = torch.arange(len(frames))
    return -(torch.stack(alphas, 1) + blanks)[row, frames - 1, label_lengths]


def frame_targets(spans, tokens, frames: int, blank: int):
    """Return the token spoken at each encoder frame, [B, frames]; blank between words.

    A frame depends on audio up to its own time only, so a word's frames lie around its end.
    """
    targets = torch.full((len(spans), frames), blank)
    for row, (spans_of_row, tokens_of_row) in enumerate(zip(spans, tokens, strict=True)):
        for (start, end), token in zip(spans_of_row, tokens_of_row, strict=True):
            first, last = start + 0.55 * (end - start), end + 0.10
            targets[row, math.ceil(first / FRAME) : math.floor(last / FRAME) + 1] = token
    return targets


# ---------------------------------------------------------------- training and measuring


def train(args) -> torch.nn.Module:
    digits = read_digits(args.data, "train", args.voices)
    digits = [d for d in digits if d["speaker"] != args.leave_out]
    rng = random.Random(args.seed)
    with tempfile.TemporaryDirectory() as directory:
        train_tokenizer([" ".join(rng.choices(WORDS, k=8)) for _ in range(2000)], SIZE["pieces"], directory)
        model = build_model(directory, seed=args.seed, **SIZE)
        average = build_model(directory, seed=args.seed, **SIZE)
        _train(model, average, digits, args)
        if args.out:
            average.save_to(str(args.out))
    return average


def _train(model, average, digits, args) -> None:
    """Train ``model``; ``average`` becomes the moving average of its weights, which the checkpoint contains."""
    blank = model.joint.num_classes_with_blank - 1
    token = {word: model.tokenizer.text_to_ids(word) for word in WORDS}
    assert all(len(ids) == 1 for ids in token.values()), token
    random.seed(args.seed)  # NeMo draws the attention context of each step from Python's generator
    helper = torch.nn.Linear(SIZE["width"], blank + 1)
    parameters = [*model.parameters(), *helper.parameters()]
    optimizer = torch.optim.AdamW(parameters, lr=args.lr, weight_decay=1e-3, betas=(0.9, 0.98))
    loader = torch.utils.data.DataLoader(
        Batches(digits, args.steps, args.batch_size, args.ramp, args.seed), batch_size=None, num_workers=1
    )
    model.train()
    began, seen = time.time(), []
    for step, (samples, lengths, words, spans) in enumerate(loader):
        lr = args.lr * min(1.0, (step + 1) / 300)
        lr *= 0.02 + 0.98 * 0.5 * (1 + math.cos(math.pi * step / args.steps))
        for group in optimizer.param_groups:
            group["lr"] = lr
        tokens = [[token[word][0] for word in row] for row in words]
        label_lengths = torch.tensor([len(row) for row in tokens])
        labels = torch.nn.utils.rnn.pad_sequence([torch.tensor(row) for row in tokens], batch_first=True)
        with torch.no_grad():
            features, feature_lengths = model.preprocessor(input_signal=samples, length=lengths)
            if step > args.ramp // 2:
                features = _mask(features)
        encoded, frames = model.encoder(audio_signal=features, length=feature_lengths)
        encoded = encoded.transpose(1, 2)
        predicted, _, _ = model.decoder(targets=labels, target_length=label_lengths)
        log_probs = model.joint.joint(encoded, predicted.transpose(1, 2))
        assert model.joint.log_softmax is None  # on the CPU NeMo's joint returns log-probabilities
        transducer = rnnt_loss(log_probs, labels, frames, label_lengths, blank) / label_lengths
        frame_probs = helper(encoded).log_softmax(-1)
        ctc = F.ctc_loss(frame_probs.transpose(0, 1), labels, frames, label_lengths, blank=blank, zero_infinity=True)
        inside = torch.arange(encoded.shape[1]) < frames[:, None]
        aligned = F.nll_loss(frame_probs[inside], frame_targets(spans, tokens, encoded.shape[1], blank)[inside])
        guide = max(0.0, 1 - step / (0.3 * args.steps))  # the alignment helps at first, then gets in the way
        loss = transducer.mean() + 0.3 * (1 - guide) * ctc + 2.0 * guide * aligned
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        with torch.no_grad():
            decay = min(0.998, (step + 1) / (step + 20))
            for slow, fast in zip(average.parameters(), model.parameters(), strict=True):
                slow.lerp_(fast, 1 - decay)
        seen.append((transducer.mean().item(), ctc.item(), aligned.item()))
        if (step + 1) % 100 == 0:
            transducer_, ctc_, aligned_ = np.mean(seen[-100:], 0)
            print(
                f"step {step + 1} rnnt {transducer_:.3f} ctc {ctc_:.3f} frames {aligned_:.3f} "
                f"{(time.time() - began) / (step + 1):.2f} s/step",
                flush=True,
            )
        if (step + 1) % args.check_every == 0:
            test = [d for d in read_digits(args.data, "test") if args.leave_out in (None, d["speaker"])]
            print(f"step {step + 1} WER", word_error_rates(average, test_strings(test, 60)), flush=True)
            if args.out:
                average.save_to(str(args.out))


def _mask(features, widest: int = 12, longest: int = 6):
    """Apply a mild SpecAugment: set one band of mels and a few frames of each row to the row's mean."""
    features = features.clone()
    for row in features:
        fill = row.mean()
        mel, width = random.randrange(row.shape[0]), random.randrange(widest)
        row[mel : mel + width] = fill
        for _ in range(row.shape[1] // 100):
            at, length = random.randrange(row.shape[1]), random.randrange(longest)
            row[:, at : at + length] = fill
    return features


def word_error_rates(model, strings: list[tuple[np.ndarray, str]]) -> dict[int, float]:
    """Measure the WER in percent for each chunk size in ms, with NeMo's own greedy decoding."""
    import jiwer

    was_training = model.training
    model.eval()
    dither, model.preprocessor.featurizer.dither = model.preprocessor.featurizer.dither, 0.0
    rates = {}
    with torch.inference_mode():
        for context in ATT_CONTEXT_SIZES:
            model.encoder.set_default_att_context_size(context)
            texts = []
            for first in range(0, len(strings), 20):
                batch = strings[first : first + 20]
                lengths = torch.tensor([len(s) for s, _ in batch])
                samples = torch.nn.utils.rnn.pad_sequence([torch.from_numpy(s) for s, _ in batch], batch_first=True)
                features, feature_lengths = model.preprocessor(input_signal=samples, length=lengths)
                encoded, frames = model.encoder(audio_signal=features, length=feature_lengths)
                hypotheses = model.decoding.rnnt_decoder_predictions_tensor(encoded, frames)
                texts += [hypothesis.text for hypothesis in hypotheses]
            rates[round((context[1] + 1) * FRAME * 1000)] = round(100 * jiwer.wer([t for _, t in strings], texts), 2)
    model.encoder.set_default_att_context_size(ATT_CONTEXT_SIZES[0])
    model.preprocessor.featurizer.dither = dither
    model.train(was_training)
    return rates


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="folder of the free-spoken-digit-dataset")
    parser.add_argument("--voices", type=Path, help="folder of further single digits, {digit}_{voice}_{n}.wav")
    parser.add_argument("--leave_out", metavar="SPEAKER", help="train without this speaker, measure only this one")
    parser.add_argument("--out", type=Path, help="checkpoint to write")
    parser.add_argument("--evaluate", type=Path, metavar="NEMO", help="measure this checkpoint, do not train")
    parser.add_argument("--steps", type=int, default=7000)
    parser.add_argument("--ramp", type=int, default=3000, help="step at which the strings are as hard as they get")
    parser.add_argument("--batch_size", type=int, default=16)
    parser.add_argument("--lr", type=float, default=1.5e-3)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--check_every", type=int, default=1000)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    import logging as python_logging

    from nemo.core.classes.common import typecheck
    from nemo.utils import logging

    logging.setLevel(python_logging.ERROR)
    typecheck.set_typecheck_enabled(False)
    if args.evaluate:
        from nemo.collections.asr.models import EncDecRNNTBPEModel

        model = EncDecRNNTBPEModel.restore_from(str(args.evaluate), map_location="cpu")
    else:
        model = train(args)
    test = [d for d in read_digits(args.data, "test") if args.leave_out in (None, d["speaker"])]
    print("WER, 240 strings of the test split, by chunk in ms:", word_error_rates(model, test_strings(test, 240)))


if __name__ == "__main__":
    main()
