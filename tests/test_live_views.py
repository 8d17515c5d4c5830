"""Live text on terminals of any width, a line for each utterance in a pipe, and messages that wait for a line's end."""

from __future__ import annotations

import random
import sys
import unicodedata

import pytest

from nemotron_npu.cli import live_views
from nemotron_npu.cli.console import Console
from nemotron_npu.cli.live_views import GrowingText, TextLines
from nemotron_npu.transcript import Word, make_segment
from nemotron_npu.utterances import LiveEvent

TEXT = "the quick 中文字符 brown fox naïve e\u0301tude jumps 日本語 over internationalization a lazy dog です at last"
WRONG = [TEXT, "wrong words that follow", "中文字符 中文字符 中文字符"]


def width_of(char: str) -> int:
    if unicodedata.combining(char):
        return 0
    return 2 if unicodedata.east_asian_width(char) in "WF" else 1


class Screen:
    """A terminal that breaks long lines itself, and counts how often it has to."""

    def __init__(self, columns: int) -> None:
        self.columns = columns
        self.rows: list[list[str]] = [[]]
        self.column = 0
        self.broken = 0

    def write(self, text: str) -> None:
        for char in text:
            if char == "\n":
                self.rows.append([])
                self.column = 0
            elif char == "\b":
                assert self.column, "nothing above the line is taken back"
                self.column -= 1
            elif not width_of(char):
                self.rows[-1][self.column - 1] += char
            else:
                self._put(char)

    def _put(self, char: str) -> None:
        if self.column + width_of(char) > self.columns:
            self.broken += 1
            self.rows.append([])
            self.column = 0
        cells = self.rows[-1]
        cells += [" "] * (self.column + width_of(char) - len(cells))
        cells[self.column : self.column + width_of(char)] = [char] + [""] * (width_of(char) - 1)
        self.column += width_of(char)

    def lines(self) -> list[str]:
        return ["".join(row).rstrip() for row in self.rows]


@pytest.fixture
def screen(monkeypatch):
    """(screen of so many columns, a growing text on it)"""

    def make(columns: int, prefix: str = "") -> tuple[Screen, GrowingText]:
        screen = Screen(columns)
        monkeypatch.setattr(live_views, "terminal_width", lambda stream: screen.columns)
        console = Console()
        monkeypatch.setattr(console, "result", lambda text, end="\n", **_: screen.write(text + end))
        return screen, GrowingText(console, prefix)

    return make


def words_of(text: str) -> list[Word]:
    return [Word(word, float(i), float(i) + 0.5) for i, word in enumerate(text.split())]


def event(type: str, words: list[Word]) -> LiveEvent:
    return LiveEvent(type, make_segment(words, words[-1].end), 0)


def say(view, text: str, chance: random.Random, screen=None) -> None:
    """Let an utterance grow, word by word or by parts of words, with previews that are sometimes wrong."""
    words = words_of(text)
    for word in words:
        for end in sorted(chance.sample(range(1, len(word.text) + 1), chance.randint(1, len(word.text)))):
            view.update([], [Word(word.text[:end], word.start, word.end)])
        if chance.random() < 0.3 and not screen:
            view.preview([word, *words_of(chance.choice(WRONG))])
        if screen and chance.random() < 0.2:
            screen.columns = chance.randint(20, 200)
        view.update([event("words", [word])], [])
    view.update([event("segment", words)], [])


@pytest.mark.parametrize("columns", [20, 21, 40, 80, 120, 200])
def test_words_wrap_at_any_width(screen, columns):
    """From 20 to 200 columns lines break between words, each utterance begins a line, and no word is lost."""
    for seed in range(10):
        terminal, view = screen(columns)
        for _ in range(3):
            say(view, TEXT, random.Random(seed))
        view.finish()
        lines = terminal.lines()
        assert lines.pop() == ""
        assert " ".join(lines).split() == TEXT.split() * 3
        assert not terminal.broken
        starts = [line for line in lines if line.startswith("the quick")]
        assert len(starts) == 3


def test_words_survive_a_resize(screen):
    """A terminal whose size changes at any moment, also inside a word, shows every word, in order."""
    for seed in range(30):
        terminal, view = screen(60)
        say(view, TEXT, random.Random(seed), terminal)
        view.finish()
        shown = iter("".join(terminal.lines()))
        assert all(char in shown for char in TEXT.replace(" ", "")), terminal.lines()


def test_prefix_is_shown_once_and_without_words(screen):
    """The name of the recording is before the first utterance, also if there are no words."""
    terminal, view = screen(40, "a.wav: ")
    view.finish()
    assert terminal.lines() == ["a.wav:", ""]
    terminal, view = screen(40, "a.wav: ")
    say(view, "one two", random.Random(0))
    say(view, "three", random.Random(0))
    view.finish()
    assert terminal.lines() == ["a.wav: one two", "three", ""]


def test_preview_is_replaced_by_what_follows(screen):
    """The words of a preview stay until others follow or the utterance ends without them."""
    terminal, view = screen(40)
    view.update([event("words", words_of("one"))], words_of("tw"))
    view.preview(words_of("two three"))
    assert terminal.lines() == ["one two three"]
    view.update([], words_of("two"))
    assert terminal.lines() == ["one two three"], "nothing contradicts it yet"
    view.update([event("words", words_of("twenty"))], [])
    assert terminal.lines() == ["one twenty"]
    view.preview(words_of("more"))
    view.update([event("segment", words_of("one twenty"))], words_of("new"))
    assert terminal.lines() == ["one twenty", "new"]


def test_control_characters_are_escaped_on_the_terminal(screen):
    """What a model or a file name could do to a terminal is escaped."""
    terminal, view = screen(80, "\x1b[2J.wav: ")
    view.update([event("words", words_of("a\x1b[31mb"))], [])
    assert terminal.lines() == [r"\x1b[2J.wav: a\x1b[31mb"]


def test_messages_wait_for_the_end_of_the_utterance(monkeypatch, capsys):
    """On a terminal a message is not inside a sentence, but after it; in a log it comes at once."""
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True, raising=False)
    console = Console()
    view = GrowingText(console, "")
    view.update([event("words", words_of("one two"))], [])
    console.notify("2.0 s behind real time")
    view.update([event("words", words_of("three"))], [])
    assert capsys.readouterr() == ("one two three", "")
    view.update([event("segment", words_of("one two three"))], [])
    assert capsys.readouterr().err == "2.0 s behind real time\n"
    console.notify("at once")
    assert capsys.readouterr().err == "at once\n"
    monkeypatch.setattr(sys.stderr, "isatty", lambda: False, raising=False)
    view.update([event("words", words_of("four"))], [])
    console.notify("in a log")
    assert capsys.readouterr().err == "in a log\n"


def test_text_in_a_pipe_is_a_line_an_utterance(capsys):
    """In a pipe each utterance is one line as soon as it has ended."""
    view = TextLines(Console(), "a.wav: ")
    view.update([event("words", words_of("one two"))], [])
    assert capsys.readouterr().out == ""
    view.update([event("segment", words_of("one two"))], words_of("three"))
    assert capsys.readouterr().out == "a.wav: one two\n"
    view.preview(words_of("three"))
    view.finish()
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize("columns", [24, 40, 80, 120])
def test_utterances_of_many_streams_wrap(monkeypatch, capsys, columns):
    """On a terminal lines of several streams break between words, wide ones too, and all but the first are indented."""
    monkeypatch.setattr(live_views, "terminal_width", lambda stream: columns)
    view = TextLines(Console(), "run/line1.fifo: ")
    view.update([event("segment", words_of(TEXT))], [])
    lines = capsys.readouterr().out.splitlines()
    assert " ".join(lines).split() == f"run/line1.fifo: {TEXT}".split()
    assert all(sum(map(width_of, line)) < columns for line in lines)
    assert [line.startswith("  ") for line in lines] == [False] + [True] * (len(lines) - 1)
