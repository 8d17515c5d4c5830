"""Sound is untrusted input: each row of the table in data/messages.md, and what a table cannot show."""

import json
import os
import re
import shutil
import threading
import time

import numpy as np
import pytest
import torch
from fuzz import fuzz
from hostile_audio import BESIDE, CASES, sound
from robustness import documented, row, run_case
from support import CLIP, CLIP_WORDS, ROOT

from nemotron_npu import audio, live_input, recognizer
from nemotron_npu.checkpoint import load
from nemotron_npu.errors import InputError
from nemotron_npu.live_input import LiveInput

DEMO = ROOT / "demo" / "demo.nemo"
ROWS = documented("audio")


@pytest.fixture(scope="module", autouse=True)
def one_model():
    """The bundled model is loaded once for all rows."""
    config, model = load.read_config(DEMO), recognizer.load_recognizer(DEMO, torch.device("cpu"))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(load, "read_config", lambda path: config)
        patch.setattr(recognizer, "load_recognizer", lambda *args, **options: model)
        yield


def test_the_table_has_a_row_for_each_case():
    assert len(ROWS) == len(CASES) == len({case.name for case in CASES})


@pytest.mark.parametrize("place", range(len(CASES)), ids=[case.name for case in CASES])
def test_what_becomes_of(place, tmp_path):
    case = CASES[place]
    observed = run_case(case, tmp_path)
    assert observed.code == case.code, observed
    assert re.search(case.says, observed.said), observed
    assert all(re.fullmatch("inference.py: .+", line) for line in observed.stderr.splitlines()), observed.stderr
    assert observed.seconds < 60, "it stalls"
    lines = observed.stdout.splitlines()
    if not case.name.startswith("stdin: "):
        good = [f"{name}: {words}" for name, words in BESIDE.items()]
        assert [lines[0], lines[-1]] == good, "a neighbour is lost"
        assert all(re.match(".+: ", line) for line in lines), "there is something else on stdout"
    if case.name.startswith("a folder of 1000 files"):
        assert len(lines) == 2 + 999
    assert row(case, observed) == ROWS[place], "python tests/robustness.py audio writes the table anew"


NAMES = ["a  b .wav", "two\nlines.wav", "\N{PARTY POPPER}.wav", os.fsdecode(b"caf\xe9.wav"), "\x1b[2J.wav"]


def test_results_are_found_again_under_any_name(cli, tmp_path):
    calls, out = tmp_path / "calls", tmp_path / "out"
    calls.mkdir()
    for name in NAMES:
        shutil.copy(CLIP, calls / name)
    options = [calls, "--output_dir", out, "--output_format", "txt,json,manifest", "--device", "cpu"]
    assert cli(*options)[0] == 0
    for name in NAMES:
        assert (out / name).with_suffix(".txt").read_text().split() == CLIP_WORDS.split()
        assert json.loads((out / name).with_suffix(".json").read_bytes())["audio"] == str(calls / name)
    entries = [json.loads(line) for line in (out / "manifest.jsonl").read_bytes().splitlines()]
    assert sorted(entry["audio_filepath"] for entry in entries) == sorted(str(calls / name) for name in NAMES)
    code, _, err = cli(*options, "--resume")
    assert code == 0 and "5 recordings: 0 done, 5 done before, 0 failed" in err
    code, printed, _ = cli(out / "manifest.jsonl", "--output_format", "json", "--device", "cpu", "--quiet")
    assert code == 0 and [json.loads(line)["audio"] for line in printed.splitlines()] == [
        entry["audio_filepath"] for entry in entries
    ]


def test_a_folder_that_vanishes_while_it_is_listed_costs_no_other(tmp_path, monkeypatch):
    from nemotron_npu.sources import Recording, find_recordings

    for name in ("a", "b", "c"):
        (tmp_path / name).mkdir()
        shutil.copy(CLIP, tmp_path / name)
    walk = os.walk

    def vanishing(*args, **options):
        for found in walk(*args, **options):
            if found[0].endswith("b"):
                shutil.rmtree(tmp_path / "b")
            yield found

    monkeypatch.setattr(os, "walk", vanishing)
    found = list(find_recordings([str(tmp_path)]))
    assert [f.output if isinstance(f, Recording) else str(f) for f in found] == [
        "a/digits", "c/digits", f"{tmp_path}/b: No such file or directory"
    ]  # fmt: skip


def test_many_channels_and_high_rates_take_no_more_memory(tmp_path, monkeypatch):
    import soundfile

    soundfile.write(tmp_path / "x.wav", np.zeros((200_000, 64)), 192000, subtype="PCM_U8")
    monkeypatch.setattr(audio, "BLOCK_VALUES", 64 * 10_000)
    pieces = list(audio.read_blocks(str(tmp_path / "x.wav")))
    assert len(pieces) == 21 and abs(sum(map(len, pieces)) - 200_000 / 12) < 1


# ---------------------------------------------------------------- stdin


def test_a_folder_as_stdin_is_one_line(tmp_path):
    number = os.open(tmp_path, os.O_RDONLY)
    with pytest.raises(InputError, match="stdin: cannot be read: Is a directory"):
        list(LiveInput(number))
    os.close(number)


def test_sound_that_comes_faster_than_it_is_recognised_waits_outside(monkeypatch):
    monkeypatch.setattr(live_input, "BACKLOG_BYTES", 1 << 20)
    number = os.open("/dev/zero", os.O_RDONLY)
    source = LiveInput(number)
    pieces = iter(source)
    for _ in range(3):
        deadline = time.monotonic() + 10
        while source.received - source.taken < 1 << 20 and time.monotonic() < deadline:
            time.sleep(0.001)
        time.sleep(0.05)
        assert 1 << 20 <= source.received - source.taken <= (1 << 20) + (1 << 16)
        next(pieces)
    source.stop()
    assert sum(map(len, pieces)) < 1 << 21, "it does not end when it is stopped"


def test_a_pipe_that_does_not_block_is_waited_for():
    reading, writing = os.pipe()
    os.set_blocking(reading, False)
    samples = sound()[:100]
    threading.Timer(
        0.05, lambda: (os.write(writing, (samples * 32768).astype("<i2").tobytes()), os.close(writing))
    ).start()
    assert sum(map(len, LiveInput(reading))) == 100
    os.close(reading)


def test_what_follows_the_sound_of_a_stream_is_not_kept(monkeypatch):
    from hostile_audio import wav

    reading, writing = os.pipe()
    source = LiveInput(reading)
    with os.fdopen(writing, "wb") as pipe:
        pipe.write(wav() + bytes(3 << 20))
    assert sum(map(len, source)) == len(sound()) and not source.data
    os.close(reading)


# ---------------------------------------------------------------- chance


def test_broken_by_chance_they_give_samples_or_one_line():
    """The first of 100,000 cases; python tests/fuzz.py audio runs more."""
    outcomes, wrong = fuzz("audio", first=0, cases=1200)
    assert wrong == [] and outcomes["read"] > 300 and outcomes["refused"] > 300
