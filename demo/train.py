"""Train ``demo.nemo``: connected spoken digits, all four chunk sizes at once, on a CPU.

    python demo/train.py --data FSDD --voices VOICES --speech SPEECH --out demo/demo.nemo    # train, then measure
    python demo/train.py --data FSDD --read READ --evaluate demo/demo.nemo                   # measure only

FSDD is the free-spoken-digit-dataset with an ``index.json`` (audio, text, speaker, split).  Recordings 0-4 of every
speaker and digit are the test split; training never sees them.  VOICES are folders that ``voices.py`` has written.
SPEECH are folders with an ``index.json`` of speech, the utterances with a digit in their text are left out: the model
learns to give nothing for it.  READ is a folder of the same form, to measure how many digits it gives for read speech.
``--leave_out SPEAKER`` trains without that speaker and measures that speaker alone.

The model learns fast because the script joins the recordings itself and so knows when each word is spoken.
A helper head on the encoder first learns that alignment frame by frame, then becomes a CTC loss next to the RNN-T loss;
the checkpoint leaves it out.  Strings grow longer, noisier and more varied with every step.  A second stage
(``--start``) trains without dropout on strings from clean to hard in equal shares.
"""

from __future__ import annotations

import argparse
import math
import random
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "tests"))
from checkpoints import build_model, train_tokenizer
from conditions import RATE, change_pace, change_speed, degrade
from measure import measure, word_error_rates
from recordings import WORDS, join, read_digits, read_speech, read_voices, test_strings

FRAME = 0.08  # seconds of audio in one encoder frame
SIZE = dict(mels=80, channels=32, layers=5, width=128, heads=4, predictor=96, predictor_layers=1, joint=128, pieces=52)
SHARES = {"human": 0.52, "kokoro": 0.22, "espeak": 0.12, "other": 0.14}  # of the strings
OTHER_SHARE = 0.3  # of the strings have speech without a digit


# ---------------------------------------------------------------- data


class Speech:
    """Recordings by kind and speaker, to draw from."""

    def __init__(self, recordings: list[dict]):
        self.digits: dict[str, dict[str, list[dict]]] = {}
        self.others = [r for r in recordings if not r["words"]]
        for recording in recordings:
            if recording["words"]:
                of_kind = self.digits.setdefault(recording["kind"], {})
                of_kind.setdefault(recording["speaker"], []).append(recording)
        self.kinds = sorted(self.digits)
        shares = np.array([SHARES[kind] for kind in self.kinds])
        self.shares = shares / shares.sum()

    def draw_speaker(self, rng: np.random.Generator) -> list[dict]:
        of_kind = self.digits[rng.choice(self.kinds, p=self.shares)]
        return of_kind[sorted(of_kind)[rng.integers(len(of_kind))]]

    def draw_other(self, rng: np.random.Generator) -> dict:
        return self.others[rng.integers(len(self.others))]


def training_string(speech: Speech, rng: np.random.Generator, hard: float, count: int, pause: float):
    """Draw a string of about ``count`` words; ``hard`` is from 0 (clean) to 1 (all that ``conditions`` has).

    Somewhere it has ``pause`` more seconds of silence.  Returns samples, words, and of each word (start, end) in
    seconds and whether these are its own: a recording of several words has one span for all of them.
    """
    speaker = speech.draw_speaker(rng)
    connected = rng.random() < 0.5  # one pace through the string, or gaps of every length
    pace = rng.uniform(0.0, 0.25)
    level = rng.uniform(0, 6 * hard)
    chosen: list[dict] = []
    if speech.others and rng.random() < OTHER_SHARE * min(1.0, 2 * hard):
        chosen = [speech.draw_other(rng) for _ in range(rng.integers(1, 4))]
        count = 0 if rng.random() < 0.6 else count
    while sum(len(r["words"]) for r in chosen) < count:
        if rng.random() < 0.15 * hard:
            speaker = speech.draw_speaker(rng)
        left = max(1, count - sum(len(r["words"]) for r in chosen))
        fitting = [r for r in speaker if len(r["words"]) <= left] or speaker
        chosen.append(fitting[rng.integers(len(fitting))])
    if not chosen[0]["words"] and rng.random() < 0.5:
        chosen.reverse()  # the speech that is not digits comes last
    gaps = [rng.choice([0.0, rng.uniform(0.0, 0.6), rng.uniform(0, 1.2 * hard + 0.3)])]
    for _ in chosen:
        gaps.append(min(pace + rng.uniform(0, 0.1) if connected else rng.exponential(0.3), 1.5))
    gaps[-1] = rng.choice([0.0, rng.uniform(0.0, 0.3), rng.uniform(0, 1.2 * hard + 0.3)], p=[0.35, 0.35, 0.3])
    gaps[rng.integers(len(gaps) - 1)] += pause
    pieces = [r["samples"] * np.float32(10 ** (rng.uniform(-level, level) / 20)) for r in chosen]
    samples, times = join(pieces, gaps)
    words, spans = [], []
    for recording, (start, end) in zip(chosen, times, strict=True):
        words += recording["words"]
        spans += [(start, end, len(recording["words"]) == 1)] * len(recording["words"])
    stretch = 1.0
    if rng.random() < 0.7 * hard:
        speed = rng.uniform(0.82, 1.22)
        samples, stretch = change_speed(samples, speed), stretch / speed
    if rng.random() < 0.3 * hard and pause == 0:
        faster = rng.uniform(0.7, 1.4)
        samples, stretch = change_pace(samples, faster), stretch / faster
    spans = [(start * stretch, end * stretch, known) for start, end, known in spans]
    return degrade(samples, hard, [r["samples"] for r in speech.others], rng), words, spans


class Batches(torch.utils.data.Dataset):
    """Batches by training step; a seed always gives the same ones, with any number of workers."""

    def __init__(self, recordings: list[dict], steps: int, batch_size: int, ramp: int, seed: int):
        self.speech = Speech(recordings)
        self.steps, self.batch_size, self.ramp, self.seed = steps, batch_size, ramp, seed  # ramp 0: the second stage

    def __len__(self) -> int:
        return self.steps

    def __getitem__(self, step: int):
        rng = np.random.default_rng((self.seed, step))
        hard = min(1.0, step / self.ramp) if self.ramp else 1.0
        words = int(rng.integers(1, 3 + int(hard * 10)))  # about as many in each string: little padding
        if hard == 1 and rng.random() < 0.06:
            words = int(rng.integers(16, 32))  # longer than the attention's left context
        paused = rng.random() < 0.12 * hard
        strings, longest = [], 0
        while len(strings) < self.batch_size:
            pause = rng.uniform(1, 20) if paused else 0.0
            count = max(1, words + int(rng.integers(-1, 2)))
            string = training_string(self.speech, rng, hard if self.ramp else rng.random(), count, pause)
            longest = max(longest, len(string[0]))
            if strings and longest * (len(strings) + 1) > self.batch_size * 4 * RATE:  # 4 s a string, padding included
                break
            strings.append(string)
        lengths = torch.tensor([len(s[0]) for s in strings])
        samples = torch.zeros(len(strings), int(lengths.max()))
        for row, (wave, _, _) in zip(samples, strings, strict=True):
            row[: len(wave)] = torch.from_numpy(wave)
        return samples, lengths, [s[1] for s in strings], [s[2] for s in strings]


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
    """Return the token spoken at each encoder frame, [B, frames]; blank between words, -100 where it is not known.

    A frame depends on audio up to its own time only, so a word's frames lie around its end.
    """
    targets = torch.full((len(spans), frames), blank)
    for row, (spans_of_row, tokens_of_row) in enumerate(zip(spans, tokens, strict=True)):
        for (start, end, known), token in zip(spans_of_row, tokens_of_row, strict=True):
            first, last = (start + 0.55 * (end - start), end + 0.10) if known else (start, end + 0.24)
            targets[row, math.ceil(first / FRAME) : math.floor(last / FRAME) + 1] = token if known else -100
    return targets


# ---------------------------------------------------------------- training


def train(args) -> torch.nn.Module:
    from nemo.collections.asr.models import EncDecRNNTBPEModel

    digits = [d for d in read_digits(args.data, "train") if d["speaker"] != args.leave_out]
    digits += [recording for folder in args.voices for recording in read_voices(folder)]
    digits += read_speech(args.speech)
    print(f"{len(digits)} recordings", flush=True)
    rng = random.Random(args.seed)
    with tempfile.TemporaryDirectory() as directory:
        train_tokenizer([" ".join(rng.choices(WORDS, k=8)) for _ in range(2000)], SIZE["pieces"], directory)
        model = build_model(directory, seed=args.seed, **SIZE)
        average = build_model(directory, seed=args.seed, **SIZE)
        if args.start:
            weights = EncDecRNNTBPEModel.restore_from(str(args.start), map_location="cpu").state_dict()
            model.load_state_dict(weights)
            average.load_state_dict(weights)
            for module in model.modules():
                if isinstance(module, torch.nn.Dropout):
                    module.p = 0.0
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
    ramp, seed = (0, args.steps) if args.start else (args.ramp, args.seed)  # each stage draws other strings
    batches = Batches(digits, args.steps, args.batch_size, ramp, seed)
    loader = torch.utils.data.DataLoader(batches, batch_size=None, num_workers=1)
    dither = model.preprocessor.featurizer.dither
    model.train()
    began, seen = time.time(), []
    for step, (samples, lengths, words, spans) in enumerate(loader):
        lr = args.lr * min(1.0, (step + 1) / 300)
        lr *= 0.02 + 0.98 * 0.5 * (1 + math.cos(math.pi * step / args.steps))
        for group in optimizer.param_groups:
            group["lr"] = lr
        tokens = [[token[word][0] for word in row] for row in words]
        label_lengths = torch.tensor([len(row) for row in tokens])
        labels = torch.nn.utils.rnn.pad_sequence([torch.tensor(row, dtype=torch.long) for row in tokens], True)
        # half of the steps hear digital silence as it is, as inference does, and half NeMo's dither of 1e-5
        model.preprocessor.featurizer.dither = dither if random.random() < 0.5 else 0.0
        with torch.no_grad():
            features, feature_lengths = model.preprocessor(input_signal=samples, length=lengths)
            if step >= ramp // 2:
                features = _mask(features)
        encoded, frames = model.encoder(audio_signal=features, length=feature_lengths)
        encoded = encoded.transpose(1, 2)
        predicted, _, _ = model.decoder(targets=labels, target_length=label_lengths)
        log_probs = model.joint.joint(encoded, predicted.transpose(1, 2))
        assert model.joint.log_softmax is None  # on the CPU NeMo's joint returns log-probabilities
        transducer = rnnt_loss(log_probs, labels, frames, label_lengths, blank) / label_lengths.clamp(min=1)
        frame_probs = helper(encoded).log_softmax(-1)
        ctc = F.ctc_loss(frame_probs.transpose(0, 1), labels, frames, label_lengths, blank=blank, zero_infinity=True)
        inside = torch.arange(encoded.shape[1]) < frames[:, None]
        aligned = F.nll_loss(frame_probs[inside], frame_targets(spans, tokens, encoded.shape[1], blank)[inside])
        guide = max(0.0, 1 - step / (0.3 * args.steps))  # the alignment helps at first, then gets in the way
        loss = transducer.mean()
        if not args.start:  # the helper's weights are not in the checkpoint
            loss = loss + 0.3 * (1 - guide) * ctc + 2.0 * guide * aligned
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


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="folder of the free-spoken-digit-dataset")
    parser.add_argument(
        "--voices", type=Path, nargs="+", default=[], help="folders that voices.py has written, to train on"
    )
    parser.add_argument("--speech", type=Path, nargs="+", default=[], help="folders of other speech, to train on")
    parser.add_argument("--read", type=Path, help="folder of read speech without digits, to measure on")
    parser.add_argument("--leave_out", metavar="SPEAKER", help="train without this speaker, measure only this one")
    parser.add_argument("--out", type=Path, help="checkpoint to write")
    parser.add_argument("--start", type=Path, metavar="NEMO", help="second stage: train this checkpoint on")
    parser.add_argument("--evaluate", type=Path, metavar="NEMO", help="measure this checkpoint, do not train")
    parser.add_argument("--steps", type=int, default=8000)
    parser.add_argument("--ramp", type=int, default=3000, help="step at which the strings are as hard as they get")
    parser.add_argument("--batch_size", type=int, default=14)
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
    print(measure(model, test, args.read))


if __name__ == "__main__":
    main()
