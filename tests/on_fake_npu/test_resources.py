"""A device whose memory is full gets smaller batches, and overflows of float16 there are reported."""

import fake_npu
import pytest
import torch
from support import CLIP, CLIP_WORDS, ROOT
from test_inference import NPU, tokens

from nemotron_npu.audio import read_audio
from nemotron_npu.engine import ModelOptions
from nemotron_npu.errors import ModelError
from nemotron_npu.recognizer import Recognizer, load_recognizer

fake_npu.install()

DEMO = ROOT / "demo" / "demo.nemo"


@pytest.fixture
def memory(monkeypatch):
    """``memory(mb)``: leave so many megabytes besides those that are in use."""

    def limit(megabytes: float) -> None:
        monkeypatch.setattr(fake_npu, "MEMORY", int(torch.npu.memory_allocated() + 1e6 * megabytes))

    return limit


@pytest.fixture(scope="module")
def waveforms():
    clip = read_audio(str(CLIP))
    return [clip, clip[3000:], clip[:40000]]


def test_full_device_gets_smaller_batches_and_equal_tokens(memory, waveforms):
    """A full device gets smaller batches and blocks, with the same tokens."""
    recognizer, messages = Recognizer(DEMO, NPU), []
    recognizer.announce = messages.append
    expected = tokens(recognizer.transcribe(waveforms, 3))
    for megabytes, words in (
        (8, "1 recording at a time and blocks of 4480 ms"),
        (3, "1 recording at a time and blocks of 1120 ms"),
    ):
        memory(megabytes)
        assert tokens(recognizer.transcribe(waveforms, 3)) == expected
        assert messages[-1] == f"npu:0: out of memory (continuing with {words})"
    assert len(messages) == 2
    memory(1)
    results = dict(recognizer.results(waveforms, 3))
    assert sorted(results) == [0, 1, 2] and len(messages) == 2
    for error in results.values():
        assert isinstance(error, ModelError) and "npu:0: not enough memory for this recording" in str(error)


def test_command_line_on_a_full_device_reports_once(cli, memory, tmp_path):
    """The command line continues with a smaller batch and reports it once."""
    memory(20)
    files = [tmp_path / f"{number}.wav" for number in range(4)]
    for file in files:
        file.write_bytes(CLIP.read_bytes())
    code, out, err = cli(*files, "--device", "npu:0", "--batch_size", 4)
    assert code == 0 and out.splitlines() == [f"{file}: {CLIP_WORDS}" for file in files]
    assert err.count("npu:0: out of memory (continuing with ") == 1


def test_weights_that_do_not_fit_are_an_error_line(cli, memory):
    """Weights that do not fit into the memory are one error line."""
    memory(1)
    code, out, err = cli(CLIP, "--device", "npu:0", "--quiet")
    assert (code, out) == (2, "") and len(err.splitlines()) == 1
    assert err.startswith("inference.py: npu:0: not enough memory for demo.nemo: NPU out of memory")


def test_float16_overflow_names_the_layer_and_other_dtypes(tiny, waveforms):
    """An overflow of float16 names the layer, and the dtypes that do not overflow."""
    recognizer = load_recognizer(tiny, NPU, options=ModelOptions(dtype="float16"))
    with torch.inference_mode():
        recognizer.encoder.layers[1].feed_forward2.linear2.weight.mul_(6e4)
        recognizer.encoder.layers[1].feed_forward2.norm.weight.mul_(6e4)
    fake_npu.COPIES.clear()
    error = dict(recognizer.results(waveforms[:1]))[0]
    assert isinstance(error, ModelError), error
    assert str(error) == (
        "encoder output: not finite (NaN or infinity), first in layer 1, at 0.00 s "
        "(float16 ends at 65504: use --dtype bfloat16 or float32)"
    )
    with pytest.raises(ModelError, match="first in layer 1"), recognizer.stream() as stream:
        stream.feed(waveforms[0])


def test_decoder_on_the_device_detects_not_finite_output(tiny, waveforms):
    """A decoder on the device reports output that is not finite."""
    recognizer = load_recognizer(tiny, NPU, options=ModelOptions(decoder_device=NPU))
    results = []
    for bad in (False, True):
        if bad:
            with torch.inference_mode():
                recognizer.encoder.layers[0].norm_out[0][3] = float("nan")
        fake_npu.COPIES.clear()
        results.append(dict(recognizer.results(waveforms[:1]))[0])
    assert not isinstance(results[0], Exception)
    assert "encoder output: not finite (NaN or infinity), first in layer 0" in str(results[1])
