"""Live sound on stdin and --stream, as its users meet them: pipes, terminals, Ctrl-C, a recogniser that is too slow."""

import json
import os
import re
import select
import signal
import subprocess
import sys
import threading
import time
from contextlib import suppress

import numpy as np
import pytest
import soundfile
from support import CLIP, CLIP_WORDS, ROOT, run_process, take_certainties

from nemotron_npu.audio import read_audio

INFERENCE = ROOT / "inference.py"
SECOND = 32000  # bytes of raw PCM at 16 kHz

# says on stderr how much sound has been recognised; {slow} seconds are lost at each step
TELLING = """
import sys, time, inference
from nemotron_npu.encoder import Encoder
from nemotron_npu.recognizer import Stream

step, feed = Encoder.step, Stream.feed

def slow_step(*args):
    time.sleep({slow})
    return step(*args)

def telling_feed(self, samples):
    print("fed", self.seconds + len(samples) / 16000, file=sys.stderr, flush=True)
    feed(self, samples)

Encoder.step, Stream.feed = slow_step, telling_feed
sys.exit(inference.main())
"""


def to_pcm(samples: np.ndarray) -> bytes:
    return np.round(samples * 32767).astype("<i2").tobytes()


@pytest.fixture(scope="module")
def pcm() -> bytes:
    return to_pcm(read_audio(str(CLIP)))


@pytest.fixture
def start():
    """Start the command line with a pipe as its stdin; what still runs at the end of the test is killed."""
    running = []

    def call(*args, stdin=subprocess.PIPE, stdout=subprocess.PIPE, slow=None) -> subprocess.Popen:
        script = [INFERENCE] if slow is None else ["-c", TELLING.format(slow=slow)]
        process = subprocess.Popen(
            [sys.executable, *map(str, script), *map(str, args)],
            stdin=stdin,
            stdout=stdout,
            stderr=subprocess.PIPE,
            start_new_session=True,  # and with it its own answer to SIGINT
            cwd=ROOT,
        )
        running.append(process)
        return process

    yield call
    for process in running:
        if process.poll() is None:
            process.kill()
        process.wait()
        for stream in (process.stdin, process.stdout, process.stderr):
            if stream:
                with suppress(BrokenPipeError):
                    stream.close()


class Speaker:
    """Writes ``data`` into a pipe at ``speed`` times real time and closes it; an ``endless`` one goes on in silence."""

    def __init__(self, pipe, data: bytes, speed: float = 1, endless: bool = False):
        self.pipe, self.data, self.speed, self.endless = pipe, data, speed, endless
        self.stopped = threading.Event()
        self.thread = threading.Thread(target=self._speak, daemon=True)

    def __enter__(self):
        self.thread.start()
        return self

    def __exit__(self, *_):
        self.stopped.set()
        self.thread.join()

    def _speak(self):
        piece, began, position = SECOND // 10, time.monotonic(), 0
        try:
            while not self.stopped.is_set() and (self.endless or position < len(self.data)):
                self.pipe.write(self.data[position : position + piece] or bytes(piece))
                self.pipe.flush()
                position += piece
                self.stopped.wait(max(0, began + position / SECOND / self.speed - time.monotonic()))
            self.pipe.close()
        except BrokenPipeError:
            pass


def wait_until_fed(process: subprocess.Popen, seconds: float) -> None:
    for line in process.stderr:
        if line.startswith(b"fed") and float(line.split()[1]) >= seconds:
            return
    raise AssertionError("it ended before it was fed so much")


def read_terminal(number: int, until: bytes, seconds: float = 60) -> list[bytes]:
    """What is written to a terminal, write by write, until it ends with ``until``."""
    written, deadline = [], time.monotonic() + seconds
    while not b"".join(written).endswith(until):
        assert select.select([number], [], [], max(0, deadline - time.monotonic()))[0], written
        written.append(os.read(number, 4096))
    return written


@pytest.fixture
def terminal():
    """(the side that tests read, the side that a process writes to)"""
    ours, theirs = os.openpty()
    yield ours, theirs
    os.close(ours)
    os.close(theirs)


@pytest.fixture
def listen(cli, monkeypatch):
    """Run the command line in this process on sound that is written to its stdin."""

    def call(data: bytes, *args, paced: bool = False):
        reading, writing = os.pipe()
        with os.fdopen(reading) as stdin, Speaker(os.fdopen(writing, "wb"), data, 1 if paced else 1e6) as speaker:
            monkeypatch.setattr(sys, "stdin", stdin)
            result = cli("-", *args, "--device", "cpu")
            speaker.thread.join()
            return result

    return call


# ---------------------------------------------------------------- pipes


def test_raw_sound_from_a_pipe_is_one_line_of_text(start, pcm):
    process = start("-", "--quiet")
    assert process.communicate(pcm, 60) == (f"{CLIP_WORDS}\n".encode(), b"") and process.returncode == 0


def test_a_wav_file_as_stdin_tells_its_own_rate():
    with open(CLIP, "rb") as sound:
        result = run_process(INFERENCE, "-", "--quiet", stdin=sound)
    assert (result.returncode, result.stdout, result.stderr) == (0, CLIP_WORDS + "\n", "")


def test_a_wav_stream_that_does_not_know_its_length_is_read_to_its_end(listen):
    data = bytearray(CLIP.read_bytes())
    assert data[36:40] == b"data"
    data[4:8] = data[40:44] = b"\xff" * 4
    code, out, _ = listen(bytes(data))
    assert (code, out) == (0, CLIP_WORDS + "\n")


def test_raw_sound_of_another_rate_is_heard_at_that_rate(listen, digits):
    audio, rate = digits
    code, out, _ = listen(to_pcm(audio), "--sample_rate", rate)
    assert (code, out) == (0, CLIP_WORDS + "\n")


@pytest.mark.parametrize("chunk_ms", [80, 1120])
def test_live_sound_in_json_is_the_document_of_the_file(cli, listen, chunk_ms):
    options = ["--chunk_ms", chunk_ms, "--output_format", "json"]
    code, out, _ = listen(CLIP.read_bytes(), *options)
    live, file = json.loads(out), json.loads(cli(CLIP, *options, "--device", "cpu")[1])
    assert code == 0 and live.pop("audio") == "stdin" and file.pop("audio") == str(CLIP)
    assert live["text"] == CLIP_WORDS and live["chunk_ms"] == chunk_ms
    assert_same_document(live, file)


def assert_same_document(live: dict, file: dict) -> None:
    live.pop("timings", None), file.pop("timings", None)
    certain = [take_certainties(document) for document in (live, file)]
    assert live == file
    assert certain[0] == pytest.approx(certain[1], abs=1e-4)


@pytest.mark.parametrize(
    "data, words",
    [(b"", "no audio samples"), (b"fLaC" + bytes(100), "flac"), (b"RIFF\0\0\0\0WAVEfmt ", "inside the wav header")],
)
def test_a_pipe_without_sound_is_one_line_and_exit_code_1(listen, data, words):
    code, out, err = listen(data, "--quiet")
    assert (code, out, len(err.splitlines())) == (1, "", 1) and words in err and "stdin: " in err


# ---------------------------------------------------------------- files as streams


@pytest.mark.parametrize("chunk_ms", [80, 160, 560, 1120])
def test_a_file_as_a_stream_gives_the_document_of_the_file(cli, tmp_path, digits, chunk_ms):
    audio, rate = digits
    short = tmp_path / "short.wav"
    soundfile.write(short, audio[: 3 * rate], rate)
    options = [CLIP, short, "--chunk_ms", chunk_ms, "--device", "cpu", "--output_format", "json"]
    offline, streamed = cli(*options), cli(*options, "--stream")
    assert offline[0] == streamed[0] == 0
    files, streams = ([json.loads(line) for line in out.splitlines()] for _, out, _ in (offline, streamed))
    assert streams[0]["text"] == CLIP_WORDS and len(streams) == len(files) == 2
    for stream, file in zip(streams, files, strict=True):
        assert_same_document(stream, file)


def test_without_a_file_the_bundled_clip_is_streamed(cli):
    code, out, _ = cli("--stream", "--device", "cpu")
    assert (code, out) == (0, CLIP_WORDS + "\n")


def test_a_bad_file_does_not_cost_the_other_streams(cli, tmp_path):
    broken = tmp_path / "broken.flac"
    soundfile.write(broken, np.random.default_rng(0).uniform(-1, 1, 40000), 16000)
    broken.write_bytes(broken.read_bytes()[:9000])
    code, out, err = cli(broken, tmp_path / "missing.wav", CLIP, "--stream", "--device", "cpu", "--quiet")
    assert (code, out) == (1, f"{CLIP}: {CLIP_WORDS}\n")
    assert len(err.splitlines()) == 2 and "broken.flac" in err and "missing.wav" in err


def test_a_file_that_fails_inside_the_model_does_not_cost_the_other_streams(cli, tmp_path, monkeypatch):
    from nemotron_npu.encoder import Encoder

    poison = tmp_path / "poison.wav"
    soundfile.write(poison, np.zeros(12345), 16000)
    step = Encoder.step

    def failing(self, rows, state, ends):
        if 77 in ends:  # feature frames of so many samples
            raise RuntimeError("the device said no\nat some length")
        return step(self, rows, state, ends)

    monkeypatch.setattr(Encoder, "step", failing)
    code, out, err = cli(CLIP, poison, CLIP, "--stream", "--device", "cpu", "--quiet")
    assert code == 1 and out.splitlines() == [f"{CLIP}: {CLIP_WORDS}"] * 2
    assert len(err.splitlines()) == 1 and str(poison) in err and "the device said no at some length" in err


# ---------------------------------------------------------------- terminals


def test_on_a_terminal_live_text_grows_in_place(start, terminal, pcm):
    ours, theirs = terminal
    process = start("-", "--quiet", "--chunk_ms", 80, stdout=theirs)
    with Speaker(process.stdin, pcm, speed=2.5):
        written = read_terminal(ours, until=b"\n")
    assert process.wait(30) == 0 and process.stderr.read() == b""
    assert len(written) > 4, written
    assert b"".join(written) == f"{CLIP_WORDS}\r\n".encode(), "what is shown is never taken back"


def test_on_a_terminal_every_streamed_file_is_a_line_that_grows(start, terminal, tmp_path):
    ours, theirs = terminal
    silence = tmp_path / "silence.wav"
    soundfile.write(silence, np.zeros(16000), 16000)
    process = start("--stream", CLIP, silence, CLIP, "--quiet", "--chunk_ms", 80, stdout=theirs)
    assert process.wait(60) == 0 and process.stderr.read() == b""
    line = f"{CLIP}: {CLIP_WORDS}\r\n"
    assert b"".join(read_terminal(ours, until=line.encode())).decode() == f"{line}{silence}: \r\n{line}"


def test_streams_on_a_terminal_are_counted_and_evaluated(start, terminal, tmp_path):
    ours, theirs = terminal
    manifest = tmp_path / "known.json"
    manifest.write_text(2 * (json.dumps({"audio_filepath": str(CLIP), "text": CLIP_WORDS}) + "\n"))
    process = start("--stream", manifest, "--wer_report", stdout=theirs)
    assert process.wait(60) == 0 and b"2 recordings: 2 done, 0 failed; " in process.stderr.read()
    shown = b"".join(read_terminal(ours, until=b"No errors, texts as written\r\n")).decode()
    assert shown.count(f"{CLIP}: {CLIP_WORDS}\r\n") == 2 and "Word errors in 2 files" in shown


def test_json_does_not_grow_on_a_terminal(start, terminal, pcm):
    ours, theirs = terminal
    process = start("-", "--quiet", "--output_format", "json", stdout=theirs)
    process.communicate(pcm, 60)
    assert json.loads(b"".join(read_terminal(ours, until=b"\n")))["text"] == CLIP_WORDS


def test_a_terminal_as_stdin_is_refused_with_an_example(start, terminal):
    process = start("-", stdin=terminal[1])
    out, err = process.communicate(timeout=30)
    assert (process.returncode, out, len(err.splitlines())) == (2, b"", 1)
    assert b"stdin is a terminal" in err and b"arecord" in err


# ---------------------------------------------------------------- Ctrl-C


def test_ctrl_c_ends_an_endless_stream_with_its_text_and_130(start, pcm):
    process = start("-", slow=0)
    with Speaker(process.stdin, pcm, speed=5, endless=True):
        wait_until_fed(process, len(pcm) / SECOND + 1)
        process.send_signal(signal.SIGINT)
        assert process.wait(10) == 130
    assert process.stdout.read().decode() == CLIP_WORDS + "\n"
    assert b"Traceback" not in process.stderr.read()


def test_ctrl_c_ends_a_stream_whose_speaker_is_silent(start, pcm):
    process = start("-", slow=0)
    process.stdin.write(pcm)
    process.stdin.flush()
    wait_until_fed(process, len(pcm) // 2 / 16000)
    time.sleep(0.3)
    process.send_signal(signal.SIGINT)
    assert process.wait(10) == 130
    assert process.stdout.read().decode() == CLIP_WORDS + "\n"


def test_ctrl_c_on_a_terminal_ends_the_line_that_has_grown(start, terminal, pcm):
    ours, theirs = terminal
    process = start("-", "--quiet", "--chunk_ms", 160, stdout=theirs)
    with Speaker(process.stdin, pcm, speed=5, endless=True):
        read_terminal(ours, until=CLIP_WORDS.encode())
        process.send_signal(signal.SIGINT)
        assert read_terminal(ours, until=b"\n") == [b"\r\n"]
        assert process.wait(10) == 130 and process.stderr.read() == b""


def test_ctrl_c_before_any_sound_came_is_an_interruption_too(start):
    process = start("-", slow=0)
    for line in process.stderr:
        if line.startswith(b"loading"):
            break
    time.sleep(2)
    process.send_signal(signal.SIGINT)
    assert process.wait(10) == 130
    assert process.stdout.read() == b""


def test_a_second_ctrl_c_leaves_at_once(start, pcm):
    process = start("-", "--chunk_ms", 80, slow=2)
    process.stdin.write(pcm)
    process.stdin.flush()
    wait_until_fed(process, 0.1)
    process.send_signal(signal.SIGINT)
    time.sleep(0.3)
    assert process.poll() is None, "the first lets what has come be recognised"
    process.send_signal(signal.SIGINT)
    assert process.wait(1.5) == 130
    assert process.stdout.read() == b""
    assert process.stderr.read().splitlines()[-1] == b"inference.py: interrupted"


def test_ctrl_c_ends_a_streamed_file_with_the_text_so_far(cli, monkeypatch):
    from nemotron_npu.encoder import Encoder

    step, calls = Encoder.step, []

    def interrupted(*args):
        calls.append(args)
        if len(calls) == 6:
            signal.raise_signal(signal.SIGINT)
        return step(*args)

    monkeypatch.setattr(Encoder, "step", interrupted)
    before = signal.getsignal(signal.SIGINT)
    code, out, err = cli(CLIP, CLIP, "--stream", "--chunk_ms", 560, "--device", "cpu", "--quiet")
    assert code == 130 and err == "inference.py: interrupted: 1 of 2 not done\n"
    name, _, words = out.rstrip("\n").partition(": ")
    assert out.count("\n") == 1 and name == str(CLIP) and words and CLIP_WORDS.startswith(words) and words != CLIP_WORDS
    assert signal.getsignal(signal.SIGINT) is before


# ---------------------------------------------------------------- falling behind


@pytest.fixture
def slow_at_first(monkeypatch):
    from nemotron_npu.encoder import Encoder

    step, calls = Encoder.step, []

    def slow(*args):
        calls.append(args)
        time.sleep(0.35 if len(calls) <= 6 else 0)
        return step(*args)

    monkeypatch.setattr(Encoder, "step", slow)


def test_falling_behind_real_time_is_said_and_costs_no_sound(cli, listen, slow_at_first, tmp_path, digits):
    audio, rate = digits
    path = tmp_path / "three seconds.wav"
    soundfile.write(path, audio[: 3 * rate], rate)
    options = ["--chunk_ms", 80, "--output_format", "json"]
    code, out, err = listen(to_pcm(read_audio(str(path))), *options, paced=True)
    behind = re.findall(r"^(\d+\.\d) s behind real time \(no audio is lost\)$", err, re.MULTILINE)
    assert 1 <= len(behind) <= 2 and 1 <= float(behind[0]) < 3, err
    assert err.splitlines()[-1] == "caught up with real time"
    live, file = json.loads(out), json.loads(cli(path, *options, "--device", "cpu")[1])
    assert code == 0 and live["duration"] == file["duration"] == 3
    assert live["text"] == file["text"] and CLIP_WORDS.startswith(live["text"]) and live["text"]


def test_quiet_does_not_say_it(listen, slow_at_first, pcm):
    code, out, err = listen(pcm[: 2 * SECOND], "--chunk_ms", 80, "--quiet", paced=True)
    assert (code, err) == (0, "") and out.strip()


def test_sound_that_comes_faster_than_real_time_is_not_behind(listen, slow_at_first, pcm):
    code, _, err = listen(pcm, "--chunk_ms", 1120)
    assert code == 0 and err.splitlines()[-1].startswith("loading"), err


def test_a_minute_that_comes_at_once_while_the_model_loads_is_not_lost(listen, pcm):
    code, out, _ = listen(bytes(60 * SECOND) + pcm, "--quiet")
    assert code == 0 and out.strip().endswith(CLIP_WORDS)


# ---------------------------------------------------------------- wrong usage


@pytest.mark.parametrize(
    "args, words",
    [
        (["-", CLIP], "stdin cannot be combined"),
        ([CLIP, "-"], "stdin cannot be combined"),
        (["-", "-"], "stdin cannot be combined"),
        ([CLIP, "--sample_rate", 8000], "--sample_rate: applies to raw PCM on stdin"),
        (["-", "--sample_rate", 100], "not a sample rate"),
        ([CLIP, "--stream", "--batch_size", 2], "--stream: transcribes one file at a time"),
        ([CLIP, "--stream", "--precision_compare"], "measures files, not streams"),
        (["-", "--benchmark"], "measures files, not streams"),
        (["--stream", "--model_path", "m.nemo"], "--stream: needs AUDIO"),
    ],
)
def test_options_that_do_not_go_together_are_exit_code_2(cli, args, words):
    code, out, err = cli(*args)
    assert (code, out) == (2, "")
    assert words in err.splitlines()[-1] and err.count("error: ") == 1


@pytest.mark.parametrize("args", [[CLIP, "--stream"], ["-"]])
def test_nemo_takes_no_live_streams_and_names_the_engine_that_does(cli, listen, pcm, monkeypatch, args):
    monkeypatch.setattr("nemotron_npu.cli.transcribe.load_recognizer", None)  # no need to wait for it
    options = ["--engine", "nemo", "--quiet"]
    code, out, err = listen(pcm[:SECOND], *options) if args == ["-"] else cli(*args, *options, "--device", "cpu")
    assert (code, out, len(err.splitlines())) == (2, "", 1)
    assert "need the native engine (--engine native)" in err
