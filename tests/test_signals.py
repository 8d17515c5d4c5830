"""Signals end a run with whole results and one line."""

from __future__ import annotations

import random
import signal
import subprocess
import sys
import threading
import time

import pytest
from support import INFERENCE, ROOT, assert_whole, lines

SLOW_RUN = """
import runpy, signal, sys, time
signal.signal(signal.SIGHUP, signal.SIG_DFL)  # under nohup it would be ignored
from nemotron_npu.encoder import Encoder
step = Encoder.step
Encoder.step = lambda *args: time.sleep(0.2) or step(*args)
sys.argv = sys.argv[1:]
runpy.run_path(sys.argv[0], run_name="__main__")
"""


def test_signal_at_any_time_leaves_whole_results(cli, clips, tmp_path):
    """A signal at any time leaves whole results, and --resume continues."""
    chance, record = random.Random(0), tmp_path / "results.jsonl"
    options = [clips, "--output_dir", tmp_path, "--device", "cpu", "--batch_size", 2]
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        command = [sys.executable, "-c", SLOW_RUN, INFERENCE, *options, "--resume"]
        process = subprocess.Popen([*map(str, command)], stderr=subprocess.PIPE, text=True, cwd=ROOT)
        process.stderr.readline()  # "device": it is on its way
        enough = len(lines(record)) + chance.randint(0, 2)
        while process.poll() is None and record.read_bytes().count(b"\n") < enough:
            time.sleep(0.002)
        time.sleep(chance.uniform(0, 0.1))
        process.send_signal(number)
        err = process.communicate(timeout=60)[1]
        assert process.returncode == 128 + number and "Traceback" not in err, err
        done = assert_whole(tmp_path)
        last = err.splitlines()[-1]
        at_the_end = done == 12 and last == "inference.py: interrupted"  # after the summary
        assert at_the_end or last == f"inference.py: interrupted: {12 - done} of 12 not done", err
    assert cli(*options, "--resume")[0] == 0 and assert_whole(tmp_path) == 12


# the command line, whose third encoder step takes ``microseconds`` in C while signals come
SLOW = """
import ctypes, os, signal, sys, threading, time, inference
from nemotron_npu.encoder import Encoder

step, steps = Encoder.step, []

def send():
    for _ in range({times}):
        time.sleep({apart})
        os.kill(os.getpid(), signal.{name})

def slow(*args):
    steps.append(args)
    if len(steps) == 3:
        threading.Thread(target=send, daemon=True).start()
        signal.pthread_sigmask(signal.SIG_BLOCK, [signal.{name}])  # in this thread, which it would wake
        ctypes.CDLL(None).usleep({microseconds})
        signal.pthread_sigmask(signal.SIG_UNBLOCK, [signal.{name}])
    return step(*args)

Encoder.step = slow
sys.exit(inference.main())
"""


def run_slow(*args, name="SIGINT", times=1, apart=0.3, seconds=0.7) -> subprocess.CompletedProcess:
    script = SLOW.format(name=name, times=times, apart=apart, microseconds=int(seconds * 1e6))
    command = [sys.executable, "-c", script, *map(str, args), "--device", "cpu", "--batch_size", "1"]
    return subprocess.run(command, capture_output=True, text=True, cwd=ROOT)


def test_signal_sent_twice_at_once_finishes_the_block(clips, tmp_path):
    """A signal that is sent twice at once, as timeout does, counts as one: the running block is finished."""
    result = run_slow(clips, "--output_dir", tmp_path, name="SIGTERM", times=2, apart=0.05)
    assert result.returncode == 143 and assert_whole(tmp_path) == 3, result.stderr
    assert "12 recordings: 3 done, 0 failed, 9 left (--resume continues)" in result.stderr
    assert result.stderr.splitlines()[-1] == "inference.py: interrupted: 9 of 12 not done"


def test_second_signal_leaves_at_once_from_inside_a_library(clips):
    """A second signal leaves at once, even while a library computes."""
    result = run_slow(clips, "--quiet", times=2, apart=0.5, seconds=300)
    assert (result.returncode, result.stderr) == (130, "inference.py: interrupted\n")
    assert result.stdout.count("\n") == 2


def test_run_that_waits_for_audio_can_be_interrupted(demo, clip):
    """A run that waits for audio can be interrupted."""

    class Silent:
        def blocks(self):
            yield clip
            silence.wait()

    silence, looks = threading.Event(), []

    def between():
        looks.append(None)
        if len(looks) == 8:
            raise KeyboardInterrupt

    try:
        with pytest.raises(KeyboardInterrupt):
            list(demo.results([clip, Silent()], 2, between))
    finally:
        silence.set()


def test_interrupted_benchmark_leaves_no_process():
    """An interrupted benchmark leaves no child process of any depth."""
    from nemotron_npu.benchmark.startup import child_process

    code = "import subprocess, sys; print(subprocess.Popen(['sleep', '60']).pid, flush=True); sys.stdin.read()"
    with pytest.raises(KeyboardInterrupt), child_process([sys.executable, "-c", code]) as child:
        grandchild = int(child.stdout.readline())
        raise KeyboardInterrupt
    assert child.poll() is not None
    deadline = time.monotonic() + 10
    while is_running(grandchild) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not is_running(grandchild)


def is_running(number: int) -> bool:
    try:
        with open(f"/proc/{number}/stat") as status:
            return status.read().rsplit(")", 1)[1].split()[0] != "Z"  # an orphan that nobody waits for
    except FileNotFoundError:
        return False
