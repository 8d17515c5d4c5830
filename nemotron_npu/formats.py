"""Transcripts -> text: one pure function per output format, in openai-whisper's layouts where whisper has the format.

To add a format, write its function and add one entry to ``FORMATS``.
"""

from __future__ import annotations

import json
import math
import re
import textwrap
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from .errors import CONTROL_IN_LINES, printable
from .subtitles import DEFAULT, Layout, make_cues
from .tags import END_OF_BACKCHANNEL, END_OF_UTTERANCE, LANGUAGE, Event
from .transcript import Segment, Token, Transcript, Word

if TYPE_CHECKING:  # it loads libsndfile, which the options need not wait for
    from .sources import Recording

ARROW = re.compile("--+>")


@dataclass(frozen=True)
class Result:
    """The data that a format can use."""

    recording: Recording
    transcript: Transcript
    document: dict
    """The JSON document, see ``to_document``."""
    layout: Layout = DEFAULT
    """Of subtitles."""


@dataclass(frozen=True)
class Format:
    """One value of ``--output_format``; its name is the extension of its files."""

    render: Callable[[Result], str]
    """Return the content of a recording's file, or its line; both end with a line break."""
    collected_in: str | None = None
    """The one file of an output folder that takes a line for each recording; None for a file per recording.

    For recordings that an earlier run has finished, ``render`` gets text and duration, but no words and no document.
    """
    concatenates: bool = True
    """Whether several recordings can follow each other on stdout."""
    subtitles: bool = False
    """Whether it has cues, and ``Result.layout`` applies."""
    live: bool = False
    """Whether it is for live streams only: its lines are written while the stream runs, and ``render`` is the last."""
    tables: str | None = None
    """How tables of figures are written to stdout: as ``text``, as ``json`` lines, or not at all."""


def to_text(transcript: Transcript) -> str:
    """Return the words on one line, without a line break."""
    return " ".join(transcript.text.split())


def to_lines(transcript: Transcript) -> str:
    """Return txt: one segment per line."""
    return "".join(f"{_one_line(segment.text)}\n" for segment in transcript.segments)


def to_srt(transcript: Transcript, layout: Layout = DEFAULT) -> str:
    """Return SubRip: numbered cues, their lines broken to fit; ``-->``, which it cannot escape, is ``->``."""
    cues = []
    for number, cue in enumerate(make_cues(transcript, layout), 1):
        start = _clock(cue.start, ",")
        end = _clock(cue.end, ",")
        text = ARROW.sub("->", _cue_text(cue.text, layout))
        cues.append(f"{number}\n{start} --> {end}\n{text}\n\n")
    return "".join(cues)


def to_vtt(transcript: Transcript, layout: Layout = DEFAULT) -> str:
    """Return WebVTT; ``&``, ``<`` and ``-->`` are its markup and are escaped (W3C WebVTT, 4.2.2; whisper does not)."""
    cues = []
    for cue in make_cues(transcript, layout):
        start = _short_clock(cue.start)
        end = _short_clock(cue.end)
        text = _cue_text(cue.text, layout).replace("&", "&amp;").replace("<", "&lt;").replace("-->", "--&gt;")
        cues.append(f"{start} --> {end}\n{text}\n\n")
    return "WEBVTT\n\n" + "".join(cues)


def to_tsv(transcript: Transcript) -> str:
    """Return start (ms), end (ms) and text of each segment, under a heading."""
    rows = ["start\tend\ttext\n"]
    for segment in transcript.segments:
        rows.append(f"{_milliseconds(segment.start)}\t{_milliseconds(segment.end)}\t{_one_line(segment.text)}\n")
    return "".join(rows)


def to_ctm(transcript: Transcript, name: str, channel: int = 1) -> str:
    """Return NIST's conversation time marks (sclite): recording, channel, start (s), duration (s), word, confidence.

    Name and word are one column each: white space in them becomes ``_``, and a ``;;``, which would start a comment, is
    escaped.  An unknown confidence is left out.
    """
    name = _column(name)
    if name.startswith(";;"):
        name = rf"\x3b{name[1:]}"
    lines = []
    for word in transcript.words:
        line = f"{name} {channel} {word.start:.3f} {word.end - word.start:.3f} {_column(word.text)}"
        if word.confidence is not None:
            line += f" {word.confidence:.4f}"
        lines.append(f"{line}\n")
    return "".join(lines)


def to_document(transcript: Transcript, **fields: object) -> dict:
    """Return the JSON document: ``fields`` (audio, model, device, ...), then those of the transcript.

    These are ``text``, ``duration``, ``segments`` with their ``words``, ``tokens``, and ``events`` if the model emitted
    tags.  As in whisper's, segment texts and words begin with a space: joined, the words give their segment and the
    segments the text.
    """
    segments = [_segment_document(number, segment) for number, segment in enumerate(transcript.segments)]
    tokens = [{name: getattr(token, name) for name in Token.__slots__} for token in transcript.tokens]
    document = {
        **fields,
        "text": to_text(transcript),
        "duration": transcript.duration,
        "segments": segments,
        "tokens": tokens,
    }
    if transcript.events:
        document["events"] = [_event_document(event) for event in transcript.events]
    return document


def to_event(type: str, segment: Segment, number: int, **fields: object) -> dict:
    """Return an event of a live stream: ``words`` that are final, utterance ``number``, or a ``partial`` one.

    ``fields`` name the stream.  ``events.schema.json`` in this folder describes them.
    """
    head = {"type": type, **fields}
    document = _segment_document(number, segment)
    if type == "segment":
        return {**head, **document}
    if type == "partial":
        head["text"] = document["text"]
    return {**head, "words": document["words"]}


def to_end_event(result: Result) -> dict:
    """Return the event of a live stream that has ended: its document."""
    return {"type": "end", "source": result.recording.output, **result.document}


def to_json(document: dict) -> str:
    """Return the document on one line."""
    return dump(document) + "\n"


def to_manifest(path: str, fields: dict | None, text: str, duration: float) -> str:
    """Return a line of a NeMo manifest: the input's own fields unchanged, then ``pred_text``, as NeMo writes it."""
    own = fields or {"audio_filepath": path, "duration": duration}
    return json.dumps({**own, "pred_text": text}) + "\n"


def _manifest_line(result: Result) -> str:
    recording = result.recording
    return to_manifest(recording.path, recording.fields, to_text(result.transcript), result.transcript.duration)


def _ctm_lines(result: Result) -> str:
    channel = result.recording.channel
    output = result.recording.output
    return to_ctm(result.transcript, output.removesuffix(f".ch{channel}"), channel or 1)


FORMATS: dict[str, Format] = {
    "txt": Format(lambda result: to_lines(result.transcript), tables="text"),
    "json": Format(lambda result: to_json(result.document), tables="json"),
    "srt": Format(lambda result: to_srt(result.transcript, result.layout), concatenates=False, subtitles=True),
    "vtt": Format(lambda result: to_vtt(result.transcript, result.layout), concatenates=False, subtitles=True),
    "tsv": Format(lambda result: to_tsv(result.transcript), concatenates=False),
    "ctm": Format(_ctm_lines),
    "jsonl": Format(lambda result: to_json(result.document), "results.jsonl", tables="json"),
    "manifest": Format(_manifest_line, "manifest.jsonl"),
    "events": Format(lambda result: to_json(to_end_event(result)), live=True),
}
FILES = tuple(name for name, entry in FORMATS.items() if not (entry.collected_in or entry.live))
"""Names of the formats with one file per recording."""
COLLECTED = tuple(name for name, entry in FORMATS.items() if entry.collected_in)
"""Names of the formats with one file for all recordings."""


def encode(text: str) -> bytes:
    """Encode text for a file; a file name that is not valid text keeps its bytes as escapes."""
    return text.encode("utf-8", "backslashreplace")


def dump(document: object, indent: int | None = None) -> str:
    """Return valid JSON without control, bidi and zero-width characters; numbers that are not finite become null."""
    try:
        return _json(document, indent)
    except ValueError:  # a number is not finite: searching for one first would take longer than writing
        return _json(_finite(document), indent)


def _json(document: object, indent: int | None) -> str:
    text = json.dumps(document, ensure_ascii=False, allow_nan=False, indent=indent)
    return CONTROL_IN_LINES.sub(lambda match: json.dumps(match[0])[1:-1], text)


def _finite(value: object) -> object:
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, dict):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_finite(item) for item in value]
    return value


def _segment_document(number: int, segment: Segment) -> dict:
    words = [
        {"word": _spaced(word.text, word), "start": word.start, "end": word.end, "confidence": word.confidence}
        for word in segment.words
    ]
    document = {
        "id": number,
        "start": segment.start,
        "end": segment.end,
        "text": _spaced(segment.text, segment.words[0]),
        "confidence": segment.confidence,
        "words": words,
    }
    if segment.language:
        document[LANGUAGE] = segment.language
    for name, holds in (
        (END_OF_UTTERANCE, segment.end_of_utterance),
        (END_OF_BACKCHANNEL, segment.end_of_backchannel),
    ):
        if holds:
            document[name] = True
    return document


def _spaced(text: str, word: Word) -> str:
    """Return ``text``, which begins with ``word``, with the space before it."""
    return text if word.joins else f" {text}"


def _event_document(event: Event) -> dict:
    document = {"event": event.tag.event, "frame": event.frame, "time": event.time}
    if event.tag.language:
        document[LANGUAGE] = event.tag.language
    return document


def _milliseconds(seconds: float) -> int:
    return round(1000 * seconds)


def _clock(seconds: float, point: str) -> str:
    """Return ``01:02:03,456``."""
    minutes, milliseconds = divmod(_milliseconds(seconds), 60_000)
    hours, minutes = divmod(minutes, 60)
    return f"{hours:02d}:{minutes:02d}:{milliseconds // 1000:02d}{point}{milliseconds % 1000:03d}"


def _short_clock(seconds: float) -> str:
    """Return ``02:03.456``, or ``01:02:03.456`` from one hour on."""
    clock = _clock(seconds, ".")
    return clock.removeprefix("00:")


def _one_line(text: str) -> str:
    return printable(" ".join(text.split()))


def _column(text: str) -> str:
    return printable("_".join(text.split())) or "_"


def _cue_text(text: str, layout: Layout) -> str:
    return textwrap.fill(_one_line(text), layout.line_characters, break_long_words=False, break_on_hyphens=False)
