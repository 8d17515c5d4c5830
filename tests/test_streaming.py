"""Streams of the library give the results of files, one by one, in turn and in threads."""

from __future__ import annotations

import threading

import numpy as np
import pytest
from support import CLIP, CLIP_WORDS, token_frames

from nemotron_npu.audio import read_audio


def test_stream_refuses_several_channels_and_late_audio(demo_native):
    """A stream refuses audio of several channels, and audio after its end."""
    with demo_native.stream() as stream, pytest.raises(TypeError, match="one channel"):
        stream.feed(np.zeros((100, 2), np.float32))
    with pytest.raises(ValueError, match="has ended"):
        stream.feed(np.zeros(100, np.float32))


def test_concurrent_streams_transcribe_the_clip(demo_native):
    """Streams that are fed in random order each transcribe the whole clip."""
    clip = read_audio(str(CLIP))
    streams = [demo_native.stream() for _ in range(5)]
    cursors = [0] * 5
    rng = np.random.default_rng(0)
    while any(cursor < len(clip) for cursor in cursors):
        i = rng.integers(5)
        count = int(rng.integers(1, 9000))
        streams[i].feed(clip[cursors[i] : cursors[i] + count])
        cursors[i] += count
    assert {stream.finish().text for stream in streams} == {CLIP_WORDS}


def test_long_stream_has_the_text_of_the_file(demo_native, monkeypatch):
    """The text of a long stream only grows, and is that of the file at the end."""
    monkeypatch.setattr("nemotron_npu.streaming.SETTLE_TOKENS", 5)
    clip = np.tile(read_audio(str(CLIP)), 4)
    with demo_native.stream() as stream:
        seen = ""
        for first in range(0, len(clip), 5000):
            stream.feed(clip[first : first + 5000])
            assert stream.text.startswith(seen)
            seen = stream.text
    assert stream.text == demo_native.transcribe([clip])[0].text
    assert stream.settled > 5


def test_streams_fed_in_turn_equal_each_alone(demo, clip):
    """Streams that are fed in turn give the tokens of each recording alone."""
    chance = np.random.default_rng(0)
    twice = np.tile(clip, 2)
    waveforms = [np.roll(twice, chance.integers(len(clip)))[: chance.integers(30000, 80000)] for _ in range(20)]
    alone = [token_frames(demo.transcribe([audio])[0]) for audio in waveforms]
    streams, fed = [demo.stream() for _ in waveforms], [0] * len(waveforms)
    while unfinished := [i for i, audio in enumerate(waveforms) if fed[i] < len(audio)]:
        i = chance.choice(unfinished)
        size = int(chance.integers(1, 30000))
        streams[i].feed(waveforms[i][fed[i] : fed[i] + size])
        fed[i] += size
    assert [token_frames(stream.finish()) for stream in streams] == alone and all(alone)


def test_threads_give_the_tokens_of_each_alone(demo, clip):
    """Two recognizers, and two streams and a batch on one of them, run in threads; none of them computes gradients."""
    other = demo.at_chunk(80)
    audio = np.tile(clip, 2)
    expected = {name: token_frames(r.transcribe([audio])[0]) for name, r in (("demo", demo), ("other", other))}
    results, grads, ready = {}, [], threading.Barrier(5)

    def work(name, call):
        ready.wait()
        results[name] = [token_frames(call()) for _ in range(2)]

    def streamed(recognizer, size):
        with recognizer.stream() as stream:
            for first in range(0, len(audio), size):
                stream.feed(audio[first : first + size])
                grads.append(any(row.requires_grad for row in stream.encoder_state.stages))
        return stream.finish()

    jobs = {
        "demo batch": lambda: demo.transcribe([audio, clip], 2)[0],
        "demo stream": lambda: streamed(demo, 5000),
        "demo stream 2": lambda: streamed(demo, 9999),
        "other stream": lambda: streamed(other, 7000),
        "other batch": lambda: other.transcribe([clip, audio], 2)[1],
    }
    threads = [threading.Thread(target=work, args=job) for job in jobs.items()]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for name in jobs:
        assert results[name] == [expected[name.split()[0]]] * 2, name
    assert not any(grads)
