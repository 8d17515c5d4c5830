"""Many live streams at once: files and named pipes of any pace, and what one bad source costs."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import threading
import time
from contextlib import ExitStack, suppress

import jsonschema
import numpy as np
import pytest
import soundfile
from live_audio import SECOND, to_pcm
from support import CLIP, CLIP_WORDS, ROOT, lines, run_process

from nemotron_npu import pool_exchange
from nemotron_npu.cli import many_streams
from nemotron_npu.errors import InputError
from nemotron_npu.host import signals
from nemotron_npu.pipe_input import BACKLOG_BYTES, PipeInput, is_pipe
from nemotron_npu.streaming import Stream

SCHEMA = json.loads((ROOT / "nemotron_npu" / "events.schema.json").read_text())
OPTIONS = ["--stream", "--device", "cpu", "--quiet"]


@pytest.fixture
def pipe(tmp_path):
    """Make a named pipe and write ``data`` into it in a thread: (data, bytes of a part, seconds between parts)."""

    def make(name: str, data: bytes | None, size: int = 1 << 20, pause: float = 0.0):
        path = tmp_path / name
        os.mkfifo(path)

        def write() -> None:
            with suppress(BrokenPipeError), open(path, "wb", buffering=0) as target:
                for first in range(0, len(data), size):
                    target.write(data[first : first + size])
                    time.sleep(pause)

        if data is not None:
            threading.Thread(target=write, daemon=True).start()
        return path

    return make


def by_source(out: str) -> dict[str, list[dict]]:
    """Return the events of each stream, which fit the schema."""
    streams: dict[str, list[dict]] = {}
    for line in out.splitlines():
        event = json.loads(line)
        jsonschema.validate(event, SCHEMA)
        streams.setdefault(event["source"], []).append(event)
    return streams


def tokens(document: dict) -> list[tuple[int, int]]:
    return [(token["id"], token["frame"]) for token in document["tokens"]]


def test_fifty_pipes_of_unequal_pace_equal_their_files(cli, pipe, tmp_path, clip):
    """Each of 50 pipes, whatever its pace, gives the tokens of its audio as a file."""
    chance = random.Random(0)
    paths = {}
    for number in range(50):
        samples = np.roll(clip, chance.randrange(len(clip)))[: chance.randrange(8000, len(clip))]
        file = tmp_path / f"{number}.wav"
        soundfile.write(file, samples, 16000)
        data = file.read_bytes()
        seconds, size = chance.uniform(0, 4), chance.choice([1999, 8000, 33333])
        paths[str(number)] = file, pipe(f"{number}.fifo", data, size, seconds * size / len(data))
    code, out, err = cli(*(path for _, path in paths.values()), *OPTIONS, "--output_format", "events")
    streams = by_source(out)
    assert (code, err, set(streams)) == (0, "", set(paths))
    alone = cli(*(file for file, _ in paths.values()), "--device", "cpu", "--quiet", "--output_format", "jsonl")[1]
    for document in map(json.loads, alone.splitlines()):
        number = os.path.basename(document["audio"]).removesuffix(".wav")
        events = streams[number]
        assert events[-1]["type"] == "end" and events[-1]["audio"] == str(paths[number][1])
        assert tokens(events[-1]) == tokens(document) and events[-1]["duration"] == document["duration"]
        spoken = [word for event in events if event["type"] == "words" for word in event["words"]]
        assert "".join(word["word"] for word in spoken).strip() == document["text"]


@pytest.fixture
def bad(tmp_path, pipe, clip):
    """Sources that are missing, no audio, not finite, too short and cut off, each with a part of its error line."""
    wav = CLIP.read_bytes()
    nan = clip.copy()
    nan[40000:] = np.nan
    soundfile.write(tmp_path / "nan.wav", nan, 16000, subtype="FLOAT")
    return {
        tmp_path / "missing.wav": "No such file",
        pipe("text.fifo", b"this is text, not audio\n" * 100): "is text, not audio",
        pipe("nan.fifo", (tmp_path / "nan.wav").read_bytes()): "samples are NaN or infinite",
        pipe("empty.fifo", b""): "no audio samples arrived",
        pipe("header.fifo", wav[:30]): "ends inside the wav header",
        pipe("cut.fifo", wav[: len(wav) // 2]): "ends after 3.4 of 6.8 s",
    }


def test_a_bad_source_costs_only_itself(cli, pipe, bad):
    """Each bad source is one error line and exit code 1; the others are transcribed, and what it said is kept."""
    good = pipe("good.fifo", CLIP.read_bytes(), 9999, 0.02)
    code, out, err = cli(CLIP, *bad, good, *OPTIONS, "--output_format", "events")
    streams = by_source(out)
    assert code == 1 and len(err.splitlines()) == len(bad)
    for path, words in bad.items():
        assert sum(f"{path}: " in line and words in line for line in err.splitlines()) == 1, (path, err)
    for name in ("digits", "good"):
        assert streams[name][-1]["type"] == "end" and streams[name][-1]["text"] == CLIP_WORDS
    assert set(streams) == {"digits", "good"} | {path.stem for path in bad}
    assert {event["type"] for name in ("missing", "text", "empty", "header") for event in streams[name]} == {"error"}
    for name in ("nan", "cut"):
        error, end = streams[name][-2:]
        assert error["type"] == "error" and error["problem"] in err and end["type"] == "end"
        assert CLIP_WORDS.startswith(end["text"]) and end["text"].startswith("three one")


@pytest.mark.parametrize("channel", ["mix", "each"])
@pytest.mark.parametrize("names", [["missing.wav"], ["missing.wav", "empty.wav"]])
def test_files_refused_before_the_model_loads_have_error_events(cli, tmp_path, names, channel):
    """Each is an error line, and an event on stdout or in its file; the model is not loaded for them."""
    paths = [tmp_path / name for name in names]
    (tmp_path / "empty.wav").touch()
    options = ["--stream", "--device", "cpu", "--channel", channel, "--output_format", "events"]
    code, out, err = cli(*paths, *options)
    events = [event for (event,) in by_source(out).values()]
    assert code == 1 and "loading" not in err
    assert [(event["type"], event["audio"]) for event in events] == [("error", str(path)) for path in paths]
    assert all(f"inference.py: {event['problem']}\n" in err for event in events)
    assert cli(*paths, *options, "-o", tmp_path / "out")[:2] == (1, "")
    written = [json.loads((tmp_path / "out" / name).with_suffix(".events").read_text()) for name in names]
    assert written == events


def test_inputs_without_a_recording_have_error_events(cli, tmp_path):
    """An empty folder, a pattern and a list for nothing, and a bad line: an error line and an event, with any name."""
    folder = tmp_path / "digits"
    folder.mkdir()
    manifest = tmp_path / "calls.json"
    manifest.write_text(json.dumps({"audio_filepath": str(CLIP)}) + "\n{\n{\n")
    (tmp_path / "empty.txt").touch()
    paths = [f"{folder}/", tmp_path / "*.flac", tmp_path / "empty.txt", manifest]
    options = [*OPTIONS, "--output_format", "events"]
    code, out, err = cli(*paths, *options)
    streams = by_source(out)
    errors = [events[0] for events in streams.values() if events[0]["type"] == "error"]
    subjects = [str(path) for path in paths[:3]] + [f"{manifest}:2", f"{manifest}:3"]
    assert code == 1 and [error["audio"] for error in errors] == subjects and len(streams) == 6
    assert err == "".join(f"inference.py: {error['problem']}\n" for error in errors)
    assert streams["digits"][-1]["type"] == "end" and streams["digits"][-1]["text"] == CLIP_WORDS
    assert cli(*paths, *options, "-o", tmp_path / "out")[:2] == (1, "")
    for error in errors:
        (written,) = lines(tmp_path / "out" / f"{error['source']}.events")
        assert written == error


def test_more_streams_fail_than_files_may_be_open(tmp_path):
    """The events of a stream that has failed are closed: any number of missing files is reported."""
    names = [str(tmp_path / f"{number}.wav") for number in range(100)]
    (tmp_path / "calls.lst").write_text("\n".join(names))
    script = "import resource, sys, inference; resource.setrlimit(resource.RLIMIT_NOFILE, (64, 64)); "
    options = [tmp_path / "calls.lst", "--stream", "--quiet", "-o", tmp_path / "out"]
    result = run_process("-c", script + "sys.exit(inference.main())", *options, cwd=ROOT)
    assert result.returncode == 1 and "95 more files do not exist" in result.stderr, result.stderr
    assert len(list((tmp_path / "out").glob("*.events"))) == 100


def test_a_part_of_a_pipe_is_refused(cli, pipe, tmp_path):
    """A manifest's offset or duration is an error of its pipe: the whole would be transcribed as the part."""
    line, manifest = pipe("line.fifo", None), tmp_path / "calls.json"
    for fields in ({"offset": 2}, {"duration": 3.5}):
        manifest.write_text(json.dumps({"audio_filepath": str(line), **fields}))
        code, out, err = cli(manifest, *OPTIONS, "--output_format", "events")
        ((error,),) = by_source(out).values()
        assert code == 1 and error["problem"].endswith("offset and duration in a manifest apply to files, not to pipes")
        assert err == f"inference.py: {error['problem']}\n"


@pytest.mark.parametrize("soft, hard, code", [(64, 64, 2), (64, 4096, 0)])
def test_pipes_may_need_more_open_files_than_usual(pipe, soft, hard, code):
    """The limit of open files is raised for as many pipes as there are; where that is not allowed, one line says so."""
    paths = [pipe(f"{number}.fifo", CLIP.read_bytes() if hard > soft else None) for number in range(70)]
    script = f"import resource, sys, inference; resource.setrlimit(resource.RLIMIT_NOFILE, ({soft}, {hard})); "
    result = run_process("-c", script + "sys.exit(inference.main())", *paths, *OPTIONS, "--endpoint_ms", 0, cwd=ROOT)
    refusal = "inference.py: open files: 536 may be needed, 64 are allowed (ulimit -n 536)\n"
    assert (result.returncode, result.stderr) == (code, refusal if code else "")
    assert result.stdout.count(f": {CLIP_WORDS}\n") == (0 if code else 70)


@pytest.mark.parametrize(
    "options, message",
    [
        ([CLIP, "--channel", 3], f"{CLIP}: no channel 3: it has 1 (--channel mix averages all channels)"),
        (["-", "--raw", "--channel", 2], "stdin: no channel 2: it has 1 (--channel mix averages all channels)"),
        ([CLIP, "--npu_fused"], "--npu_fused: cpu has no such operators (use npu:N)"),
        ([CLIP, "--graph", "on"], "--graph on: cpu has no graphs to capture (use npu:N or cuda:N)"),
        ([CLIP, "--allow_hf32"], "--allow_hf32: cpu computes float32 in float32 only (use npu:N or cuda:N)"),
    ],
)
def test_what_cannot_be_is_refused_before_the_model_loads(cli, options, message):
    """A channel that is not there, and what a CPU does not have, is an error line instead of a loaded model."""
    stream = [] if options[0] == "-" else ["--stream"]
    code, out, err = cli(*options, *stream, "--device", "cpu", "--output_format", "events")
    assert code == (1 if "channel" in message else 2) and f"inference.py: {message}\n" in err
    assert "loading" not in err
    assert [event["problem"] for (event,) in by_source(out).values()] == ([message] if code == 1 else [])


def test_long_transcripts_are_written_beside_the_steps(cli, monkeypatch, digits, tmp_path):
    """A thread writes the transcript of a stream that was long, so that the others go on; all texts are whole."""
    monkeypatch.setattr(pool_exchange, "LONG_TOKENS", 10)
    names, transcript = [], Stream.transcript

    def noted(self):
        names.append((len(self.emissions), threading.current_thread() is threading.main_thread()))
        time.sleep(0.1)
        return transcript(self)

    monkeypatch.setattr(Stream, "transcript", noted)
    audio, rate = digits
    soundfile.write(tmp_path / "long.wav", np.tile(audio, 3), rate)
    soundfile.write(tmp_path / "short.wav", audio[: 2 * rate], rate)
    paths = [tmp_path / "long.wav", tmp_path / "short.wav", tmp_path / "long.wav"]
    code, out, err = cli(*paths, *OPTIONS, "--endpoint_ms", 0)
    assert (code, err) == (0, "") and len(out.splitlines()) == 3 and len(names) == 3
    assert all(count < 10 if is_main else count >= 10 for count, is_main in names)
    texts = {line.split(": ")[1] for line in out.splitlines()}
    assert texts == {"three one", " ".join([CLIP_WORDS] * 3)}


def test_text_of_many_streams_names_its_source(cli, pipe, tmp_path):
    """In a pipe each utterance is a line with its source, and a folder has the files of each stream."""
    line = pipe("line.fifo", CLIP.read_bytes())
    code, out, _ = cli(CLIP, line, *OPTIONS)
    utterances = ["three one", "four one five", "nine two", "six"]
    for path in (CLIP, line):
        assert [text for name, text in (row.split(": ") for row in out.splitlines()) if name == str(path)] == utterances
    line = pipe("again.fifo", CLIP.read_bytes())
    assert cli(CLIP, line, *OPTIONS, "-o", tmp_path / "out", "--output_format", "srt,events")[:2] == (0, "")
    assert {path.name for path in (tmp_path / "out").iterdir()} == {
        *("digits.srt", "digits.events", "again.srt", "again.events", "results.jsonl")
    }
    assert [entry["text"] for entry in lines(tmp_path / "out" / "results.jsonl")] == [CLIP_WORDS] * 2


def test_documents_of_streams_keep_the_order_of_inputs(cli, tmp_path, digits):
    """Formats of whole documents come in the order of the inputs, whichever stream ends first."""
    audio, rate = digits
    long = tmp_path / "long.wav"
    soundfile.write(long, np.tile(audio, 3), rate)
    code, out, _ = cli(long, CLIP, *OPTIONS, "--output_format", "jsonl")
    assert code == 0 and [json.loads(line)["audio"] for line in out.splitlines()] == [str(long), str(CLIP)]


def test_ctrl_c_ends_all_streams_with_what_is_known(start, pipe, pcm, tmp_path):
    """A pipe that stays open, one whose writer never comes: Ctrl-C gives the text of what has come, and 130."""
    path = tmp_path / "open.fifo"
    os.mkfifo(path)
    process = start(path, pipe("never.fifo", None), "--stream", "--raw", "--quiet", "--output_format", "events")
    with open(path, "wb", buffering=0) as speaker:
        speaker.write(pcm)
        events = [json.loads(process.stdout.readline())]
        while events[-1]["type"] != "partial" or events[-1]["text"] != " six":
            events.append(json.loads(process.stdout.readline()))
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=60)
    streams = by_source(out.decode())
    assert process.returncode == 130 and set(streams) == {"open"} and streams["open"][-1]["text"] == CLIP_WORDS
    assert err == b"inference.py: interrupted: 1 of 2 not done\n"


def test_ctrl_c_prints_documents_behind_files_that_never_began(cli, monkeypatch, tmp_path):
    """After Ctrl-C the document of a pipe is printed, though files before it have none and never will."""
    from nemotron_npu.encoder import Encoder

    line, written, step = tmp_path / "line.fifo", threading.Event(), Encoder.step
    os.mkfifo(line)

    def interrupted(*args):
        if not signals.came():
            assert written.wait(60)
            signal.raise_signal(signal.SIGINT)
        return step(*args)

    def write() -> None:
        line.write_bytes(CLIP.read_bytes())
        written.set()

    threading.Thread(target=write, daemon=True).start()
    monkeypatch.setattr(Encoder, "step", interrupted)
    code, out, err = cli(*[CLIP] * 20, line, *OPTIONS, "--output_format", "jsonl")
    documents = [json.loads(row) for row in out.splitlines()]
    assert code == 130 and len(documents) < 20 and "not done" in err
    assert documents[-1]["audio"] == str(line) and documents[-1]["text"]


def test_a_pool_that_fails_ends_its_streams_with_events(cli, monkeypatch, pipe):
    """When the pool as a whole fails, each stream ends with an event, also a pipe that has not spoken."""

    def fail(self, requests):
        raise MemoryError("no room for the states")

    monkeypatch.setattr(pool_exchange.PoolExchange, "exchange", fail)
    code, out, err = cli(CLIP, pipe("never.fifo", None), *OPTIONS, "--output_format", "events")
    problems = {name: event["problem"] for name, (event,) in by_source(out).items()}
    assert code == 1 and set(problems) == {"digits", "never"}
    assert all(
        problem.endswith(": cannot be transcribed: MemoryError: no room for the states")
        for problem in problems.values()
    )
    assert err.splitlines()[-1] == "inference.py: MemoryError: no room for the states (--debug shows the traceback)"


def test_silent_pipe_is_reported_once(cli, tmp_path, monkeypatch):
    """A pipe from which nothing comes for long is one message; it goes on when something comes."""
    monkeypatch.setattr(many_streams, "STALL_SECONDS", 0.3)
    reported, note = threading.Event(), many_streams.ManyStreams._note_silence

    def noted(self, source) -> None:
        note(self, source)
        if source.is_stalled:
            reported.set()

    monkeypatch.setattr(many_streams.ManyStreams, "_note_silence", noted)
    slow, wav = tmp_path / "slow.fifo", CLIP.read_bytes()
    os.mkfifo(slow)

    def write() -> None:
        with open(slow, "wb", buffering=0) as target:
            target.write(wav[: len(wav) // 2])
            assert reported.wait(60)
            target.write(wav[len(wav) // 2 :])
            time.sleep(1.0)

    threading.Thread(target=write, daemon=True).start()
    code, out, err = cli("--stream", "--device", "cpu", CLIP, slow, "--output_format", "events")
    assert code == 0 and by_source(out)["slow"][-1]["text"] == CLIP_WORDS
    assert err.count(f"{slow}: no audio for 0.3 s (waiting for more)\n") == 1


def test_killed_streams_keep_their_utterances(start, tmp_path, pcm):
    """After kill -9 what each stream said up to its last utterance is on disk, whole."""
    paths = [tmp_path / f"line{number}.fifo" for number in range(3)]
    for path in paths:
        os.mkfifo(path)
    out = tmp_path / "out"
    files = [out / f"line{number}.events" for number in range(3)]
    process = start(*paths, "--stream", "--raw", "--quiet", "-o", out, stdout=subprocess.DEVNULL)
    with ExitStack() as speakers:
        for path in paths:
            speakers.enter_context(open(path, "wb", buffering=0)).write(pcm)
        deadline = time.monotonic() + 60
        while not all(file.exists() and b'"text": " nine two"' in file.read_bytes() for file in files):
            assert time.monotonic() < deadline and process.poll() is None
            time.sleep(0.05)
        process.kill()
        process.wait()
    for file in files:
        (events,) = by_source(file.read_text()).values()
        spoken = [event["text"] for event in events if event["type"] == "segment"]
        assert spoken == [" three one", " four one five", " nine two"] and len(events) > 3


def test_pipe_that_nobody_takes_makes_its_writer_wait(tmp_path):
    """However much is written, a pipe holds its share, its writer waits, and no sample is lost."""
    path = tmp_path / "fast.fifo"
    os.mkfifo(path)
    source = PipeInput(str(path), raw=True)
    data = np.random.default_rng(0).integers(-9999, 9999, 4 * BACKLOG_BYTES // 2, np.int16).tobytes()
    written = []

    def write() -> None:
        with open(path, "wb", buffering=0) as target:
            for first in range(0, len(data), SECOND):
                target.write(data[first : first + SECOND])
                written.append(first)

    threading.Thread(target=write, daemon=True).start()
    time.sleep(1.0)
    assert BACKLOG_BYTES <= source.received <= BACKLOG_BYTES + (1 << 16) and len(written) * SECOND < len(data) / 2
    assert to_pcm(np.concatenate(list(source)) * 32768 / 32767) == data


def test_pipe_is_closed_when_it_is_stopped(tmp_path):
    """The writer of a pipe that is stopped is told so, and does not wait for ever."""
    path = tmp_path / "stopped.fifo"
    os.mkfifo(path)
    source = PipeInput(str(path), raw=True)
    with open(path, "wb", buffering=0) as target:
        target.write(bytes(SECOND))
        source.stop()
        with pytest.raises(BrokenPipeError):
            for _ in range(1000):
                target.write(bytes(SECOND))
                time.sleep(0.01)
    assert is_pipe(str(path)) and not is_pipe(str(CLIP)) and not is_pipe(str(tmp_path / "missing"))
    with pytest.raises(InputError, match="No such file"):
        PipeInput(str(tmp_path / "missing"))


@pytest.mark.parametrize("option", [["--raw"], ["--sample_rate", 8000]])
def test_options_of_pipes_need_a_pipe(cli, option):
    """What states the format of raw PCM is refused where no input is a pipe."""
    code, _, err = cli(CLIP, *OPTIONS, *option)
    assert code == 2 and f"{option[0]}: applies to stdin and pipes" in err


def test_one_pipe_is_a_stream_like_stdin(cli, pipe, pcm, tmp_path):
    """One named pipe, raw, of another rate, is transcribed as stdin is; --resume is refused."""
    line = pipe("line.fifo", pcm)
    code, out, err = cli(line, *OPTIONS, "--raw", "--endpoint_ms", 0)
    assert (code, out, err) == (0, f"{CLIP_WORDS}\n", "")
    twice = pipe("twice.fifo", pcm)
    link = tmp_path / "link.fifo"
    link.symlink_to(twice)
    code, out, err = cli(twice, link, *OPTIONS, "--raw", "--endpoint_ms", 0)
    assert code == 1 and out == f"{twice}: {CLIP_WORDS}\n"
    hint = "each stream needs a pipe of its own"
    assert err == f"inference.py: {link}: is named twice ({hint})\n"
    code, _, err = cli(line, *OPTIONS, "-o", tmp_path / "out", "--resume")
    assert code == 2 and "--resume: applies to files, not to pipes" in err
