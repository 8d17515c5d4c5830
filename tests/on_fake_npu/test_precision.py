"""The comparison on ``npu:0`` finds where a device or its dtype computes wrong values."""

import json

import fake_npu
import pytest
import torch
from checkpoints import TINY_SIZE, build_model, train_tokenizer
from support import CLIP

from nemotron_npu.audio import read_audio
from nemotron_npu.device import choose_device
from nemotron_npu.engine import ModelOptions
from nemotron_npu.precision.compare import Precision
from nemotron_npu.recognizer import load_recognizer

fake_npu.install()
torch.set_num_threads(1)

CPU = torch.device("cpu")
LAYERS = 8


@pytest.fixture(scope="module")
def deep(tmp_path_factory):
    """A random checkpoint of 8 layers; what layer 3's first feed-forward makes in between does not fit into float16."""
    folder = tmp_path_factory.mktemp("deep")
    train_tokenizer(["one two three four five six seven eight nine zero"] * 50, 32, folder)
    model = build_model(folder, **{**TINY_SIZE, "layers": LAYERS, "pieces": 32}).eval()
    with torch.no_grad():
        model.encoder.layers[3].feed_forward1.linear1.weight *= 3e5
        model.encoder.layers[3].feed_forward1.linear2.weight /= 3e5
    path = folder / "deep.nemo"
    model.save_to(str(path))
    return path


@pytest.fixture(scope="module")
def reference(deep):
    return load_recognizer(deep, CPU, options=ModelOptions("nemo"))


def compared(deep, reference, dtype="float32"):
    device, _ = choose_device("npu:0")
    candidate = load_recognizer(deep, device, options=ModelOptions(dtype=dtype))
    precision = Precision(candidate, reference, chunk_ms=560)
    precision.add_recording("digits.wav", read_audio(str(CLIP))[:48000])
    return precision


def over(stages):
    return [name for name, tally in stages.tallies.items() if tally.exceeds]


def test_device_that_computes_as_the_cpu_passes(deep, reference):
    """A device that computes what the CPU does passes the comparison."""
    precision = compared(deep, reference)
    assert precision.passed, precision.failures
    assert precision.totals["recording"].decisions.reference_tokens > 0


def test_wrong_operator_in_layer_7_is_attributed_to_it(deep, reference, monkeypatch):
    """A wrong operator in layer 7 is a failure of that layer alone."""
    run, calls = fake_npu._run, []

    def wrong(func, args, kwargs):
        out = run(func, args, kwargs)
        if func is torch.ops.aten._softmax.default:
            calls.append(func)
            if len(calls) % LAYERS == 0:  # one for each layer: the last one's
                out._raw.mul_(1.2)  # probabilities that add up to 1.2
        return out

    monkeypatch.setattr(fake_npu, "_run", wrong)
    precision = compared(deep, reference)
    assert calls and precision.failures[0].stage == "layer 7" and precision.failures[0].frame == 0
    recording = precision.totals["recording"]
    assert over(recording.alone) == ["layer 7"] and over(recording.accumulated)[0] == "layer 7"


def test_float16_overflow_in_layer_3_is_attributed_to_it(deep, reference):
    """An overflow of float16 in layer 3 is a failure of that layer alone."""
    precision = compared(deep, reference, "float16")
    first = precision.failures[0]
    assert first.stage == "layer 3" and "of the candidate not finite" in first.reason, precision.failures
    assert over(precision.totals["recording"].alone) == ["layer 3"]


@pytest.mark.parametrize("allowed", [False, True])
def test_hf32_is_off_unless_allowed_and_then_explained(cli, tmp_path, allowed):
    """By default float32 is float32; --allow_hf32 gives an error that begins at the convolutions, and is named so."""
    options = ["--device", "npu:0", "--precision_compare", "--chunk_ms", 1120, "--report", tmp_path]
    code, out, err = cli(CLIP, *options, *["--allow_hf32"] * allowed)
    assert code == 0, err
    figures = json.loads((tmp_path / "precision.json").read_text())
    candidate = figures["candidate"]
    assert candidate["allow_hf32"] == allowed
    settings = {"conv.allow_hf32": allowed, "matmul.allow_hf32": allowed}
    assert candidate["device_settings"] == settings | {"allow_internal_format": False, "jit_compile": False}
    errors = {row["stage"]: row["alone"] for row in figures["walks"]["recording"]["stages"]}
    convolutions = errors["subsampling"]["relative_error_percent"]
    explained = "it begins at subsampling" in out and "conv.allow_hf32 is on" in out
    assert explained == allowed == (figures["explanation"] is not None)
    assert ("npu:0 (native, float32, HF32 or TF32 allowed) against NeMo" in out) == allowed
    page = (tmp_path / "precision.html").read_text()
    assert ("in HF32 or TF32 look like this" in page) == allowed
    if allowed:
        assert 0.003 < convolutions < 0.1 and 0.01 < figures["sine"]["encoder"]["relative_error_percent"] < 1
    else:
        assert convolutions < 1e-4


def test_report_names_the_device_and_all_versions(cli, tmp_path):
    """The report names both devices, their dtypes and the versions of the packages."""
    options = ["--device", "npu:0", "--precision_compare", "--chunk_ms", 1120, "--report", tmp_path]
    code, out, err = cli(CLIP, *options)
    assert code == 0 and "npu:0 (native, float32) against NeMo (cpu, float32)" in out, err
    figures = json.loads((tmp_path / "precision.json").read_text())
    assert figures["candidate"]["device"] == "npu:0" and figures["environment"]["torch_npu"].endswith("+fake")
    assert figures["walks"]["recording"]["repeated"]["candidate"] == {"max_error": 0, "stage": None}
    assert "npu:0" in (tmp_path / "precision.html").read_text()
