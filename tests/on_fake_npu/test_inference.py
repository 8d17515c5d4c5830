"""The command line on ``npu:0``: the same results, and everything really happens on the device."""

import json

import fake_npu
import pytest
import torch
from support import CLIP

from nemotron_npu.audio import read_audio, sine
from nemotron_npu.device import choose_device
from nemotron_npu.errors import SetupError
from nemotron_npu.precision import compare
from nemotron_npu.recognizer import load_recognizer

fake_npu.install()


@pytest.fixture(scope="module")
def both(tiny):
    npu, _ = choose_device("npu:0")
    return load_recognizer(tiny, npu), load_recognizer(tiny, torch.device("cpu"))


def test_the_whole_path_gives_the_tokens_of_the_cpu(both):
    waveforms = [read_audio(str(CLIP)), sine(), read_audio(str(CLIP))[:30000]]
    on_npu, on_cpu = (recognizer.transcribe(waveforms) for recognizer in both)
    assert on_npu == on_cpu
    assert len(on_cpu[0].tokens) > 10


def test_features_and_encoder_output_stay_on_the_device_and_equal_those_of_the_cpu(both):
    features, lengths = both[0].preprocess([sine()])
    encoded, frames = both[0].encode(features, lengths)
    assert all(tensor.device == torch.device("npu:0") for tensor in (features, lengths, encoded, frames))
    comparison = compare(*both, sine())
    assert comparison.passed and comparison.encoder.max_error < 1e-5


def test_all_weights_are_on_the_device(both):
    model = both[0].model
    assert {p.device for p in [*model.parameters(), *model.preprocessor.buffers()]} == {torch.device("npu:0")}


def test_the_samples_are_moved_and_every_stage_is_computed_on_the_device(both):
    fake_npu.OPS.clear()
    fake_npu.COPIES.clear()
    both[0].transcribe([sine()])
    assert sum(size for way, size in fake_npu.COPIES if way == "h2d") >= 16000 * 4
    ran = set(fake_npu.OPS)
    for stage in ("aten._fft_r2c", "aten.log", "aten.convolution", "aten.native_layer_norm", "aten.embedding"):
        assert stage in ran or stage.replace("convolution", "_conv_depthwise2d") in ran, (stage, sorted(ran))
    assert ran & {"aten.lstm", "aten.addmm", "aten.mm", "aten.linear"}
    largest_back = max(size for way, size in fake_npu.COPIES if way == "d2h")
    assert largest_back < 16000, "only tokens come back, no features and no encoder output"


def test_no_float64_ever_reaches_the_device(both):
    fake_npu.DTYPES.clear()
    both[0].transcribe([sine()])
    both[0].encode(*both[0].preprocess([sine()]))
    assert torch.float32 in fake_npu.DTYPES
    assert not fake_npu.DTYPES & {torch.float64, torch.complex128}


def test_an_operator_that_the_device_lacks_is_one_line_for_that_file(cli, tiny):
    fake_npu.DENY.add("aten._fft_r2c")
    try:
        code, out, err = cli("--model_path", tiny, "--device", "npu:0", "--quiet", CLIP)
    finally:
        fake_npu.DENY.clear()
    assert code == 1 and out == ""
    assert len(err.splitlines()) == 1 and str(CLIP) in err and "not implemented" in err


def test_the_benchmark_synchronises_the_device_around_every_run(cli, tiny, tmp_path):
    fake_npu.CALLS.clear()
    report = tmp_path / "report.json"
    code, out, _ = cli("--model_path", tiny, "--device", "npu:0", "--benchmark", "--report", report)
    assert code == 0 and "Forward of 1 s, mean" in out
    assert sum(call.startswith("synchronize") for call in fake_npu.CALLS) >= 26
    figures = json.loads(report.read_text())
    assert figures["device"] == "npu:0" and "fake" in figures["device_name"]
    assert figures["environment"]["torch_npu"].endswith("+fake")
    assert len(figures["benchmark"]["forward"]["runs_ms"]) == 10
    assert figures["benchmark"]["transcribe"]["peak_bytes"]["device"] > 0


def test_a_host_without_npus_is_told_where_to_look(monkeypatch):
    monkeypatch.setattr(fake_npu, "DEVICE_COUNT", 0)
    with pytest.raises(SetupError, match="finds no NPU: look at npu-smi info"):
        choose_device("npu:0")
    device, reason = choose_device(None)
    assert device.type == "cpu" and "finds no NPU" in reason
