"""Any text and any name through each format: its parser finds the same times and texts again."""

import html
import io
import json

import srt
import webvtt
from hypothesis import given, settings
from hypothesis import strategies as st
from test_formats import made_of

from nemotron_npu.errors import printable
from nemotron_npu.formats import ARROW, FORMATS, Result, to_document
from nemotron_npu.sources import Recording

PIECES = [
    "-->",
    "--->",
    "-" * 9 + ">",
    "--",
    "&",
    "<b>",
    "&amp;",
    ";;",
    "\\",
    '"',
    "{\\an8}",
    "1",
    "$",
    "<c.x>",
    "\ufeff",
]
PIECES += [
    "00:00:01.000 --> 00:00:02.000",
    "line:0",
    "NOTE",
    "WEBVTT",
    "STYLE",
    "\xa0",
    "\u2028",
    "\x85",
    "\x0b",
    "\r\n",
]
PIECES += ["\n\n1\n", "\t", "\x1b[2J", "\x9b", "\u202e", "\u200b", "é", "中文", "\0", "a", " "]
TEXTS = st.lists(st.sampled_from(PIECES) | st.characters(exclude_categories=["Cs"]), min_size=1, max_size=14).map(
    "".join
)
SPOKEN = TEXTS.filter(str.strip)


def rendered(name: str, text: str, path: str = "a.wav", output: str = "a") -> str:
    """The content of a file, or the line, with ``text`` as one word of one segment from 1 s to 2 s."""
    transcript = made_of([(text, 1.0, 2.0)])
    recording = Recording(path, output)
    document = to_document(transcript, **recording.document_fields())
    return FORMATS[name].render(Result(recording, transcript, document))


def shown(text: str) -> str:
    return printable(" ".join(text.split()))


@settings(deadline=None, max_examples=300)
@given(SPOKEN)
def test_any_text_in_subtitles_and_lines(text):
    """A text comes back from srt, vtt, tsv and txt; what they cannot hold is escaped, and --> is -> in srt."""
    (cue,) = srt.parse(rendered("srt", text))
    assert cue.content.replace("\n", " ") == ARROW.sub("->", shown(text))
    assert (cue.start.total_seconds(), cue.end.total_seconds()) == (1, 2)
    vtt = rendered("vtt", text)
    (caption,) = webvtt.from_buffer(io.StringIO(vtt)).captions
    assert html.unescape(caption.raw_text.replace("\n", " ")) == shown(text)
    assert vtt.count("-->") == 1 and (caption.start, caption.end) == ("00:00:01.000", "00:00:02.000")
    assert rendered("tsv", text).split("\n")[1:] == [f"1000\t2000\t{shown(text)}", ""]
    assert rendered("txt", text).splitlines() == [shown(text)]


@settings(deadline=None, max_examples=300)
@given(SPOKEN, TEXTS)
def test_any_word_and_name_in_ctm(word, name):
    """Word and name are one column each of one line, which is no comment."""
    (line,) = rendered("ctm", word, output=name).splitlines()
    columns = line.split()
    assert columns[1:4] == ["1", "1.000", "1.000"] and len(columns) == 6 and not line.startswith(";;")
    assert columns[4] == printable("_".join(word.split()))
    assert columns[0].replace(r"\x3b", ";", 1) == (printable("_".join(name.split())) or "_").replace(r"\x3b", ";", 1)


@settings(deadline=None, max_examples=300)
@given(SPOKEN, TEXTS)
def test_any_text_and_name_in_json(text, name):
    """JSON and the manifest hold text and name as they are."""
    for kind in ("json", "jsonl"):
        line = rendered(kind, text, name)
        document = json.loads(line)
        assert len(line.splitlines()) == 1 and printable(line, lines=True) == line
        assert document["audio"] == name and document["segments"][0]["text"] == f" {text}"
    manifest = rendered("manifest", text, name)
    assert json.loads(manifest) == {"audio_filepath": name, "duration": 5000.0, "pred_text": " ".join(text.split())}
    assert manifest.isascii()
