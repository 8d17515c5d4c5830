"""A batch shrinks where memory runs out, and its tokens stay equal."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from support import assert_whole, token_frames

from nemotron_npu import nemo_engine
from nemotron_npu.device import is_out_of_memory
from nemotron_npu.errors import ModelError

CPU = torch.device("cpu")


@pytest.fixture
def short_of_memory(demo):
    """``short_of_memory(frames, error)``: a step that encodes more, of all slots, raises it.  Returns the
    size of each step, (slots, frames), and the messages."""
    step, sizes, messages = demo.encoder.step, [], []
    demo.announce = messages.append

    def limit(frames: int, error: Exception):
        def limited(features, state, ends):
            sizes.append((features.shape[0], features.shape[1] // 8))
            if sizes[-1][0] * sizes[-1][1] > frames:
                raise error
            return step(features, state, ends)

        demo.encoder.step = limited
        return sizes, messages

    return limit


@pytest.mark.parametrize(
    "error",
    [
        torch.cuda.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB"),
        RuntimeError("NPU out of memory. Tried to allocate 2.00 GiB (NPU 0; 60.97 GiB total capacity)"),
        RuntimeError("[enforce fail at alloc_cpu.cpp:124] err == 0. DefaultCPUAllocator: can't allocate memory"),
        MemoryError(),
    ],
)
def test_out_of_memory_errors_are_recognized(error):
    """The out-of-memory errors of CUDA, NPU, torch's CPU allocator and Python are recognized."""
    assert is_out_of_memory(error) and not is_out_of_memory(ValueError("out of memory"))


def test_out_of_memory_shrinks_the_batch_and_reports_once(demo, clip, short_of_memory):
    """Out of memory shrinks the batch, then the blocks; tokens stay equal, and one message reports it."""
    waveforms = [clip, clip[9000:], np.tile(clip, 2), clip[:40000], clip[20000:]]
    expected = [token_frames(demo.transcribe([waveform])[0]) for waveform in waveforms]
    error = RuntimeError("NPU out of memory. Tried to allocate 2.00 GiB (NPU 0; 60.97 GiB)")
    sizes, messages = short_of_memory(60, error)
    assert [token_frames(t) for t in demo.transcribe(waveforms, 4)] == expected
    assert sizes[0][0] == 4 and sizes[0][0] * sizes[0][1] > 60
    assert messages == ["cpu: out of memory (continuing with 1 recording at a time and blocks of 2240 ms)"]
    assert [token_frames(t) for t in demo.transcribe(waveforms[:2], 4)] == expected[:2]
    assert len(messages) == 1, "the smaller size is remembered"


def test_out_of_memory_for_one_chunk_fails_each_recording(demo, clip, short_of_memory):
    """Where even one chunk does not fit, each recording gets its own error."""
    _, messages = short_of_memory(0, RuntimeError("NPU out of memory"))
    results = dict(demo.results([clip, clip, clip], 2))
    assert sorted(results) == [0, 1, 2] and messages == []
    for result in results.values():
        assert isinstance(result, ModelError) and "for this recording alone: NPU out of mem" in str(result)


def test_out_of_memory_in_a_stream_shrinks_its_steps(demo, clip, short_of_memory):
    """A stream that catches up and runs out of memory continues in smaller steps with the same tokens."""
    audio = np.tile(clip, 2)
    expected = token_frames(demo.transcribe([audio])[0])
    sizes, messages = short_of_memory(7, RuntimeError("NPU out of memory"))
    with demo.stream() as stream:
        stream.feed(audio[:100])
        stream.feed(audio[100:])
    assert token_frames(stream.finish()) == expected and sizes[:2] == [(1, 14), (1, 7)]
    assert messages == ["cpu: out of memory (continuing with blocks of 560 ms)"]


def test_out_of_memory_is_reported_on_stderr(cli, clips, monkeypatch, tmp_path):
    """The command line reports out of memory once on stderr, and writes the same results."""
    from nemotron_npu.encoder import Encoder

    step = Encoder.step

    def limited(self, features, *rest):
        if features.shape[0] > 2:
            raise RuntimeError("NPU out of memory")
        return step(self, features, *rest)

    monkeypatch.setattr(Encoder, "step", limited)
    code, _, err = cli(clips, "--output_dir", tmp_path, "--device", "cpu")
    assert code == 0 and assert_whole(tmp_path) == 12
    assert [line for line in err.splitlines() if "memory" in line] == [
        "cpu: out of memory (continuing with 2 recordings at a time and blocks of 2240 ms)"
    ]


def test_out_of_memory_in_nemo_halves_the_batch(tiny, clip):
    """Out of memory halves NeMo's batch; a layer of NeMo whose output is not finite is named as well."""
    messages = []
    nemo = nemo_engine.NemoRecognizer(tiny, CPU, announce=messages.append)
    transcribe, sizes = nemo._transcribe_batch, []

    def limited(waveforms):
        sizes.append(len(waveforms))
        if len(waveforms) > 2:
            raise RuntimeError("NPU out of memory")
        return transcribe(waveforms)

    nemo._transcribe_batch = limited
    waveforms = [clip[:20000], clip[20000:40000], clip[:30000], clip[:9000], clip[5000:25000], clip[7000:27000]]
    results = dict(nemo.results(waveforms, 4))
    assert sizes == [4, 2, 2, 2] and messages == ["cpu: out of memory (continuing with 2 recordings at a time)"]
    assert all(token_frames(results[i]) == token_frames(transcribe([w])[0]) for i, w in enumerate(waveforms))

    # the same model: output that is not finite names the first layer
    assert not any(isinstance(result, Exception) for result in results.values())
    with torch.no_grad():
        nemo.model.encoder.layers[1].feed_forward2.linear2.weight[0, 0] = float("nan")
    error = dict(nemo.results(waveforms[:1]))[0]
    assert isinstance(error, ModelError) and str(error).startswith("encoder output: not finite")
    assert "first in layer 1" in str(error)
