"""Output that is not finite is an error that names the layer and the time, and affects no other recording."""

from __future__ import annotations

import os

import numpy as np
import pytest
import soundfile
import torch
from live_audio import to_pcm, transcribe_pipe
from support import CLIP, CLIP_WORDS

from nemotron_npu.engine import ModelOptions
from nemotron_npu.errors import ModelError
from nemotron_npu.recognizer import Recognizer

CPU = torch.device("cpu")


def plant(weight: torch.Tensor, value: float = float("nan")) -> None:
    with torch.inference_mode():
        weight[(0,) * weight.dim()] = value


@pytest.fixture
def broken(tiny):
    """A tiny model of which a part is broken: ``broken(lambda recognizer: its tensor)``."""

    def load(part, value=float("nan")) -> Recognizer:
        recognizer = Recognizer(tiny, CPU, options=ModelOptions(chunk_ms=560))
        plant(part(recognizer), value)
        return recognizer

    return load


@pytest.mark.parametrize(
    "part, message",
    [
        (lambda r: r.encoder.subsampling.out.bias, "encoder output: not finite (NaN or infinity), first in the sub"),
        (lambda r: r.encoder.layers[0].norm_out[0], "first in layer 0, at 0.00 s"),
        (lambda r: r.encoder.layers[1].attention.bias_uv, "first in layer 1, at 0.00 s"),
        (lambda r: r.encoder.layers[1].feed_forward2.norm.bias, "first in layer 1, at 0.00 s"),
        (lambda r: r.decoder.output.bias, "token scores: not finite (NaN or infinity), at 0.00 s"),
    ],
)
def test_not_finite_output_names_the_first_part(broken, clip, part, message):
    """Output that is not finite is an error that names the first part of the model, never an empty text."""
    recognizer = broken(part)
    (_, error) = next(recognizer.results([clip]))
    assert isinstance(error, ModelError) and message in str(error)
    with pytest.raises(ModelError, match=error.args[0].split(",")[0].split("(")[0]), recognizer.stream() as stream:
        stream.feed(clip)


def test_not_finite_recording_does_not_affect_its_batch(cli, tmp_path, monkeypatch, clip):
    """A recording whose output is not finite fails with its layer and time; the others in the batch are transcribed."""
    from nemotron_npu.conformer import ConformerLayer
    from nemotron_npu.encoder import Encoder

    bad = tmp_path / "bad.wav"
    soundfile.write(bad, np.tile(clip, 3), 16000)
    features, encode, forward, running = 3 * len(clip) // 160, Encoder._encode, ConformerLayer.__call__, {}

    def noting(self, x, state, ends):
        running.update(layer=self.layers[2], ends=ends)
        return encode(self, x, state, ends)

    def overflowing(self, *args):
        x, ends = forward(self, *args), running["ends"]
        if self is running["layer"] and features in ends:
            x.view(-1, len(ends), x.shape[1])[1, ends.index(features), 7] = torch.inf
        return x

    monkeypatch.setattr(Encoder, "_encode", noting)
    monkeypatch.setattr(ConformerLayer, "__call__", overflowing)
    code, out, err = cli(CLIP, bad, CLIP, "--batch_size", 3, "--device", "cpu", "--quiet")
    assert code == 1 and out.splitlines() == [f"{CLIP}: {CLIP_WORDS}"] * 2
    assert err.startswith(f"inference.py: {bad}: cannot be transcribed: encoder output: not finite"), err
    assert "first in layer 2, at 18.00 s (the checkpoint may be damaged)" in err and len(err.splitlines()) == 1


def test_not_finite_live_stream_keeps_its_text(cli, monkeypatch, clip):
    """A live stream whose output becomes not finite keeps the text so far."""
    from nemotron_npu.encoder import Encoder

    step, steps = Encoder._encode, []

    def overflowing(self, *args):
        steps.append(args)
        return step(self, *args) * (torch.inf if len(steps) == 4 else 1)

    monkeypatch.setattr(Encoder, "_encode", overflowing)
    monkeypatch.setattr("nemotron_npu.live_input.os.read", lambda file, size, read=os.read: read(file, 4000))
    code, out, err = transcribe_pipe(cli, monkeypatch, to_pcm(clip[:60000]), "--chunk_ms", 560)
    assert code == 1 and out == "three one\n"
    assert err.startswith("inference.py: stdin: cannot be transcribed: token scores: not finite"), err
