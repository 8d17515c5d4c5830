"""What the user names becomes the recordings meant: files, folders, patterns, NeMo manifests, lists."""

import json
import os
import shutil

import numpy as np
import pytest
import soundfile
from support import CLIP

from nemotron_npu.audio import read_audio
from nemotron_npu.errors import InputError
from nemotron_npu.sources import Recording, find_recordings


@pytest.fixture
def tree(tmp_path, monkeypatch):
    """A folder of sound and other things, below the working directory: ``calls``."""
    monkeypatch.chdir(tmp_path)
    sound = ["b.wav", "a.MP3", "mon/c.flac", "mon/x/d.ogg", "tue/e.m4a"]
    for name in [*sound, "notes.txt", "a.json", ".hidden.wav", ".trash/f.wav", "mon/video.mp4"]:
        path = tmp_path / "calls" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"")
    return tmp_path


def find(*arguments) -> tuple[list[str], list[str]]:
    """(paths, errors)"""
    found = list(find_recordings([str(argument) for argument in arguments]))
    return [f.path for f in found if isinstance(f, Recording)], [str(f) for f in found if isinstance(f, InputError)]


def write_lines(path, *lines) -> str:
    path.write_text("".join(f"{line if isinstance(line, str) else json.dumps(line)}\n" for line in lines))
    return str(path)


# ---------------------------------------------------------------- folders and patterns


def test_a_folder_is_the_sound_below_it_in_order(tree):
    paths, errors = find("calls")
    assert paths == ["calls/a.MP3", "calls/b.wav", "calls/mon/c.flac", "calls/mon/x/d.ogg", "calls/tue/e.m4a"]
    assert errors == [] and find("calls/")[0] == paths


def test_results_mirror_the_folder(tree):
    assert [r.output for r in find_recordings(["calls"])] == ["a", "b", "mon/c", "mon/x/d", "tue/e"]
    assert [r.output for r in find_recordings(["calls/mon/c.flac"])] == ["c"]


def test_a_folder_that_is_linked_into_itself_is_walked_once(tree):
    os.symlink(tree / "calls", tree / "calls" / "mon" / "loop")
    os.symlink(tree / "calls" / "b.wav", tree / "calls" / "linked.wav")
    assert len(find("calls")[0]) == 6


def test_a_folder_without_sound_and_a_pattern_without_match_are_named(tree):
    (tree / "empty").mkdir()
    assert "empty: no audio files" in find("empty")[1][0]
    assert find("calls/*.opus") == ([], ["calls/*.opus: no file matches this pattern"])


def test_patterns_may_go_through_all_folders(tree):
    assert find("calls/**/*.flac")[0] == ["calls/mon/c.flac"]
    assert find("calls/[ab].*", "calls/?.wav")[0][-1] == "calls/b.wav"
    (tree / "what?.wav").write_bytes(b"")
    assert find("what?.wav")[0] == ["what?.wav"], "a file of that name is no pattern"


def test_a_hundred_thousand_files_are_listed_without_opening_one(tmp_path, monkeypatch):
    monkeypatch.setattr(soundfile, "SoundFile", None)
    manifest = write_lines(tmp_path / "m.json", *({"audio_filepath": f"/x/{i}.wav"} for i in range(100_000)))
    assert len(find(manifest)[0]) == 100_000


# ---------------------------------------------------------------- manifests


def test_a_manifest_gives_its_parts_texts_and_lengths(tmp_path):
    lines = [
        {"audio_filepath": str(CLIP), "duration": 6.831, "text": "three one"},
        "",
        {"audio_filepath": str(CLIP), "offset": 1, "duration": 2.5, "speaker": "x"},
        {"audio_filepath": str(CLIP), "offset": None, "duration": None, "text": ""},
    ]
    first, second, third = find_recordings([write_lines(tmp_path / "m.jsonl", *lines)])
    assert (first.offset, first.length, first.reference, first.seconds) == (0, 6.831, "three one", 6.831)
    assert (second.offset, second.length, second.reference, second.fields) == (1, 2.5, None, lines[2])
    assert (third.offset, third.length, third.reference, third.seconds) == (0, None, "", None)
    assert second.name == f"{CLIP} [from 1 s]" and first.name == str(CLIP)


@pytest.mark.parametrize("path", ["wavs/a.wav", "./wavs/a.wav", "only here.wav", "both.wav", "nowhere.wav", "~/x.wav"])
def test_relative_paths_are_resolved_as_nemo_does(tmp_path, monkeypatch, path):
    from nemo.collections.common.parts.preprocessing.manifest import get_full_path

    data, here = tmp_path / "data", tmp_path / "here"
    for file in (data / "wavs" / "a.wav", data / "both.wav", here / "only here.wav", here / "both.wav"):
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(b"")
    monkeypatch.chdir(here)
    manifest = write_lines(data / "m.json", {"audio_filepath": path, "duration": 1})
    (recording,) = find_recordings([manifest])
    assert os.path.abspath(recording.path) == os.path.abspath(get_full_path(path, manifest))


@pytest.mark.parametrize("start, length", [(0.0, None), (1.3, 2.45), (0.5, None), (2.3, 0.1), (6.0, 60.0)])
@pytest.mark.parametrize("suffix, rate", [("wav", 16000), ("flac", 8000), ("ogg", 48000), ("mp3", 44100)])
def test_only_that_part_is_decoded_as_nemo_cuts_it(tmp_path, suffix, rate, start, length):
    noise = np.random.default_rng(1).uniform(-0.5, 0.5, 7 * rate)
    path = tmp_path / f"a.{suffix}"
    soundfile.write(path, noise, rate)
    heard = read_audio(Recording(str(path), "a", start, length))
    with soundfile.SoundFile(path) as file:  # nemo.collections.asr.parts.preprocessing.segment.AudioSegment.from_file
        file.seek(int(start * rate))
        expected = file.read(int(length * rate) if length else -1, dtype="float32")
    soundfile.write(tmp_path / "part.wav", expected, rate, subtype="FLOAT")
    assert np.array_equal(heard, read_audio(str(tmp_path / "part.wav")))


def test_an_offset_behind_the_end_is_named():
    with pytest.raises(InputError, match=r"digits.wav: offset 7 s is past the end at 6.831 s"):
        read_audio(Recording(str(CLIP), "digits", 7.0))


def test_a_bad_line_costs_no_other(tmp_path):
    good = {"audio_filepath": "a.wav", "duration": 1}
    manifest = write_lines(
        tmp_path / "m.json", "{broken", good, "[1]", {"text": "no path"}, {**good, "offset": -1},
        {**good, "duration": "long"}, {**good, "duration": True}, '{"audio_filepath": "a.wav", "duration": NaN}', good,
    )  # fmt: skip
    paths, errors = find(manifest)
    assert len(paths) == 2 and len(errors) == 7
    assert [error.split(": ")[0] for error in errors] == [f"{manifest}:{line}" for line in (1, 3, 4, 5, 6, 7, 8)]
    assert "not JSON" in errors[0] and "no audio_filepath" in errors[1] and "offset -1 is not a number" in errors[3]


@pytest.mark.parametrize("text", ["", "\n\n", '{\n  "audio": "pretty.wav"\n}\n', '["a.wav"]\n', "\0\x80RIFF\n"])
def test_what_is_no_manifest_is_one_line(tmp_path, text):
    path = tmp_path / "m.json"
    path.write_bytes(text.encode("latin-1"))
    paths, errors = find(path)
    assert paths == [] and len(errors) == 1 and str(path) in errors[0] and "NeMo manifest" in errors[0]


def test_a_manifest_or_list_that_is_not_there_is_one_line(tmp_path):
    paths, errors = find(tmp_path / "m.json", tmp_path / "l.txt")
    assert paths == [] and errors == [f"{tmp_path}/m.json: No such file or directory",
                                      f"{tmp_path}/l.txt: No such file or directory"]  # fmt: skip


# ---------------------------------------------------------------- lists


def test_a_list_holds_files_and_folders_relative_to_itself_or_to_here(tree):
    (tree / "lists").mkdir()
    shutil.copytree(tree / "calls" / "mon", tree / "lists" / "beside")
    name = write_lines(tree / "lists" / "all.txt", "calls/b.wav", "", "  beside  ", "/abs/gone.wav")
    paths, errors = find(name)
    assert errors == []
    assert [os.path.relpath(path, tree) if path.startswith(str(tree)) else path for path in paths] == [
        "calls/b.wav", "lists/beside/c.flac", "lists/beside/x/d.ogg", "/abs/gone.wav",
    ]  # fmt: skip


def test_a_list_may_come_from_windows_and_hold_names_that_are_no_text(tmp_path):
    (tmp_path / "l.txt").write_bytes("\ufeffä.wav\r\n".encode() + b"\xff.wav\r\n")
    assert find(tmp_path / "l.txt")[0] == ["ä.wav", os.fsdecode(b"\xff.wav")]


def test_an_empty_list_is_one_line(tmp_path):
    assert len(find(write_lines(tmp_path / "l.txt"))[1]) == 1
