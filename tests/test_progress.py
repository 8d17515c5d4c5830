"""Progress: a bar on a terminal, a line a minute in a log."""

import contextlib
import fcntl
import os
import re
import struct
import subprocess
import sys
import termios

import pytest
from support import INFERENCE, ROOT, words_of

from nemotron_npu.cli import progress
from nemotron_npu.cli.columns import columns_of
from nemotron_npu.cli.progress import Progress
from nemotron_npu.sources import Recording


def test_log_has_a_line_a_minute(cli, calls, tmp_path, monkeypatch):
    """A log gets a line a minute."""
    clock = [0.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: clock[0])
    log = []
    recordings = [Recording(f"{i}.wav", f"{i}", length=1800.0) for i in range(4)]
    shown = Progress(recordings, log.append)
    for _ in range(4):
        for _ in range(60):
            clock[0] += 0.75
            shown.read(30.0)
        shown.finished()
    assert log == [
        "1/4 files, 0.67/2.00 h of audio, RTFx 40.0, 2:00 left",
        "2/4 files, 1.33/2.00 h of audio, RTFx 40.0, 1:00 left",
        "3/4 files, 2.00/2.00 h of audio, RTFx 40.0, 0:00 left",
    ]


def test_log_has_the_number_of_inputs_while_they_are_found(cli, calls, monkeypatch):
    """While folders and lists are read, a log gets the number of inputs."""
    monkeypatch.setattr(progress, "LINE_SECONDS", 0)
    _, _, err = cli(calls, "--device", "cpu")
    assert [line for line in err.splitlines() if "found" in line] == [f"{n + 1} inputs found" for n in range(25)]


def test_bar_makes_way_for_lines_and_vanishes(calls, terminal):
    """The bar of a terminal makes way for lines, and nothing of it stays."""
    ours, theirs = terminal
    command = [sys.executable, "-c", SLOW_RUN, INFERENCE, calls, "--device", "cpu"]
    process = subprocess.Popen([*map(str, command)], stderr=theirs, stdout=theirs, cwd=ROOT)
    os.close(theirs)
    written = b""
    with contextlib.suppress(OSError):  # EIO: the other end is closed
        while data := os.read(ours, 65536):
            written += data
    assert process.wait() == 1
    screen = written.decode()
    assert re.search(r"\d+%\|.*\| 1?\d/23 files, 0\.0\d/0\.03 h of audio, RTFx [\d.]+, 0:\d\d left", screen)
    left = [line.rpartition("\r")[2].rstrip() for line in screen.replace("\r\n", "\n").split("\n")]
    assert [line for line in left if "%|" in line] == [], "nothing of the bar stays"
    for path in calls.rglob("call*"):
        assert f"{path}: {words_of(path.name)}" in left
    assert left[-2].startswith("25 recordings: 20 done, 5 failed")


SLOW_RUN = """
import sys, time, inference
from nemotron_npu.encoder import Encoder
step = Encoder.step
Encoder.step = lambda *args: time.sleep(0.3) or step(*args)
sys.exit(inference.main(sys.argv[2:]))
"""


@pytest.fixture
def terminal():
    """Our end of a pseudo-terminal of 120 columns, and that of the process."""
    ours, theirs = os.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 40, 120, 0, 0))
    yield ours, theirs
    os.close(ours)


def test_terminal_of_unknown_size_has_a_bar(terminal, monkeypatch):
    """A terminal of 0 columns, as in some containers, has a bar too."""
    ours, theirs = terminal
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 0, 0, 0, 0))
    monkeypatch.setattr(progress, "BAR_AFTER_SECONDS", 0)
    monkeypatch.setattr(progress, "BAR_SECONDS", 0)
    with open(theirs, "w") as stderr:
        monkeypatch.setattr(progress.sys, "stderr", stderr)
        shown = Progress([Recording("1.wav", "1", length=60.0)], None)
        shown.read(30.0)
        os.set_blocking(ours, False)
        assert re.search(r"\d%\|.+\| 0/1 files", os.read(ours, 65536).decode())
        shown.close()


@pytest.mark.parametrize("columns", [20, 31, 40, 80, 111, 200])
@pytest.mark.parametrize(
    "name", ["talk.wav", "a/long/folder/" + "quite a long name of a call " * 4 + "7.wav", "录音" * 30 + ".wav"]
)
def test_bar_names_the_file_at_hand_and_fits_its_columns(monkeypatch, columns, name):
    """The text of the bar names the file that is read, by the end of its name where it is long, and never wraps."""
    clock = [0.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: clock[0])
    others = [Recording(f"{i}", f"{i}", length=60.0) for i in range(499)]
    shown = Progress([Recording(name, "0", length=60.0), *others], [].append)
    next(iter(shown.counted())).on_begin(shown.recordings[0])
    clock[0] = 100.0
    shown.read(600.0)
    text = shown.text(columns)
    assert columns_of(text) <= columns and text.startswith("0/500")
    assert text.endswith(os.path.basename(name)[-4:])
    if columns >= 80:
        assert text.startswith("0/500 files, 0.17/8.33 h of audio, RTFx 6.0, 1:21:40 left: ")
    elif columns >= 40:
        assert text.startswith("0/500 files, 1:21:40 left: ")


def test_remaining_time_without_lengths_follows_files(monkeypatch):
    """Where lengths are unknown, the remaining time follows the number of files."""
    clock = [0.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: clock[0])
    shown = Progress([Recording(f"{i}.wav", f"{i}") for i in range(4)], None)
    shown.read(100.0)
    clock[0] = 10.0
    shown.files = 1
    assert shown.text() == "1/4 files, 0.03 h of audio, RTFx 10.0, 0:30 left"
    shown.files = 0
    assert shown.text() == "0/4 files, 0.03 h of audio, RTFx 10.0"
