"""``--track``: one of the audio tracks of a file that has several."""

from __future__ import annotations

import io
import json
import pickle
import sys
from pathlib import Path
from types import SimpleNamespace

import av
import numpy as np
import pytest
import soundfile
from media_files import add_samples
from support import CLIP, CLIP_WORDS
from test_resume import KINDS, RUN, resume

import inference
from nemotron_npu.audio import Selection, check_audio
from nemotron_npu.cli.output_folder import OutputFolder
from nemotron_npu.errors import InputError
from nemotron_npu.sources import Recording

SHORT = "three one"
OPTIONS = ["--device", "cpu", "--quiet"]


def write_tracks(path: Path, codec: str, *tracks: np.ndarray, rate: int) -> Path:
    """Write int16 [samples] of each track into a container."""
    with av.open(str(path), "w") as container:
        streams = [container.add_stream(codec, rate=rate, layout="mono") for _ in tracks]
        for stream, samples in zip(streams, tracks, strict=True):
            add_samples(container, stream, samples, rate)
    return path


@pytest.fixture
def talk(tmp_path) -> Path:
    """A file whose first track says the whole clip, its second the first words of it."""
    clip, rate = soundfile.read(CLIP, dtype="int16")
    return write_tracks(tmp_path / "talk.mka", "pcm_s16le", clip, clip[: round(1.55 * rate)], rate=rate)


def run(capsys, *arguments) -> SimpleNamespace:
    code = inference.main([*map(str, arguments), *OPTIONS])
    out, err = capsys.readouterr()
    return SimpleNamespace(code=code, lines=out.splitlines(), err=err)


def test_a_track_is_taken_by_its_number(talk, capsys):
    """The first by default; JSON names another; a file without it fails alone and says how many it has."""
    assert run(capsys, talk).lines == [CLIP_WORDS]
    (line,) = run(capsys, talk, "--track", 2, "--output_format", "json").lines
    document = json.loads(line)
    assert (document["text"], document["track"], document["channels"]) == (SHORT, 2, 1)
    result = run(capsys, CLIP, talk, "--track", 2)
    assert (result.code, result.lines) == (1, [f"{talk} [track 2]: {SHORT}"])
    assert result.err == f"inference.py: {CLIP}: no audio track 2: it has 1\n"
    result = run(capsys, talk, "--track", 3)
    assert (result.code, result.lines, result.err) == (1, [], f"inference.py: {talk}: no audio track 3: it has 2\n")


def test_a_track_of_a_live_stream(talk, capsys, monkeypatch):
    """stdin has tracks, too; a wav or raw PCM has one."""
    for path, track, result in ((talk, 2, (0, [SHORT], "")), (CLIP, 2, (1, [], "stdin: no audio track 2: it has 1\n"))):
        with open(path, "rb") as pipe:
            monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(pipe))
            ran = run(capsys, "-", "--endpoint_ms", 0, "--track", track)
        assert (ran.code, ran.lines, ran.err.removeprefix("inference.py: ")) == result


def test_tracks_of_ogg_are_counted(tmp_path):
    """libsndfile reads the first track of Ogg only; the others are there all the same."""
    clip, rate = soundfile.read(CLIP, dtype="int16")
    path = str(write_tracks(tmp_path / "x.ogg", "libopus", clip, clip[:rate], rate=rate))
    assert check_audio(path).format == "OGG" and check_audio(path, Selection(track=2)).sample_rate == 48000
    with pytest.raises(InputError, match="x.ogg: no audio track 3: it has 2"):
        check_audio(path, Selection(track=3))


def test_another_track_is_another_recording(talk, tmp_path):
    """--resume does the second track although the first is done, and knows both afterwards."""
    first, second = (lambda: Recording(str(talk), "talk")), (lambda: Recording(str(talk), "talk", track=2))
    assert resume(tmp_path / "out", first()) == ["talk"]
    assert resume(tmp_path / "out", second()) == ["talk.mka"]
    assert resume(tmp_path / "out", first()) == resume(tmp_path / "out", second()) == []
    record = (tmp_path / "out" / "results.jsonl").read_text()
    (tmp_path / "out" / "results.jsonl").write_text(record.replace('"track": 2', '"track": "2"'))
    with OutputFolder(tmp_path / "out", KINDS, RUN, resume=True) as folder:
        folder.begin([second()])
        assert any("its track is not a number" in remark for remark in folder.remarks)


@pytest.mark.parametrize("arguments, problem", [
    (["a.mp4", "--track", "0"], "argument --track: '0' is not a whole number of 1 or more"),
    (["--track", "2"], "--track: needs AUDIO"),
])  # fmt: skip
def test_a_track_that_cannot_be_is_a_usage_error(arguments, problem, capsys):
    """Tracks count from 1, and are those of a file."""
    with pytest.raises(SystemExit, match="2"):
        inference.main(arguments)
    assert capsys.readouterr().err.endswith(f"error: {problem}\n")


def test_workers_take_the_track(talk):
    """A worker in another process decodes the same track."""
    recording = pickle.loads(pickle.dumps(Recording(str(talk), "talk", track=2)))
    assert sum(map(len, recording.blocks())) == round(1.55 * 16000)
