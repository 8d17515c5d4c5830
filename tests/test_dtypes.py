"""The cheaper dtypes: how far they are from float32, and that they hear the same words."""

from __future__ import annotations

import json
import platform

import numpy as np
import pytest
import torch
from support import CLIP, CLIP_WORDS, ROOT

from nemotron_npu.errors import SetupError
from nemotron_npu.linear import Linear, make_linear
from nemotron_npu.precision import difference
from nemotron_npu.recognizer import Recognizer

CPU = torch.device("cpu")
DEMO = ROOT / "demo" / "demo.nemo"
BOUNDS = {"bfloat16": 0.5, "int8": 1.5}  # percent of relative error of the encoder output
x86 = pytest.mark.skipif(
    platform.machine() != "x86_64" or not torch.backends.mkldnn.is_available(), reason="oneDNN on x86 only"
)


@pytest.mark.parametrize(
    "dtype, bound, tiles",
    [("float32", 1e-6, False), ("bfloat16", 0.01, False), ("int8", 0.03, False), ("int8", 0.03, True)],
)
@pytest.mark.parametrize("with_bias", [True, False])
@pytest.mark.parametrize("rows", [1, 7, 14, 113])
@x86
def test_every_linear_layer_computes_what_the_plain_one_does(dtype, bound, tiles, with_bias, rows, monkeypatch):
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: tiles)
    torch.manual_seed(rows)
    x, residual, weight = torch.randn(rows, 96), torch.randn(rows, 160), torch.randn(160, 96)
    bias = torch.randn(160) if with_bias else None
    for scale in (1.0, 0.5):
        layer, plain = make_linear(weight, bias, dtype, scale), Linear(weight, bias, scale)
        out = torch.empty(rows, 160)
        pairs = [(layer.add(residual, x), plain.add(residual, x))]
        if scale == 1:
            pairs += [
                (layer(x), plain(x)),
                (layer.silu(x), plain.silu(x)),
                (layer(x, out=out), plain(x)),
                (out, plain(x)),
            ]
        for ours, expected in pairs:
            assert float((ours - expected).norm() / expected.norm()) < bound


@x86
def test_making_int8_layers_leaves_torch_s_own_choice_of_kernels_alone():
    before = torch.backends.quantized.engine
    make_linear(torch.zeros(4, 4), None, "int8")
    assert torch.backends.quantized.engine == before


@pytest.mark.parametrize("chunk_ms", [80, 1120])
@pytest.mark.parametrize("dtype", BOUNDS)
@x86
def test_a_cheaper_dtype_hears_the_same_words(dtype, chunk_ms):
    recognizer, reference = Recognizer(DEMO, CPU, chunk_ms, dtype), Recognizer(DEMO, CPU, chunk_ms)
    assert recognizer.transcribe([str(CLIP)])[0].text == CLIP_WORDS
    waveform = np.random.default_rng(0).normal(0, 0.1, 40000).astype(np.float32)
    encoded, expected = (r.encode(*r.preprocess([waveform]))[0] for r in (recognizer, reference))
    error = difference(encoded, expected).relative_error_percent
    assert 0 < error < BOUNDS[dtype]


@x86
def test_the_command_line_takes_a_dtype_and_says_it(cli):
    code, out, err = cli(
        CLIP, "--dtype", "int8", "--threads", 1, "--device", "cpu", "--output_format", "json", "--quiet"
    )
    document = json.loads(out)
    assert (code, document["dtype"], document["text"], err) == (0, "int8", CLIP_WORDS, "")


def test_a_dtype_that_does_not_run_there_is_one_line(cli):
    code, _, err = cli(CLIP, "--dtype", "float16", "--device", "cpu", "--quiet")
    assert code == 2 and err == "inference.py: --dtype float16 does not run on cpu: take bfloat16\n"
    code, _, err = cli(CLIP, "--dtype", "bfloat16", "--engine", "nemo", "--device", "cpu", "--quiet")
    assert code == 2 and "needs the native engine" in err and len(err.splitlines()) == 1


def test_int8_is_refused_where_torch_has_no_kernels_for_it(monkeypatch):
    monkeypatch.setattr(platform, "machine", lambda: "aarch64")
    with pytest.raises(SetupError, match="needs x86"):
        make_linear(torch.zeros(4, 4), None, "int8")
    assert isinstance(make_linear(torch.zeros(4, 4), None, "float32"), Linear)
