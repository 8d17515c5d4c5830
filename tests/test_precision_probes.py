"""Access to the stages of both engines: the same layout, and no effect on the results."""

import pytest
import torch

from nemotron_npu.engine import ModelOptions
from nemotron_npu.precision.lockstep import Probes, Sample, run_lockstep
from nemotron_npu.precision.probes import NativeProbe, NemoProbe
from nemotron_npu.precision.tolerances import TOLERANCES
from nemotron_npu.recognizer import load_recognizer

CHUNKS = [80, 160, 560, 1120]


def encode(probe, mel, block):
    """Return the whole input of every layer, and the encoder output, encoded in blocks of so many frames."""
    state, parts, outputs = probe.new_state(block), [], []
    for first in range(0, probe.frames(len(mel)), block):
        inputs = []
        frames = range(first, first + block)
        outputs.append(probe.step(mel, frames, state, lambda _, x, to=inputs: to.append(x.clone()) or x))
        parts.append(inputs)
    return [torch.cat(stage) for stage in zip(*parts, strict=True)], torch.cat(outputs)


@pytest.mark.parametrize("chunk_ms", CHUNKS)
def test_nemo_in_steps_equals_nemo_offline(tiny_nemo, chunk_ms, clip):
    """NeMo's cache-aware steps give its offline output, also at the beginning of a stream."""
    probe = NemoProbe(tiny_nemo)
    probe.use(chunk_ms)
    expected, _ = tiny_nemo.encode(*tiny_nemo.preprocess([clip]))
    for block in (probe.chunk, probe.block_for(10**6)):
        _, output = encode(probe, probe.mel(clip), block)
        assert float((output - expected[0].T).abs().max()) < 1e-5


@pytest.mark.parametrize("chunk_ms", [80, 1120])
def test_stages_of_both_engines_have_the_same_layout(tiny_native, tiny_nemo, chunk_ms, clip):
    """Every layer's input agrees between the engines, and observing a step does not change its output."""
    probes = NativeProbe(tiny_native), NemoProbe(tiny_nemo)
    for probe in probes:
        probe.use(chunk_ms)
    mel = probes[0].mel(clip)
    ours, theirs = (encode(probe, mel, 14) for probe in probes)
    assert len(ours[0]) == 3  # subsampling, layer 0, layer 1
    for a, b in zip([*ours[0], ours[1]], [*theirs[0], theirs[1]], strict=True):
        assert a.shape == b.shape and float((a - b).abs().max()) < 1e-5
    unseen = probes[0].encoder
    assert unseen.observer is None
    padded = torch.nn.functional.pad(mel[:105], (0, 0, 7, 0))
    step = unseen.step(padded[None], unseen.new_state(1, 14), [None])
    assert torch.equal(step[0], ours[1][:14])


@pytest.mark.parametrize("chunk_ms", CHUNKS)
def test_another_context_equals_that_of_a_new_encoder(tiny, tiny_native, chunk_ms, clip):
    """A loaded encoder gives at another chunk length the bits of one loaded with it, and shares the weights."""
    loaded = load_recognizer(tiny, "cpu", options=ModelOptions(chunk_ms=chunk_ms))
    moved = tiny_native.at_chunk(chunk_ms)
    for a, b in zip(loaded.encode(*loaded.preprocess([clip])), moved.encode(*moved.preprocess([clip])), strict=True):
        assert torch.equal(a, b)
    assert moved.encoder.layers is tiny_native.encoder.layers


def test_a_layer_given_the_reference_input_is_measured_alone(tiny, tiny_nemo, clip):
    """A wrong layer 0 shows in both layers accumulated, and in layer 0 only when each is measured alone."""
    wrong = load_recognizer(tiny, "cpu")
    wrong.encoder.layers[0].norm_out[1].add_(torch.linspace(-0.2, 0.2, 64))
    probes = Probes(NativeProbe(wrong), NemoProbe(tiny_nemo))
    probes.reference.use(wrong.chunk_ms)
    run = run_lockstep(probes, Sample(clip), TOLERANCES["float32"])
    accumulated, alone = ([s[f"layer {i}"].percent for i in (0, 1)] for s in (run.accumulated, run.alone))
    assert min(accumulated) > 1 and alone[0] > 1 and alone[1] < 1e-3
