"""Audio is untrusted input: each row of the table in data/messages.md, and cases that do not fit a table."""

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
from hostile_audio import BESIDE, CASES, clip_at
from robustness import documented, row, run_case
from support import CLIP, CLIP_WORDS, ROOT

from nemotron_npu import audio, live_input, recognizer
from nemotron_npu.checkpoint.config_reader import read_config
from nemotron_npu.cli import run as cli_run
from nemotron_npu.cli import transcribe as cli_transcribe
from nemotron_npu.errors import InputError
from nemotron_npu.live_input import LiveInput

DEMO = ROOT / "demo" / "demo.nemo"
ROWS = documented("audio")


@pytest.fixture(scope="module", autouse=True)
def one_model():
    """The bundled model is loaded once for all rows."""
    config, model = read_config(DEMO), recognizer.load_recognizer(DEMO, torch.device("cpu"))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(cli_run, "read_config", lambda path: config)
        patch.setattr(cli_transcribe, "load_recognizer", lambda *args, **options: model)
        yield


def test_messages_have_a_row_for_each_case():
    """Names of cases are unique, and data/messages.md has them all."""
    assert len(ROWS) == len(CASES) == len({case.name for case in CASES})


@pytest.mark.parametrize("place", range(len(CASES)), ids=[case.name for case in CASES])
def test_hostile_audio_gives_its_documented_result(place, tmp_path):
    """Exit code and message are as documented, and the good files next to it are transcribed."""
    case = CASES[place]
    observed = run_case(case, tmp_path)
    assert observed.code == case.code, observed
    assert re.search(case.says, observed.said), observed
    assert all(re.fullmatch("inference.py: .+", line) for line in observed.stderr.splitlines()), observed.stderr
    assert observed.seconds < 60, "it stalls"
    lines = observed.stdout.splitlines()
    if not case.name.startswith("stdin: "):
        good = [f"{name}: {words}" for name, words in BESIDE.items()]
        assert [lines[0], lines[-1]] == good, "a good file next to it is lost"
        assert all(re.match(".+: ", line) for line in lines), "there is something else on stdout"
    if case.name.startswith("a folder of 1000 files"):
        assert len(lines) == 2 + 999
    assert row(case, observed) == ROWS[place], "python tests/robustness.py audio writes the table anew"


NAMES = ["a  b .wav", "two\nlines.wav", "\N{PARTY POPPER}.wav", os.fsdecode(b"caf\xe9.wav"), "\x1b[2J.wav"]


def test_any_file_name_survives_in_results_and_resume(cli, tmp_path):
    """Spaces, line breaks, bytes that are no UTF-8 and escape codes round-trip."""
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


def test_folder_removed_while_listing_affects_no_other(tmp_path, monkeypatch):
    """The removed folder is one error, the others are listed."""
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


def test_many_channels_are_decoded_in_shorter_blocks(tmp_path, monkeypatch):
    """A block has at most BLOCK_VALUES samples, counting all channels."""
    import soundfile

    soundfile.write(tmp_path / "x.wav", np.zeros((200_000, 64)), 192000, subtype="PCM_U8")
    monkeypatch.setattr(audio, "BLOCK_VALUES", 64 * 10_000)
    pieces = list(audio.read_blocks(str(tmp_path / "x.wav")))
    assert len(pieces) == 21 and abs(sum(map(len, pieces)) - 200_000 / 12) < 1


# ---------------------------------------------------------------- stdin


def test_stdin_that_is_a_folder_is_an_input_error(tmp_path):
    """The error of the operating system is one line."""
    number = os.open(tmp_path, os.O_RDONLY)
    with pytest.raises(InputError, match="stdin: cannot be read: Is a directory"):
        list(LiveInput(number))
    os.close(number)


def test_audio_faster_than_real_time_waits_in_the_pipe(monkeypatch):
    """An endless file does not fill the memory, and stop() ends it."""
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


def test_non_blocking_pipe_is_waited_for():
    """Another program may have set O_NONBLOCK."""
    reading, writing = os.pipe()
    os.set_blocking(reading, False)
    samples = clip_at()[:100]
    threading.Timer(
        0.05, lambda: (os.write(writing, (samples * 32768).astype("<i2").tobytes()), os.close(writing))
    ).start()
    assert sum(map(len, LiveInput(reading))) == 100
    os.close(reading)


def test_bytes_after_the_samples_are_not_kept(monkeypatch):
    """Whatever follows the data chunk of a wav takes no memory."""
    from hostile_audio import wav

    reading, writing = os.pipe()
    source = LiveInput(reading)
    with os.fdopen(writing, "wb") as pipe:
        pipe.write(wav() + bytes(3 << 20))
    assert sum(map(len, source)) == len(clip_at()) and not source.data
    os.close(reading)


# ---------------------------------------------------------------- chance


def test_random_defects_give_samples_or_one_line():
    """These are the first of 100,000 cases; python tests/fuzz.py audio runs more."""
    outcomes, wrong = fuzz("audio", first=0, cases=200)  # each that libsndfile refuses starts a decoder
    assert wrong == [] and outcomes["read"] > 50 and outcomes["refused"] > 50
