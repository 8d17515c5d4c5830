"""The command line transcribes live audio on stdin, and files with --stream."""

from __future__ import annotations

import json
import os
import re
import sys
import time

import numpy as np
import pytest
import soundfile
from live_audio import SECOND, Speaker, to_pcm, transcribe_pipe
from support import CLIP, CLIP_WORDS, INFERENCE, run_process, take_certainties

from nemotron_npu.audio import read_audio
from nemotron_npu.live_input import READ_BYTES

UTTERANCES = "three one\nfour one five\nnine two\nsix\n"
"""The bundled clip in a pipe: it pauses twice for 0.8 s."""


@pytest.fixture
def listen(cli, monkeypatch):
    """Run the command line in this process on audio that is written to its stdin, which is one utterance."""

    def call(data: bytes, *args, paced: bool = False):
        reading, writing = os.pipe()
        with os.fdopen(reading) as stdin, Speaker(os.fdopen(writing, "wb"), data, 1 if paced else 1e6) as speaker:
            monkeypatch.setattr(sys, "stdin", stdin)
            result = cli("-", *args, "--device", "cpu", "--endpoint_ms", 0)
            speaker.thread.join()
            return result

    return call


def test_raw_pcm_from_a_pipe_prints_its_utterances(start, pcm):
    """Raw PCM from a pipe is printed as a line for each utterance; without an endpoint it is one."""
    for options, text in ((), UTTERANCES), (("--endpoint_ms", 0), f"{CLIP_WORDS}\n"):
        process = start("-", "--quiet", *options)
        assert process.communicate(pcm, 60) == (text.encode(), b"") and process.returncode == 0


def test_wav_file_as_stdin_has_its_own_rate():
    """A wav file as stdin is read at the rate of its header."""
    with open(CLIP, "rb") as file:
        result = run_process(INFERENCE, "-", "--quiet", stdin=file)
    assert (result.returncode, result.stdout, result.stderr) == (0, UTTERANCES, "")


def test_wav_stream_of_unknown_length_is_read_to_its_end(listen):
    """A wav stream whose header gives no length is transcribed to its end."""
    data = bytearray(CLIP.read_bytes())
    assert data[36:40] == b"data"
    data[4:8] = data[40:44] = b"\xff" * 4
    code, out, _ = listen(bytes(data))
    assert (code, out) == (0, CLIP_WORDS + "\n")


def test_raw_pcm_of_another_rate_is_resampled(listen, digits):
    """Raw PCM of another rate is transcribed with --sample_rate."""
    audio, rate = digits
    code, out, _ = listen(to_pcm(audio), "--sample_rate", rate)
    assert (code, out) == (0, CLIP_WORDS + "\n")


@pytest.mark.parametrize("chunk_ms", [80, 1120])
def test_live_json_equals_the_document_of_the_file(cli, listen, chunk_ms):
    """The JSON document of a live stream is that of the file."""
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
def test_pipe_without_audio_is_an_error_line(listen, data, words):
    """A pipe without audio that can be read is one error line and exit code 1."""
    code, out, err = listen(data, "--quiet")
    assert (code, out, len(err.splitlines())) == (1, "", 1) and words in err and "stdin: " in err


@pytest.mark.parametrize("chunk_ms", [80, 160, 560, 1120])
def test_streamed_file_gives_the_document_of_the_file(cli, tmp_path, digits, chunk_ms):
    """A file that is streamed gives the document that it gives without --stream."""
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


def test_stream_without_a_file_uses_the_bundled_clip(cli):
    """--stream without AUDIO streams the bundled clip."""
    code, out, _ = cli("--stream", "--device", "cpu")
    assert (code, out) == (0, UTTERANCES)


@pytest.mark.parametrize(
    "args, line",
    [
        ([], "live: new words every 1.12 s (sooner: --chunk_ms 80, 160 or 560)"),
        (["--chunk_ms", "560"], "live: new words every 0.56 s"),
        (["--quiet"], None),
    ],
)
def test_stream_begins_with_its_delay_and_how_to_shorten_it(cli, args, line):
    """The first line tells how often a stream has new words, and by which option they come sooner."""
    code, _, err = cli("--stream", CLIP, *args)
    assert code == 0 and next(iter(err.splitlines()), None) == line


def test_invalid_files_do_not_stop_the_other_streams(cli, tmp_path):
    """Files that cannot be read are one error line each, and the other files are transcribed."""
    broken = tmp_path / "broken.flac"
    soundfile.write(broken, np.random.default_rng(0).uniform(-1, 1, 40000), 16000)
    broken.write_bytes(broken.read_bytes()[:9000])
    code, out, err = cli(
        broken, tmp_path / "missing.wav", CLIP, "--stream", "--device", "cpu", "--quiet", "--endpoint_ms", 0
    )
    assert (code, out) == (1, f"{CLIP}: {CLIP_WORDS}\n")
    assert len(err.splitlines()) == 2 and "broken.flac" in err and "missing.wav" in err


def test_failure_inside_the_model_is_limited_to_its_stream(cli, tmp_path, monkeypatch):
    """A file that fails inside the model is one error line, and the other files are transcribed."""
    from nemotron_npu.encoder import Encoder

    poison = tmp_path / "poison.wav"
    soundfile.write(poison, np.zeros(12345), 16000)
    step = Encoder.step

    def failing(self, rows, state, ends):
        if 77 in ends:  # feature frames of so many samples
            raise RuntimeError("the device said no\nat some length")
        return step(self, rows, state, ends)

    monkeypatch.setattr(Encoder, "step", failing)
    code, out, err = cli(CLIP, poison, CLIP, "--stream", "--device", "cpu", "--quiet", "--endpoint_ms", 0)
    assert code == 1 and out.splitlines() == [f"{CLIP}: {CLIP_WORDS}"] * 2
    assert len(err.splitlines()) == 1 and str(poison) in err and "the device said no at some length" in err


@pytest.fixture
def slow_at_first(monkeypatch):
    from nemotron_npu.encoder import Encoder

    step, calls = Encoder.step, []

    def slow(*args):
        calls.append(args)
        time.sleep(0.35 if len(calls) <= 6 else 0)
        return step(*args)

    monkeypatch.setattr(Encoder, "step", slow)


def test_falling_behind_real_time_is_reported_and_loses_no_audio(cli, listen, slow_at_first, tmp_path, digits):
    """A live stream reports that it falls behind real time and that it catches up, and loses no audio."""
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


def test_falling_behind_with_quiet_is_not_reported(listen, slow_at_first, pcm):
    """With --quiet falling behind is not reported."""
    code, out, err = listen(pcm[: 2 * SECOND], "--chunk_ms", 80, "--quiet", paced=True)
    assert (code, err) == (0, "") and out.strip()


def test_audio_faster_than_real_time_is_not_behind(listen, slow_at_first, pcm):
    """Audio that arrives faster than real time never counts as behind."""
    code, _, err = listen(pcm, "--chunk_ms", 1120)
    assert code == 0 and err.splitlines()[-1].startswith("loading"), err


def test_audio_that_arrives_while_the_model_loads_is_kept(listen, pcm):
    """A minute of audio that arrives while the model loads is transcribed."""
    code, out, _ = listen(bytes(60 * SECOND) + pcm, "--quiet")
    assert code == 0 and out.strip().endswith(CLIP_WORDS)


@pytest.mark.parametrize(
    "args, words",
    [
        (["-", CLIP], "stdin cannot be combined"),
        ([CLIP, "-"], "stdin cannot be combined"),
        (["-", "-"], "stdin cannot be combined"),
        ([CLIP, "--sample_rate", 8000], "--sample_rate: applies to raw PCM on stdin"),
        (["-", "--sample_rate", 100], "not a sample rate"),
        ([CLIP, "--stream", "--batch_size", 2], "--stream: transcribes chunk by chunk"),
        ([CLIP, "--stream", "--precision_compare"], "measures files, not streams"),
        ([CLIP, "--endpoint_ms", 500], "--endpoint_ms: applies to live streams"),
        ([CLIP, "--reset_after_pause", 5000], "--reset_after_pause: applies to live streams"),
        ([CLIP, "--output_format", "events"], "--output_format events: applies to live streams"),
        (["-", "--endpoint_ms", "soon"], "'soon' is not a whole number of milliseconds"),
        (["-", "--benchmark"], "measures files, not streams"),
        (["--stream", "--model_path", "m.nemo"], "--stream: needs AUDIO"),
    ],
)
def test_conflicting_stream_options_are_exit_code_2(cli, args, words):
    """Options that cannot be combined with a stream are one error line and exit code 2."""
    code, out, err = cli(*args)
    assert (code, out) == (2, "")
    assert words in err.splitlines()[-1] and err.count("error: ") == 1


@pytest.mark.parametrize("args", [[CLIP, "--stream"], ["-"]])
def test_nemo_refuses_streams_and_names_the_native_engine(cli, listen, pcm, monkeypatch, args):
    """Streams with --engine nemo are refused with a hint at the native engine."""
    monkeypatch.setattr("nemotron_npu.cli.transcribe.load_recognizer", None)  # no need to wait for it
    options = ["--engine", "nemo", "--quiet"]
    code, out, err = listen(pcm[:SECOND], *options) if args == ["-"] else cli(*args, *options, "--device", "cpu")
    assert (code, out, len(err.splitlines())) == (2, "", 1)
    assert "need the native engine (--engine native)" in err


@pytest.mark.parametrize("samples", [0, 30000])
def test_stdin_that_fails_keeps_the_text_so_far(cli, monkeypatch, clip, samples):
    """A read error of stdin is one error line, and the text so far is kept."""
    read, blocks = os.read, []

    def failing(file, size):
        if size != READ_BYTES:  # of a decoder's output
            return read(file, size)
        blocks.append(read(file, 4000))
        if not blocks[-1]:
            raise OSError(5, "Input/output error")
        return blocks[-1]

    monkeypatch.setattr("nemotron_npu.live_input.os.read", failing)
    code, out, err = transcribe_pipe(cli, monkeypatch, to_pcm(clip[:samples]))
    assert (code, err) == (1, "inference.py: stdin: cannot be read: Input/output error\n")
    assert out == ("three one\n" if samples else "")
