"""Output formats against their readers: openai-whisper's own writers, parsers from PyPI, sclite's columns, Chromium."""

import base64
import html
import importlib.util
import io
import json
import re
import shutil
import subprocess
from types import SimpleNamespace

import pytest
import srt
import webvtt
from support import ROOT

from nemotron_npu import formats
from nemotron_npu.formats import COLLECTED, FILES, FORMATS, Result
from nemotron_npu.sources import Recording
from nemotron_npu.transcript import LINE_CHARACTERS, Segment, Token, Word


def made_of(*segments: list[tuple[str, float, float]]):
    """A transcript of such (word, start, end)."""
    parts = []
    for words in segments:
        words = tuple(Word(text, start, end, 0.875) for text, start, end in words)
        text = " ".join(word.text for word in words)
        parts.append(Segment(text, words[0].start, words[-1].end, words, 0.5))
    words = tuple(word for part in parts for word in part.words)
    tokens = tuple(Token(7, f"▁{word.text}", 3, word.start, 0.9) for word in words)
    text = " ".join(part.text for part in parts)
    return SimpleNamespace(text=text, duration=5000.0, tokens=tokens, words=words, segments=tuple(parts), events=())


def spoken(text: str, start: float) -> list[tuple[str, float, float]]:
    return [(word, round(start + 0.4 * i, 3), round(start + 0.4 * i + 0.32, 3)) for i, word in enumerate(text.split())]


SPEECH = made_of(
    spoken("Hello, this is a sentence of more than forty-two characters, that is, of two lines.", 0.08),
    spoken("Zürich isn't far.", 61.04),
    spoken("an-endless-word-that-is-longer-than-a-line-of-a-subtitle-may-be follows", 3599.9996),
    spoken("the second hour", 3723.52),
)
NOTHING = SimpleNamespace(text="", duration=1.0, tokens=(), words=(), segments=(), events=())


@pytest.fixture(scope="module")
def whisper():
    """openai-whisper's writers: ``whisper(kind, result, **options)`` -> the text of the file."""
    spec = importlib.util.spec_from_file_location("whisper_utils", ROOT / "tests" / "data" / "whisper" / "utils.py")
    utils = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(utils)

    def write(kind: str, result: dict, **options) -> str:
        file = io.StringIO()
        utils.get_writer(kind, "")  # it knows the format
        getattr(utils, f"Write{kind.upper()}")("").write_result(result, file, options)
        return file.getvalue()

    return write


def document(transcript, words: bool = True) -> dict:
    made = json.loads(formats.dump(formats.to_document(transcript, audio="a.wav")))
    for segment in made["segments"]:
        if not words:
            del segment["words"]
    return made


def ours(name: str, transcript, **document) -> str:
    return FORMATS[name].render(Result(Recording("calls/a.wav", "mon/a call"), transcript, document))


def test_formats_are_named_in_one_registry():
    """Each format is a file per recording, a line per recording in a file of its own, or that of live streams."""
    assert sorted([*FILES, *COLLECTED, "events"]) == sorted(FORMATS) and FORMATS["events"].live
    assert {name: FORMATS[name].collected_in for name in COLLECTED} == {
        "jsonl": "results.jsonl",
        "manifest": "manifest.jsonl",
    }


@pytest.mark.parametrize("name", FORMATS)
def test_formats_render_results_that_end_with_a_line_break(name):
    """Results can be written one after the other: each ends its last line."""
    text = ours(name, SPEECH, text="Hello")
    assert text.endswith("\n") and (name not in COLLECTED or text.count("\n") == 1)


@pytest.mark.parametrize("kind", ["txt", "tsv", "srt", "vtt"])
@pytest.mark.parametrize("transcript", [SPEECH, NOTHING], ids=["speech", "nothing"])
def test_whisper_writes_the_same_file_from_our_json(whisper, kind, transcript):
    """openai-whisper's writers turn our JSON document into the files that we write ourselves."""
    by_words = whisper(kind, document(transcript), max_line_width=LINE_CHARACTERS)
    by_segments = whisper(kind, document(transcript, words=False))
    assert ours(kind, transcript) == by_words, "lines and times, from the words"
    assert ours(kind, transcript).split() == by_segments.split(), "from the segments alone, but for the lines"


def test_json_words_and_texts_join_as_those_of_whisper():
    """Joined, the words give the text of their segment, and the segments give the whole text."""
    text = formats.to_json(formats.to_document(SPEECH))
    result = json.loads(text)
    assert text.endswith("}\n") and text.count("\n") == 1
    assert "".join(segment["text"] for segment in result["segments"]).strip() == result["text"] == SPEECH.text
    for segment in result["segments"]:
        assert "".join(word["word"] for word in segment["words"]) == segment["text"]
        assert segment["start"] <= segment["words"][0]["start"] < segment["words"][-1]["end"] <= segment["end"]
    assert [segment["id"] for segment in result["segments"]] == [0, 1, 2, 3]


def test_srt_is_read_by_a_parser():
    """The package srt reads the numbers, times and texts that we wrote."""
    cues = list(srt.parse(ours("srt", SPEECH), ignore_errors=False))
    assert [cue.index for cue in cues] == [1, 2, 3, 4]
    assert [cue.content.replace("\n", " ") for cue in cues] == [segment.text for segment in SPEECH.segments]
    for cue, segment in zip(cues, SPEECH.segments, strict=True):
        assert cue.start.total_seconds() == pytest.approx(segment.start, abs=5e-4)
        assert cue.end.total_seconds() == pytest.approx(segment.end, abs=5e-4)
    assert cues[0].content.splitlines() == [
        "Hello, this is a sentence of more than", "forty-two characters, that is, of two", "lines.",
    ]  # fmt: skip
    assert list(srt.parse(ours("srt", NOTHING), ignore_errors=False)) == []


def test_vtt_is_read_by_a_parser():
    """The package webvtt reads the times and texts that we wrote."""
    captions = webvtt.from_string(ours("vtt", SPEECH)).captions
    assert [caption.text.replace("\n", " ") for caption in captions] == [segment.text for segment in SPEECH.segments]
    for caption, segment in zip(captions, SPEECH.segments, strict=True):
        assert caption.start_in_seconds == int(segment.start + 5e-4) and caption.end_in_seconds == int(segment.end)
    assert captions[3].start == "01:02:03.520"
    assert webvtt.from_string(ours("vtt", NOTHING)).captions == []


def test_markup_in_words_does_not_break_subtitles():
    """``&``, ``<`` and ``-->`` are escaped in vtt; in srt ``-->`` loses a dash."""
    transcript = made_of([("R&D", 0.0, 0.4), ("<b>", 0.4, 0.8), ("-->", 0.8, 1.2), ("end", 1.2, 1.6)])
    assert "R&amp;D &lt;b> --&gt; end\n" in ours("vtt", transcript)
    assert webvtt.from_string(ours("vtt", transcript)).captions[0].raw_text == "R&amp;D &lt;b> --&gt; end"
    assert next(srt.parse(ours("srt", transcript))).content == "R&D <b> -> end"


def test_tsv_has_milliseconds_in_three_columns():
    """Each segment is one row of start, end and text."""
    rows = [line.split("\t") for line in ours("tsv", SPEECH).splitlines()]
    assert rows[0] == ["start", "end", "text"] and {len(row) for row in rows} == {3}
    assert rows[2] == ["61040", "62160", "Zürich isn't far."]


def test_ctm_has_the_columns_of_sclite():
    """They are recording, channel, start, duration, word, and confidence from 0 to 1, if it is known."""
    lines = ours("ctm", SPEECH).splitlines()
    assert len(lines) == len(SPEECH.words)
    for line, word in zip(lines, SPEECH.words, strict=True):
        name, channel, start, duration, text, confidence = line.split(" ")
        assert (name, channel, text, confidence) == ("mon/a_call", "1", word.text, "0.8750")
        assert float(start) == pytest.approx(word.start, abs=5e-4)
        assert float(duration) == pytest.approx(word.end - word.start, abs=5e-4) and float(duration) > 0
    unsure = SimpleNamespace(words=(Word("one", 0.0, 0.5),))
    assert formats.to_ctm(unsure, "a") == "a 1 0.000 0.500 one\n", "no confidence is no column"


def test_manifest_line_keeps_every_field_in_order():
    """A line has the fields of the input's own line, then pred_text."""
    fields = {"audio_filepath": "wavs/ä.wav", "duration": 1, "text": "one", "speaker": None, "extra": {"a": [1]}}
    line = formats.to_manifest("somewhere/ä.wav", fields, "won", 0.99)
    assert (
        line.isascii()
        and line.endswith("}\n")
        and list(json.loads(line).items()) == [*fields.items(), ("pred_text", "won")]
    )
    assert json.loads(formats.to_manifest("a.wav", None, "won", 0.99)) == {
        "audio_filepath": "a.wav", "duration": 0.99, "pred_text": "won",
    }  # fmt: skip


def test_dump_numbers_not_finite_become_null():
    """NaN and infinity have no JSON; other values stay."""
    assert json.loads(formats.dump({"a": float("nan"), "b": [float("inf"), 1.5], "c": (1, None)})) == {
        "a": None,
        "b": [None, 1.5],
        "c": [1, None],
    }


CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
PAGE = """<!DOCTYPE html><meta charset=utf-8>
<video><track kind=captions srclang=en src="data:text/vtt;base64,%s"></video><pre>nothing came</pre>
<script>
const track = document.querySelector('track'), shown = document.querySelector('pre');
const cue = c => [c.startTime, c.endTime, c.getCueAsHTML().textContent];
track.onload = () => { shown.textContent = JSON.stringify([...track.track.cues].map(cue)) };
track.onerror = () => { shown.textContent = 'error' };
track.track.mode = 'hidden';
</script>"""


@pytest.mark.skipif(CHROMIUM is None, reason="no Chromium here")
@pytest.mark.parametrize("transcript", [SPEECH, NOTHING], ids=["speech", "nothing"])
def test_vtt_is_a_caption_track_in_chromium(transcript, tmp_path):
    """A browser reads the cues that we wrote."""
    page = PAGE % base64.b64encode(ours("vtt", transcript).encode()).decode()
    quiet = ["gpu", "quic", "background-networking", "component-update", "sync"]
    flags = ["--headless", "--no-sandbox", "--no-first-run", *(f"--disable-{name}" for name in quiet)]
    command = [CHROMIUM, *flags, f"--user-data-dir={tmp_path}", "--virtual-time-budget=10000", "--dump-dom"]
    url = "data:text/html;base64," + base64.b64encode(page.encode()).decode()
    dom = subprocess.run([*command, url], capture_output=True, text=True, timeout=120).stdout
    cues = json.loads(html.unescape(re.search("<pre>(.*?)</pre>", dom, re.DOTALL)[1]))
    assert [text.split() for *_, text in cues] == [segment.text.split() for segment in transcript.segments]
    for (start, end, _), segment in zip(cues, transcript.segments, strict=True):
        assert (start, end) == pytest.approx((segment.start, segment.end), abs=1e-3)
