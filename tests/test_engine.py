"""Choosing the engine, and what the native one costs."""

from __future__ import annotations

import json
import sys

import numpy as np
import pytest
import soundfile
import torch
from checkpoints import TINY_SIZE, make_random_checkpoint
from support import CLIP, CLIP_WORDS, ROOT, run_process

from nemotron_npu.audio import read_audio
from nemotron_npu.benchmark.steps import steady_step
from nemotron_npu.benchmark.timing import count_operators
from nemotron_npu.engine import ModelOptions
from nemotron_npu.errors import SetupError, Unsupported
from nemotron_npu.recognizer import Recognizer, load_recognizer

CPU = torch.device("cpu")
PREDNET = {"pred_hidden": 32, "pred_rnn_layers": 2, "t_max": None, "dropout": 0}
DEMO = ROOT / "demo" / "demo.nemo"


@pytest.fixture(scope="module")
def demo() -> Recognizer:
    return Recognizer(DEMO, CPU)


def test_a_native_transcription_and_stream_import_neither_nemo_nor_what_it_needs():
    code = """
import sys, torch
from pathlib import Path
from nemotron_npu.recognizer import load_recognizer
from nemotron_npu.audio import read_audio
recognizer = load_recognizer(Path("demo/demo.nemo"), torch.device("cpu"))
print(recognizer.transcribe(["demo/digits.wav"])[0].text)
with recognizer.stream() as stream:
    stream.feed(read_audio("demo/digits.wav"))
print(stream.text)
print(sorted({"nemo", "lightning", "transformers", "librosa", "omegaconf", "hydra", "pandas"} & set(sys.modules)))
"""
    result = run_process("-c", code, cwd=ROOT)
    assert result.stdout.splitlines() == [CLIP_WORDS, CLIP_WORDS, "[]"], result.stderr


def test_a_checkpoint_that_the_native_engine_does_not_know_is_named_and_runs_on_nemo(cli, tmp_path):
    pytest.importorskip("nemo")
    path = tmp_path / "other.nemo"
    make_random_checkpoint(path, TINY_SIZE, encoder={"self_attention_model": "abs_pos"})
    code, out, err = cli("--model_path", path, CLIP, "--device", "cpu", "--output_format", "json")
    document = json.loads(out)
    assert code == 0 and document["engine"] == "nemo"
    assert "other.nemo: not supported by the native engine: encoder.self_attention_model: abs_pos" in err
    code, _, err = cli("--model_path", path, "--stream", CLIP, "--device", "cpu", "--quiet")
    assert code == 2 and "native engine" in err and len(err.splitlines()) == 1


@pytest.mark.parametrize(
    "parts, reason",
    [
        (dict(preprocessor={"normalize": "per_feature"}), "normalize: per_feature"),
        (dict(encoder={"conv_norm_type": "group_norm8"}), "conv_norm_type"),
        (dict(encoder={"subsampling": "stacking"}), "subsampling"),
        (dict(decoder={"normalization_mode": "layer", "prednet": PREDNET}), "normalization_mode"),
        (dict(decoding={"strategy": "beam", "beam": {"beam_size": 2}}), "decoding.strategy: beam"),
    ],
)
def test_what_the_native_engine_does_not_know_is_said(tmp_path, parts, reason):
    make_random_checkpoint(tmp_path / "other.nemo", TINY_SIZE, speak=False, **parts)
    with pytest.raises(Unsupported, match=reason):
        Recognizer(tmp_path / "other.nemo", CPU)


def test_a_model_of_the_whole_recording_transcribes_but_does_not_stream(tmp_path):
    path = tmp_path / "whole.nemo"
    make_random_checkpoint(path, TINY_SIZE, encoder={"att_context_style": "regular", "att_context_size": [-1, -1]})
    recognizer = Recognizer(path, CPU)
    assert recognizer.transcribe([str(CLIP)])[0].tokens
    with pytest.raises(SetupError, match="whole recording"):
        recognizer.stream()


def test_a_steady_step_of_24_layers_takes_at_most_650_operators(tmp_path):
    make_random_checkpoint(tmp_path / "deep.nemo", TINY_SIZE, speak=False, encoder={"n_layers": 24})
    for chunk_ms in (80, 160, 560, 1120):
        assert (
            500
            < count_operators(
                steady_step(Recognizer(tmp_path / "deep.nemo", CPU, options=ModelOptions(chunk_ms=chunk_ms)))
            )
            <= 650
        )


def test_a_long_recording_needs_no_more_memory_than_a_short_one(tmp_path):
    peaks = []
    for minutes in (1, 20):
        path = tmp_path / f"{minutes}.wav"
        noise = np.random.default_rng(0).normal(0, 0.05, 44100 * 60).astype(np.float32)
        with soundfile.SoundFile(path, "w", 44100, 1) as file:
            for _ in range(minutes):
                file.write(noise)
        code = "import sys, inference\nassert inference.main(sys.argv[1:]) == 0\n"
        code += "import torch; from nemotron_npu.device import peak_memory\n"
        code += "print(peak_memory(torch.device('cpu'))['host'])"
        result = run_process("-c", code, path, "--quiet", "--device", "cpu", cwd=ROOT)
        peaks.append(int(result.stdout.splitlines()[-1]) / 2**20)
    assert peaks[1] - peaks[0] < 60, f"MiB for 1 and 20 minutes: {peaks}"


def test_slots_are_refilled_and_results_are_in_input_order(demo):
    clip = read_audio(str(CLIP))
    sources = [clip[:16000], clip, str(CLIP), clip[:100], np.concatenate([clip, clip]), clip[:40000], clip]
    alone = [demo.transcribe([source])[0] for source in sources]
    for slots in (2, 3, 7):
        together = demo.transcribe(sources, slots)
        assert [t.text for t in together] == [t.text for t in alone]
        assert [[token.frame for token in t.tokens] for t in together] == [
            [token.frame for token in t.tokens] for t in alone
        ]
    whole, four = np.tile(clip, 3), [clip[:20000], np.tile(clip, 3), clip[:9000], clip[:3000]]
    alone, late = demo.transcribe([whole])[0], demo.transcribe(four, 4)[1]  # idle slots leave on the way
    assert [(t.id, t.frame) for t in late.tokens] == [(t.id, t.frame) for t in alone.tokens]
    order = [index for index, _ in demo.results(sources, 2)]
    assert order.index(0) < order.index(1) and order.index(3) < order.index(4), "each as soon as it is done"


def test_a_failure_inside_the_model_costs_only_its_own_recording(demo, monkeypatch):
    clip, poison = read_audio(str(CLIP)), np.full(50000, 0.123, np.float32)
    step, bad = demo.encoder.step, demo.preprocess([poison])[0][0, :, 50]

    def failing(features, state, ends):
        if (features == bad).all(-1).any():
            raise RuntimeError("the device said no")
        return step(features, state, ends)

    monkeypatch.setattr(demo.encoder, "step", failing)
    results = dict(demo.results([clip, poison, clip[:16000], clip], slots=3))
    assert [results[i].text for i in (0, 2, 3)] == [CLIP_WORDS, "three", CLIP_WORDS]
    assert isinstance(results[1], RuntimeError)


def test_tokens_have_probabilities_frames_and_times(demo):
    tokens = demo.transcribe([str(CLIP)])[0].tokens
    assert all(0 < token.probability <= 1 for token in tokens)
    assert all(token.time == pytest.approx(token.frame * 0.08) for token in tokens)


def test_a_stream_refuses_what_is_no_mono_sound_and_what_comes_after_its_end(demo):
    with demo.stream() as stream, pytest.raises(ValueError, match="one channel"):
        stream.feed(np.zeros((100, 2), np.float32))
    with pytest.raises(ValueError, match="has ended"):
        stream.feed(np.zeros(100, np.float32))


def test_streams_side_by_side_do_not_disturb_each_other(demo):
    clip = read_audio(str(CLIP))
    streams = [demo.stream() for _ in range(5)]
    cursors = [0] * 5
    rng = np.random.default_rng(0)
    while any(cursor < len(clip) for cursor in cursors):
        i = rng.integers(5)
        count = int(rng.integers(1, 9000))
        streams[i].feed(clip[cursors[i] : cursors[i] + count])
        cursors[i] += count
    assert {stream.finish().text for stream in streams} == {CLIP_WORDS}


def test_the_text_of_a_long_stream_is_that_of_the_file(demo, monkeypatch):
    monkeypatch.setattr("nemotron_npu.streaming.SETTLE_TOKENS", 5)
    clip = np.tile(read_audio(str(CLIP)), 4)
    with demo.stream() as stream:
        seen = ""
        for first in range(0, len(clip), 5000):
            stream.feed(clip[first : first + 5000])
            assert stream.text.startswith(seen)
            seen = stream.text
    assert stream.text == demo.transcribe([clip])[0].text
    assert stream.settled > 5


def test_nemo_stays_available_by_name(cli):
    pytest.importorskip("nemo")
    code, out, _ = cli(CLIP, "--engine", "nemo", "--device", "cpu", "--output_format", "json")
    document = json.loads(out)
    assert (code, document["engine"], document["text"]) == (0, "nemo", CLIP_WORDS)
    assert load_recognizer(DEMO, CPU, options=ModelOptions("nemo")).engine == "nemo" and "nemo" in sys.modules
