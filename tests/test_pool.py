"""Streams of a pool share encoder steps: each gives the same text as alone, whatever happens to the others."""

from __future__ import annotations

import threading
from collections import Counter

import numpy as np
import pytest
import torch
from support import CLIP, CLIP_WORDS, token_frames

from nemotron_npu.audio import read_audio
from nemotron_npu.boosting import Phrase
from nemotron_npu.errors import ModelError, SetupError


def cut_sounds(count: int, longest: int, seed: int = 0) -> list[np.ndarray]:
    """Parts of the clip, repeated, of 0.1 s to ``longest`` seconds."""
    chance = np.random.default_rng(seed)
    clip = np.tile(read_audio(str(CLIP)), 4)
    rolled = [np.roll(clip, chance.integers(len(clip))) for _ in range(count)]
    return [sound[: chance.integers(1600, longest * 16000)] for sound in rolled]


@pytest.mark.parametrize("chunk_ms", [80, 560])
def test_streams_of_unequal_pace_equal_each_alone(demo_native, chunk_ms):
    """Streams that join, are fed and end at random give the tokens and frames of each alone."""
    model = demo_native.at_chunk(chunk_ms)
    sounds = cut_sounds(24, longest=9)
    alone = [token_frames(transcript) for transcript in model.transcribe(sounds)]
    chance = np.random.default_rng(1)
    pool, streams, fed, waiting = model.pool(9), {}, Counter(), list(range(len(sounds)))
    together, sizes = {}, Counter()
    while waiting or streams:
        while waiting and len(streams) < 9 and chance.random() < 0.7:
            streams[waiting[0]] = pool.stream()
            del waiting[0]
        for i, stream in list(streams.items()):
            if fed[i] < len(sounds[i]) and chance.random() < 0.6:
                stream.feed(sounds[i][fed[i] : (end := fed[i] + int(chance.integers(1, 24000)))])
                fed[i] = end
            if fed[i] >= len(sounds[i]):
                stream.end()
            if stream.is_done:
                together[i] = token_frames(streams.pop(i).transcript())
        sizes[len(pool.step())] += 1
    assert [together[i] for i in range(len(sounds))] == alone
    assert len(sizes) > 5, sizes  # steps of many sizes


def test_one_failing_stream_costs_the_others_nothing(demo_native):
    """A stream whose values are not finite ends with an error that says so; the others transcribe the whole clip."""
    clip = read_audio(str(CLIP))
    pool = demo_native.pool(3)
    streams = [pool.stream() for _ in range(3)]
    for first in range(0, len(clip), 9000):
        for i, stream in enumerate(streams):
            samples = clip[first : first + 9000].copy()
            if i == 1 and first == 36000:
                samples[100] = np.nan
            if not stream.error:
                stream.feed(samples)
        pool.step()
    assert [streams[0].finish().text, streams[2].finish().text] == [CLIP_WORDS] * 2
    with pytest.raises(ModelError, match="not finite"):
        streams[1].finish()
    assert CLIP_WORDS.startswith(streams[1].text) and streams[1].text


def test_a_pool_that_runs_out_of_memory_takes_fewer_streams(demo_native, monkeypatch):
    """Where memory runs out, steps take half of the streams from then on, and no token changes."""
    clip = read_audio(str(CLIP))
    told: list[str] = []
    monkeypatch.setattr(demo_native, "announce", told.append)
    step = type(demo_native.encoder).step

    def limited(encoder, features, state, ends):
        if len(ends) > 2:
            raise torch.OutOfMemoryError("out of memory")
        return step(encoder, features, state, ends)

    monkeypatch.setattr(type(demo_native.encoder), "step", limited)
    pool = demo_native.pool(5)
    streams = [pool.stream() for _ in range(5)]
    for stream in streams:
        stream.feed(clip)
    assert {stream.finish().text for stream in streams} == {CLIP_WORDS}
    assert told == ["cpu: out of memory (continuing with 2 streams in a step)"]


def test_a_step_waits_for_streams_that_are_late(demo_native):
    """With patience a step waits for the streams that are not ready yet, but no longer than that."""
    pool = demo_native.pool(2)
    first, second = pool.stream(), pool.stream()
    chunk = np.zeros(round(1.2 * demo_native.chunk_samples), np.float32)
    first.feed(chunk)
    timer = threading.Timer(0.1, second.feed, [chunk])
    timer.start()
    assert set(pool.step(patience=30.0)) == {first, second}
    timer.join()
    second.feed(chunk)
    assert pool.step(patience=0.05) == [second]
    assert pool.step() == []


def test_a_pool_refuses_what_it_cannot_hold(demo_native, monkeypatch):
    """A stream too many is refused, and so is more audio than may wait; a place is free again after an end."""
    monkeypatch.setattr("nemotron_npu.pool.MAX_WAITING", 3.0)
    pool = demo_native.pool(1)
    stream = pool.stream()
    with pytest.raises(SetupError, match="all 1 are open"):
        pool.stream()
    stream.feed(np.zeros(4 * 16000, np.float32))
    with pytest.raises(BufferError, match="4 s of audio wait"):
        stream.feed(np.zeros(1600, np.float32))
    pool.step()
    stream.feed(np.zeros(1600, np.float32))
    stream.finish()
    assert pool.stream().finish().text == ""


def test_a_stream_left_by_an_exception_gives_up_its_place(demo_native):
    """A program whose client breaks off opens the next stream; the audio of the old one is dropped."""
    clip = read_audio(CLIP)
    pool = demo_native.pool(1)
    for _ in range(2):
        with pytest.raises(ConnectionError), pool.stream() as stream:
            stream.feed(clip)
            raise ConnectionError
    with pytest.raises(ValueError, match="left by an exception"):
        stream.feed(clip)
    assert pool.step() == []
    with pool.stream() as stream:
        stream.feed(clip)
    assert stream.transcript().text == CLIP_WORDS


@pytest.mark.parametrize(("places", "error"), [(0, ValueError), (-1, ValueError), (1.5, TypeError), (None, TypeError)])
def test_a_pool_has_a_whole_number_of_places(demo_native, places, error):
    """Anything else is an error where the pool is made, not where its first stream is opened."""
    with pytest.raises(error):
        demo_native.pool(places)


def test_streams_with_other_phrases_share_a_pool(demo_native):
    """Streams keep the phrases that they were opened with, also where they share a pool."""
    clip = read_audio(str(CLIP))
    pool = demo_native.pool(4)
    plain = [pool.stream() for _ in range(2)]
    demo_native.boost([Phrase("seven", 50.0)], 5.0)
    try:
        boosted = [pool.stream() for _ in range(2)]
        alone = demo_native.transcribe(clip).text
    finally:
        demo_native.boost([])
    for stream in (*plain, *boosted):
        stream.feed(clip)
    assert {stream.finish().text for stream in plain} == {CLIP_WORDS}
    assert {stream.finish().text for stream in boosted} == {alone} != {CLIP_WORDS}
