"""The comparison measures what it says, passes what is right, and names the stage, layer and step of what is not."""

import copy
import dataclasses
import json
import math
from html.parser import HTMLParser

import jsonschema
import numpy as np
import pytest
import torch
from support import CLIP, CLIP_WORDS, ROOT

from nemotron_npu.audio import read_audio, sine
from nemotron_npu.checkpoint.load import attention_contexts, read_config
from nemotron_npu.conformer import ConformerLayer
from nemotron_npu.decoder import Decoder
from nemotron_npu.dtypes import offered_dtypes
from nemotron_npu.encoder import Encoder
from nemotron_npu.engine import ModelOptions
from nemotron_npu.errors import SetupError
from nemotron_npu.features import FeatureStream
from nemotron_npu.formats import dump
from nemotron_npu.host.provenance import environment
from nemotron_npu.precision.compare import Precision, compare, stage_table, to_table
from nemotron_npu.precision.lockstep import walk
from nemotron_npu.precision.metrics import Tally, difference
from nemotron_npu.precision.probes import NativeProbe, NemoProbe
from nemotron_npu.precision.report import write_report
from nemotron_npu.precision.tokens import Decisions, Path, count_words, decide
from nemotron_npu.precision.tolerances import BOUNDS
from nemotron_npu.recognizer import load_recognizer
from nemotron_npu.transcript import Token

CPU = torch.device("cpu")
DEMO = ROOT / "demo" / "demo.nemo"
SCHEMA = json.loads((ROOT / "nemotron_npu" / "precision" / "report.schema.json").read_text())
CHUNKS = [80, 160, 560, 1120]


class Spoiled:
    """A recognizer whose encoder output is changed by ``spoil`` on its way out."""

    def __init__(self, recognizer, spoil):
        self.recognizer, self.spoil, self.device = recognizer, spoil, recognizer.device
        self.preprocess = recognizer.preprocess

    def encode(self, features, lengths):
        encoded, frames = self.recognizer.encode(features, lengths)
        return self.spoil(encoded.clone()), frames


@pytest.fixture(scope="module")
def recognizer(tiny):
    return load_recognizer(tiny, CPU)


@pytest.fixture(scope="module")
def nemo(tiny):
    return load_recognizer(tiny, CPU, options=ModelOptions("nemo"))


@pytest.fixture(scope="module")
def demo():
    return load_recognizer(DEMO, CPU)


@pytest.fixture(scope="module")
def demo_nemo():
    return load_recognizer(DEMO, CPU, options=ModelOptions("nemo"))


@pytest.fixture(scope="module")
def clip():
    return read_audio(str(CLIP))


@pytest.fixture(scope="module")
def proof(demo, demo_nemo, clip):
    """The comparison of the bundled clip, at all chunk lengths."""
    precision = Precision(demo, demo_nemo, read_config(DEMO))
    precision.add_signal(sine())
    precision.add("digits.wav", clip, text=CLIP_WORDS)
    return precision


FACTS = {
    "model": "demo.nemo",
    "parameters": 1,
    "engine": "native",
    "device": "cpu",
    "device_name": "cpu",
    "dtype": "float32",
    "chunk_ms": 1120,
}

# ---------------------------------------------------------------- the figures of two tensors


def test_the_figures_are_those_of_their_formulas():
    a, b = torch.tensor([1.0, 2.0, -3.0, 4.0]), torch.tensor([1.0, 2.5, -3.0, 3.0])
    d = difference(a, b)
    assert d.mae == pytest.approx(1.5 / 4) and d.mse == pytest.approx(1.25 / 4) and d.max_error == 1.0
    assert d.relative_error_percent == pytest.approx(100 * 1.5 / 9.5)


def test_two_silent_outputs_are_equal_and_an_error_on_silence_is_infinite():
    zero = torch.zeros(3)
    assert difference(zero, zero).relative_error_percent == 0
    assert difference(zero + 1, zero).relative_error_percent == float("inf")


def test_outputs_of_different_shape_are_refused():
    with pytest.raises(ValueError, match="shapes differ"):
        difference(torch.zeros(2, 3), torch.zeros(2, 4))


def test_figures_that_come_piece_by_piece_are_those_of_the_whole():
    generator = torch.Generator().manual_seed(0)
    b = torch.randn(40, 6, generator=generator)
    a = b + 0.01 * torch.randn(40, 6, generator=generator)
    tally = Tally(1.0)
    for rows in np.split(np.arange(40), [1, 8, 30]):
        tally.add(a[rows], b[rows], rows, rows // 4)
    whole, figures = difference(a, b), tally.as_dict()
    for name in ("mse", "mae", "max_error", "relative_error_percent"):
        assert figures[name] == pytest.approx(getattr(whole, name), rel=1e-9)
    a, b = a.double(), b.double()
    assert figures["cosine"] == pytest.approx(float(torch.nn.functional.cosine_similarity(a.ravel(), b.ravel(), 0)))
    assert figures["snr_db"] == pytest.approx(10 * math.log10(float((b**2).sum() / ((a - b) ** 2).sum())))
    assert figures["candidate_range"] == [float(a.min()), float(a.max())]
    percent = 100 * (a - b).abs().sum(1) / b.abs().sum(1)
    assert figures["worst_row_frame"] == int(percent.argmax()) and figures["worst_row_percent"] == float(percent.max())


def test_a_recording_exceeds_by_its_sum_by_a_single_row_or_by_a_value_that_is_not_finite():
    rows, right = np.arange(100), torch.ones(100, 4)

    def tally(wrong):
        t = Tally(bound=1.0)
        t.add(wrong, right, rows, rows // 10)
        return t

    assert not tally(right * 1.009).exceeds
    everywhere = tally(torch.cat([right[:30], right[30:] * 1.02]))
    assert everywhere.exceeds and everywhere.first.frame == 30 and everywhere.first.step == 3
    once = right.clone()
    once[57] *= 1.2  # 0.2 % of the whole
    assert tally(once).exceeds and (tally(once).first.frame, tally(once).first.step) == (57, 5)
    once[57] = 1.0
    once[42, 1] = float("nan")
    broken = tally(once)
    assert broken.exceeds and broken.first.frame == 42 and broken.candidate_not_finite == 1
    assert broken.max_error == 0 and broken.as_dict()["elements"] == 399


def test_bounds_can_be_changed_by_name():
    changed = BOUNDS["float32"].changed("encoder=2, tokens=0.5")
    assert (changed.encoder, changed.tokens, changed.alone) == (2.0, 0.5, BOUNDS["float32"].alone)
    for wrong in ("layer=2", "encoder", "encoder=-1", "encoder=x", "encoder=nan"):
        with pytest.raises(SetupError, match="is none: NAME=PERCENT, NAME one of mel, encoder"):
            BOUNDS["float32"].changed(wrong)


# ---------------------------------------------------------------- the write-up's comparison


@pytest.mark.parametrize("engine", ["native", "nemo"])
def test_independent_instances_on_the_cpu_agree_to_the_last_bit(tiny, engine):
    comparison = compare(
        load_recognizer(tiny, CPU, options=ModelOptions(engine)),
        load_recognizer(tiny, CPU, options=ModelOptions(engine)),
        sine(),
    )
    assert comparison.passed
    assert comparison.encoder.max_error == comparison.preprocessor.max_error == 0
    assert comparison.features_shape == [1, 128, 101]
    assert comparison.encoded_shape == [1, 64, 14]
    assert comparison.device_range == comparison.cpu_range


@pytest.mark.parametrize("engine", ["native", "nemo"])
def test_they_still_agree_after_one_has_transcribed(tiny, recognizer, nemo, engine):
    used = load_recognizer(tiny, CPU, options=ModelOptions(engine))
    used.transcribe([sine()])  # NeMo's transcribe() leaves its modules in training mode
    assert compare(used, {"native": recognizer, "nemo": nemo}[engine], sine()).encoder.max_error == 0


@pytest.mark.parametrize("chunk_ms", CHUNKS)
def test_the_native_engine_passes_against_nemo(tiny, chunk_ms, clip):
    native, nemo = (load_recognizer(tiny, CPU, options=ModelOptions(engine, chunk_ms)) for engine in ("native", "nemo"))
    for waveform in (sine(), clip):
        comparison = compare(native, nemo, waveform)
        assert comparison.passed and comparison.encoder.max_error < 1e-4 and comparison.preprocessor.max_error < 1e-3
        assert comparison.cpu_against_cpu.max_error == 0


def test_an_error_of_two_percent_fails_and_one_of_half_a_percent_passes(recognizer):
    wrong = compare(Spoiled(recognizer, lambda x: x * 1.02), recognizer, sine())
    assert not wrong.passed and wrong.encoder.relative_error_percent == pytest.approx(2, rel=1e-3)
    assert "FAILED: relative error 2.0" in to_table(wrong, "sine", "npu:0")
    close = compare(Spoiled(recognizer, lambda x: x * 1.005), recognizer, sine())
    assert close.passed and "PASSED (< 1 %)" in to_table(close, "sine", "npu:0")


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_value_that_is_not_finite_fails(recognizer, value):
    def spoil(encoded):
        encoded[0, 0, 3] = value
        return encoded

    comparison = compare(Spoiled(recognizer, spoil), recognizer, sine())
    assert comparison.failures == ["encoder output is not finite"]


def test_a_cpu_that_disagrees_with_itself_makes_the_method_worthless(recognizer):
    drift = iter(np.linspace(0, 1e-7, 4))
    unsteady = Spoiled(recognizer, lambda x: x + float(next(drift)))
    comparison = compare(recognizer, unsteady, sine())
    assert not comparison.passed and "two runs on the CPU differ" in comparison.failures[0]


def test_the_table_has_the_rows_of_the_write_up(recognizer):
    table = to_table(compare(recognizer, recognizer, sine()), "1 s sine", "npu:0")
    labels = [line.strip().split("  ")[0] for line in table.splitlines()[1:]]
    assert labels == [
        "Preprocessor MAE",
        "Preprocessor Max Error",
        "Encoder MSE",
        "Encoder MAE",
        "Max Absolute Error",
        "Relative Error",
        "Output range, npu:0",
        "Output range, cpu",
        "cpu against cpu",
        "Verdict",
    ]


# ---------------------------------------------------------------- taking a recogniser apart


def seen_by(probe, mel, block):
    """What every layer was given, whole, and the encoder output, when encoded in blocks of so many frames."""
    state, first, parts, outputs = probe.new_state(block), 0, [], []
    while first < probe.frames(len(mel)):
        inputs = []
        outputs.append(probe.step(mel, first, block, state, lambda _, x, to=inputs: to.append(x.clone()) or x))
        parts.append(inputs)
        first += block
    return [torch.cat(stage) for stage in zip(*parts, strict=True)], torch.cat(outputs)


@pytest.mark.parametrize("chunk_ms", CHUNKS)
def test_nemo_in_steps_is_nemo_offline_also_where_a_stream_begins(tiny, chunk_ms, clip):
    nemo = load_recognizer(tiny, CPU, options=ModelOptions("nemo", chunk_ms))
    expected, _ = nemo.encode(*nemo.preprocess([clip]))
    probe = NemoProbe(nemo)
    for block in (probe.chunk, probe.block_for(10**6)):
        _, output = seen_by(probe, probe.mel(clip), block)
        assert float((output - expected[0].T).abs().max()) < 1e-5


@pytest.mark.parametrize("chunk_ms", [80, 1120])
def test_stages_of_both_engines_are_laid_out_alike_and_shown_without_a_trace(tiny, nemo, chunk_ms, clip):
    native = load_recognizer(tiny, CPU, options=ModelOptions(chunk_ms=chunk_ms))
    probes = NativeProbe(native), NemoProbe(load_recognizer(tiny, CPU, options=ModelOptions("nemo", chunk_ms)))
    mel = probes[0].mel(clip)
    ours, theirs = (seen_by(probe, mel, 14) for probe in probes)
    assert len(ours[0]) == 3  # subsampling, layer 0, layer 1
    for a, b in zip([*ours[0], ours[1]], [*theirs[0], theirs[1]], strict=True):
        assert a.shape == b.shape and float((a - b).abs().max()) < 1e-5
    unseen = NativeProbe(native)
    unseen.encoder = copy.copy(native.encoder)
    state = unseen.new_state(14)
    step = unseen.encoder.step(torch.nn.functional.pad(mel[:105], (0, 0, 7, 0))[None], state, [None])
    assert torch.equal(step[0], ours[1][:14]) and native.encoder.observer is None


@pytest.mark.parametrize("chunk_ms", CHUNKS)
def test_another_context_of_a_loaded_encoder_is_that_of_one_loaded_with_it(tiny, recognizer, chunk_ms, clip):
    loaded, moved = load_recognizer(tiny, CPU, options=ModelOptions(chunk_ms=chunk_ms)), copy.copy(recognizer)
    moved.encoder = recognizer.encoder.at_context(attention_contexts(read_config(tiny))[chunk_ms])
    for a, b in zip(loaded.encode(*loaded.preprocess([clip])), moved.encode(*moved.preprocess([clip])), strict=True):
        assert torch.equal(a, b)
    assert moved.encoder.layers is recognizer.encoder.layers


def test_a_layer_that_is_given_the_references_input_is_measured_alone(tiny, nemo, clip):
    wrong = load_recognizer(tiny, CPU)
    wrong.encoder.layers[0].norm_out[1].add_(torch.linspace(-0.2, 0.2, 64))
    result = walk(NativeProbe(wrong), NemoProbe(nemo), clip, BOUNDS["float32"])
    accumulated, alone = ([s[f"layer {i}"].percent for i in (0, 1)] for s in (result.accumulated, result.alone))
    assert min(accumulated) > 1 and alone[0] > 1 and alone[1] < 1e-3


# ---------------------------------------------------------------- what is right passes


def test_every_stage_passes_and_every_token_and_word_is_equal(proof):
    assert proof.passed and proof.failures == []
    assert list(proof.totals) == ["recording", *(f"stream, {ms} ms" for ms in CHUNKS)]
    for name, total in proof.totals.items():
        assert total.decisions.token_errors == total.decisions.word_errors == total.decisions.undecided == 0
        assert total.decisions.reference_tokens == 8 and total.decisions.safety > 100
        for stages in (total.accumulated, total.alone):
            for stage, tally in stages.tallies.items():
                assert tally.elements and tally.percent < 1e-3, (name, stage)
    assert {"log-mel", "subsampling", "layer 0", "layer 4", "encoder output", "prediction network", "joint"} <= set(
        proof.totals["recording"].accumulated.tallies
    )
    caches = set(proof.totals["stream, 80 ms"].accumulated.tallies)
    assert {f"{cache} of layer {i}" for cache in ("keys", "values", "convolution cache") for i in range(5)} <= caches


def test_both_sides_give_the_same_bits_twice(proof):
    recording = proof.totals["recording"]
    for repeat in (recording.candidate_repeat, recording.reference_repeat):
        assert repeat.max_error == 0 and repeat.stage is None


def test_words_are_compared_with_what_was_said(proof):
    decisions = proof.totals["recording"].decisions
    assert (decisions.transcript_words, decisions.candidate_transcript_errors) == (8, 0)
    other = Decisions()
    count_words(other, "one Two, three", "one two three", "one two four")
    assert (other.word_errors, other.candidate_transcript_errors, other.reference_transcript_errors) == (1, 1, 1)


def test_nemo_against_nemo_is_equal_to_the_last_bit(tiny, nemo):
    precision = Precision(
        load_recognizer(tiny, CPU, options=ModelOptions("nemo")), nemo, read_config(tiny), chunk_ms=560
    )
    precision.add("clip", read_audio(str(CLIP)))
    assert precision.passed
    for total in precision.totals.values():
        assert total.decisions.reference_tokens > 10 and total.decisions.largest_error == 0
        assert all(tally.max_error == 0 for s in (total.accumulated, total.alone) for tally in s.tallies.values())


@pytest.mark.parametrize("samples", [0, 100, 700])
def test_a_recording_too_short_for_a_decision_or_a_frame_passes(demo, demo_nemo, samples):
    precision = Precision(demo, demo_nemo, read_config(DEMO), chunk_ms=80)
    assert precision.add("short", np.zeros(samples, np.float32)).passed
    json.loads(dump(precision.as_dict(FACTS, {"command": []})))
    assert "PASSED" in stage_table(precision, FACTS)


def test_a_checkpoint_that_cannot_stream_is_compared_as_a_whole(tmp_path, clip):
    from checkpoints import TINY_SIZE, make_random_checkpoint

    path = tmp_path / "whole.nemo"
    make_random_checkpoint(path, TINY_SIZE, encoder={"att_context_style": "regular", "att_context_size": [-1, -1]})
    precision = Precision(
        load_recognizer(path, CPU), load_recognizer(path, CPU, options=ModelOptions("nemo")), read_config(path)
    )
    assert precision.add("clip", clip).passed and list(precision.totals) == ["recording"]


# ---------------------------------------------------------------- what is wrong is found and named


def fault(demo, demo_nemo, clip, chunk_ms=560, bounds=None):
    precision = Precision(demo, demo_nemo, read_config(DEMO), bounds, chunk_ms)
    precision.add("digits.wav", clip[:64000])
    assert not precision.passed
    return precision


def test_a_dropped_mel_frame(demo, demo_nemo, clip, monkeypatch):
    frames = FeatureStream._frames

    def drop(self, count):
        before, given = self.frames, frames(self, count)
        at = 200 - before
        return torch.cat([given[:at], given[at + 1 :]]) if 0 <= at < len(given) else given

    monkeypatch.setattr(FeatureStream, "_frames", drop)
    first = fault(demo, demo_nemo, clip).failures[0]
    assert (first.stage, first.frame, first.time) == ("log-mel", 25, 2.0)
    assert "399 frames, 400 in the reference" in str(first)


def test_a_mel_frame_of_zeros_in_a_stream(demo, demo_nemo, clip, monkeypatch):
    feed = FeatureStream.feed

    def blank(self, samples):
        before, given = self.frames, feed(self, samples)
        given[max(0, 304 - before) : max(0, 305 - before)] = 0
        return given

    monkeypatch.setattr(FeatureStream, "feed", blank)
    precision = fault(demo, demo_nemo, clip, 160)
    assert precision.totals["recording"].failures() == []  # which is given its features whole
    first = precision.failures[0]
    assert (first.stage, first.frame, first.step) == ("log-mel", 38, 19)


@pytest.mark.parametrize("part, stage", [("subsampling", "subsampling"), ("layers", "layer 3"), ("decoder", "joint")])
def test_a_wrong_weight_is_the_fault_of_its_stage(demo_nemo, clip, part, stage):
    wrong = load_recognizer(DEMO, CPU)
    if part == "subsampling":
        wrong.encoder.subsampling.out.bias.mul_(1.3)
    elif part == "layers":
        wrong.encoder.layers[3].norm_out[0].mul_(1.02)
    else:
        wrong.decoder.output[1].add_(torch.linspace(0, 2, len(wrong.decoder.output[1])))
    precision = fault(wrong, demo_nemo, clip)
    assert precision.failures[0].stage == stage
    alone = {name for name, t in precision.totals["recording"].alone.tallies.items() if t.exceeds}
    assert alone == {stage}


def test_a_wrong_prediction_network(demo_nemo, clip):
    wrong = load_recognizer(DEMO, CPU)
    wrong.decoder.symbols.mul_(1.05)
    assert fault(wrong, demo_nemo, clip).failures[0].stage == "prediction network"


def test_a_value_that_is_not_a_number(demo, demo_nemo, clip, monkeypatch):
    forward = ConformerLayer.__call__

    def spoiled(self, *args):
        x = forward(self, *args)
        if self is demo.encoder.layers[2] and len(x) > 40:
            x[40, 7] = float("nan")
        return x

    monkeypatch.setattr(ConformerLayer, "__call__", spoiled)
    precision = fault(demo, demo_nemo, clip)
    first = precision.failures[0]
    assert (first.stage, first.frame, first.time) == ("layer 2", 40, 3.2)
    assert first.reason == "1 value of the candidate not finite"
    json.loads(dump(precision.as_dict(FACTS, {"command": []})))


@pytest.mark.parametrize("part, cache", [(1, "keys"), (2, "values")])
def test_a_stale_cache_slot_in_a_stream(demo, demo_nemo, clip, monkeypatch, part, cache):
    step = Encoder.step

    def stale(self, features, state, ends):
        out = step(self, features, state, ends)
        if state.position[0] == 7 * self.chunk:  # the seventh step leaves an old row where its last one belongs
            rows = state.attention.window(1, 0).view(self.keep, self.heads, 3, self.head_width)
            rows[-1, :, part] = rows[-3, :, part]
        return out

    monkeypatch.setattr(Encoder, "step", stale)
    precision = fault(demo, demo_nemo, clip, 160)
    assert precision.totals["recording"].failures() == []
    first = precision.failures[0]
    assert (first.stage, first.step, first.frame) == (f"{cache} of layer 1", 6, 13)


def test_a_stale_convolution_cache_in_a_stream(demo, demo_nemo, clip, monkeypatch):
    step = Encoder.step

    def stale(self, features, state, ends):
        out = step(self, features, state, ends)
        if state.position[0] == 5 * self.chunk:
            state.convolution.window(4, 0)[-2:] = 0
        return out

    monkeypatch.setattr(Encoder, "step", stale)
    first = fault(demo, demo_nemo, clip, 560).failures[0]
    assert (first.stage, first.step) == ("convolution cache of layer 4", 4)


def test_a_swapped_token(demo, demo_nemo, clip, monkeypatch):
    step = Decoder.step

    def swapped(self, *args):
        return [[dataclasses.replace(e, id=e.id ^ (e.frame == third)) for e in slot] for slot in step(self, *args)]

    right = demo.transcribe([clip])[0].tokens[2]
    third = right.frame
    monkeypatch.setattr(Decoder, "step", swapped)
    precision = fault(demo, demo_nemo, clip)
    first = precision.failures[0]
    assert (first.stage, first.frame, first.time) == ("tokens", third, right.time)
    assert "nats behind what the candidate's own joint prefers" in first.reason
    found = precision.totals["recording"].decisions.first_difference
    assert f"({right.id})" in found["reference"] and f"({right.id ^ 1})" in found["candidate"]
    assert found["reference_margin"] > 0 > found["candidate_margin"]
    assert not any(t.exceeds for t in precision.totals["recording"].accumulated.tallies.values())


def test_a_candidate_that_differs_from_itself(demo, demo_nemo, clip, monkeypatch):
    forward, noise = ConformerLayer.__call__, torch.Generator().manual_seed(1)

    def unsteady(self, *args):
        x = forward(self, *args)
        return x + 1e-6 * torch.rand(x.shape, generator=noise) if self is demo.encoder.layers[3] else x

    monkeypatch.setattr(ConformerLayer, "__call__", unsteady)
    first = fault(demo, demo_nemo, clip).failures[0]
    assert first.stage == "layer 3" and "two runs of the candidate differ" in first.reason


def test_a_reference_that_differs_from_itself(demo, demo_nemo, clip, monkeypatch):
    step, count = NemoProbe.step, iter(range(1000))
    monkeypatch.setattr(NemoProbe, "step", lambda *args: step(*args) + 1e-7 * next(count))
    reasons = [f.reason for f in fault(demo, demo_nemo, clip).failures]
    assert any("two runs of the reference differ" in reason for reason in reasons)


def test_a_tighter_bound_fails_what_the_dtypes_own_passes(demo, demo_nemo, clip):
    tight = BOUNDS["float32"].changed("alone=0.000001")
    assert "given the reference's input" in fault(demo, demo_nemo, clip, bounds=tight).failures[0].reason


def test_a_decision_that_differs_is_told_with_both_margins():
    def token(id, frame):
        return Token(id, "x", frame, 0.0)

    theirs = torch.log_softmax(torch.tensor([[0.0, 5.0, 1.0], [3.0, 0.0, 2.99], [0.0, 0.0, 9.0]]), -1).double()
    ours = torch.log_softmax(torch.tensor([[0.0, 5.0, 1.0], [3.0, 0.0, 3.01], [0.0, 0.0, 9.0]]), -1).double()
    path = Path.of((token(1, 0), token(0, 0)), 1, blank=2, max_symbols=None)
    own = Path.of((token(1, 0),), 1, blank=2, max_symbols=None)
    assert path.chosen.tolist() == [1, 0, 2] and own.chosen.tolist() == [1, 2]
    decisions = Decisions()
    decide(decisions, path, own, 0, ours, theirs, str)
    found = decisions.first_difference
    assert (found["frame"], found["reference"], found["candidate"]) == (0, "0", "2")
    assert found["reference_margin"] == pytest.approx(0.01, abs=1e-5)
    assert found["candidate_margin"] == pytest.approx(0.01, abs=1e-5)
    assert (decisions.steps, decisions.undecided, decisions.search_fault) == (3, 1, None)
    assert decisions.smallest_margin == pytest.approx(0.01, abs=1e-5) and decisions.margins.sum() == 3


def test_a_candidate_that_says_far_more_has_no_equal_tokens_rather_than_fewer_than_none():
    decisions = Decisions(reference_tokens=2, token_errors=5)
    assert decisions.equal_tokens == decisions.as_dict()["equal_tokens"] == 0


def test_a_frame_that_is_full_of_tokens_has_no_blank():
    tokens = tuple(Token(1, "x", 0, 0.0) for _ in range(3))
    assert Path.of(tokens, 2, blank=9, max_symbols=3).chosen.tolist() == [1, 1, 1, 9]
    assert Path.of(tokens, 2, blank=9, max_symbols=None).chosen.tolist() == [1, 1, 1, 9, 9]


@pytest.mark.parametrize("dtype", [dtype for dtype in offered_dtypes(CPU) if dtype != "float32"])
def test_a_smaller_dtype_is_held_to_its_own_bounds(demo_nemo, clip, dtype):
    precision = Precision(
        load_recognizer(DEMO, CPU, options=ModelOptions(dtype=dtype)), demo_nemo, read_config(DEMO), chunk_ms=1120
    )
    precision.add("digits.wav", clip)
    assert precision.passed, precision.failures
    assert precision.totals["recording"].accumulated["encoder output"].percent > 0.05
    strict = Precision(precision.candidate, demo_nemo, read_config(DEMO), BOUNDS["float32"], 1120)
    strict.add("digits.wav", clip[:16000])
    assert not strict.passed


# ---------------------------------------------------------------- the report


class Page(HTMLParser):
    """The elements, attributes and text of a page; raises AssertionError where tags do not match."""

    VOID = {"meta", "link", "img", "br"}

    def __init__(self, html):
        super().__init__()
        self.open, self.tags, self.references, self.content = [], [], [], []
        self.feed(html)
        self.close()
        assert not self.open

    def handle_starttag(self, tag, attributes):
        self.tags.append(tag)
        self.references += [value for name, value in attributes if name in ("src", "href", "srcset", "xlink:href")]
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attributes):
        self.tags.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.content.append(data)


@pytest.fixture(scope="module")
def report(proof, tmp_path_factory):
    return write_report(proof, FACTS, environment(DEMO), tmp_path_factory.mktemp("report") / "new")


def test_the_json_is_as_its_schema_says(report):
    document = json.loads(report.with_name("precision.json").read_text())
    jsonschema.validate(document, SCHEMA)
    assert document["verdict"] == "PASSED" and document["walks"]["stream, 80 ms"]["decisions"]["token_errors"] == 0
    assert document["environment"]["nemo"] and document["environment"]["torch_npu"] is None
    over_time = document["walks"]["stream, 560 ms"]["error_over_time"]
    assert len(over_time["seconds"]) == len(over_time["percent"]) == document["walks"]["recording"]["frames"]
    for walk_ in document["walks"].values():
        assert sum(walk_["margin_histogram"]["margins"]) == walk_["decisions"]["steps"]


def test_the_page_says_the_verdict_first_and_needs_nothing_from_outside(report):
    html = report.read_text()
    page = Page(html)
    assert "script" not in page.tags and "@import" not in html and "url(" not in html
    assert all(reference.startswith("data:") for reference in page.references)
    text = " ".join(" ".join(page.content).split())
    assert text.index("PASSED") < text.index("Error by stage") < text.index("Stage by stage")
    for part in ("8 of 8", "Margins against errors", "Error over stream time", "Difference of the log-mel", "layer 4"):
        assert part in text
    assert page.tags.count("svg") == 3 and page.tags.count("img") >= 4
    assert "prefers-color-scheme: dark" in html and "width=device-width" in html


def test_the_page_of_a_failure_names_it_first_and_shows_what_users_call_their_files(demo, demo_nemo, clip, tmp_path):
    precision = Precision(demo, demo_nemo, read_config(DEMO), BOUNDS["float32"].changed("joint=0"), 560)
    precision.add("<b>&.wav", clip[:32000])
    html = write_report(precision, FACTS, environment(DEMO), tmp_path).read_text()
    text = " ".join(" ".join(Page(html).content).split())
    assert text.index("FAILED") < text.index("First at joint") < text.index("Error by stage")
    assert "<b>&" not in html and "<b>&.wav" in text


@pytest.mark.parametrize("width", [400, 1600])
def test_a_browser_shows_the_page_without_complaint_and_without_scrolling_sideways(report, chromium, tmp_path, width):
    probe = "<script>document.title=`${document.documentElement.scrollWidth} of ${innerWidth}`</script></body>"
    page = tmp_path / "page.html"
    page.write_text(report.read_text().replace("</body>", probe))
    dom, log = chromium(page, width)
    title = dom.split("<title>")[1].split("</title>")[0]
    needed, there = map(int, title.split(" of "))
    assert needed <= there and "CONSOLE" not in log


def test_a_report_takes_names_that_are_no_text_and_a_command_that_can_be_run_again(proof, tmp_path):
    found = {**environment(DEMO), "command": ["inference.py", "my talk.wav"]}
    page = write_report(proof, {**FACTS, "model": "demo\udcff.nemo"}, found, tmp_path)
    assert json.loads(page.with_name("precision.json").read_text())["candidate"]["model"] == "demo\udcff.nemo"
    assert "inference.py &#x27;my talk.wav&#x27;" in page.read_text() and r"demo\udcff.nemo" in page.read_text()


def test_a_recording_too_short_for_a_frame_is_equal_and_reported(recognizer, nemo, tiny, tmp_path):
    precision = Precision(recognizer, nemo, read_config(tiny))
    precision.add("click.wav", np.zeros(80, np.float32))
    page = write_report(precision, FACTS, environment(tiny), tmp_path)
    jsonschema.validate(json.loads(page.with_name("precision.json").read_text()), SCHEMA)
    assert precision.passed and "click.wav" in " ".join(Page(page.read_text()).content)
    assert "0 of 0 equal" in stage_table(precision, FACTS)


def test_versions_of_cann_and_driver_are_read_where_ascend_keeps_them(tmp_path, monkeypatch):
    import platform

    from nemotron_npu.host import ascend

    folder = tmp_path / f"{platform.machine()}-linux"
    folder.mkdir()
    (folder / "ascend_toolkit_install.info").write_text("package_name=Ascend-cann-toolkit\nversion=8.5.1\n")
    (tmp_path / "version.info").write_text("Version=25.2.0\nascendhal_version=7.35.23\n")
    monkeypatch.setenv("ASCEND_TOOLKIT_HOME", str(tmp_path))
    monkeypatch.setattr(ascend, "DRIVER", tmp_path / "version.info")
    found = environment(DEMO)
    assert (found["cann"], found["npu_driver"]) == ("8.5.1", "25.2.0")
    monkeypatch.delenv("ASCEND_TOOLKIT_HOME")
    monkeypatch.delenv("ASCEND_HOME_PATH", raising=False)
    monkeypatch.setattr(ascend, "DRIVER", tmp_path / "none")
    assert environment(DEMO)["cann"] is None and environment(DEMO)["npu_driver"] is None
