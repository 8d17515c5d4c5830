"""Faults of every kind are found in their own stage, at the right frame and step."""

import dataclasses
import json

import pytest
import torch
from support import DEMO

from nemotron_npu.conformer import ConformerLayer
from nemotron_npu.decoder import Decoder
from nemotron_npu.encoder import Encoder
from nemotron_npu.features import FeatureStream
from nemotron_npu.formats import dump
from nemotron_npu.precision.compare import Precision
from nemotron_npu.precision.probes import NemoProbe
from nemotron_npu.precision.tolerances import TOLERANCES
from nemotron_npu.recognizer import load_recognizer


@pytest.fixture
def compare_fault(demo_native, demo_nemo, clip):
    """Compare 4 s of speech with a fault in place: ``compare_fault(chunk_ms=..., candidate=...)``."""

    def compare(chunk_ms=560, candidate=demo_native, tolerances=None):
        precision = Precision(candidate, demo_nemo, tolerances=tolerances, chunk_ms=chunk_ms)
        precision.add_recording("digits.wav", clip[:64000])
        assert not precision.passed
        return precision

    return compare


def test_a_dropped_mel_frame_fails_log_mel(compare_fault, monkeypatch):
    """One frame less in the features is a failure at that frame, with both numbers of frames."""
    frames = FeatureStream._frames

    def drop(self, count):
        before, given = self.frames, frames(self, count)
        at = 200 - before
        return torch.cat([given[:at], given[at + 1 :]]) if 0 <= at < len(given) else given

    monkeypatch.setattr(FeatureStream, "_frames", drop)
    first = compare_fault().failures[0]
    assert (first.stage, first.frame, first.time) == ("log-mel", 25, 2.0)
    assert "399 frames, 400 in the reference" in str(first)


def test_a_zeroed_mel_frame_fails_the_stream_only(compare_fault, monkeypatch):
    """A frame of zeros in a stream fails its step; the whole recording, computed in one call, passes."""
    feed = FeatureStream.feed

    def blank(self, samples):
        before, given = self.frames, feed(self, samples)
        given[max(0, 304 - before) : max(0, 305 - before)] = 0
        return given

    monkeypatch.setattr(FeatureStream, "feed", blank)
    precision = compare_fault(160)
    assert precision.totals["recording"].failures() == []
    first = precision.failures[0]
    assert (first.stage, first.frame, first.step) == ("log-mel", 38, 19)


@pytest.mark.parametrize("part, stage", [("subsampling", "subsampling"), ("layers", "layer 3"), ("decoder", "joint")])
def test_a_wrong_weight_fails_its_stage_alone(compare_fault, part, stage):
    """A wrong weight fails its own stage first, and no other stage that is measured alone."""
    wrong = load_recognizer(DEMO, "cpu")
    if part == "subsampling":
        wrong.encoder.subsampling.out.bias.mul_(1.3)
    elif part == "layers":
        wrong.encoder.layers[3].norm_out[0].mul_(1.02)
    else:
        wrong.decoder.output.bias.add_(torch.linspace(0, 2, len(wrong.decoder.output.bias)))
    precision = compare_fault(candidate=wrong)
    assert precision.failures[0].stage == stage
    alone = {name for name, t in precision.totals["recording"].alone.tallies.items() if t.exceeds}
    assert alone == {stage}


def test_a_wrong_prediction_network_fails_its_stage(compare_fault):
    """5 % more in the embedding fail the prediction network."""
    wrong = load_recognizer(DEMO, "cpu")
    wrong.decoder.symbols.mul_(1.05)
    assert compare_fault(candidate=wrong).failures[0].stage == "prediction network"


def test_a_nan_fails_its_layer_at_its_frame(compare_fault, demo_native, monkeypatch):
    """A NaN after layer 2 fails that layer at the frame of the NaN, and JSON can still be written."""
    forward = ConformerLayer.__call__

    def spoiled(self, *args):
        x = forward(self, *args)
        if self is demo_native.encoder.layers[2] and len(x) > 40:
            x[40, 7] = float("nan")
        return x

    monkeypatch.setattr(ConformerLayer, "__call__", spoiled)
    precision = compare_fault()
    first = precision.failures[0]
    assert (first.stage, first.frame, first.time) == ("layer 2", 40, 3.2)
    assert first.reason == "1 value of the candidate not finite"
    json.loads(dump(precision.as_dict({}, {})))


@pytest.mark.parametrize("part, cache", [(1, "keys"), (2, "values")])
def test_a_stale_attention_row_fails_the_cache(compare_fault, monkeypatch, part, cache):
    """An old row in place of the newest, after the seventh step, fails keys or values there."""
    step = Encoder.step

    def stale(self, features, state, ends):
        out = step(self, features, state, ends)
        if state.position[0] == 7 * self.chunk:
            rows = state.attention.window(1, 0).view(self.keep, self.heads, 3, -1)
            rows[-1, :, part] = rows[-3, :, part]
        return out

    monkeypatch.setattr(Encoder, "step", stale)
    precision = compare_fault(160)
    assert precision.totals["recording"].failures() == []
    first = precision.failures[0]
    assert (first.stage, first.step, first.frame) == (f"{cache} of layer 1", 6, 13)


def test_a_stale_convolution_row_fails_the_cache(compare_fault, monkeypatch):
    """Zeroed rows in a convolution cache fail it at the step that left them."""
    step = Encoder.step

    def stale(self, features, state, ends):
        out = step(self, features, state, ends)
        if state.position[0] == 5 * self.chunk:
            state.convolution.window(4, 0)[-2:] = 0
        return out

    monkeypatch.setattr(Encoder, "step", stale)
    first = compare_fault(560).failures[0]
    assert (first.stage, first.step) == ("convolution cache of layer 4", 4)


def test_a_swapped_token_fails_the_tokens(compare_fault, demo_native, clip, monkeypatch):
    """Decoding that emits another token than its joint network prefers fails the tokens, at that token."""
    step = Decoder.step

    def swapped(self, *args):
        return [[dataclasses.replace(e, id=e.id ^ (e.frame == third)) for e in slot] for slot in step(self, *args)]

    right = demo_native.transcribe([clip])[0].tokens[2]
    third = right.frame
    monkeypatch.setattr(Decoder, "step", swapped)
    precision = compare_fault()
    first = precision.failures[0]
    assert (first.stage, first.frame, first.time) == ("tokens", third, right.time)
    assert "nats below the best choice of the candidate's own joint network" in first.reason
    found = precision.totals["recording"].decisions.first_difference
    assert f"({right.id})" in found["reference"] and f"({right.id ^ 1})" in found["candidate"]
    assert found["reference_margin"] > 0 > found["candidate_margin"]
    assert not any(t.exceeds for t in precision.totals["recording"].accumulated.tallies.values())


def test_a_candidate_that_differs_from_itself_fails(compare_fault, demo_native, monkeypatch):
    """Noise of 1e-6 in layer 3 passes every tolerance, and fails because two runs differ."""
    forward, noise = ConformerLayer.__call__, torch.Generator().manual_seed(1)

    def unsteady(self, *args):
        x = forward(self, *args)
        return x + 1e-6 * torch.rand(x.shape, generator=noise) if self is demo_native.encoder.layers[3] else x

    monkeypatch.setattr(ConformerLayer, "__call__", unsteady)
    first = compare_fault().failures[0]
    assert first.stage == "layer 3" and "two runs of the candidate differ" in first.reason


def test_a_reference_that_differs_from_itself_fails(compare_fault, monkeypatch):
    """The comparison means nothing when two runs of the reference differ."""
    step, count = NemoProbe.step, iter(range(1000))
    monkeypatch.setattr(NemoProbe, "step", lambda *args: step(*args) + 1e-7 * next(count))
    reasons = [f.reason for f in compare_fault().failures]
    assert any("two runs of the reference differ" in reason for reason in reasons)


def test_a_tighter_tolerance_fails_what_passed(compare_fault):
    """A tolerance of a millionth of a percent fails the stages alone."""
    tight = TOLERANCES["float32"].with_changes("alone=0.000001")
    assert "given the reference's input" in compare_fault(tolerances=tight).failures[0].reason
