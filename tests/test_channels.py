"""``--channel``: the average of the channels, one of them, or each by itself."""

from __future__ import annotations

import io
import json
import sys
from types import SimpleNamespace

import numpy as np
import pytest
import soundfile
from support import CLIP, CLIP_WORDS

import inference
from nemotron_npu.audio import Selection, read_audio, read_blocks
from nemotron_npu.errors import InputError
from nemotron_npu.sources import Recording, find_recordings

SHORT = "three one"
OPTIONS = ["--device", "cpu", "--quiet"]


@pytest.fixture
def call(tmp_path):
    """A call of two channels: the left says the whole clip, the right the first words of it, later."""
    left, rate = soundfile.read(CLIP)
    right = np.zeros(len(left))
    words = left[: round(1.55 * rate)]
    right[2 * rate : 2 * rate + len(words)] = words
    path = tmp_path / "call.wav"
    soundfile.write(path, np.stack([left, right], 1), rate)
    return path


def run(capsys, *arguments) -> SimpleNamespace:
    code = inference.main([*map(str, arguments), *OPTIONS])
    out, err = capsys.readouterr()
    return SimpleNamespace(code=code, lines=out.splitlines(), err=err)


def test_one_channel_or_each_by_itself(call, capsys):
    """A number takes one channel; each transcribes both, under names of their own."""
    assert run(capsys, call, "--channel", 1).lines == [CLIP_WORDS]
    assert run(capsys, call, "--channel", 2).lines == [SHORT]
    both = run(capsys, call, "--channel", "each", "--output_format", "jsonl")
    documents = [json.loads(line) for line in both.lines]
    assert [(document["channel"], document["text"]) for document in documents] == [(1, CLIP_WORDS), (2, SHORT)]


def test_each_channel_has_files_of_its_own_and_can_be_resumed(call, capsys, tmp_path):
    """Files carry the channel's number, ctm has its column, and a run that is resumed finds both done."""
    folder = tmp_path / "out"
    arguments = [call, "--channel", "each", "-o", folder, "--output_format", "srt,ctm"]
    assert run(capsys, *arguments).code == 0
    names = sorted(path.name for path in folder.iterdir())
    assert names == ["call.ch1.ctm", "call.ch1.srt", "call.ch2.ctm", "call.ch2.srt", "results.jsonl"]
    columns = [line.split()[:2] for line in (folder / "call.ch2.ctm").read_text().splitlines()]
    assert columns == [["call", "2"]] * 2
    (folder / "call.ch2.ctm").unlink()
    code = inference.main([*map(str, arguments), "--resume", "--device", "cpu"])
    assert code == 0 and "2 recordings: 1 done, 1 done before" in capsys.readouterr().err


def test_a_file_of_one_channel_keeps_its_name(capsys, tmp_path):
    """--channel each adds no number where there is nothing to tell apart."""
    assert run(capsys, CLIP, "--channel", "each", "-o", tmp_path / "out").code == 0
    assert (tmp_path / "out" / "digits.txt").exists()


def test_a_missing_channel_fails_alone(call, capsys):
    """A channel that a file does not have is one line; the other files are transcribed."""
    result = run(capsys, CLIP, call, "--channel", 2)
    assert (result.code, result.lines) == (1, [f"{call} [channel 2]: {SHORT}"])
    assert result.err == f"inference.py: {CLIP}: no channel 2: it has 1 (--channel mix averages all channels)\n"


@pytest.mark.parametrize("value", ["0", "left", "-1", "99999"])
def test_a_channel_that_cannot_be_is_a_usage_error(value, capsys):
    """Only mix, each and a number of a channel are taken."""
    with pytest.raises(SystemExit, match="2"):
        inference.main([str(CLIP), f"--channel={value}"])
    assert f"'{value}' is not a channel (use mix, each, or its number from 1 on)" in capsys.readouterr().err


@pytest.mark.parametrize("selector,channel", [(0, 1), ([1], 2), ("average", None), (None, None)])
def test_a_manifest_selects_channels(selector, channel, call, tmp_path):
    """NeMo's channel_selector, which counts from 0, is read."""
    manifest = tmp_path / "calls.json"
    manifest.write_text(json.dumps({"audio_filepath": str(call), "channel_selector": selector}))
    (found,) = find_recordings([str(manifest)])
    assert isinstance(found, Recording) and found.channel == channel


@pytest.mark.parametrize("selector", [[0, 1], "left", -1, True])
def test_a_selector_of_no_single_channel_is_an_error_of_its_line(selector, call, tmp_path):
    """A selector that is no channel is named with its line."""
    manifest = tmp_path / "calls.json"
    manifest.write_text(json.dumps({"audio_filepath": str(call), "channel_selector": selector}))
    (found,) = find_recordings([str(manifest)])
    assert isinstance(found, InputError) and "is not one channel, nor average" in str(found)


def test_manifest_choice_comes_before_the_option(call, capsys, tmp_path):
    """--channel applies where the manifest's entry states nothing."""
    manifest = tmp_path / "calls.json"
    entries = [{"audio_filepath": str(call), "channel_selector": 1}, {"audio_filepath": str(call)}]
    manifest.write_text("".join(f"{json.dumps(entry)}\n" for entry in entries))
    lines = run(capsys, manifest, "--channel", 1).lines
    assert [line.rsplit(": ", 1)[1] for line in lines] == [SHORT, CLIP_WORDS]


def test_channels_that_cancel_each_other_out_are_noticed(capsys, tmp_path):
    """Where one channel is the other, inverted, their average is silent: one line says so."""
    clip, rate = soundfile.read(CLIP)
    path = tmp_path / "antiphase.wav"
    soundfile.write(path, np.stack([clip, -clip], 1), rate)
    assert inference.main([str(path), "--device", "cpu"]) == 0
    out, err = capsys.readouterr()
    remark = "its channels cancel each other out when they are mixed (take --channel 1, or --channel each)"
    assert out.strip() == "" and f"{path}: {remark}\n" in err
    assert run(capsys, path, "--channel", 2).lines == [CLIP_WORDS]


def test_one_channel_is_its_own_samples(call):
    """A channel is taken as it is, resampled, also from an offset on."""
    left, rate = soundfile.read(call, always_2d=True)
    mono = call.with_name("left.wav")
    soundfile.write(mono, left[:, 0], rate)
    taken = np.concatenate(list(read_blocks(str(call), 1.0, 2.0, selection=Selection(1))))
    assert np.array_equal(taken, np.concatenate(list(read_blocks(str(mono), 1.0, 2.0))))
    assert not np.array_equal(read_audio(str(call)), read_audio(str(mono)))


def test_one_channel_of_a_live_stream(call, capsys, monkeypatch, tmp_path):
    """--channel takes a channel of stdin; each transcribes every channel by itself."""
    for channel, words in ((1, CLIP_WORDS), (2, SHORT)):
        with open(call, "rb") as pipe:
            monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(pipe))
            assert run(capsys, "-", "--endpoint_ms", 0, "--channel", channel).lines == [words]
    with open(call, "rb") as pipe:
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(pipe))
        each = run(capsys, "-", "--endpoint_ms", 0, "--channel", "each")
    assert sorted(each.lines) == [f"stdin [channel 1]: {CLIP_WORDS}", f"stdin [channel 2]: {SHORT}"]


def test_each_channel_of_a_live_stream_has_its_files(call, capsys, monkeypatch, tmp_path):
    """The channels of stdin, and of media, are streams of their own, with files of their own and labeled events."""
    flac = tmp_path / "call.flac"
    soundfile.write(flac, *soundfile.read(call))
    for source in (call, flac):
        with open(source, "rb") as pipe:
            monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(pipe))
            assert run(capsys, "-", "--channel", "each", "-o", tmp_path / "out").code == 0
        for channel, text in ((1, CLIP_WORDS), (2, SHORT)):
            name = f"stdin.ch{channel}"
            document = json.loads((tmp_path / "out" / f"{name}.json").read_text())
            assert (document["text"], document["channel"], document["channels"]) == (text, channel, 2)
            events = [json.loads(line) for line in (tmp_path / "out" / f"{name}.events").read_text().splitlines()]
            assert {(event["source"], event["channel"]) for event in events} == {(name, channel)}
            assert events[-1]["type"] == "end" and events[-1]["text"] == text


def test_each_channel_of_streamed_files_is_a_stream(call, capsys):
    """Files of two channels and of one, streamed: a stream for each channel."""
    each = run(capsys, "--stream", call, CLIP, "--channel", "each", "--endpoint_ms", 0)
    expected = [f"{call} [channel 1]: {CLIP_WORDS}", f"{call} [channel 2]: {SHORT}", f"{CLIP}: {CLIP_WORDS}"]
    assert each.code == 0 and sorted(each.lines) == sorted(expected)
