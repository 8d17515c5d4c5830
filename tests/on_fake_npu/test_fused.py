"""``--npu_fused``: layers of torch_npu's fused operators, which compute what they are documented to."""

import json

import fake_npu
import numpy as np
import pytest
import torch
from support import CLIP, CLIP_WORDS, DEMO
from test_inference import NPU, tokens

from nemotron_npu.audio import read_audio
from nemotron_npu.engine import ModelOptions
from nemotron_npu.errors import SetupError
from nemotron_npu.recognizer import Recognizer

fake_npu.install()


@pytest.fixture(scope="module")
def recordings() -> list[np.ndarray]:
    """Speech of 27, 6.9, 0.9 and 16 s."""
    clip = read_audio(str(CLIP))
    return [np.tile(clip, 4), clip, clip[:14000], np.roll(np.tile(clip, 4), 5000)[:250000]]


def both(path, **options) -> list[Recognizer]:
    """The plain layers and the fused ones."""
    return [Recognizer(path, NPU, options=ModelOptions(npu_fused=fused, **options)) for fused in (False, True)]


@pytest.mark.parametrize("chunk_ms", [80, 1120])
def test_fused_layers_equal_the_plain_ones(tiny, recordings, chunk_ms):
    """In float32 the encoder's output is within 1e-5 of the plain path, and all tokens are equal, in batches too."""
    plain, fused = both(tiny, chunk_ms=chunk_ms)
    outputs = []
    for recognizer in (plain, fused):
        state, steps = recognizer.encoder.new_state(2, recognizer.encoder.chunk), []
        rows = torch.randn(2, 14 * 8 * 8, 128, generator=torch.Generator().manual_seed(0))
        for block in rows.split(recognizer.encoder.chunk * 8, 1):
            steps.append(recognizer.encoder.step(block.to(NPU), state, [None, None]).cpu())
        outputs.append(torch.cat(steps, 1))
    assert torch.allclose(*outputs, rtol=0, atol=1e-5)
    assert tokens(fused.transcribe(recordings, 3)) == tokens(plain.transcribe(recordings, 3))


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_fused_operators_hear_the_clip(dtype):
    """The bundled model hears the clip in each dtype, in a file and in two streams of a pool, by fused operators."""
    fake_npu.OPS.clear()
    recognizer = Recognizer(DEMO, NPU, options=ModelOptions(npu_fused=True, dtype=dtype))
    clip = read_audio(str(CLIP))
    assert recognizer.transcribe(clip).text == CLIP_WORDS
    pool = recognizer.pool(2)
    streams = [pool.stream(), pool.stream()]
    for stream in streams:
        stream.feed(clip)
    assert [stream.finish().text for stream in streams] == [CLIP_WORDS] * 2
    names = {name for name in fake_npu.OPS if "npu_" in name}
    expected = {"aten.npu_add_layer_norm", "aten.npu_fusion_attention", "aten.npu_group_norm_silu"}
    assert names == expected | ({"aten.npu_ffn"} if dtype != "float32" else set())


def test_fused_operators_are_reported(cli, tmp_path):
    """The JSON document, the comparison and its report tell that the operators are fused; the comparison passes."""
    code, out, _ = cli("--device", "npu:0", "--npu_fused", "--output_format", "json")
    assert code == 0 and json.loads(out)["npu_fused"] is True
    code, out, _ = cli("--device", "npu:0", "--npu_fused", "--precision_compare", "--report", tmp_path)
    assert code == 0 and "npu:0 (native, float32, fused operators) against NeMo" in out and "PASSED" in out
    assert json.loads((tmp_path / "precision.json").read_text())["candidate"]["npu_fused"] is True


@pytest.mark.parametrize(
    "options, message",
    [
        (["--device", "npu:0", "--graph", "on"], "npu_fusion_attention cannot be captured (leave out --graph on)"),
        (["--device", "cpu"], "cpu has no such operators (use npu:N)"),
        (["--device", "npu:0", "--engine", "nemo"], "needs the native engine"),
    ],
)
def test_fused_operators_are_refused_in_one_line(cli, options, message):
    """Where they do not exist, and where they cannot be captured, one line tells so."""
    code, out, err = cli("--npu_fused", *options)
    assert (code, out) == (2, "") and err.splitlines()[-1] == f"inference.py: --npu_fused: {message}"


def test_older_torch_npu_is_named(monkeypatch):
    """A torch_npu that lacks an operator is refused by the operator's name."""
    monkeypatch.setattr("nemotron_npu.fused.OPERATORS", ("npu_no_such_operator",))
    with pytest.raises(SetupError, match="this torch_npu has no npu_no_such_operator"):
        Recognizer(DEMO, NPU, options=ModelOptions(npu_fused=True))
