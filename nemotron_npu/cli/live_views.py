"""Output of a live stream while it runs: text that grows on a terminal, a line for each utterance, or JSON events."""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Callable, Sequence
from contextlib import suppress
from functools import partial
from typing import Any, Protocol

from ..errors import InputError, printable
from ..formats import to_event, to_json
from ..sources import Recording
from ..transcript import Word, make_segment
from ..utterances import LiveEvent
from .columns import columns_of, terminal_width, wrapped
from .console import Console
from .session import Session

INDENT = "  "  # of the lines of an utterance after the first, among those of other streams


class LiveView(Protocol):
    """Shows one stream."""

    def update(self, events: list[LiveEvent], unfinished: list[Word]) -> None:
        """Show what has become known; ``unfinished`` are the words after those that are final."""

    def preview(self, words: list[Word]) -> None:
        """Show the words that would follow the final ones if the audio ended here: the pipe is silent."""

    def finish(self) -> None:
        """Take note of the end of the stream."""

    def fail(self, problem: str) -> None:
        """Take note of what has ended the stream too early."""

    def end_line(self) -> None:
        """End the line, if one has grown, so that a message starts on its own."""


class EventLines:
    """A JSON line for each event; ``write`` takes the lines of the stream ``recording``."""

    def __init__(self, write: Callable[[str], None], recording: Recording) -> None:
        self.write = write
        self.fields: dict[str, Any] = {"source": recording.output, "audio": recording.path}
        if recording.channel:
            self.fields["channel"] = recording.channel

    def update(self, events: list[LiveEvent], unfinished: list[Word]) -> None:
        """Write a line for each event."""
        for event in events:
            self.write(to_json(to_event(event.type, event.segment, event.number, **self.fields)))

    def preview(self, words: list[Word]) -> None:
        """Write the words that wait for more audio."""
        if words:
            segment = make_segment(words, words[-1].end)
            self.write(to_json(to_event("partial", segment, 0, **self.fields)))

    def finish(self) -> None:
        """Do nothing: the last line is the document, which ``Results`` writes."""

    def fail(self, problem: str) -> None:
        """Write the problem; the document follows if the text so far is kept."""
        self.write(to_json({"type": "error", **self.fields, "problem": problem}))

    def end_line(self) -> None:
        """Do nothing: each event ends its line."""


class TextLines:
    """A line of text for each utterance, after ``prefix``; on a terminal as many as it needs, the others indented."""

    def __init__(self, console: Console, prefix: str) -> None:
        self.console = console
        self.prefix = prefix
        self.lines = 0

    def update(self, events: list[LiveEvent], unfinished: list[Word]) -> None:
        """Write the utterances that have ended."""
        for event in events:
            if event.type == "segment":
                text = printable(self.prefix + event.segment.text)
                self.console.result(wrapped(text, terminal_width(sys.stdout), INDENT))
                self.lines += 1

    def preview(self, words: list[Word]) -> None:
        """Do nothing: a line cannot be taken back."""

    def finish(self) -> None:
        """Write a line without text for a stream without words."""
        if not self.lines:
            self.console.result(self.prefix)

    def fail(self, problem: str) -> None:
        """Do nothing: an error line follows."""

    def end_line(self) -> None:
        """Do nothing: each utterance ends its line."""


class GrowingText:
    """Text that grows on the terminal: each utterance begins a line, and lines break between words.

    Decoded words are final and stay; only those of a preview are taken back if others follow.
    """

    def __init__(self, console: Console, prefix: str) -> None:
        self.console = console
        self.prefix = printable(prefix)
        self.words: list[Word] = []
        """The final words of the utterance."""
        self.shown = ""
        """What the terminal shows of the utterance."""
        self.line_start = 0
        """Index in ``shown`` of the first character on the cursor's line."""
        self.column = 0
        self.has_begun = False

    def update(self, events: list[LiveEvent], unfinished: list[Word]) -> None:
        """Show the words that are new, and begin a line after each utterance."""
        for event in events:
            if event.type == "segment":
                self._show(event.segment.text)
                self.end_line()
            else:
                self.words += event.segment.words
        text = _text(self.words + unfinished)
        if not self.shown.startswith(text):  # else a preview is ahead of it, and nothing contradicts it yet
            self._show(text)

    def preview(self, words: list[Word]) -> None:
        """Show as many of the words as fit in the line."""
        self._show(_text(self.words + words), in_line=True)

    def finish(self) -> None:
        """Show at least the prefix, and end the line."""
        if not self.has_begun:
            self._begin()
        self.end_line()

    def fail(self, problem: str) -> None:
        """End the line: an error line follows."""
        self.end_line()

    def end_line(self) -> None:
        """End the line, if one has grown."""
        if self.has_begun and self.column:
            self.console.close_line()
        self.words, self.shown, self.line_start, self.column = [], "", 0, 0

    def _begin(self) -> None:
        self.has_begun = True
        self._write(self.prefix)
        self.column = max(self.column, 1)  # also a line without text is ended

    def _show(self, text: str, *, in_line: bool = False) -> None:
        """Change what is shown of the utterance to ``text``; with ``in_line`` as far as it fits in the line."""
        text = printable(text)
        if not text:
            return
        if not self.has_begun and self.prefix:
            self._begin()
        self.has_begun = True
        kept = len(os.path.commonprefix([self.shown, text]))
        if kept == self.line_start - 1:  # a preview has begun this line
            self._take_back(self.line_start)
            self.line_start = kept
        elif kept < self.line_start or columns_of(self.shown[kept:]) > self.column:
            self._new_line(0)  # lines above stay as they are: show the utterance again
            kept = 0
        else:
            self._take_back(kept)
        self.shown = self.shown[:kept]
        for number, piece in enumerate(re.findall(r" ?[^ ]+", text[kept:])):
            if self._fits(piece):
                self._append(piece)
            elif number and in_line:
                return
            else:
                self._append_below(piece)

    def _fits(self, piece: str) -> bool:
        width = terminal_width(sys.stdout)
        return not width or not self.column or self.column + columns_of(piece) < width

    def _append(self, piece: str) -> None:
        self.shown += piece
        if not self.column and piece.startswith(" "):
            self.line_start = len(self.shown) - len(piece) + 1
            piece = piece[1:]
        self._write(piece)

    def _append_below(self, piece: str) -> None:
        """Add ``piece`` on a new line, with the beginning of its word if it continues one."""
        start = len(self.shown)
        if not piece.startswith(" "):
            start = max(self.shown.rfind(" ") + 1, self.line_start)
        word = self.shown[start:]
        if (start == self.line_start and word) or columns_of(word) > self.column:
            self._append(piece)  # longer than a line: the terminal breaks it
            return
        self._take_back(start)
        self._new_line(start)
        self._append(word + piece)

    def _take_back(self, kept: int) -> None:
        """Erase what is shown after the first ``kept`` characters; they are on the cursor's line."""
        count = columns_of(self.shown[kept:])
        if count:
            back = "\b" * count
            self.console.grow(back + " " * count + back)
            self.column -= count
        self.shown = self.shown[:kept]

    def _new_line(self, line_start: int) -> None:
        self.console.grow("\n")
        self.line_start = line_start
        self.column = 0

    def _write(self, text: str) -> None:
        self.console.grow(text)
        self.column += columns_of(text)
        width = terminal_width(sys.stdout)
        if width and self.column > width:
            self.column %= width


def views_of(session: Session, index: int, *, grows: bool) -> list[LiveView]:
    """Return what shows and writes a stream as it goes.  ``grows``: it may have the terminal for itself."""
    recording = session.results.recordings[index]
    console, printer, folder = session.console, session.printer, session.results.folder
    views: list[LiveView] = []
    is_terminal = printer.readable and sys.stdout.isatty()
    if is_terminal and grows:
        views.append(GrowingText(console, printer.prefix(recording)))
    elif is_terminal or (not folder and printer.format == "txt"):
        views.append(TextLines(console, printer.prefix(recording)))
    elif not folder and printer.format == "events":
        views.append(EventLines(partial(console.result, end=""), recording))
    if folder:
        folder.add_event(index, "", first=True)
        views.append(EventLines(partial(folder.add_event, index), recording))
    return views


def report_failure(session: Session, index: int, error: Exception, views: list[LiveView] | None = None) -> None:
    """Report a stream that has failed, to its views as well; None: it has failed before it began."""
    if views is None:
        views = []
        with suppress(InputError):  # its name may be what has failed
            views = views_of(session, index, grows=False)
    problem = session.results.problem(index, error)
    for view in views:
        view.fail(problem)
    session.results.fail(index, error)


def write_refusals(session: Session, errors: Sequence[InputError]) -> None:
    """Write the events of inputs that gave no recording; their error lines have been written."""
    for index, error in zip(session.results.add_refused(errors), errors, strict=True):
        with suppress(InputError):  # its name may be what has failed
            for view in views_of(session, index, grows=False):
                view.fail(str(error))


def _text(words: list[Word]) -> str:
    return make_segment(words, words[-1].end).text if words else ""
