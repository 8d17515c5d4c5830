"""``demo/train.py``: its loss equals NeMo's, and its test strings are always the same."""

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
import train


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
    samples, spans = train.join(pieces, [0.1, 0.2, 0.3])
    assert len(samples) == 1600 + 1600 + 3200 + 800 + 4800
    for piece, (start, end) in zip(pieces, spans, strict=True):
        assert np.array_equal(samples[round(start * 16000) : round(end * 16000)], piece)


def test_test_strings_are_fixed_and_use_every_recording():
    """Two calls give the same strings, 3 to 8 words long, with every digit among them."""
    digits = [
        {"word": word, "speaker": speaker, "samples": [np.full(400, i, np.float32)]}
        for speaker in "ab"
        for i, word in enumerate(train.WORDS)
    ]
    strings = train.test_strings(digits, 20)
    again = train.test_strings(digits, 20)
    assert [text for _, text in strings] == [text for _, text in again]
    assert all(3 <= len(text.split()) <= 8 for _, text in strings)
    assert {word for _, text in strings for word in text.split()} == set(train.WORDS)


def test_frame_targets_are_the_word_around_its_end():
    """Frames around the end of a word have its token, all others are blank."""
    targets = train.frame_targets([[(0.4, 0.8)]], [[7]], frames=15, blank=52)
    assert targets.tolist() == [[52] * 8 + [7] * 4 + [52] * 3]


def test_training_writes_a_checkpoint_that_its_seed_decides(tmp_path):
    """Training leads from recordings to a checkpoint; the same seed gives the same weights, another one others."""
    rng = np.random.default_rng(0)
    rows = [(word, speaker) for word in train.WORDS for speaker in ("ann", "bob")]
    for i, _ in enumerate(rows):
        soundfile.write(tmp_path / f"{i}.wav", rng.uniform(-0.3, 0.3, 3000), 8000)
    index = [{"audio": f"{i}.wav", "text": w, "speaker": s, "split": "train"} for i, (w, s) in enumerate(rows)]
    (tmp_path / "index.json").write_text(json.dumps(index))

    def weights(name, seed):
        options = {"data": tmp_path, "voices": None, "leave_out": "bob", "out": tmp_path / name, "steps": 3, "ramp": 2}
        options |= {"batch_size": 3, "lr": 1e-3, "seed": seed, "check_every": 100}
        model = train.train(argparse.Namespace(**options))
        assert read_config(tmp_path / name).encoder.d_model == train.SIZE["width"]
        return torch.cat([p.detach().flatten() for p in model.parameters()])

    first = weights("first.nemo", 0)
    assert torch.isfinite(first).all()
    assert torch.equal(first, weights("again.nemo", 0))
    assert not torch.equal(first, weights("other.nemo", 1))
