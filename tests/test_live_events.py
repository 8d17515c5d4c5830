"""--output_format events: JSON lines as soon as something is known, in a pipe and in a folder, also after a kill."""

from __future__ import annotations

import json
import os
import queue
import random
import signal
import subprocess
import threading
import time
from itertools import chain

import jsonschema
import numpy as np
import pytest
from live_audio import transcribe_pipe
from support import CLIP, CLIP_WORDS, ROOT, lines

from nemotron_npu.cli.output_folder import OutputFolder
from nemotron_npu.cli.run_info import RunSettings
from nemotron_npu.live_input import with_silence
from nemotron_npu.sources import Recording

SCHEMA = json.loads((ROOT / "nemotron_npu" / "events.schema.json").read_text())


def check(events: list[dict]) -> list[str]:
    """Check events of one stream against the schema; return their types."""
    for event in events:
        jsonschema.validate(event, SCHEMA)
    final = [word for event in events if event["type"] == "words" for word in event["words"]]
    spoken = [word for event in events if event["type"] == "segment" for word in event["words"]]
    assert spoken == final[: len(spoken)]
    if events and events[-1]["type"] == "end":
        assert spoken == final == [word for segment in events[-1]["segments"] for word in segment["words"]]
        assert "".join(word["word"] for word in final).strip() == events[-1]["text"]
        assert [event["id"] for event in events if event["type"] == "segment"] == list(
            range(sum(event["type"] == "segment" for event in events))
        )
    return [event["type"] for event in events]


def test_events_come_before_the_input_ends(start, pcm):
    """Lines come while the pipe is open; a word that waits comes as a partial one; the last line is the document."""
    process = start("-", "--quiet", "--output_format", "events", "--chunk_ms", 1120)
    process.stdin.write(pcm)
    process.stdin.flush()
    events = []
    while not events or events[-1]["type"] != "partial" or events[-1]["text"] != " six":
        events.append(json.loads(process.stdout.readline()))
    assert "words" in check(events) and process.poll() is None, "the pipe is still open"
    rest, _ = process.communicate(timeout=60)
    events += [json.loads(line) for line in rest.splitlines()]
    assert check(events)[-1] == "end" and events[-1]["text"] == CLIP_WORDS and process.returncode == 0


def test_events_of_streamed_files_name_them(cli, tmp_path):
    """Each line of several streamed files has the path of its file, and a name that no other stream has."""
    code, out, _ = cli(CLIP, CLIP, "--stream", "--output_format", "events", "--device", "cpu", "--quiet")
    events = [json.loads(line) for line in out.splitlines()]
    assert code == 0 and {event["audio"] for event in events} == {str(CLIP)}
    first, second = ([event for event in events if event["source"] == name] for name in ("digits", "digits_2"))
    assert check(first) == check(second) and check(first)[-1] == "end" and len(first + second) == len(events)


def test_folder_of_a_stream_has_its_events(cli, tmp_path):
    """With --output_dir a stream's events are a file beside the others, anew in each run; --output_format may ask."""
    for formats in ("all", "events", "txt"):
        options = ["--stream", "--output_dir", tmp_path / "out", "--device", "cpu", "--quiet"]
        assert cli(CLIP, *options, "--output_format", formats)[:2] == (0, "")
        assert check(lines(tmp_path / "out" / "digits.events"))[-1] == "end"
    assert lines(tmp_path / "out" / "results.jsonl")[0]["text"] == CLIP_WORDS


def test_killed_stream_keeps_its_utterances(start, pcm, tmp_path):
    """After kill -9 what was said up to the last utterance is on disk, whole."""
    process = start("-", "--quiet", "--output_dir", tmp_path, stdout=subprocess.DEVNULL)
    process.stdin.write(pcm)
    process.stdin.flush()
    file, deadline = tmp_path / "stdin.events", time.monotonic() + 60
    while not (file.exists() and b" nine two" in file.read_bytes()):
        assert time.monotonic() < deadline and process.poll() is None
        time.sleep(0.05)
    process.kill()
    process.wait()
    segments = [event["text"] for event in lines(file) if event["type"] == "segment"]
    assert segments == [" three one", " four one five", " nine two"] and check(lines(file))


def write_until_killed(folder, acknowledged: int, seed: int) -> None:
    """Write utterances of any length into a folder, and acknowledge each to a pipe."""
    settings = RunSettings("m.nemo", 80, "float32", None, None)
    output = OutputFolder(folder, ["txt"], settings)
    output.begin([Recording("stdin", "stdin")])
    output.add_event(0, "", first=True)
    chance = random.Random(seed)
    for number in range(10**9):
        words = "x" * int(10 ** chance.uniform(0, 6))
        output.add_event(0, json.dumps({"number": number, "words": words}) + "\n")
        os.write(acknowledged, bytes(1))


def test_no_acknowledged_event_is_lost_by_50_kills(tmp_path):
    """However often a run is killed at any moment: each event that it has written is there, whole."""
    chance, total = random.Random(0), 0
    for seed in range(50):
        reading, writing = os.pipe()
        child = os.fork()
        if not child:
            try:
                write_until_killed(tmp_path, writing, seed)
            finally:
                os._exit(1)
        os.close(writing)
        assert os.read(reading, 1), "it has begun"
        time.sleep(chance.uniform(0, 0.03))
        os.kill(child, signal.SIGKILL)
        assert os.waitpid(child, 0)[1] == signal.SIGKILL
        with open(reading, "rb") as pipe:
            written = 1 + len(pipe.read())
        data = (tmp_path / "stdin.events").read_bytes()
        whole = data[: data.rfind(b"\n") + 1].splitlines()
        assert [json.loads(line)["number"] for line in whole] == list(range(len(whole)))
        assert len(whole) - 1 <= written <= len(whole)
        total += written
    assert total > 100


def test_silence_is_noticed_once_until_audio_comes():
    """None comes once after so long without a block; errors of the blocks are raised."""
    blocks: queue.Queue = queue.Queue()

    def source():
        while (block := blocks.get()) is not None:
            yield block
        raise OSError("broken")

    live = with_silence(source(), 0.05)
    block = np.zeros(1)
    blocks.put(block)
    assert next(live) is block and next(live) is None
    threading.Timer(0.3, blocks.put, [block]).start()
    assert next(live) is block and next(live) is None
    blocks.put(None)
    with pytest.raises(OSError, match="broken"):
        next(live)
    assert list(with_silence([block], 0)) == [block]


def test_partial_words_change_no_token(cli, monkeypatch, pcm):
    """A pipe that falls silent after each half second gives the tokens of the file."""
    monkeypatch.setattr("nemotron_npu.live_input.READ_BYTES", 16000)
    monkeypatch.setattr("nemotron_npu.cli.streams.with_silence", lambda blocks, _: chain(*((x, None) for x in blocks)))
    _, out, _ = transcribe_pipe(cli, monkeypatch, pcm, "--chunk_ms", 560, "--output_format", "events")
    events = [json.loads(line) for line in out.splitlines()]
    expected = json.loads(cli(CLIP, "--chunk_ms", 560, "--device", "cpu", "--output_format", "json")[1])
    assert check(events).count("partial") > 3
    tokens = [[(token["id"], token["frame"]) for token in document["tokens"]] for document in (events[-1], expected)]
    assert tokens[0] == tokens[1]
