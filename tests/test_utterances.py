"""Words of a live stream are given once they are final, utterances once they have ended."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from support import CLIP_WORDS, token_frames

from nemotron_npu.decoder import Emission
from nemotron_npu.engine import StreamOptions
from nemotron_npu.spelling import Speller
from nemotron_npu.utterances import Utterances

PIECES = ["▁for", "ty", "▁two", ".", "▁", "s", "<EOU>", "▁no"]
FRAME = 0.1  # s


@pytest.fixture
def follow():
    """Follow tokens, (piece, frame), ``step`` frames at a time: (type, text, frame decoded) of each event."""

    def call(tokens: list[tuple[str, int]], frames: int, endpoint_ms: int = 800, step: int = 1) -> list[tuple]:
        speller = Speller(PIECES, lambda ids: "".join(PIECES[id] for id in ids).replace("▁", " ").strip(), FRAME)
        emissions = [Emission(PIECES.index(piece), frame, 0.5, 0.5) for piece, frame in tokens]
        utterances, seen, words = Utterances(speller, endpoint_ms), [], []
        for decoded in range(step, frames + 1, step):
            known = [token for token in emissions if token.frame < decoded]
            words += utterances.update(known, decoded * FRAME, ended=decoded == frames)
            seen += [(event.type, event.segment.text, decoded) for event in utterances.events]
            given = [word for event in utterances.events if event.type == "words" for word in event.segment.words]
            assert given == words, "feed and events give the same words"
            words.clear(), utterances.events.clear()
        return seen

    return call


def test_word_is_final_when_the_next_one_begins(follow):
    """A word is given with the first token of the next one, and with the end of the stream."""
    tokens = [("▁for", 0), ("ty", 3), ("▁two", 5), ("s", 6), (".", 7)]
    assert follow(tokens, 10) == [("words", "forty", 6), ("words", "twos.", 10), ("segment", "forty twos.", 10)]


@pytest.mark.parametrize("step", [1, 2, 5, 10])
def test_pause_ends_an_utterance_at_any_step(follow, step):
    """An utterance ends after 0.8 s without a token, also if one step of the model holds the pause."""
    seen = follow([("▁for", 0), ("▁two", 2), ("▁no", 12)], 20, step=step)
    assert [(type, text) for type, text, _ in seen if type == "segment"] == [("segment", "for two"), ("segment", "no")]
    ends = [frame for type, _, frame in seen if type == "segment"]
    assert ends[0] - 11 < step, "as soon as it is decoded"


def test_sentence_ends_after_half_the_pause(follow):
    """After the end of a sentence half of the time is enough; with 0 no pause ends an utterance."""
    tokens = [("▁two", 0), (".", 1), ("▁no", 8)]
    assert follow(tokens, 9)[1] == ("segment", "two.", 6)
    assert [event for event in follow(tokens, 9, endpoint_ms=0) if event[0] == "segment"] == [("segment", "two. no", 9)]


def test_end_of_utterance_tag_ends_it_at_once(follow):
    """The checkpoint's own end of utterance ends it, whatever the pause."""
    seen = follow([("▁for", 0), ("▁two", 2), ("<EOU>", 4), ("▁no", 6)], 9, endpoint_ms=0)
    assert seen[2] == ("segment", "for two", 5) and seen[-1] == ("segment", "no", 9)


def test_late_token_joins_the_word_that_was_given(follow):
    """A token that continues a word after its utterance has ended is given without a space before it."""
    seen = follow([("▁for", 0), ("ty", 12), ("▁", 14), ("s", 15)], 20)
    assert [event[:2] for event in seen] == [
        ("words", "for"),
        ("segment", "for"),
        ("words", "ty"),
        ("words", "s"),
        ("segment", "ty s"),
    ]


def test_late_mark_and_lone_space_are_told_apart(follow):
    """A mark joins the word before the pause; a word after a lone space does not."""
    speller = Speller(PIECES, lambda ids: "".join(PIECES[id] for id in ids).replace("▁", " ").strip(), FRAME)
    at = PIECES.index
    assert speller.continues(at("▁for"), at(".")) and speller.continues(at("▁for"), at("ty"))
    assert not speller.continues(at("▁"), at("s")) and not speller.continues(at("▁for"), at("▁two"))
    assert follow([("▁for", 0), (".", 12)], 20)[2][:2] == ("words", ".")


@pytest.mark.parametrize("chunk_ms", [80, 560, 1120])
def test_events_have_the_words_of_the_recording(demo_native, clip, chunk_ms):
    """However a stream is fed, words are given once, with the times and confidence of the recording."""
    model, chance = demo_native.at_chunk(chunk_ms), np.random.default_rng(chunk_ms)
    audio = np.concatenate([clip, np.zeros(30000, np.float32), clip])
    expected = model.transcribe(audio)
    given, first, events = [], 0, []
    with model.stream() as stream:
        while first < len(audio):
            size = int(chance.integers(1, 30000))
            given += stream.feed(audio[first : first + size])
            events += stream.events()
            first += size
            assert [word.text for word in stream.words] == stream.text.split()
            assert stream.text.endswith(stream.utterance)
    events += stream.events()
    words = [word for event in events if event.type == "words" for word in event.segment.words]
    segments = [word for event in events if event.type == "segment" for word in event.segment.words]
    for found in (words, segments):
        assert [word.text for word in found] == expected.text.split()
        assert [(word.start, word.end) for word in found] == [(word.start, word.end) for word in expected.words]
        assert [word.confidence for word in found] == pytest.approx(
            [word.confidence for word in expected.words], abs=1e-4
        )
    assert words[: len(given)] == given and len(given) >= len(words) - 2 and not stream.events()


def test_preview_decodes_what_waits_and_changes_nothing(demo_native, clip):
    """The preview has the words that wait for a whole chunk; the tokens of the stream stay the same."""
    model, chance = demo_native.at_chunk(1120), np.random.default_rng(0)
    expected, first, more = token_frames(model.transcribe(clip)), 0, 0
    with model.stream() as stream:
        while first < len(clip):
            size = int(chance.integers(1, 9000))
            stream.feed(clip[first : first + size])
            first += size
            seen = [word.text for word in stream.preview()]
            alone = model.transcribe(clip[:first]).text.split()
            assert alone[len(alone) - len(seen) :] == seen, "as if the audio ended here"
            more += len(alone) > len(stream.words)
    assert token_frames(stream.finish()) == expected and more > 3


def test_pooled_streams_have_the_same_events(demo_native, clip):
    """A stream of a pool gives the events of a stream alone."""
    with demo_native.stream() as alone:
        alone.feed(clip)
    pool = demo_native.pool(2)
    streams = [pool.stream() for _ in range(2)]
    for stream in streams:
        stream.feed(clip)
        assert len(stream.preview()) == len(CLIP_WORDS.split())
        stream.finish()
    expected = [(event.type, event.segment.text) for event in alone.events()]
    assert expected[-1] == ("segment", "six")
    for stream in streams:
        assert [(event.type, event.segment.text) for event in stream.events()] == expected


@pytest.mark.parametrize(
    "convert",
    [
        lambda x: x,
        lambda x: x[:, None],
        torch.from_numpy,
        lambda x: (x * 32768).round().astype("<i2"),
        lambda x: (x * 32768).round().astype(">i2")[:, None],
        lambda x: torch.from_numpy((x * 32768).round().astype(np.int16))[:, None],
        lambda x: np.repeat(x, 2)[::2],
    ],
)
def test_samples_of_every_accepted_type_give_the_words(demo_560, clip, convert):
    """float32 and int16, mono or [n, 1], of numpy or torch give the words, in streams and recordings."""
    samples = convert(clip)
    with demo_560.stream() as stream:
        stream.feed(samples[:50001])
        stream.feed(samples[50001:])
    assert stream.text == demo_560.transcribe(samples).text == demo_560.transcribe([samples])[0].text == CLIP_WORDS


@pytest.mark.parametrize(
    "convert, words",
    [
        (lambda x: x.astype(np.float64), "samples are float64: expected float32 in -1 .. 1 or int16"),
        (lambda x: x.astype(np.int32), "samples are int32: expected"),
        (lambda x: torch.from_numpy(x).double(), "samples are float64: expected"),
        (lambda x: np.stack([x, x], 1), "samples have shape [109296, 2]: expected one channel"),
        (lambda x: x[None], "samples have shape [1, 109296]: expected one channel"),
        (lambda x: x * 32768, "where full scale is 1"),
    ],
)
def test_other_samples_are_a_type_error_that_names_them(demo_560, clip, convert, words):
    """Audio of another type, shape or level is refused by name, in streams and recordings; never other words."""
    for call in (demo_560.stream().feed, demo_560.transcribe):
        with pytest.raises(TypeError) as error:
            call(convert(clip))
        assert words in str(error.value)
    for other in (b"\0\0", [0.0]):
        with pytest.raises(TypeError, match=f"of type {type(other).__name__}: expected"):
            demo_560.stream().feed(other)


def test_stream_options_choose_the_endpoint(demo_560, clip):
    """With endpoint_ms 0 the clip is one utterance."""
    with demo_560.stream(StreamOptions(endpoint_ms=0)) as stream:
        stream.feed(clip)
    assert [event.segment.text for event in stream.events() if event.type == "segment"] == [CLIP_WORDS]


@pytest.mark.parametrize("pooled", [False, True])
def test_reset_after_pause_restarts_the_decoder(demo_560, clip, pooled):
    """After such a pause the decoder is as at the beginning, and frames go on; by default it is never restarted."""
    audio = np.concatenate([clip, np.zeros(48000, np.float32), clip])
    for pause, resets in ((2000, True), (0, False)):
        options = StreamOptions(reset_after_pause_ms=pause)
        stream = demo_560.pool(2).stream(options) if pooled else demo_560.stream(options)
        stream.feed(audio[: len(clip) + 48000])
        while pooled and stream.is_ready:
            stream.pool.step()
        stream.feed(audio[len(clip) + 48000 :])
        transcript = stream.finish()
        again = transcript.text.removeprefix(f"{CLIP_WORDS} ")
        assert CLIP_WORDS.endswith(again) and len(again.split()) >= 7  # a reset may cost the word after it
        assert bool(stream.tokens_at_reset) == resets
        later = transcript.words[-1].start - transcript.words[7].start
        assert later == pytest.approx((len(clip) + 48000) / 16000, abs=0.6)
