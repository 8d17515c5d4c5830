"""``--graph on`` captures a steady step once and replays it, with the results of eager steps."""

import json

import fake_npu
import numpy as np
import pytest
import torch
from support import CLIP
from test_inference import CPU, NPU, stream_through, tokens

from nemotron_npu.audio import read_audio
from nemotron_npu.engine import ModelOptions
from nemotron_npu.graph import CapturedStep
from nemotron_npu.recognizer import Recognizer

fake_npu.install()

CHUNKS = [80, 160, 560, 1120]


def replays(call) -> int:
    """How often a recorded step was replayed while ``call`` ran."""
    fake_npu.CALLS.clear()
    call()
    return fake_npu.CALLS.count("replay()")


@pytest.fixture(scope="module")
def long() -> np.ndarray:
    """27 s of speech: more than the left context of 5.6 s."""
    return np.tile(read_audio(str(CLIP)), 4)


@pytest.mark.parametrize("chunk_ms", CHUNKS)
def test_live_stream_replays_its_steady_steps(tiny, long, chunk_ms):
    """A live stream replays all its steady steps, with the tokens of the CPU."""
    recognizer, on_cpu = (
        Recognizer(tiny, NPU, options=ModelOptions(chunk_ms=chunk_ms, graph=True)),
        Recognizer(tiny, CPU, options=ModelOptions(chunk_ms=chunk_ms)),
    )
    live = []
    played = replays(lambda: live.append(stream_through(recognizer, long, recognizer.chunk_samples)))
    assert tokens(live) == tokens(on_cpu.transcribe([long]))
    frames = recognizer.encoder.frames(len(long) // 160)
    steps, filling = -(-frames // recognizer.encoder.chunk), -(-70 // recognizer.encoder.chunk)
    assert played == steps - filling - 2, "all but the first ones, one before the recording, and the last one"


@pytest.mark.parametrize("chunk_ms", CHUNKS)
def test_replayed_steps_equal_eager_steps(tiny, chunk_ms):
    """Replayed steps give the encoder output of eager ones, also after a slot restarts."""
    features = torch.randn(12, 3, 28 * 8, 128, generator=torch.Generator().manual_seed(0))
    outputs = []
    for record in (False, True):
        encoder = Recognizer(tiny, NPU, options=ModelOptions(chunk_ms=chunk_ms, graph=record)).encoder
        state = encoder.new_state(3, 28)
        steps = [encoder.step(block.to(NPU), state, [None] * 3).cpu() for block in features[:8]]
        state.restart(1)  # another recording begins in a slot: no steady step until its context is full
        steps += [encoder.step(block.to(NPU), state, [None] * 3).cpu() for block in features[8:]]
        outputs.append(torch.stack(steps))
    assert float((outputs[0] - outputs[1]).abs().max()) < 1e-6


def test_batch_with_replayed_steps_gives_the_cpus_tokens(tiny, long):
    """A batch with replayed steps gives the tokens of the CPU."""
    recognizer, on_cpu = (
        Recognizer(tiny, NPU, options=ModelOptions(chunk_ms=560, graph=True, block_ms=560)),
        Recognizer(tiny, CPU, options=ModelOptions(chunk_ms=560)),
    )
    waveforms = [long, long[:50000], long[30000:], long[:1000], long[7:]]
    transcripts = []
    assert replays(lambda: transcripts.extend(recognizer.transcribe(waveforms, 3))) > 20
    assert tokens(transcripts) == tokens(on_cpu.transcribe(waveforms))


def test_replayed_step_takes_three_launches_and_no_transfer(tiny):
    """A replayed step takes three launches and does not synchronize."""
    recognizer = Recognizer(tiny, NPU, options=ModelOptions(chunk_ms=80, graph=True))
    encoder, state = recognizer.encoder, recognizer.encoder.new_state(1, 1)
    features = torch.randn(1, 8, 128).to(NPU)
    for _ in range(75):
        encoder.step(features, state, [None])
    fake_npu.OPS.clear()
    fake_npu.COPIES.clear()
    assert replays(lambda: encoder.step(features, state, [None])) == 1
    assert fake_npu.OPS == {"aten.copy_": 1, "aten.clone": 1} and not fake_npu.COPIES


def test_capture_computes_nothing_and_refuses_to_synchronize():
    """Graph capture computes nothing and refuses operators that synchronize."""
    total = torch.zeros(3).to(NPU)
    step = CapturedStep(lambda x: total.add_(x), torch.ones(3).to(NPU))
    assert total.tolist() == [0, 0, 0]
    assert [step(torch.full((3,), value).to(NPU)).tolist() for value in (1.0, 5.0)] == [[1] * 3, [6] * 3]
    for waits in (lambda x: x * float(x[0]), lambda x: x.cpu(), lambda x: x + torch.ones(3).to(NPU)):
        with pytest.raises(RuntimeError, match="captured"):
            CapturedStep(waits, torch.ones(3).to(NPU))


def test_graph_option_selects_where_steps_are_replayed(cli, tiny):
    """--graph on replays steps, off and auto do not, and all give the same text."""
    options = [CLIP, CLIP, "--model_path", tiny, "--device", "npu:0", "--chunk_ms", 80, "--block_ms", 80]
    options += ["--output_format", "json", "--quiet"]
    outputs = {}
    for graph in ("on", "off", "auto"):
        fake_npu.CALLS.clear()
        code, out, err = cli(*options, "--graph", graph)
        assert (code, err) == (0, "")
        outputs[graph] = [json.loads(line)["text"] for line in out.splitlines()], "replay()" in fake_npu.CALLS
    assert outputs["on"][0] == outputs["off"][0] == outputs["auto"][0]
    assert [outputs[graph][1] for graph in ("on", "off", "auto")] == [True, False, False]


@pytest.mark.parametrize(
    "options, message",
    [(["--device", "cpu"], "cpu has no graphs to capture"), (["--engine", "nemo"], "needs the native engine")],
)
def test_graph_where_unsupported_is_an_error_line(cli, options, message):
    """--graph on is one error line on a CPU and in NeMo."""
    code, out, err = cli(CLIP, "--graph", "on", *options, "--quiet")
    assert (code, out) == (2, "") and message in err and len(err.splitlines()) == 1
