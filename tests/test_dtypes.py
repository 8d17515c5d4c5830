"""The cheaper dtypes stay close to float32, transcribe the same words, and are offered only where the CPU has them."""

from __future__ import annotations

import importlib.util
import json
import math

import numpy as np
import pytest
import torch
from support import CLIP, CLIP_WORDS, ROOT

from nemotron_npu import dtypes, linear
from nemotron_npu.audio import read_audio
from nemotron_npu.checkpoint.weights import Tensors, Weights
from nemotron_npu.engine import ModelOptions
from nemotron_npu.errors import SetupError
from nemotron_npu.linear import FbgemmLinear, LayerLoader, Linear, OnednnLinear, make_linear, quantize
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
def test_linear_layer_of_any_dtype_equals_the_plain_one(dtype, kernel, bound, with_bias, floor, rows):
    """Each kind of linear layer computes what the plain one does, within the tolerance of its dtype."""
    torch.manual_seed(rows)
    x, residual, weight = torch.randn(rows, 97), torch.randn(rows, 160), torch.randn(160, 97)
    x *= torch.logspace(0, 3, rows)[:, None]  # the last rows are 1000 times as loud as the first
    x = x if floor is None else x.clamp(min=floor)
    bias = torch.randn(160) if with_bias else None
    for scale in (1.0, 0.5):
        layer = (
            kernel(quantize(weight), bias, scale, floor) if kernel else make_linear(weight, bias, dtype, scale, floor)
        )
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
    """In the worst case, adjacent weights of one sign and activations at their limit, int8 products do not overflow."""
    torch.manual_seed(0)
    weight = sign * torch.rand(64, 1024)
    weight[:, 1::2] = sign * (1 - weight[:, ::2].abs())  # of each pair the sum is 1
    quantized, scales = quantize(weight)
    x = torch.full((rows, 1024), 3.0)
    expected = x @ (quantized * scales[:, None]).T
    assert torch.allclose(kernel(quantize(weight), None, 1.0, 0.0)(x), expected, rtol=1e-5)


@pytest.mark.parametrize("columns", [96, 97])
def test_int8_weight_pairs_of_one_sign_sum_to_128_at_most(columns):
    """Two adjacent int8 weights of one sign add up to 128 at most."""
    torch.manual_seed(0)
    weight = torch.cat([torch.randn(500, columns), torch.rand(500, columns), torch.ones(1, columns)])
    quantized, scales = quantize(weight)
    assert linear.largest_pair(quantized.float()).max() == 128
    assert (quantized * scales[:, None] - weight).abs().max() <= scales.max() * 0.501


@pytest.mark.parametrize("kernel", INT8)
def test_int8_row_does_not_depend_on_the_others(kernel):
    """An int8 layer gives a row the same result whatever the other rows are."""
    torch.manual_seed(0)
    x = torch.randn(16, 256) * torch.logspace(-3, 3, 16)[:, None]
    x[3] = 0
    layer = kernel(quantize(torch.randn(128, 256)), torch.randn(128), 1.0, None)
    for rows in (1, 3, 8):
        assert torch.allclose(layer(x)[:rows], layer(x[:rows].clone()), rtol=1e-6)
    assert torch.equal(layer(x)[3], layer.bias), "the product of a row of zeros is 0"
    x[3, 0] = math.nan
    assert layer(x)[3].isnan().all() and layer(x)[:3].isfinite().all()


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("dtype", OFFERED)
def test_weight_that_is_not_finite_is_refused_by_name(dtype, value):
    """One number of a weight that is NaN or infinite is found in each dtype, and the line names the weight."""
    weight = torch.randn(8, 16)
    weight[5, 7] = value
    load = LayerLoader(Weights(Tensors({"layer.weight": weight}), CPU, torch.float32), dtype)
    with pytest.raises(SetupError, match="layer.weight has NaN or infinite values"):
        load.linear("layer", (8, 16))


def test_int8_layer_keeps_the_quantized_engine_of_torch():
    """Making an int8 layer does not change torch's global choice of kernels."""
    before = torch.backends.quantized.engine
    if "int8" in OFFERED:
        make_linear(torch.zeros(4, 4), None, "int8")
    assert torch.backends.quantized.engine == before


def test_int8_without_quantized_tensors_uses_onednn(monkeypatch):
    """Where torch lacks quantized tensors, int8 layers use oneDNN."""
    monkeypatch.delattr(torch, "_make_per_tensor_quantized_tensor")
    assert not dtypes.has_fbgemm()
    if "int8" in OFFERED:
        assert isinstance(make_linear(torch.ones(4, 4), None, "int8"), OnednnLinear)


@pytest.mark.parametrize("tiles", [False, True])
@pytest.mark.skipif("int8" not in OFFERED, reason="int8 needs x86")
def test_onednn_gets_signed_activations_for_amx_alone(tiles, monkeypatch):
    """Elsewhere its kernel for them takes 100 times as long; the sums are the same."""
    monkeypatch.setattr(linear, "has_tiles", lambda: tiles)
    weight, x = torch.randn(64, 96), torch.randn(5, 96)
    layer = OnednnLinear(quantize(weight), None, 1.0, None)
    assert layer.dtype == (torch.int8 if tiles else torch.uint8)
    exact = (x * (127 / x.abs().amax(1, keepdim=True))).round() @ quantize(weight).levels.float().t()
    expected = exact / 127 * x.abs().amax(1, keepdim=True) * quantize(weight).scales
    torch.testing.assert_close(layer(x), expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("chunk_ms", [80, 1120])
@pytest.mark.parametrize("dtype", [dtype for dtype in BOUNDS if dtype in OFFERED])
def test_cheaper_dtype_transcribes_the_same_words(dtype, chunk_ms):
    """A cheaper dtype transcribes the same words, with a relative error of the encoder within the tolerance."""
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
def test_dtype_that_this_cpu_lacks_is_an_error_line(dtype, cli):
    """A dtype that this CPU lacks is one error line that names those it has."""
    reason = dtypes.missing(dtype)
    compare = [["--precision_compare"]] if importlib.util.find_spec("nemo") else []
    for options in ([], ["--benchmark", "--engine", "native"], *compare):
        code, out, err = cli(CLIP, "--dtype", dtype, "--device", "cpu", "--quiet", *options)
        others = " or ".join(reversed(OFFERED))
        assert (code, out, err) == (2, "", f"inference.py: --dtype {dtype}: {reason} (use {others})\n")


def test_cpu_without_avx512_offers_float32_and_int8(monkeypatch, cli):
    """A CPU without AVX-512 offers float32 and int8."""
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
def test_dtype_option_is_reported_in_json(dtype, cli):
    """--dtype is used and appears in the JSON document."""
    code, out, err = cli(
        CLIP, "--dtype", dtype, "--threads", 1, "--device", "cpu", "--output_format", "json", "--quiet"
    )
    document = json.loads(out)
    assert (code, document["dtype"], document["text"], err) == (0, dtype, CLIP_WORDS, "")


def test_dtype_of_another_device_or_engine_is_an_error_line(cli):
    """A dtype that the device or the engine does not support is one error line."""
    code, _, err = cli(CLIP, "--dtype", "float16", "--device", "cpu", "--quiet")
    others = " or ".join(reversed(OFFERED))
    assert (code, err) == (2, f"inference.py: --dtype float16: not for cpu (use {others})\n")
    code, _, err = cli(CLIP, "--dtype", "bfloat16", "--engine", "nemo", "--device", "cpu", "--quiet")
    assert code == 2 and len(err.splitlines()) == 1
    if "bfloat16" in OFFERED and importlib.util.find_spec("nemo"):
        assert "needs the native engine" in err


def test_cheaper_dtypes_off_x86_are_refused(monkeypatch, cli):
    """On a CPU that is not x86 only float32 is offered."""
    monkeypatch.setattr(dtypes.platform, "machine", lambda: "riscv64")
    assert dtypes.offered_dtypes(CPU) == ("float32",)
    assert isinstance(make_linear(torch.zeros(4, 4), None, "float32"), Linear)
    code, _, err = cli(CLIP, "--dtype", "int8", "--device", "cpu", "--quiet")
    assert (code, err) == (2, "inference.py: --dtype int8: this CPU is riscv64, not x86 (use float32)\n")
