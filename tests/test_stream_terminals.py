"""Live text grows on a terminal, and Ctrl-C ends a stream."""

from __future__ import annotations

import fcntl
import io
import json
import os
import signal
import struct
import sys
import termios
import time

import numpy as np
import pytest
import soundfile
from live_audio import SECOND, Speaker, read_terminal, wait_until_fed
from support import CLIP, CLIP_WORDS

from nemotron_npu.cli.console import Console
from nemotron_npu.host import program


@pytest.fixture
def terminal():
    """(the side that tests read, the side that a process writes to)"""
    ours, theirs = os.openpty()
    yield ours, theirs
    os.close(ours)
    os.close(theirs)


def test_live_text_on_a_terminal_grows_in_place(start, terminal, pcm):
    """On a terminal live text grows, and nothing that was shown is taken back."""
    ours, theirs = terminal
    process = start("-", "--quiet", "--endpoint_ms", 0, "--chunk_ms", 80, stdout=theirs)
    with Speaker(process.stdin, pcm, speed=2.5):
        written = read_terminal(ours, until=b"\n")
    assert process.wait(30) == 0 and process.stderr.read() == b""
    assert len(written) > 4, written
    assert b"".join(written) == f"{CLIP_WORDS}\r\n".encode(), "what is shown is never taken back"


def test_streamed_files_on_a_terminal_are_a_line_each(start, terminal, tmp_path):
    """On a terminal each of several streams is a line for each utterance, as they come."""
    ours, theirs = terminal
    silence = tmp_path / "silence.wav"
    soundfile.write(silence, np.zeros(16000), 16000)
    process = start("--stream", CLIP, silence, CLIP, "--quiet", "--endpoint_ms", 0, "--chunk_ms", 80, stdout=theirs)
    assert process.wait(60) == 0 and process.stderr.read() == b""
    line = f"{CLIP}: {CLIP_WORDS}\r\n"
    assert b"".join(read_terminal(ours, until=2 * line.encode())).decode() == f"{silence}: \r\n{line}{line}"


def test_streams_on_a_terminal_are_counted_and_evaluated(start, terminal, tmp_path):
    """Streams on a terminal are counted, and evaluated with --wer_report."""
    ours, theirs = terminal
    manifest = tmp_path / "known.json"
    manifest.write_text(2 * (json.dumps({"audio_filepath": str(CLIP), "text": CLIP_WORDS}) + "\n"))
    process = start("--stream", manifest, "--endpoint_ms", 0, "--wer_report", stdout=theirs)
    assert process.wait(60) == 0 and b"2 recordings: 2 done, 0 failed; " in process.stderr.read()
    shown = b"".join(read_terminal(ours, until=b"No errors, texts as written\r\n")).decode()
    assert shown.count(f"{CLIP}: {CLIP_WORDS}\r\n") == 2 and "Word errors in 2 files" in shown


def test_json_on_a_terminal_is_printed_once(start, terminal, pcm):
    """On a terminal a JSON document is printed once, at the end."""
    ours, theirs = terminal
    process = start("-", "--quiet", "--output_format", "json", stdout=theirs)
    process.communicate(pcm, 60)
    assert json.loads(b"".join(read_terminal(ours, until=b"\n")))["text"] == CLIP_WORDS


def test_terminal_as_stdin_is_refused_with_a_hint(start, terminal):
    """A terminal as stdin is one error line with an example."""
    process = start("-", stdin=terminal[1])
    out, err = process.communicate(timeout=30)
    assert (process.returncode, out, len(err.splitlines())) == (2, b"", 1)
    assert b"stdin is a terminal" in err and b"arecord" in err


def test_ctrl_c_ends_an_endless_stream_with_its_text(start, pcm):
    """Ctrl-C ends an endless stream with the text so far and exit code 130."""
    process = start("-", "--endpoint_ms", 0, slow=0)
    with Speaker(process.stdin, pcm, speed=5, endless=True):
        wait_until_fed(process, len(pcm) / SECOND + 1)
        process.send_signal(signal.SIGINT)
        assert process.wait(10) == 130
    assert process.stdout.read().decode() == CLIP_WORDS + "\n"
    assert b"Traceback" not in process.stderr.read()


def test_ctrl_c_ends_a_stream_that_waits_for_audio(start, pcm):
    """Ctrl-C ends a stream into which nothing is written any more."""
    process = start("-", "--endpoint_ms", 0, slow=0)
    process.stdin.write(pcm)
    process.stdin.flush()
    wait_until_fed(process, len(pcm) // 2 / 16000)
    time.sleep(0.3)
    process.send_signal(signal.SIGINT)
    assert process.wait(10) == 130
    assert process.stdout.read().decode() == CLIP_WORDS + "\n"


def test_ctrl_c_on_a_terminal_ends_the_line(start, terminal, pcm):
    """Ctrl-C on a terminal ends the line that has grown, without any message."""
    ours, theirs = terminal
    process = start("-", "--quiet", "--endpoint_ms", 0, "--chunk_ms", 160, stdout=theirs)
    with Speaker(process.stdin, pcm, speed=5, endless=True):
        read_terminal(ours, until=CLIP_WORDS.encode())
        process.send_signal(signal.SIGINT)
        assert read_terminal(ours, until=b"\n") == [b"\r\n"]
        assert process.wait(10) == 130 and process.stderr.read() == b""


def test_ctrl_c_before_any_audio_exits_with_130(start):
    """Ctrl-C before any audio has arrived gives exit code 130 and no text."""
    process = start("-", "--endpoint_ms", 0, slow=0)
    for line in process.stderr:
        if line.startswith(b"loading"):
            break
    time.sleep(2)
    process.send_signal(signal.SIGINT)
    assert process.wait(10) == 130
    assert process.stdout.read() == b""


def test_second_ctrl_c_leaves_at_once(start, pcm):
    """The first Ctrl-C lets the audio that has arrived be transcribed, and the second leaves at once."""
    process = start("-", "--chunk_ms", 80, slow=2)
    process.stdin.write(pcm)
    process.stdin.flush()
    wait_until_fed(process, 0.1)
    process.send_signal(signal.SIGINT)
    time.sleep(0.3)
    assert process.poll() is None, "the first lets the audio that has arrived be transcribed"
    process.send_signal(signal.SIGINT)
    assert process.wait(1.5) == 130
    assert process.stdout.read() == b""
    assert process.stderr.read().splitlines()[-1] == b"inference.py: interrupted"


def test_ctrl_c_ends_streamed_files_with_their_text_so_far(cli, monkeypatch, digits, tmp_path):
    """Ctrl-C ends streamed files with their text so far, and restores the handler of the signal."""
    from nemotron_npu.encoder import Encoder

    step, calls = Encoder.step, []

    def interrupted(*args):
        calls.append(args)
        if len(calls) == 3:
            signal.raise_signal(signal.SIGINT)
        return step(*args)

    monkeypatch.setattr(Encoder, "step", interrupted)
    before = signal.getsignal(signal.SIGINT)
    audio, rate = digits
    long = tmp_path / "long.wav"
    soundfile.write(long, np.tile(audio, 9), rate)
    code, out, err = cli(long, long, "--stream", "--endpoint_ms", 0, "--chunk_ms", 560, "--device", "cpu", "--quiet")
    assert code == 130 and err == "inference.py: interrupted: 2 of 2 not done\n"
    for line in out.splitlines():
        name, _, words = line.partition(": ")
        assert name == str(long) and words and " ".join([CLIP_WORDS] * 9).startswith(words) and len(words) < 200
    assert out.count("\n") == 2
    assert signal.getsignal(signal.SIGINT) is before


def test_messages_break_between_words_on_a_terminal(terminal, monkeypatch):
    """On 40 columns messages and errors break between words, a table stays; in a pipe nothing is broken."""
    ours, theirs = terminal
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 40, 0, 0))
    message = "500 recordings: 480 done, 15 done before, 5 failed; 0.93 h of audio in 41.2 s (RTFx 81.3)"
    table = "a table: " + "column  " * 8 + "\nof two rows"
    with open(theirs, "w", closefd=False) as stream:
        monkeypatch.setattr(sys, "stderr", stream)
        for write in (Console().notify, Console().error):
            write(message)
        Console().notify(table)
    shown = b"".join(read_terminal(ours, until=b"rows\r\n")).decode().split("\r\n")
    assert " ".join(shown[:-3]) == f"{message} {program.name}: {message}" and max(map(len, shown[:-3])) < 40
    assert len(shown) == 9 and "\n".join(shown[-3:-1]) == table
    monkeypatch.setattr(sys, "stderr", io.StringIO())
    Console().notify(message)
    assert sys.stderr.getvalue() == message + "\n"


def test_narrow_terminal_breaks_lines_between_words(start, terminal):
    """On a terminal of 20 columns no word is broken and none is lost."""
    ours, theirs = terminal
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 20, 0, 0))
    process = start("--stream", CLIP, "--quiet", "--endpoint_ms", 0, stdout=theirs)
    assert process.wait(60) == 0
    shown = b"".join(read_terminal(ours, until=b"six\r\n")).decode().split("\r\n")
    assert " ".join(shown).split() == CLIP_WORDS.split() and max(map(len, shown)) < 20 and len(shown) == 3
