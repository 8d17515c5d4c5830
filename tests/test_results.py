"""Runs over a folder with the bundled model: every format, broken files, interruptions, resuming."""

import json
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import time
from types import SimpleNamespace

import pytest
from omegaconf import OmegaConf
from support import (
    BROKEN,
    CLIP,
    CLIP_WORDS,
    COLLECTED,
    INFERENCE,
    PER_FILE,
    ROOT,
    assert_same_run,
    files,
    lines,
    run_process,
    words_of,
)

from nemotron_npu.cli import many_streams, results, stream_sources
from nemotron_npu.encoder import Encoder
from nemotron_npu.recognizer import Recognizer
from nemotron_npu.sources import Recording


def test_folder_gives_every_format_and_reports_broken_files(cli, calls, tmp_path):
    """A folder gives every format, and an error line for each broken file."""
    code, out, err = cli(calls, "--output_dir", tmp_path, "--batch_size", 4, "--device", "cpu")
    assert (code, out) == (1, "")
    errors = [line for line in err.splitlines() if line.startswith("inference.py: ")]
    assert len(errors) == 5 and all(sum(f"{calls}/{name}: " in line for line in errors) == 1 for name in BROKEN)
    found = re.search(r"25 recordings: 20 done, 5 failed; ([\d.]+) s of audio in ", err.splitlines()[-1])
    assert found and float(found[1]) == pytest.approx(108, abs=18)

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


@pytest.mark.parametrize(("seconds", "amount"), [(359.9, "359.9 s"), (360.0, "0.10 h"), (7200.0, "2.00 h")])
def test_summary_counts_long_audio_in_hours(seconds, amount):
    """From 6 minutes on the summary gives the audio in hours."""
    printer = SimpleNamespace(console=None)
    run = results.Results([Recording("a.wav", "a"), Recording("b.wav", "b")], 0, None, printer)
    run.done = {0: ("one", seconds / 2), 1: ("two", seconds / 2)}
    assert run.summary(10.0) == f"2 recordings: 2 done, 0 failed; {amount} of audio in 10.0 s (RTFx {seconds / 10:.1f})"


def test_batches_of_a_folder_have_similar_lengths(cli, calls, tmp_path):
    """Batches of a folder have recordings of similar length."""
    cli(calls, "--output_dir", tmp_path, "--output_format", "json", "--batch_size", 4, "--device", "cpu", "--quiet")
    written = sorted(tmp_path.rglob("*.json"), key=lambda path: path.stat().st_mtime_ns)
    durations = [json.loads(path.read_text())["duration"] for path in written]
    assert min(durations[:12]) > 6, "13 are whole clips, the last of them beside first words"


def test_stdout_has_results_in_order_of_input(cli, calls):
    """Stdout has the results in the order of the input."""
    code, out, _ = cli(f"{calls}/**/call*", "--batch_size", 4, "--device", "cpu", "--quiet")
    paths = sorted(calls.rglob("call*"))
    assert code == 0 and out.splitlines() == [f"{path}: {words_of(path.name)}" for path in paths]


def test_manifest_gets_pred_text_as_nemo_writes_it(cli, tmp_path, digits):
    """A manifest comes back with pred_text, byte for byte as NeMo writes it."""
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
    assert (code, out) == (0, "") and err.startswith("Word errors in 3 files with a reference text")
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


def test_both_engines_transcribe_the_same_parts_of_a_file(cli, tmp_path):
    """Both engines transcribe the parts that a manifest names."""
    manifest = tmp_path / "test.json"
    parts = [{"offset": 0, "duration": 1.0}, {"offset": 1.0, "duration": 1.6}, {"offset": 3.2}]
    manifest.write_text("".join(json.dumps({"audio_filepath": str(CLIP), **part}) + "\n" for part in parts))
    outs = [cli(manifest, "--engine", engine, "--device", "cpu", "--quiet")[1] for engine in ("native", "nemo")]
    assert outs[0] == outs[1]
    assert outs[0].splitlines()[1:] == [f"{CLIP} [from 1 s]: one four", f"{CLIP} [from 3.2 s]: five nine two six"]


def test_stdout_takes_ctm_of_several_and_subtitles_of_one(cli, calls):
    """Stdout takes the ctm of several recordings, and the subtitles of one."""
    paths = sorted(calls.rglob("call0[12]*"))
    code, out, _ = cli(*paths, "--output_format", "ctm", "--device", "cpu", "--quiet")
    assert code == 0 and [line.split()[0] for line in out.splitlines()] == ["call01"] * 8 + ["call02"] * 8
    code, out, _ = cli(CLIP, "--output_format", "srt", "--device", "cpu", "--quiet")
    assert code == 0 and out.startswith("1\n00:00:0") and " --> " in out


def test_broken_files_after_the_early_checks_are_reported(cli, calls, monkeypatch):
    """Only the first headers are read before the model is loaded; later broken files are reported too."""
    monkeypatch.setattr(results, "EARLY_CHECKS", 3)
    code, out, err = cli(calls, "--batch_size", 2, "--device", "cpu", "--quiet")
    assert code == 1 and len(out.splitlines()) == 20 and len(err.splitlines()) == 5
    assert all(f"{calls}/{name}: " in err for name in BROKEN)


@pytest.mark.parametrize("workers, count", [(0, 3), (1, 5)])
def test_number_of_early_headers_is_limited(cli, calls, tmp_path, monkeypatch, workers, count):
    """However many recordings there are, as many headers are read before the model is loaded; more for workers."""
    monkeypatch.setattr(results, "EARLY_CHECKS", 3)
    monkeypatch.setattr(results, "EARLY_LENGTHS", 5)
    checked = []
    check = Recording.check
    monkeypatch.setattr(Recording, "check", lambda recording: checked.append(recording) or check(recording))
    options = ["--num_workers", workers] if workers else []
    assert cli(calls, "--device", "cpu", "--quiet", "--output_dir", tmp_path, *options)[0] == 1
    assert len(checked) == count
    assert len(lines(tmp_path / "results.jsonl")) == 20


def test_live_audio_is_written_to_a_folder(tmp_path):
    """The transcript of live audio is written to a folder."""
    with open(CLIP, "rb") as sound:
        result = run_process(INFERENCE, "-", "--output_dir", tmp_path, "--device", "cpu", "--quiet", stdin=sound)
    assert (result.returncode, result.stdout, result.stderr) == (0, "", "")
    assert files(tmp_path) == {f"stdin.{kind}" for kind in (*PER_FILE, "events")} | COLLECTED
    document = json.loads((tmp_path / "stdin.json").read_text())
    assert (document["text"], document["sample_rate"], document["format"]) == (CLIP_WORDS, 8000, "WAV")


def test_streamed_files_are_written_to_a_folder(cli, calls, tmp_path):
    """The transcripts of streamed files are written to a folder."""
    code, out, _ = cli(calls / "day 1", "--stream", "--output_dir", tmp_path, "--device", "cpu", "--quiet")
    assert (code, out) == (0, "")
    assert {line["pred_text"] for line in lines(tmp_path / "manifest.jsonl")} == {CLIP_WORDS}


def test_readme_names_every_field_of_the_json(cli, tmp_path):
    """The README names every field of the JSON document."""
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


def test_run_killed_repeatedly_is_completed_by_resume(cli, calls, tmp_path):
    """After several kills --resume completes the run: each file is there once, as without a kill."""
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


def test_resume_of_complete_run_loads_no_model(cli, tmp_path, monkeypatch):
    """If an earlier run has done everything, --resume loads no model."""
    options = [CLIP, "--output_dir", tmp_path, "--device", "cpu"]
    assert cli(*options)[0] == 0
    message = "restarted, the earlier record is now results.jsonl~ (--resume continues it instead)"
    assert f"--output_dir {tmp_path}: {message}\n" in cli(*options)[2]
    monkeypatch.setattr("nemotron_npu.cli.transcribe.load_recognizer", None)
    code, out, err = cli(*options, "--resume")
    assert (code, out, err) == (0, "", "1 recording: 0 done, 1 done before, 0 failed\n")
    code, _, err = cli(*options, "--resume", "--chunk_ms", 80)
    assert code == 2 and "chunk_ms 1120, this run has 80" in err


def test_ctrl_c_keeps_results_and_reports_what_is_left(cli, calls, tmp_path, monkeypatch):
    """Ctrl-C keeps what is done and reports what is left."""
    transcribe = Recognizer.results

    def interrupted(self, sources, *rest):
        found = transcribe(self, sources, *rest)
        yield next(found)
        raise KeyboardInterrupt

    monkeypatch.setattr(Recognizer, "results", interrupted)
    code, out, err = cli(calls / "day 0", "--output_dir", tmp_path, "--batch_size", 2, "--device", "cpu")
    assert (code, out) == (130, "") and err.splitlines()[-1] == "inference.py: interrupted: 6 of 7 not done"
    assert "7 recordings: 1 done, 0 failed, 6 left (--resume continues); " in err.splitlines()[-2]
    assert len(lines(tmp_path / "results.jsonl")) == len(lines(tmp_path / "manifest.jsonl")) == 1


def test_interrupted_stream_is_not_done(cli, calls, tmp_path, monkeypatch):
    """A stream that is interrupted is not done, and is transcribed again by --resume."""
    step, calls_of_step = Encoder.step, []

    def interrupted(*args):
        calls_of_step.append(args)
        if len(calls_of_step) == 2:
            os.kill(os.getpid(), signal.SIGINT)
        return step(*args)

    monkeypatch.setattr(Encoder, "step", interrupted)
    monkeypatch.setattr(many_streams, "AHEAD_SECONDS", 0.1)
    monkeypatch.setattr(stream_sources, "BLOCKS_AHEAD", 1)  # the files are not read to their ends yet
    options = [calls / "day 1", "--stream", "--output_dir", tmp_path, "--device", "cpu"]
    code, out, err = cli(*options)
    assert (code, out) == (130, "") and "0 done, 0 failed, 7 left (--resume continues)" in err
    assert cli(*options, "--resume")[0] == 0
    assert [line["pred_text"] for line in lines(tmp_path / "manifest.jsonl")] == [CLIP_WORDS] * 7


def test_full_disk_is_one_line_and_exit_code_2(cli, calls, tmp_path, monkeypatch):
    """A full disk is one error line and exit code 2."""
    replace = os.replace

    def full(source, target, **folders):
        if str(target).endswith("call06.srt"):
            raise OSError(28, "No space left on device")
        replace(source, target, **folders)

    monkeypatch.setattr(os, "replace", full)
    code, _, err = cli(calls / "day 0", "--output_dir", tmp_path, "--device", "cpu", "--quiet")
    assert code == 2 and err == f"inference.py: {tmp_path}/call06.srt: cannot be written: No space left on device\n"
    assert len(lines(tmp_path / "manifest.jsonl")) == 2
