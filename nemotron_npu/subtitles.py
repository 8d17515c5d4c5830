"""Words -> the cues of subtitles, with openai-whisper's options for them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from .errors import printable
from .transcript import LINE_CHARACTERS, Segment, Transcript, Word, timed_segments

LONG_PAUSE = 3.0  # seconds from word to word: a cue that is filled regardless of segments ends before one, as whisper's


@dataclass(frozen=True)
class Layout:
    """How subtitles are divided; the default is a cue for each segment."""

    width: int | None = None
    """Characters of a line, at most: ``LINE_CHARACTERS`` by default.  A longer word has a line of its own."""
    lines: int | None = None
    """Of a cue: each is filled with so many, regardless of segments."""
    words: int | None = None
    """Of a cue, at most; without ``lines``."""

    @property
    def line_characters(self) -> int:
        """Return the longest line."""
        return self.width or LINE_CHARACTERS

    @property
    def options(self) -> dict[str, int]:
        """Return the options that give it; none for the default."""
        values = {"max_line_width": self.width, "max_line_count": self.lines, "max_words_per_line": self.words}
        return {name: value for name, value in values.items() if value}

    def __str__(self) -> str:
        """Return its options on one line."""
        return ", ".join(f"{name} {value}" for name, value in self.options.items())


DEFAULT = Layout()


def make_cues(transcript: Transcript, layout: Layout) -> Sequence[Segment]:
    """Return the words of each cue, with its times."""
    if layout.lines:
        parts = _filled(transcript.words, layout.line_characters, layout.lines)
    elif layout.words:
        count = layout.words
        words = [segment.words for segment in transcript.segments]
        parts = (part[first : first + count] for part in words for first in range(0, len(part), count))
    else:
        return transcript.segments
    return tuple(timed_segments(list(parts), transcript.duration))


def _filled(words: Sequence[Word], width: int, count: int) -> Iterator[Sequence[Word]]:
    """Yield the words in parts of ``count`` lines of ``width`` characters."""
    part: list[Word] = []
    line, lines = 0, 1  # characters of the last line, lines
    for word in words:
        size = len(printable(word.text))
        if part and line + 1 + size > width:
            line, lines = 0, lines + 1
        if part and (lines > count or word.start - part[-1].start > LONG_PAUSE):
            yield part
            part, line, lines = [], 0, 1
        line += size + bool(line)
        part.append(word)
    if part:
        yield part
