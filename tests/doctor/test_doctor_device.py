"""``doctor/device.py``, ``checkpoint.py`` and ``model.py`` on a CPU.  On the fake npu: ``on_fake_npu/``."""

from types import SimpleNamespace

import pytest
import torch
from doctors import DEMO, found, states
from support import CLIP

from nemotron_npu.doctor import checkpoint, device, model
from nemotron_npu.doctor.finding import Context
from nemotron_npu.errors import Unsupported
from nemotron_npu.recognizer import Recognizer, Stream


@pytest.fixture(scope="module")
def demo():
    """A context on the CPU whose demo model is loaded."""
    context = Context("cpu", demo=DEMO, clip=CLIP)
    assert states(found("engine", context)) == ["ok"]
    return context


@pytest.mark.parametrize("count, words", [(1.0, "1 core;"), (1.5, "1.5 cores;"), (2.0, "2 cores;")])
def test_cores_are_counted_in_singular_and_plural(demo, monkeypatch, count, words):
    """A container may have a part of a core."""
    monkeypatch.setattr(device, "cores", lambda: count)
    assert f", {words} this model" in found("memory", demo)[0].found


@pytest.mark.skipif(torch.cuda.is_available(), reason="this host has a GPU")
def test_device_that_is_missing_is_a_problem():
    (finding,) = found("device", device="cuda:0")
    assert finding.state == "problem" and finding.fix.startswith(("pip install", "nvidia-smi"))
    assert [(f.state, f.found) for f in found("arithmetic", device="cuda:0")] == [("not checked", "device")]


@pytest.mark.parametrize(
    "memory, state, fix",
    [
        ((9e9, 9e9, False), "ok", ""),
        ((1e8, 9e9, False), "warning", "ps aux"),
        ((1e8, 1e8, False), "problem", "--dtype int8"),
        ((1e8, 1e8, True), "problem", "docker run --memory"),
    ],
)
def test_memory_that_is_too_small_for_the_model(demo, monkeypatch, memory, state, fix):
    """It is a warning where other programs could free it, a problem where the machine or container has too little."""
    monkeypatch.setattr(device, "free_memory", lambda: memory)
    (finding,) = found("memory", demo)
    assert finding.state == state and fix in finding.fix
    assert ("container" in finding.found) == memory[2]


def test_checkpoint_shows_file_name_class_chunks_and_hash(demo):
    kind, digest = found("checkpoint", demo)
    assert kind.found == "demo.nemo: EncDecRNNTBPEModel, chunks of 80, 160, 560, 1120 ms, 8,980,480 bytes"
    assert digest.found.startswith("SHA-256 95479ed429ca")
    assert found("engine", demo)[0].found == "2,144,405 parameters, saved in float32: the native engine runs it"


def test_published_checkpoint_is_named_by_its_hash(demo, monkeypatch):
    digest = "283638054c44f6794e74fe9af9048d78a6d9d6c058c12131856c7859a62ac9cd"
    monkeypatch.setattr(checkpoint, "sha256", lambda path: digest)
    published = "the published nemotron-speech-streaming-en-0.6b of March 2026"
    assert found("checkpoint", demo)[1].found == f"SHA-256 {digest}: {published}"


@pytest.mark.parametrize(
    "name, words",
    [
        ("missing/none.nemo", "none.nemo: no such file"),
        ("folder", "folder: "),
        ("text/bad.nemo", "bad.nemo: "),
        ("acme/voice", "voice.nemo was not downloaded"),
    ],
)
def test_checkpoint_that_cannot_be_read_is_a_problem(tmp_path, monkeypatch, name, words):
    """It is shown by its file name only; memory, engine and forward pass are not checked."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "folder").mkdir()
    (tmp_path / "text").mkdir()
    (tmp_path / "text" / "bad.nemo").write_text("no archive")
    context = Context("cpu", name, demo=DEMO)
    (finding,) = found("checkpoint", context)
    assert finding.state == "problem" and finding.found.startswith(words) and finding.fix
    for check in ("memory", "engine"):
        assert [(f.state, f.found) for f in found(check, context)] == [("not checked", "checkpoint")]
    assert [(f.state, f.found) for f in found("forward pass", context)] == [("not checked", "engine")]


def test_engine_with_broken_or_unsupported_weights(tmp_path, monkeypatch):
    """Broken weights are a problem; a model class that only NeMo supports is a warning."""
    (tmp_path / "cut.nemo").write_bytes(DEMO.read_bytes()[:4_000_000])
    (finding,) = found("engine", model_path=str(tmp_path / "cut.nemo"))
    assert finding.state == "problem" and finding.found.startswith("cut.nemo: ")
    assert found("memory", model_path=str(tmp_path / "cut.nemo"))[0].found == "engine"
    assert found("forward pass", model_path=str(tmp_path / "cut.nemo"))[0].found == "engine"
    monkeypatch.setattr(Recognizer, "__init__", lambda *_, **__: (_ for _ in ()).throw(Unsupported("spliced frames")))
    (finding,) = found("engine")
    assert finding.state == "warning" and "does not support spliced frames; NeMo runs" in finding.found
    assert [(f.state, f.found) for f in found("forward pass")] == [("not checked", "engine")]


def test_forward_pass_finds_a_cpu_with_wrong_results(demo, monkeypatch):
    assert states(found("arithmetic", demo)) == states(found("forward pass", demo)) == ["ok"]
    finish = Stream.finish
    monkeypatch.setattr(Stream, "finish", lambda self: SimpleNamespace(tokens=finish(self).tokens[1:]))
    (finding,) = found("forward pass", demo)
    assert finding.state == "problem" and "a live stream gives other tokens" in finding.found
    assert "--precision_compare" in finding.fix
    monkeypatch.setattr(model, "DEMO_WORDS", "other words")
    assert "instead of 'other words'" in found("forward pass", demo)[0].found
