"""``demo/``: the loss equals NeMo's, the strings are always the same, and conditions keep the time of every sample."""

import argparse
import json
import sys

import numpy as np
import pytest
import soundfile
import torch
from support import ROOT

from nemotron_npu.checkpoint.config_reader import read_config

sys.path.insert(0, str(ROOT / "demo"))
import conditions
import recordings
import train
import voices


@pytest.mark.parametrize("batch, frames, labels, vocabulary", [(1, 5, 1, 3), (3, 12, 4, 6), (2, 30, 9, 11)])
def test_rnnt_loss_and_gradient_equal_those_of_nemo(batch, frames, labels, vocabulary):
    """The vectorized loss and its gradient are those of NeMo's reference implementation."""
    from nemo.collections.asr.losses.rnnt_pytorch import RNNTLossPytorch

    torch.manual_seed(batch)
    logits = torch.randn(batch, frames, labels + 1, vocabulary, requires_grad=True)
    targets = torch.randint(0, vocabulary - 1, (batch, labels))
    frame_lengths = torch.randint((frames + 1) // 2, frames + 1, (batch,))
    label_lengths = torch.randint(1, labels + 1, (batch,))
    frame_lengths[0], label_lengths[0] = frames, labels
    ours = train.rnnt_loss(logits.log_softmax(-1), targets, frame_lengths, label_lengths, vocabulary - 1)
    reference = RNNTLossPytorch(vocabulary - 1, "sum")
    theirs = reference(acts=logits, labels=targets, act_lens=frame_lengths, label_lens=label_lengths)
    assert ours.sum().item() == pytest.approx(theirs.item(), rel=1e-5)
    gradients = [torch.autograd.grad(loss, logits)[0] for loss in (ours.sum(), theirs)]
    torch.testing.assert_close(*gradients, atol=5e-5, rtol=1e-4)


def test_join_keeps_every_sample_and_returns_word_times():
    """The joined audio has all samples, and the times returned are those of the pieces."""
    pieces = [np.full(1600, 0.1, np.float32), np.full(800, 0.2, np.float32)]
    samples, spans = recordings.join(pieces, [0.1, 0.2, 0.3])
    assert len(samples) == 1600 + 1600 + 3200 + 800 + 4800
    for piece, (start, end) in zip(pieces, spans, strict=True):
        assert np.array_equal(samples[round(start * 16000) : round(end * 16000)], piece)


def test_test_strings_are_fixed_and_use_every_recording():
    """Two calls give the same strings, 3 to 8 words long, with every digit among them."""
    digits = [
        {"words": [word], "speaker": speaker, "samples": np.full(400, i, np.float32)}
        for speaker in "ab"
        for i, word in enumerate(recordings.WORDS)
    ]
    strings = recordings.test_strings(digits, 20)
    again = recordings.test_strings(digits, 20)
    assert [text for _, text in strings] == [text for _, text in again]
    assert all(3 <= len(text.split()) <= 8 for _, text in strings)
    assert {word for _, text in strings for word in text.split()} == set(recordings.WORDS)


def test_frame_targets_are_the_word_around_its_end():
    """Frames around the end of a word have its token, all others are blank; words of one recording are not aligned."""
    targets = train.frame_targets([[(0.4, 0.8, True)], [(0.4, 0.8, False)] * 2], [[7], [7, 8]], frames=15, blank=52)
    assert targets.tolist() == [[52] * 8 + [7] * 4 + [52] * 3, [52] * 5 + [-100] * 9 + [52]]


@pytest.mark.parametrize("change", [conditions.telephone, conditions.mu_law, conditions.gsm, conditions.mp3])
def test_codecs_keep_the_length_and_the_time_of_speech(change):
    """A burst stays where it is (within 5 ms, MP3 delays it by 69) in as many samples; a telephone ends at 3,400 Hz."""
    rng = np.random.default_rng(0)
    samples = np.zeros(16001, np.float32)
    samples[6000:10000] = rng.uniform(-0.5, 0.5, 4000)
    heard = change(samples)
    assert heard.shape == samples.shape and heard.dtype == np.float32
    loud = np.flatnonzero(np.abs(heard) > 0.1)
    delay = 1105 if change is conditions.mp3 else 0
    assert abs(loud[0] - delay - 6000) < 80 and abs(loud[-1] - delay - 10000) < 80
    if change is conditions.telephone:
        spectrum = np.abs(np.fft.rfft(heard)) ** 2
        assert spectrum[round(len(spectrum) * 3600 / 8000) :].sum() < 0.01 * spectrum.sum()


def test_conditions_give_as_many_finite_samples_from_a_seed():
    """Whatever is drawn, samples are finite, as many as before, and the same for the same seed."""
    samples = np.random.default_rng(1).normal(0, 0.1, 8000).astype(np.float32)
    for seed in range(40):
        heard, again = (conditions.degrade(samples, 1.0, [samples], np.random.default_rng(seed)) for _ in range(2))
        assert heard.shape == samples.shape and np.isfinite(heard).all() and np.array_equal(heard, again)


def test_a_string_with_pauses_is_cut_into_its_words():
    """As many words as bursts; another count is not cut at all."""
    burst = np.random.default_rng(0).uniform(-0.5, 0.5, 4800).astype(np.float32)
    silence = np.zeros(4800, np.float32)
    samples = np.concatenate([silence, burst, silence, burst, silence, burst])
    assert [len(word) // 160 for word in voices.cut(samples, 3)] == [38, 38, 33]
    assert voices.cut(samples, 4) == []


def test_voices_are_read_with_oh_as_zero_and_speech_as_nothing(tmp_path):
    """The file name says what is said: digits, an "oh" for zero, or no digit at all; Kokoro's turns are one speaker."""
    for name in ("4o_kokoro-af-sky-0_0a", "7_kokoro-af-sky-1_0a", "x_espeak-en-gb+f1_3a", "1_flite-rms_0a"):
        soundfile.write(tmp_path / f"{name}.wav", np.zeros(160), 16000)
    read = [(r["words"], r["speaker"], r["kind"]) for r in recordings.read_voices(tmp_path)]
    assert read == [
        (["one"], "flite-rms", "other"),
        (["four", "zero"], "kokoro-af-sky", "kokoro"),
        (["seven"], "kokoro-af-sky", "kokoro"),
        ([], "espeak-en-gb+f1", "espeak"),
    ]


def test_training_writes_a_checkpoint_that_its_seed_decides(tmp_path):
    """Training leads from recordings to a checkpoint; the same seed gives the same weights, another one others."""
    rng = np.random.default_rng(0)
    rows = [(word, speaker) for word in recordings.WORDS for speaker in ("ann", "bob")]
    for i, _ in enumerate(rows):
        soundfile.write(tmp_path / f"{i}.wav", rng.uniform(-0.3, 0.3, 3000), 8000)
    index = [{"audio": f"{i}.wav", "text": w, "speaker": s, "split": "train"} for i, (w, s) in enumerate(rows)]
    (tmp_path / "index.json").write_text(json.dumps(index))

    def weights(name, seed):
        options = {
            "data": tmp_path,
            "voices": [],
            "speech": [],
            "leave_out": "bob",
            "start": None,
            "out": tmp_path / name,
            "steps": 3,
            "ramp": 2,
        }
        options |= {"batch_size": 3, "lr": 1e-3, "seed": seed, "check_every": 100}
        model = train.train(argparse.Namespace(**options))
        assert read_config(tmp_path / name).encoder.d_model == train.SIZE["width"]
        return torch.cat([p.detach().flatten() for p in model.parameters()])

    first = weights("first.nemo", 0)
    assert torch.isfinite(first).all()
    assert torch.equal(first, weights("again.nemo", 0))
    assert not torch.equal(first, weights("other.nemo", 1))
