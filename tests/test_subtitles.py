"""Subtitles: whisper's options give whisper's cues, and any tokens give cues that players can show."""

import io
import re

import pytest
import srt
import webvtt
from hypothesis import given, settings
from hypothesis import strategies as st
from test_formats import SPEECH, document, made_of, spoken, whisper  # noqa: F401  # the fixture

from nemotron_npu.decoder import Emission
from nemotron_npu.formats import ARROW, FORMATS, Result, to_srt, to_vtt
from nemotron_npu.sources import Recording
from nemotron_npu.spelling import Speller
from nemotron_npu.subtitles import Layout, make_cues
from nemotron_npu.transcript import FRAME_MS, Transcript

FRAME = FRAME_MS / 1000
PIECES = [
    "▁",
    "▁the",
    "▁a",
    "b",
    "ing",
    ".",
    "!",
    ",",
    "?",
    "▁-->",
    "<unk>",
    "▁don't",
    "▁" + "x" * 50,
    "<EOU>",
    "<en-US>",
]
SPELLER = Speller(PIECES, lambda ids: "".join(PIECES[id] for id in ids).replace("▁", " ").strip(), FRAME)
TALK = made_of(
    spoken("Hello there, this is a sentence that takes several lines, if they are short enough.", 0.08),
    spoken("So it goes on.", 7.0),
    spoken("Here, after a long pause, someone speaks; an-endless-word-that-is-longer-than-a-line follows.", 15.04),
    spoken("The end.", 3723.52),
)
LAYOUTS = st.builds(Layout, *(st.none() | st.integers(1, limit) for limit in (60, 3)), st.none()) | st.builds(
    Layout, st.none() | st.integers(1, 60), st.none(), st.none() | st.integers(1, 4)
)


@st.composite
def transcripts(draw) -> Transcript:
    """Any tokens, several of them in one frame, in a recording of any length that has these frames."""
    frames = sorted(draw(st.lists(st.integers(0, 60), max_size=60)))
    last = frames[-1] if frames else 0
    duration = draw(st.floats(last * FRAME + 1e-4, last * FRAME + 3))  # the last frame may exceed it
    tokens = [Emission(draw(st.integers(0, len(PIECES) - 1)), frame, 0.5, None) for frame in frames]
    return SPELLER.transcript(tokens, duration)


@settings(deadline=None, max_examples=400)
@given(transcripts(), LAYOUTS)
def test_any_tokens_give_cues_that_can_be_shown(transcript, layout):
    """Numbered from 1, one after the other, a frame or more long, inside the recording; each word once, in order."""
    text = to_srt(transcript, layout)
    cues = list(srt.parse(text, ignore_errors=False))
    assert re.findall(r"^(\d+)\n\d\d:", text, re.MULTILINE) == [str(number) for number in range(1, len(cues) + 1)]
    end, duration = 0.0, round(transcript.duration, 3)
    for cue in cues:
        start = cue.start.total_seconds()
        assert start >= end, "no overlap"
        end = cue.end.total_seconds()
        assert end - start >= min(FRAME, duration) - 1e-9 and end <= duration
    expected = [ARROW.sub("->", word.text) for word in transcript.words]
    assert " ".join(cue.content for cue in cues).split() == expected
    captions = webvtt.from_buffer(io.StringIO(to_vtt(transcript, layout))).captions
    assert [caption.start.replace(".", ",") for caption in captions] == [
        srt.timedelta_to_srt_timestamp(cue.start) for cue in cues
    ]
    for cue in cues:
        for line in cue.content.splitlines():
            assert len(line) <= layout.line_characters or " " not in line


@pytest.mark.parametrize("width", [None, 1, 20, 42, 1000])
@pytest.mark.parametrize("lines, words", [(None, None), (1, None), (2, None), (7, None), (None, 1), (None, 999)])
@pytest.mark.parametrize("transcript", [SPEECH, TALK], ids=["speech", "talk"])
def test_options_mean_what_they_mean_in_whisper(whisper, transcript, width, lines, words):  # noqa: F811
    """Cues, lines and starts equal those of whisper's writers; a short cue is shown longer."""
    layout = Layout(width, lines, words)
    options = {"max_line_width": layout.line_characters, "max_line_count": lines, "max_words_per_line": words}
    without_ends = re.compile(r"--> [\d:.,]+")
    for kind in ("srt", "vtt"):
        ours = FORMATS[kind].render(Result(Recording("a.wav", "a"), transcript, {}, layout))
        theirs = whisper(kind, document(transcript), **options)
        assert without_ends.sub("", ours) == without_ends.sub("", theirs)
        assert ours == theirs or lines or words


def test_lines_and_words_of_a_cue_are_bounded():
    """A cue has as many lines, or words, as the option allows, and only a pause leaves one with fewer lines."""
    for count in (1, 2, 3):
        blocks = [cue.content.splitlines() for cue in srt.parse(to_srt(TALK, Layout(20, count)))]
        assert max(map(len, blocks)) == count
        words = [cue.words for cue in make_cues(TALK, Layout(words=count))]
        assert max(map(len, words)) == count


def test_words_of_one_frame_follow_each_other():
    """Three words in the last frame of a recording take the two frames before it, too."""
    tokens = [Emission(id, 9, 0.5, None) for id in (1, 2, 1)]
    cues = make_cues(SPELLER.transcript(tokens, 0.8), Layout(words=1))
    assert [(cue.text, cue.start, cue.end) for cue in cues] == [
        ("the", 0.56, 0.64), ("a", 0.64, 0.72), ("the", 0.72, 0.8)
    ]  # fmt: skip


def test_recording_too_short_for_its_cues_joins_the_first():
    """Of three words in two frames, two share a cue; in less than a frame, all do."""
    tokens = [Emission(id, 0, 0.5, None) for id in (1, 2, 1)]
    cues = make_cues(SPELLER.transcript(tokens, 0.16), Layout(words=1))
    assert [(cue.text, cue.start, cue.end) for cue in cues] == [("the a", 0.0, 0.08), ("the", 0.08, 0.16)]
    cues = make_cues(SPELLER.transcript(tokens, 0.05), Layout(words=1))
    assert [(cue.text, cue.start, cue.end) for cue in cues] == [("the a the", 0.0, 0.05)]
