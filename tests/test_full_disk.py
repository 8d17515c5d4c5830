"""No finished result is lost when the disk fills up or the reader closes the pipe."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import threading
from contextlib import suppress

import numpy as np
import pytest
import soundfile
from support import CLIP, CLIP_WORDS, INFERENCE, assert_whole


@pytest.fixture
def small_disk(tmp_path):
    """A disk of 64 KiB, and a function that makes it larger."""
    disk = tmp_path / "disk"
    disk.mkdir()
    options = ["-t", "tmpfs", "-o", "size=64k", "tmpfs", str(disk)]
    if os.geteuid() or subprocess.run(["mount", *options], capture_output=True).returncode:
        pytest.skip("only root can mount a disk")
    try:
        yield disk, lambda: subprocess.run(["mount", "-o", "remount,size=4m", str(disk)], check=True)
    finally:
        subprocess.run(["umount", "-l", str(disk)], check=True)


def test_full_disk_keeps_finished_results_and_resumes(cli, clips, small_disk):
    """A disk that fills keeps all finished results whole, and --resume continues."""
    disk, enlarge = small_disk
    folder = disk / "out"
    options = [clips, "--output_dir", folder, "--device", "cpu", "--batch_size", 2]
    code, _, err = cli(*options)
    done = assert_whole(folder)
    assert code == 2 and 0 < done < 12 and f"12 recordings: {done} done, 0 failed, {12 - done} left (--resume" in err
    last = err.splitlines()[-1]
    assert last.startswith(f"inference.py: {folder}/call") and last.endswith(
        "cannot be written: No space left on device"
    )
    code, _, err = cli(*options, "--resume")
    assert code == 2 and str(folder) in err.splitlines()[-1] and "No space left" in err.splitlines()[-1]
    enlarge()
    code, _, err = cli(*options, "--resume")
    assert code == 0 and f"{12 - done} done, {done} done before" in err and assert_whole(folder) == 12


def test_full_disk_ends_live_streams_with_whole_events(cli, digits, tmp_path, small_disk):
    """A disk that fills ends pipes with one error line; each has whole events, and --resume is not suggested."""
    audio, rate = digits
    soundfile.write(tmp_path / "long.wav", np.tile(audio, 9), rate)
    data = (tmp_path / "long.wav").read_bytes()
    pipes = [tmp_path / f"{number}.fifo" for number in range(4)]

    def write(pipe) -> None:
        with suppress(BrokenPipeError):
            pipe.write_bytes(data)

    for pipe in pipes:
        os.mkfifo(pipe)
        threading.Thread(target=write, args=(pipe,), daemon=True).start()
    folder = small_disk[0] / "out"
    code, out, err = cli("--stream", *pipes, "--output_dir", folder, "--device", "cpu")
    assert (code, out) == (2, "") and err.splitlines()[-1].endswith("cannot be written: No space left on device")
    assert re.search(r"4 recordings: \d done, 0 failed, \d left(;|$)", err, re.MULTILINE), err
    for pipe in pipes:
        text = (folder / f"{pipe.stem}.events").read_text()
        assert text.endswith("\n") and len([json.loads(line) for line in text.splitlines()]) > 10


def test_full_disk_leaves_no_partial_report(cli, small_disk, tmp_path):
    """A report that does not fit on the disk is one error line, and no partial file remains."""
    disk, _ = small_disk
    (disk / "report").mkdir()
    with open(disk / "full", "wb") as file, pytest.raises(OSError):
        while True:
            os.write(file.fileno(), bytes(4096))
    manifest = tmp_path / "known.json"
    manifest.write_text(json.dumps({"audio_filepath": str(CLIP), "text": CLIP_WORDS}) + "\n")
    options = ["--wer_report", "--report", disk / "report", "--device", "cpu", "--quiet"]
    code, out, err = cli(manifest, *options)
    assert code == 2 and out.startswith(CLIP_WORDS) and os.listdir(disk / "report") == []
    last = err.splitlines()[-1]
    assert last == f"inference.py: {disk}/report/evaluation.json: cannot be written: No space left on device"


@pytest.fixture(params=["{clips}", "{clips} --output_format json", "--stream {clips}", "{clip}", "--help"])
def arguments(request, clips) -> list[str]:
    return request.param.format(clips=clips, clip=CLIP).split() + ["--quiet", "--device", "cpu"]


def with_stdout(monkeypatch, cli, file, arguments) -> tuple[int, str]:
    """Exit code and stderr of the command line in this process when ``file`` is its stdout."""
    with monkeypatch.context() as patch:
        patch.setattr(sys, "stdout", file)
        code, _, err = cli(*arguments)
        file.flush()  # as Python does at the end: nothing that fails is left in it
        return code, err


def test_closed_stdout_ends_the_run_quietly(monkeypatch, cli, arguments):
    """A reader that closes stdout ends the run with exit code 0 and no message."""
    reading, writing = os.pipe()
    os.close(reading)
    with os.fdopen(writing, "w") as closed:
        assert with_stdout(monkeypatch, cli, closed, arguments) == (0, "")


def test_stdout_on_a_full_disk_is_an_error_line(monkeypatch, cli, arguments):
    """A stdout that cannot be written is one error line and exit code 2."""
    with open("/dev/full", "w") as full:
        code, err = with_stdout(monkeypatch, cli, full, arguments)
    if arguments[0] != "--help":
        assert (code, err) == (2, "inference.py: stdout: cannot be written: No space left on device\n")


def test_stderr_that_cannot_be_written_costs_no_result(monkeypatch, cli):
    """A stderr that cannot be written does not affect the results."""
    full = open("/dev/full", "w")  # noqa: SIM115  closing it fails as well
    with monkeypatch.context() as patch:
        patch.setattr(sys, "stderr", full)
        assert cli(CLIP, "--device", "cpu") == (0, f"{CLIP_WORDS}\n", "")
    with suppress(OSError):
        full.close()


@pytest.mark.parametrize(
    "end, code, err",
    [("| head -1", 0, ""), ("> /dev/full", 2, "inference.py: stdout: cannot be written: No space left on device\n")],
)
def test_unwritable_stdout_leaves_no_message_at_exit(clips, end, code, err):
    """Python prints no message of its own at exit where stdout is closed or full."""
    command = f"set -o pipefail; {sys.executable} {INFERENCE} --stream {clips} --quiet --device cpu {end}"
    result = subprocess.run(["bash", "-c", command], capture_output=True, text=True)
    assert (result.returncode, result.stderr) == (code, err)
