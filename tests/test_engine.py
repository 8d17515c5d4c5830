"""The native engine is chosen where it supports the checkpoint, and stays within its costs."""

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
from nemotron_npu.engine import LocalEngine, ModelOptions
from nemotron_npu.errors import SetupError, Unsupported
from nemotron_npu.recognizer import Recognizer, load_recognizer

CPU = torch.device("cpu")
PREDNET = {"pred_hidden": 32, "pred_rnn_layers": 2, "t_max": None, "dropout": 0}
DEMO = ROOT / "demo" / "demo.nemo"


@pytest.fixture(scope="module")
def demo() -> Recognizer:
    return Recognizer(DEMO, CPU)


def test_native_engine_does_not_import_nemo_or_its_dependencies():
    """A native transcription and a native stream import neither NeMo nor its dependencies."""
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


def test_checkpoint_unknown_to_the_native_engine_runs_on_nemo(cli, tmp_path):
    """A checkpoint that the native engine does not support runs on NeMo, with a message; streaming it is refused."""
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
    ],
)
def test_unsupported_setting_is_named(tmp_path, parts, reason):
    """The error of an unsupported checkpoint names the setting."""
    make_random_checkpoint(tmp_path / "other.nemo", TINY_SIZE, speak=False, **parts)
    with pytest.raises(Unsupported, match=reason):
        Recognizer(tmp_path / "other.nemo", CPU)


def test_model_of_unlimited_context_does_not_stream(tmp_path):
    """A model that needs the whole recording transcribes files and refuses to stream."""
    path = tmp_path / "whole.nemo"
    make_random_checkpoint(path, TINY_SIZE, encoder={"att_context_style": "regular", "att_context_size": [-1, -1]})
    recognizer = Recognizer(path, CPU)
    assert recognizer.transcribe([str(CLIP)])[0].tokens
    with pytest.raises(SetupError, match="whole recording"):
        recognizer.stream()


def test_steady_step_of_24_layers_takes_650_operators_at_most(tmp_path):
    """A steady encoder step of 24 layers calls 650 operators at most."""
    make_random_checkpoint(tmp_path / "deep.nemo", TINY_SIZE, speak=False, encoder={"n_layers": 24})
    for chunk_ms in (80, 160, 560, 1120):
        assert (
            500
            < count_operators(
                steady_step(Recognizer(tmp_path / "deep.nemo", CPU, options=ModelOptions(chunk_ms=chunk_ms)))
            )
            <= 650
        )


def test_long_recording_needs_no_more_memory_than_a_short_one(tmp_path):
    """A recording of 20 minutes needs no more memory than one of a minute."""
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


def test_batch_slots_are_refilled_and_keep_results_equal(demo):
    """Recordings in refilled batch slots give the results of each alone, each as soon as it is done."""
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


def test_failure_inside_the_model_is_limited_to_its_recording(demo, monkeypatch):
    """A failure inside the model is the result of its own recording and of no other."""
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
    """Each token has a probability, a frame and a time."""
    tokens = demo.transcribe([str(CLIP)])[0].tokens
    assert all(0 < token.probability <= 1 for token in tokens)
    assert all(token.time == pytest.approx(token.frame * 0.08) for token in tokens)


def test_nemo_engine_is_available_by_name(cli):
    """--engine nemo and ``ModelOptions("nemo")`` select NeMo."""
    pytest.importorskip("nemo")
    code, out, _ = cli(CLIP, "--engine", "nemo", "--device", "cpu", "--output_format", "json")
    document = json.loads(out)
    assert (code, document["engine"], document["text"]) == (0, "nemo", CLIP_WORDS)
    nemo = load_recognizer(DEMO, CPU, options=ModelOptions("nemo"))
    assert nemo.engine == "nemo" and "nemo" in sys.modules
    assert isinstance(nemo, LocalEngine)


def test_native_engine_satisfies_the_protocol(demo):
    """mypy checks the signatures, at the returns of ``load_recognizer``."""
    assert isinstance(demo, LocalEngine)
