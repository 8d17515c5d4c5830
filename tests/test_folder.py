"""A folder of recordings on the bundled model: every format, progress, and runs that are killed and go on."""

import contextlib
import fcntl
import json
import os
import random
import re
import shutil
import signal
import struct
import subprocess
import sys
import termios
import time
from pathlib import Path

import numpy as np
import pytest
import soundfile
import soxr
from omegaconf import OmegaConf
from support import CLIP, CLIP_WORDS, ROOT, assert_same_run, run_process

from nemotron_npu.cli import progress, results
from nemotron_npu.cli.progress import Progress
from nemotron_npu.sources import Recording

INFERENCE = ROOT / "inference.py"
PER_FILE, COLLECTED = ("txt", "json", "srt", "vtt", "tsv", "ctm"), {"results.jsonl", "manifest.jsonl"}


@pytest.fixture(scope="module")
def calls(tmp_path_factory) -> Path:
    """20 recordings of all kinds in folders, and five broken ones."""
    folder = tmp_path_factory.mktemp("data") / "calls"
    audio, rate = soundfile.read(CLIP, dtype="float32")
    kinds = [("wav", "PCM_16"), ("wav", "ULAW"), ("flac", "PCM_24"), ("ogg", "VORBIS"), ("mp3", "MPEG_LAYER_III")]
    for i in range(20):
        suffix, subtype = kinds[i % 5]
        new_rate = (8000, 16000, 44100, 48000)[i % 4]
        samples = soxr.resample(audio[: rate if i % 3 == 0 else None], rate, new_rate).clip(-1, 1)
        if i % 2:
            samples = np.stack([samples, 0.8 * samples], 1)
        path = folder / f"day {i % 3}" / f"call{i:02d}.{suffix}"
        path.parent.mkdir(parents=True, exist_ok=True)
        soundfile.write(path, samples, new_rate, subtype=subtype)
    (folder / "empty.wav").write_bytes(b"")
    (folder / "text.mp3").write_text("not sound at all\n" * 50)
    soundfile.write(folder / "header.wav", np.zeros(0), 16000)
    soundfile.write(folder / "broken.flac", np.random.default_rng(0).uniform(-1, 1, 40000), 16000)
    os.truncate(folder / "broken.flac", 9000)
    soundfile.write(folder / "nan.wav", np.full(16000, np.nan, np.float32), 16000, subtype="FLOAT")
    return folder


BROKEN = ["broken.flac", "empty.wav", "header.wav", "nan.wav", "text.mp3"]


def words_of(name: str) -> str:
    return "three" if int(Path(name).stem[4:]) % 3 == 0 else CLIP_WORDS


def lines(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def files(folder: Path) -> set[str]:
    return {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}


# ---------------------------------------------------------------- one run


def test_a_folder_gives_every_format_and_a_line_for_each_broken_file(cli, calls, tmp_path):
    code, out, err = cli(calls, "--output_dir", tmp_path, "--batch_size", 4, "--device", "cpu")
    assert (code, out) == (1, "")
    errors = [line for line in err.splitlines() if line.startswith("inference.py: ")]
    assert len(errors) == 5 and all(sum(f"{calls}/{name}: " in line for line in errors) == 1 for name in BROKEN)
    assert "25 recordings: 20 done, 5 failed; 0.03 h of sound in " in err.splitlines()[-1]

    stems = [str(path.relative_to(calls).with_suffix("")) for path in sorted(calls.rglob("call*"))]
    assert len(stems) == 20
    assert files(tmp_path) == {f"{stem}.{kind}" for stem in stems for kind in PER_FILE} | COLLECTED
    for stem in stems:
        assert (tmp_path / f"{stem}.txt").read_text().split() == words_of(stem).split()
    manifest = lines(tmp_path / "manifest.jsonl")
    assert [line["audio_filepath"] for line in manifest] == [str(path) for path in sorted(calls.rglob("call*"))]
    assert all(line["pred_text"] == words_of(line["audio_filepath"]) for line in manifest)
    ends = (tmp_path / f"{stems[1]}.ctm").read_text().splitlines()
    assert [line.split()[4] for line in ends] == words_of(stems[1]).split()


def test_side_by_side_are_recordings_of_one_length(cli, calls, tmp_path):
    cli(calls, "--output_dir", tmp_path, "--output_format", "json", "--batch_size", 4, "--device", "cpu", "--quiet")
    written = sorted(tmp_path.rglob("*.json"), key=lambda path: path.stat().st_mtime_ns)
    durations = [json.loads(path.read_text())["duration"] for path in written]
    assert min(durations[:12]) > 6, "13 are whole clips, the last of them beside first words"


def test_stdout_has_them_in_the_order_of_the_input(cli, calls):
    code, out, _ = cli(f"{calls}/**/call*", "--batch_size", 4, "--device", "cpu", "--quiet")
    paths = sorted(calls.rglob("call*"))
    assert code == 0 and out.splitlines() == [f"{path}: {words_of(path.name)}" for path in paths]


def test_a_manifest_comes_back_with_what_was_recognised(cli, tmp_path, digits):
    from nemo.collections.asr.parts.utils.transcribe_utils import write_transcription

    shutil.copy(CLIP, tmp_path / "digits.wav")
    entries = [
        {"audio_filepath": "digits.wav", "duration": 6.831, "text": CLIP_WORDS, "speaker": "george"},
        {"audio_filepath": "digits.wav", "offset": 0.0, "duration": 1.0, "text": "three"},
        {"audio_filepath": "digits.wav", "offset": 1.0, "duration": 1.6, "text": "one four", "lang": "ä"},
    ]
    manifest = tmp_path / "test.json"
    manifest.write_text("".join(json.dumps(entry) + "\n" for entry in entries))
    options = ["--output_format", "manifest", "--device", "cpu", "--quiet"]
    code, out, err = cli(manifest, *options, "--output_dir", tmp_path / "out")
    assert (code, err) == (0, "") and out.startswith("Word errors in 3 files with a reference text")
    assert files(tmp_path / "out") == COLLECTED
    ours = (tmp_path / "out" / "manifest.jsonl").read_text()
    paths = {"output_filename": str(tmp_path / "nemo.json"), "dataset_manifest": str(manifest), "audio_dir": None}
    options_of_nemo = {**paths, "append_pred": False, "decoding": {"beam": {"return_best_hypothesis": True}}}
    write_transcription([CLIP_WORDS, "three", "one four"], OmegaConf.create(options_of_nemo), "model")
    assert ours == (tmp_path / "nemo.json").read_text()
    assert cli(manifest, *options) == (0, ours, ""), "stdout takes it too"

    with manifest.open("a") as file:
        file.write('{"audio_filepath": "gone.wav", "duration": 1.0, "text": "one"}\n{"audio_filepath"\n')
    code, out, err = cli(manifest, *options)
    assert (code, out) == (1, ours) and err.splitlines() == [
        f"inference.py: {manifest}:5: not JSON", "inference.py: gone.wav: No such file or directory"
    ]  # fmt: skip


def test_nemo_hears_the_same_parts_of_a_file(cli, tmp_path):
    manifest = tmp_path / "test.json"
    parts = [{"offset": 0, "duration": 1.0}, {"offset": 1.0, "duration": 1.6}, {"offset": 3.2}]
    manifest.write_text("".join(json.dumps({"audio_filepath": str(CLIP), **part}) + "\n" for part in parts))
    outs = [cli(manifest, "--engine", engine, "--device", "cpu", "--quiet")[1] for engine in ("native", "nemo")]
    assert outs[0] == outs[1]
    assert outs[0].splitlines()[1:] == [f"{CLIP} [from 1 s]: one four", f"{CLIP} [from 3.2 s]: five nine two six"]


def test_ctm_of_several_goes_to_stdout_and_subtitles_of_one(cli, calls):
    paths = sorted(calls.rglob("call0[12]*"))
    code, out, _ = cli(*paths, "--output_format", "ctm", "--device", "cpu", "--quiet")
    assert code == 0 and [line.split()[0] for line in out.splitlines()] == ["call01"] * 8 + ["call02"] * 8
    code, out, _ = cli(CLIP, "--output_format", "srt", "--device", "cpu", "--quiet")
    assert code == 0 and out.startswith("1\n00:00:0") and " --> " in out


def test_broken_files_that_are_met_late_are_a_line_each_too(cli, calls, monkeypatch):
    """Of many inputs only the first are looked at before the model is loaded."""
    monkeypatch.setattr(results, "EARLY_CHECKS", 3)
    code, out, err = cli(calls, "--batch_size", 2, "--device", "cpu", "--quiet")
    assert code == 1 and len(out.splitlines()) == 20 and len(err.splitlines()) == 5
    assert all(f"{calls}/{name}: " in err for name in BROKEN)


@pytest.mark.parametrize(
    "args, words",
    [
        (["a.wav", "--output_format", "srt,vtt"], "several need --output_dir"),
        (["a.wav", "b.wav", "--output_format", "vtt"], "several need --output_dir"),
        (
            ["a.wav", "--output_format", "docx"],
            "'docx' is none of txt, json, srt, vtt, tsv, ctm, jsonl, manifest and all",
        ),
        (["a.wav", "--resume"], "--resume needs --output_dir"),
        (["-", "--resume", "--output_dir", "x"], "--resume is for files"),
        (["a.wav", "--output_dir", "/dev/null"], "--output_dir /dev/null"),
    ],
)
def test_what_cannot_be_is_said_before_the_work(cli, args, words):
    code, out, err = cli(*args)
    assert (code, out) == (2, "") and words in err.splitlines()[-1]


def test_live_sound_and_streams_are_written_too(tmp_path):
    with open(CLIP, "rb") as sound:
        result = run_process(INFERENCE, "-", "--output_dir", tmp_path, "--device", "cpu", "--quiet", stdin=sound)
    assert (result.returncode, result.stdout, result.stderr) == (0, "", "")
    assert files(tmp_path) == {f"stdin.{kind}" for kind in PER_FILE} | COLLECTED
    document = json.loads((tmp_path / "stdin.json").read_text())
    assert (document["text"], document["sample_rate"], document["format"]) == (CLIP_WORDS, 8000, "WAV")


def test_streamed_files_are_written_too(cli, calls, tmp_path):
    code, out, _ = cli(calls / "day 1", "--stream", "--output_dir", tmp_path, "--device", "cpu", "--quiet")
    assert (code, out) == (0, "")
    assert {line["pred_text"] for line in lines(tmp_path / "manifest.jsonl")} == {CLIP_WORDS}


def test_every_field_of_the_json_is_in_the_readme(cli, tmp_path):
    manifest = tmp_path / "m.json"
    manifest.write_text(json.dumps({"audio_filepath": str(CLIP), "offset": 1.0, "text": "one four"}))
    options = ["--output_format", "jsonl", "--output_dir", tmp_path / "out", "--precision_compare", "--device", "cpu"]
    assert cli(manifest, *options)[0] == 0
    (document,) = lines(tmp_path / "out" / "results.jsonl")
    del document["manifest"]

    def names(value) -> set[str]:
        if isinstance(value, dict):
            return set(value).union(*(names(item) for key, item in value.items() if key != "precision_compare"))
        return set().union(*map(names, value)) if isinstance(value, list) else set()

    assert {
        "audio",
        "offset",
        "segments",
        "word",
        "confidence",
        "tokens",
        "frame",
        "rtfx",
        "output",
        "boost_words",
        "rate",
    } < names(document)
    for readme in ["docs/usage.md"]:
        text = (ROOT / readme).read_text()
        assert [name for name in sorted(names(document)) if f"`{name}`" not in text] == [], readme


# ---------------------------------------------------------------- interrupted runs


def test_killed_again_and_again_each_file_is_there_exactly_once_in_the_end(cli, calls, tmp_path):
    killed, whole = tmp_path / "killed", tmp_path / "whole"
    command = [sys.executable, INFERENCE, calls, "--output_dir", killed, "--batch_size", "2", "--device", "cpu"]
    record, chance = killed / "results.jsonl", random.Random(0)

    def finished() -> int:
        return record.read_bytes().count(b"\n") if record.exists() else 0

    for _ in range(3):
        process = subprocess.Popen([*map(str, command), "--resume"], stderr=subprocess.DEVNULL)
        enough = finished() + chance.randint(1, 4)
        deadline = time.monotonic() + 60
        while finished() < enough and process.poll() is None and time.monotonic() < deadline:
            time.sleep(0.002)
        process.kill()
        assert process.wait() == -9, "it was still at work"
    before = finished()
    assert 3 <= before < 20
    code, _, err = cli(*command[2:], "--resume")
    assert code == 1 and f"25 recordings: {20 - before} done, {before} done before, 5 failed" in err.splitlines()[-1]
    assert cli(calls, "--output_dir", whole, "--batch_size", 4, "--device", "cpu", "--quiet")[0] == 1
    assert len(lines(record)) == 20
    assert_same_run(killed, whole)


def test_what_is_done_does_not_wait_for_a_model(cli, tmp_path, monkeypatch):
    options = [CLIP, "--output_dir", tmp_path, "--device", "cpu"]
    assert cli(*options)[0] == 0
    said = "begun anew, the record of the last run is kept as results.jsonl~ (--resume goes on with it instead)"
    assert f"{tmp_path}: {said}\n" in cli(*options)[2]
    monkeypatch.setattr("nemotron_npu.recognizer.load_recognizer", None)
    code, out, err = cli(*options, "--resume")
    assert (code, out, err) == (0, "", "1 recording: 0 done, 1 done before, 0 failed\n")
    code, _, err = cli(*options, "--resume", "--chunk_ms", 80)
    assert code == 2 and "chunk_ms 1120, this run has 80" in err


def test_ctrl_c_keeps_what_is_done_and_says_what_is_left(cli, calls, tmp_path, monkeypatch):
    from nemotron_npu.recognizer import Recognizer

    results = Recognizer.results

    def interrupted(self, sources, *rest):
        found = results(self, sources, *rest)
        yield next(found)
        raise KeyboardInterrupt

    monkeypatch.setattr(Recognizer, "results", interrupted)
    code, out, err = cli(calls / "day 0", "--output_dir", tmp_path, "--batch_size", 2, "--device", "cpu")
    assert (code, out) == (130, "") and err.splitlines()[-1] == "inference.py: interrupted: 6 of 7 not done"
    assert "7 recordings: 1 done, 0 failed, 6 left: --resume goes on with them; " in err.splitlines()[-2]
    assert len(lines(tmp_path / "results.jsonl")) == len(lines(tmp_path / "manifest.jsonl")) == 1


def test_a_stream_that_is_cut_short_is_not_done(cli, calls, tmp_path, monkeypatch):
    from nemotron_npu.encoder import Encoder

    step, calls_of_step = Encoder.step, []

    def interrupted(*args):
        calls_of_step.append(args)
        if len(calls_of_step) == 2:
            os.kill(os.getpid(), signal.SIGINT)
        return step(*args)

    monkeypatch.setattr(Encoder, "step", interrupted)
    options = [calls / "day 1", "--stream", "--output_dir", tmp_path, "--device", "cpu"]
    code, out, err = cli(*options)
    assert (code, out) == (130, "") and "0 done, 0 failed, 7 left: --resume goes on with them" in err
    assert cli(*options, "--resume")[0] == 0
    assert [line["pred_text"] for line in lines(tmp_path / "manifest.jsonl")] == [CLIP_WORDS] * 7


def test_a_disk_that_is_full_is_one_line_and_exit_code_2(cli, calls, tmp_path, monkeypatch):
    replace = os.replace

    def full(source, target):
        if str(target).endswith("call06.srt"):
            raise OSError(28, "No space left on device")
        replace(source, target)

    monkeypatch.setattr(os, "replace", full)
    code, _, err = cli(calls / "day 0", "--output_dir", tmp_path, "--device", "cpu", "--quiet")
    assert code == 2 and err == f"inference.py: {tmp_path}/call06.srt: cannot be written: No space left on device\n"
    assert len(lines(tmp_path / "manifest.jsonl")) == 2


# ---------------------------------------------------------------- progress


def test_a_log_has_a_line_a_minute(cli, calls, tmp_path, monkeypatch):
    clock = [0.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: clock[0])
    said = []
    recordings = [Recording(f"{i}.wav", f"{i}", length=1800.0) for i in range(4)]
    shown = Progress(recordings, said.append)
    for _ in range(4):
        for _ in range(60):
            clock[0] += 0.75
            shown.hear(30.0)
        shown.finished()
    assert said == [
        "1/4 files, 0.67/2.00 h of sound, RTFx 40.0, 2:00 left",
        "2/4 files, 1.33/2.00 h of sound, RTFx 40.0, 1:00 left",
        "3/4 files, 2.00/2.00 h of sound, RTFx 40.0, 0:00 left",
    ]


def test_a_terminal_has_a_bar_that_makes_way_for_lines_and_is_gone_in_the_end(calls, terminal):
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
    assert re.search(r"\d+%\|.*\| 1?\d/23 files, 0\.0\d/0\.03 h of sound, RTFx [\d.]+, 0:\d\d left", screen)
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


def test_a_terminal_of_unknown_size_has_a_bar_too(terminal, monkeypatch):
    """As in some containers, where it has 0 columns."""
    ours, theirs = terminal
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 0, 0, 0, 0))
    monkeypatch.setattr(progress, "BAR_AFTER_SECONDS", 0)
    monkeypatch.setattr(progress, "BAR_SECONDS", 0)
    with open(theirs, "w") as stderr:
        monkeypatch.setattr(progress.sys, "stderr", stderr)
        shown = Progress([Recording("1.wav", "1", length=60.0)], None)
        shown.hear(30.0)
        os.set_blocking(ours, False)
        assert re.search(r"\d%\|.+\| 0/1 files", os.read(ours, 65536).decode())
        shown.close()


def test_without_known_lengths_time_left_goes_by_files(monkeypatch):
    clock = [0.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: clock[0])
    shown = Progress([Recording(f"{i}.wav", f"{i}") for i in range(4)], None)
    shown.hear(100.0)
    clock[0] = 10.0
    shown.files = 1
    assert shown.text() == "1/4 files, 0.03 h of sound, RTFx 10.0, 0:30 left"
    shown.files = 0
    assert shown.text() == "0/4 files, 0.03 h of sound, RTFx 10.0"


# ---------------------------------------------------------------- options


@pytest.mark.parametrize(
    "typed, offered",
    [
        ("inference.py --output_f", {"--output_format"}),
        ("inference.py --output_format ", {*PER_FILE, "jsonl", "manifest", "all"}),
        ("inference.py --engine n", {"native", "nemo"}),
    ],
)
def test_a_shell_with_argcomplete_completes_options(tmp_path, typed, offered):
    said = tmp_path / "said"
    asked = {"_ARGCOMPLETE": "1", "COMP_LINE": typed, "COMP_POINT": str(len(typed)), "_ARGCOMPLETE_IFS": "\n"}
    run_process(INFERENCE, env={**os.environ, **asked, "_ARGCOMPLETE_STDOUT_FILENAME": str(said)})
    assert {word.strip() for word in said.read_text().splitlines()} == offered
