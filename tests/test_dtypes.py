"""The cheaper dtypes: how far they are from float32, that they hear the same words, and which CPU offers them."""

from __future__ import annotations

import importlib.util
import json

import numpy as np
import pytest
import torch
from support import CLIP, CLIP_WORDS, ROOT

from nemotron_npu import dtypes, linear
from nemotron_npu.audio import read_audio
from nemotron_npu.engine import ModelOptions
from nemotron_npu.linear import FbgemmLinear, Linear, OnednnLinear, make_linear
from nemotron_npu.precision.metrics import difference
from nemotron_npu.recognizer import Recognizer

CPU = torch.device("cpu")
DEMO = ROOT / "demo" / "demo.nemo"
BOUNDS = {"bfloat16": 0.5, "int8": 1.0}  # percent of relative error of the encoder output, on every CPU
OFFERED = dtypes.offered_dtypes(CPU)
LACKS = [dtype for dtype in dtypes.ON_CPU if dtype not in OFFERED]
INT8 = [cls for cls, there in ((FbgemmLinear, dtypes.has_fbgemm()), (OnednnLinear, "int8" in OFFERED)) if there]
LAYERS = [(dtype, None, bound) for dtype, bound in (("float32", 1e-6), ("bfloat16", 0.01)) if dtype in OFFERED]
LAYERS += [("int8", cls, 0.025) for cls in INT8]


@pytest.mark.parametrize("dtype, kernel, bound", LAYERS)
@pytest.mark.parametrize("with_bias", [True, False])
@pytest.mark.parametrize("floor, rows", [(None, 1), (0.0, 7), (-0.5, 14), (None, 113)])
def test_every_linear_layer_computes_what_the_plain_one_does(dtype, kernel, bound, with_bias, floor, rows):
    torch.manual_seed(rows)
    x, residual, weight = torch.randn(rows, 97), torch.randn(rows, 160), torch.randn(160, 97)
    x *= torch.logspace(0, 3, rows)[:, None]  # the last rows are 1000 times as loud as the first
    x = x if floor is None else x.clamp(min=floor)
    bias = torch.randn(160) if with_bias else None
    for scale in (1.0, 0.5):
        layer = kernel(weight, bias, scale, floor) if kernel else make_linear(weight, bias, dtype, scale, floor)
        plain, out = Linear(weight, bias, scale), torch.empty(rows, 160)
        pairs = [(layer.add(residual, x), plain.add(residual, x))]
        if scale == 1:
            pairs += [
                (layer(x), plain(x)),
                (layer.silu(x), plain.silu(x)),
                (layer(x, out=out), plain(x)),
                (out, plain(x)),
            ]
        for ours, expected in pairs:
            assert ((ours - expected).norm(dim=1) / expected.norm(dim=1)).max() < 2 * bound
            assert float((ours - expected).norm() / expected.norm()) < bound


@pytest.mark.parametrize("kernel", INT8)
@pytest.mark.parametrize("rows", [1, 14, 113])
@pytest.mark.parametrize("sign", [1, -1])
def test_int8_products_do_not_overflow(kernel, rows, sign):
    """The worst case: neighbouring weights of one sign, as large as they may be, and activations at their limit."""
    torch.manual_seed(0)
    weight = sign * torch.rand(64, 1024)
    weight[:, 1::2] = sign * (1 - weight[:, ::2].abs())  # of each pair the sum is 1
    quantized, scales = linear.quantize(weight, None if dtypes.has_vnni() else 128)
    x = torch.full((rows, 1024), 3.0)
    expected = x @ (quantized * scales[:, None]).T
    assert torch.allclose(kernel(weight, None, 1.0, 0.0)(x), expected, rtol=1e-5)


@pytest.mark.parametrize("columns", [96, 97])
def test_two_neighbouring_int8_weights_of_one_sign_add_up_to_128_at_most(columns):
    torch.manual_seed(0)
    weight = torch.cat([torch.randn(500, columns), torch.rand(500, columns), torch.ones(1, columns)])
    quantized, scales = linear.quantize(weight, 128)
    assert linear.largest_pair(quantized.float()).max() == 128
    assert (quantized * scales[:, None] - weight).abs().max() <= scales.max() * 0.501
    quantized, _ = linear.quantize(weight, None)
    assert quantized.abs().amax(1).min() == 127 and linear.largest_pair(quantized.float()).max() > 128


@pytest.mark.parametrize("kernel", INT8)
def test_an_int8_row_does_not_depend_on_the_others(kernel):
    torch.manual_seed(0)
    x = torch.randn(16, 256) * torch.logspace(-3, 3, 16)[:, None]
    x[3] = 0
    layer = kernel(torch.randn(128, 256), torch.randn(128), 1.0, None)
    for rows in (1, 3, 8):
        assert torch.allclose(layer(x)[:rows], layer(x[:rows].clone()), rtol=1e-6)


def test_making_int8_layers_leaves_torch_s_own_choice_of_kernels_alone():
    before = torch.backends.quantized.engine
    if "int8" in OFFERED:
        make_linear(torch.zeros(4, 4), None, "int8")
    assert torch.backends.quantized.engine == before


def test_without_torch_s_quantized_tensors_int8_is_onednn_s(monkeypatch):
    monkeypatch.delattr(torch, "_make_per_channel_quantized_tensor")
    assert not dtypes.has_fbgemm()
    if "int8" in OFFERED:
        assert isinstance(make_linear(torch.ones(4, 4), None, "int8"), OnednnLinear)


@pytest.mark.parametrize("chunk_ms", [80, 1120])
@pytest.mark.parametrize("dtype", [dtype for dtype in BOUNDS if dtype in OFFERED])
def test_a_cheaper_dtype_hears_the_same_words(dtype, chunk_ms):
    recognizer, reference = (
        Recognizer(DEMO, CPU, options=ModelOptions(chunk_ms=chunk_ms, dtype=dtype)),
        Recognizer(DEMO, CPU, options=ModelOptions(chunk_ms=chunk_ms)),
    )
    assert recognizer.transcribe([str(CLIP)])[0].text == CLIP_WORDS
    noise = np.random.default_rng(0).normal(0, 0.1, 40000).astype(np.float32)
    for waveform in (read_audio(CLIP), noise):
        encoded, expected = (r.encode(*r.preprocess([waveform]))[0] for r in (recognizer, reference))
        error = difference(encoded, expected).relative_error_percent
        assert 0 < error < BOUNDS[dtype]


@pytest.mark.parametrize("dtype", LACKS)
def test_a_dtype_that_this_cpu_lacks_is_one_line(dtype, cli):
    reason = dtypes.missing(dtype)
    compare = [["--precision_compare"]] if importlib.util.find_spec("nemo") else []
    for options in ([], ["--benchmark", "--engine", "native"], *compare):
        code, out, err = cli(CLIP, "--dtype", dtype, "--device", "cpu", "--quiet", *options)
        others = " or ".join(reversed(OFFERED))
        assert (code, out, err) == (2, "", f"inference.py: --dtype {dtype}: {reason} (use {others})\n")


def test_a_cpu_without_avx512_has_float32_and_int8(monkeypatch, cli):
    monkeypatch.setattr(dtypes, "packs_weights", lambda: True)
    monkeypatch.setattr(dtypes.platform, "machine", lambda: "x86_64")
    monkeypatch.setattr(torch.ops.mkldnn, "_is_mkldnn_bf16_supported", lambda: False)
    code, _, err = cli(CLIP, "--dtype", "bfloat16", "--device", "cpu", "--quiet")
    assert (code, err) == (
        2,
        "inference.py: --dtype bfloat16: this CPU lacks AVX-512 (BW, DQ and VL) or AVX-NE-CONVERT "
        "(use int8 or float32)\n",
    )


@pytest.mark.parametrize("dtype", [dtype for dtype in BOUNDS if dtype in OFFERED])
def test_the_command_line_takes_a_dtype_and_says_it(dtype, cli):
    code, out, err = cli(
        CLIP, "--dtype", dtype, "--threads", 1, "--device", "cpu", "--output_format", "json", "--quiet"
    )
    document = json.loads(out)
    assert (code, document["dtype"], document["text"], err) == (0, dtype, CLIP_WORDS, "")


def test_a_dtype_that_does_not_run_there_is_one_line(cli):
    code, _, err = cli(CLIP, "--dtype", "float16", "--device", "cpu", "--quiet")
    others = " or ".join(reversed(OFFERED))
    assert (code, err) == (2, f"inference.py: --dtype float16: not for cpu (use {others})\n")
    code, _, err = cli(CLIP, "--dtype", "bfloat16", "--engine", "nemo", "--device", "cpu", "--quiet")
    assert code == 2 and len(err.splitlines()) == 1
    if "bfloat16" in OFFERED and importlib.util.find_spec("nemo"):
        assert "needs the native engine" in err


def test_the_cheaper_dtypes_are_refused_off_x86(monkeypatch, cli):
    monkeypatch.setattr(dtypes.platform, "machine", lambda: "riscv64")
    assert dtypes.offered_dtypes(CPU) == ("float32",)
    assert isinstance(make_linear(torch.zeros(4, 4), None, "float32"), Linear)
    code, _, err = cli(CLIP, "--dtype", "int8", "--device", "cpu", "--quiet")
    assert (code, err) == (2, "inference.py: --dtype int8: this CPU is riscv64, not x86 (use float32)\n")
