"""Confidences have the formulas of NeMo 2.7.3, and its values on the same model."""

from __future__ import annotations

import json

import pytest
import torch
from support import CLIP, ROOT

from nemotron_npu.audio import read_audio
from nemotron_npu.confidence import ALPHA, METHODS, confidence, statistic

DEMO = ROOT / "demo" / "demo.nemo"


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("size", [29, 53, 1025])
def test_confidence_formulas_equal_nemos_for_any_distribution(method, size):
    """Each formula gives NeMo's value for distributions from flat to sharp."""
    from nemo.collections.asr.parts.utils.asr_confidence_utils import get_confidence_measure_bank

    torch.manual_seed(size)
    spread = torch.logspace(-2, 1.5, 64)[:, None]
    logs = (torch.randn(64, size) * spread).log_softmax(-1)
    measure = get_confidence_measure_bank()[method if method == "max_prob" else f"entropy_{method}_exp"]
    theirs = measure(logs.double(), size, 1.0 if method == "max_prob" else ALPHA).tolist()
    ours = [confidence(s, method, size) for s in statistic(logs.double(), method).tolist()]
    assert ours == pytest.approx(theirs, abs=1e-9)
    assert all(-1e-6 <= c <= 1 + 1e-6 for c in ours)


@pytest.mark.parametrize("method", METHODS)
def test_confidence_is_0_for_uniform_and_1_for_certain(method):
    """Each method gives 0 for a uniform distribution and 1 for a certain one."""
    size = 1025
    uniform = torch.zeros(size).log_softmax(-1)
    certain = torch.full((size,), -200.0).index_fill(0, torch.tensor(3), 0.0).log_softmax(-1)
    assert confidence(float(statistic(uniform, method)), method, size) == pytest.approx(0, abs=1e-3)
    assert confidence(float(statistic(certain, method)), method, size) == pytest.approx(1, abs=1e-6)


@pytest.fixture(scope="module")
def waveforms():
    clip = read_audio(str(CLIP))
    return [clip, clip[:40000], clip[20000:]]


@pytest.mark.parametrize("checkpoint", ["demo", "tiny"])
@pytest.mark.parametrize("method", METHODS)
def test_confidences_of_both_engines_are_equal_parity(checkpoint, method, tiny, waveforms, engines):
    """Both engines give the same tokens and words the same confidences."""
    native, nemo = engines(DEMO if checkpoint == "demo" else tiny)
    native.measure_confidence(method)
    nemo.measure_confidence(method)
    for ours, theirs in zip(native.transcribe(waveforms, slots=2), nemo.transcribe(waveforms), strict=True):
        assert len(ours.tokens) > 1 and [t.id for t in ours.tokens] == [t.id for t in theirs.tokens]
        assert [t.confidence for t in ours.tokens] == pytest.approx([t.confidence for t in theirs.tokens], abs=5e-5)
        assert [w.confidence for w in ours.words] == pytest.approx([w.confidence for w in theirs.words], abs=5e-5)


def test_word_confidences_equal_nemos_own(waveforms, engines):
    """The confidences of words are NeMo's own ``word_confidence``."""
    native, nemo = engines(DEMO)
    native.measure_confidence("tsallis")
    nemo.measure_confidence("tsallis")
    model = nemo.model
    decoding = model.cfg.decoding.copy()
    decoding.confidence_cfg.preserve_word_confidence = True
    model.change_decoding_strategy(decoding, verbose=False)
    features, lengths = nemo.preprocess(waveforms[:1])
    encoded, frames = nemo.encode(features, lengths)
    hypothesis = model.decoding.rnnt_decoder_predictions_tensor(encoded, frames, return_hypotheses=True)[0]
    expected = [float(c) for c in hypothesis.word_confidence]
    assert len(expected) == 8
    assert [w.confidence for w in native.transcribe(waveforms[:1])[0].words] == pytest.approx(expected, abs=1e-5)


def test_live_stream_has_the_confidences_of_the_file(waveforms, engines):
    """A live stream gives its tokens the confidences of the file."""
    native, _ = engines(DEMO)
    native.measure_confidence("gibbs")
    with native.stream() as stream:
        for first in range(0, len(waveforms[0]), 3000):
            stream.feed(waveforms[0][first : first + 3000])
    expected = native.transcribe(waveforms[:1])[0]
    assert [t.confidence for t in stream.finish().tokens] == pytest.approx(
        [t.confidence for t in expected.tokens], abs=1e-5
    )


def test_confidence_methods_synchronize_equally_often(waveforms, engines, monkeypatch):
    """No method makes the decoder read more values from the device than another."""
    native, _ = engines(DEMO)
    looks = {}
    tolist = torch.Tensor.tolist
    for method in METHODS:
        count = []
        monkeypatch.setattr(torch.Tensor, "tolist", lambda tensor, count=count: count.append(1) or tolist(tensor))
        native.measure_confidence(method)
        native.transcribe(waveforms[:1])
        looks[method] = len(count)
    monkeypatch.undo()
    assert len(set(looks.values())) == 1 and looks["max_prob"] > 8


def test_confidence_option_selects_the_method(cli):
    """The command line measures by max_prob unless --confidence names another method; NeMo measures on request only."""

    def confidences(*options):
        code, out, _ = cli(CLIP, "--device", "cpu", "--output_format", "json", "--quiet", *options)
        assert code == 0
        return [token["confidence"] for token in json.loads(out)["tokens"]]

    usual = confidences()
    assert usual == confidences("--confidence", "max_prob") != confidences("--confidence", "tsallis")
    assert confidences("--engine", "nemo") == [None] * 8, "NeMo is only asked to measure when the user asks"
    assert confidences("--engine", "nemo", "--confidence", "max_prob") == pytest.approx(usual, abs=1e-5)
    assert cli(CLIP, "--confidence", "guess")[0] == 2
