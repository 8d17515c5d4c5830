"""Results -> text: one pure function per format, in the layouts of openai-whisper where it has them."""

from __future__ import annotations

import json
import math
import textwrap

from .transcript import Segment, Token, Transcript

LINE_CHARACTERS = 42  # of a subtitle, at most
FORMATS = ("txt", "json", "srt", "vtt", "tsv", "ctm")
"""One file for each recording."""
COLLECTED = ("jsonl", "manifest")
"""One file for all recordings, with a line for each."""


def render(kind: str, transcript: Transcript, document: dict, name: str) -> str:
    """The file of one of ``FORMATS``; ``document`` is the result in JSON, ``name`` the recording in a ctm."""
    if kind == "json":
        return dump(document) + "\n"
    if kind == "ctm":
        return to_ctm(transcript, name)
    return {"txt": to_lines, "srt": to_srt, "vtt": to_vtt, "tsv": to_tsv}[kind](transcript)


def to_text(transcript: Transcript) -> str:
    """The words on one line."""
    return " ".join(transcript.text.split())


def to_lines(transcript: Transcript) -> str:
    """txt: a segment a line."""
    return "".join(f"{segment.text}\n" for segment in transcript.segments)


def to_srt(transcript: Transcript) -> str:
    """SubRip: numbered cues, their lines broken at 42 characters."""
    return "".join(
        f"{number}\n{_time(segment.start, ',')} --> {_time(segment.end, ',')}\n{_lines(segment)}\n\n"
        for number, segment in enumerate(transcript.segments, 1)
    )


def to_vtt(transcript: Transcript) -> str:
    """WebVTT; ``&`` and ``<``, which begin its markup, are escaped (W3C WebVTT, 4.2.2; whisper does not)."""
    cues = "".join(
        f"{_time(segment.start, '.', False)} --> {_time(segment.end, '.', False)}\n"
        f"{_lines(segment).replace('&', '&amp;').replace('<', '&lt;')}\n\n"
        for segment in transcript.segments
    )
    return "WEBVTT\n\n" + cues


def to_tsv(transcript: Transcript) -> str:
    """start, end (ms) and text of each segment, under a heading."""
    rows = (f"{round(1000 * s.start)}\t{round(1000 * s.end)}\t{s.text}\n" for s in transcript.segments)
    return "start\tend\ttext\n" + "".join(rows)


def to_ctm(transcript: Transcript, name: str) -> str:
    """NIST's conversation time marks (sclite): recording, channel, start and duration in s, word, its confidence.

    ``name`` is one column: white space in it becomes ``_``.  A confidence that is not known is left out.
    """
    name = "_".join(name.split())
    lines = []
    for word in transcript.words:
        confidence = "" if word.confidence is None else f" {word.confidence:.4f}"
        lines.append(f"{name} 1 {word.start:.3f} {word.end - word.start:.3f} {word.text}{confidence}\n")
    return "".join(lines)


def to_document(transcript: Transcript, **facts) -> dict:
    """The result as JSON has it: ``facts`` (audio, model, device, ...) around the transcript's own fields.

    ``text``, ``duration``, ``segments`` with their ``words``, ``tokens``.  As in whisper's, segment texts and words
    begin with the space in front of them: joined, the words give their segment and the segments the text.
    """
    segments = [
        {
            "id": number,
            "start": segment.start,
            "end": segment.end,
            "text": f" {segment.text}",
            "confidence": segment.confidence,
            "words": [
                {"word": f" {word.text}", "start": word.start, "end": word.end, "confidence": word.confidence}
                for word in segment.words
            ],
        }
        for number, segment in enumerate(transcript.segments)
    ]
    return {
        **facts,
        "text": to_text(transcript),
        "duration": transcript.duration,
        "segments": segments,
        "tokens": [{name: getattr(token, name) for name in Token.__slots__} for token in transcript.tokens],
    }


def to_manifest(path: str, fields: dict | None, text: str, duration: float) -> str:
    """A line of a NeMo manifest: the input's own fields as they came, then ``pred_text``, as NeMo writes it."""
    return json.dumps({**(fields or {"audio_filepath": path, "duration": duration}), "pred_text": text})


def encode(text: str) -> bytes:
    """As it is written to files."""
    return text.encode("utf-8", "backslashreplace")  # a file name that is no text: in JSON this is its escape


def dump(document, indent: int | None = None) -> str:
    """Valid JSON, also of figures that are not finite: they become null."""
    how = {"ensure_ascii": False, "allow_nan": False, "indent": indent}
    try:
        return json.dumps(document, **how)
    except ValueError:  # a figure that is not finite: looking for it first would take longer than all the rest
        return json.dumps(_finite(document), **how)


def _finite(value):
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, dict):
        return {key: _finite(item) for key, item in value.items()}
    return [_finite(item) for item in value] if isinstance(value, (list, tuple)) else value


def _time(seconds: float, point: str, hours: bool = True) -> str:
    """``01:02:03,456``; without ``hours`` they are only there when there are any."""
    minutes, milliseconds = divmod(round(1000 * seconds), 60_000)
    start = f"{minutes // 60:02d}:{minutes % 60:02d}" if hours or minutes >= 60 else f"{minutes:02d}"
    return f"{start}:{milliseconds // 1000:02d}{point}{milliseconds % 1000:03d}"


def _lines(segment: Segment) -> str:
    """The text of a cue; ``-->`` would end it."""
    text = segment.text.replace("-->", "->")
    return textwrap.fill(text, LINE_CHARACTERS, break_long_words=False, break_on_hyphens=False)
