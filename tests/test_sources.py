"""Arguments become recordings: files, folders, patterns, NeMo manifests, lists."""

import json
import os
import shutil
import tracemalloc
from collections import Counter

import numpy as np
import pytest
import soundfile
from support import CLIP

from nemotron_npu.audio import read_audio
from nemotron_npu.errors import InputError
from nemotron_npu.sources import CountedRecording, Recording, find_recordings


@pytest.fixture
def tree(tmp_path, monkeypatch):
    """A folder ``calls`` of audio and other files below the working directory."""
    monkeypatch.chdir(tmp_path)
    audio = ["b.wav", "a.MP3", "mon/c.flac", "mon/x/d.ogg", "tue/e.m4a"]
    for name in [*audio, "notes.txt", "a.json", ".hidden.wav", ".trash/f.wav", "mon/picture.png"]:
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


def test_folder_yields_the_audio_files_below_it_sorted(tree):
    """Hidden files and folders, and files of other extensions, are left out."""
    paths, errors = find("calls")
    assert paths == ["calls/a.MP3", "calls/b.wav", "calls/mon/c.flac", "calls/mon/x/d.ogg", "calls/tue/e.m4a"]
    assert errors == [] and find("calls/")[0] == paths


def test_output_paths_mirror_the_folder(tree):
    """Results get the path of their audio below the folder that was named."""
    assert [r.output for r in find_recordings(["calls"])] == ["a", "b", "mon/c", "mon/x/d", "tue/e"]
    assert [r.output for r in find_recordings(["calls/mon/c.flac"])] == ["c"]


def test_folder_that_links_to_itself_is_walked_once(tree):
    """A link to a folder above it ends, and a link to a file is followed."""
    os.symlink(tree / "calls", tree / "calls" / "mon" / "loop")
    os.symlink(tree / "calls" / "b.wav", tree / "calls" / "linked.wav")
    assert len(find("calls")[0]) == 6


def test_empty_folder_or_pattern_is_an_input_error(tree):
    """The line names the folder or the pattern."""
    (tree / "empty").mkdir()
    assert "empty: no audio files" in find("empty")[1][0]
    assert find("calls/*.opus") == ([], ["calls/*.opus: no file matches this pattern"])


def test_patterns_match_in_all_folders(tree):
    """``**`` matches any folders; an existing file of that name wins over the pattern."""
    assert find("calls/**/*.flac")[0] == ["calls/mon/c.flac"]
    assert find("calls/[ab].*", "calls/?.wav")[0][-1] == "calls/b.wav"
    (tree / "what?.wav").write_bytes(b"")
    assert find("what?.wav")[0] == ["what?.wav"], "a file of that name is no pattern"


def test_large_manifest_is_listed_without_opening_a_file(tmp_path, monkeypatch):
    """100,000 entries need no access to their audio."""
    monkeypatch.setattr(soundfile, "SoundFile", None)
    manifest = write_lines(tmp_path / "m.json", *({"audio_filepath": f"/x/{i}.wav"} for i in range(100_000)))
    assert len(find(manifest)[0]) == 100_000


def test_large_manifest_takes_little_memory(tmp_path):
    """An entry takes 600 bytes at most, and the first one is there before the file has been read."""
    entry = {"audio_filepath": "/corpus/speaker/recording 12345.wav", "duration": 12.34, "offset": 0, "text": "a" * 50}
    manifest = write_lines(tmp_path / "m.json", *[entry] * 20_000)
    tracemalloc.start()
    found = find_recordings([manifest])
    entries = [next(found)]
    assert tracemalloc.get_traced_memory()[0] < 1e5
    entries += found
    assert tracemalloc.get_traced_memory()[0] < 600 * len(entries) == 600 * 20_000
    tracemalloc.stop()


# ---------------------------------------------------------------- manifests


def test_manifest_yields_offsets_durations_and_texts(tmp_path):
    """Fields that are missing or null have defaults."""
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
def test_relative_paths_are_resolved_as_by_nemo(tmp_path, monkeypatch, path):
    """Each path gives the same file as NeMo's get_full_path."""
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
def test_part_of_a_file_is_cut_as_by_nemo(tmp_path, suffix, rate, start, length):
    """The samples equal those of NeMo's AudioSegment.from_file for offset and duration."""
    noise = np.random.default_rng(1).uniform(-0.5, 0.5, 7 * rate)
    path = tmp_path / f"a.{suffix}"
    soundfile.write(path, noise, rate)
    decoded = read_audio(Recording(str(path), "a", start, length))
    with soundfile.SoundFile(path) as file:  # nemo.collections.asr.parts.preprocessing.segment.AudioSegment.from_file
        file.seek(int(start * rate))
        expected = file.read(int(length * rate) if length else -1, dtype="float32")
    soundfile.write(tmp_path / "part.wav", expected, rate, subtype="FLOAT")
    assert np.array_equal(decoded, read_audio(str(tmp_path / "part.wav")))


def test_offset_past_the_end_is_an_input_error():
    """The line states the offset and the end."""
    with pytest.raises(InputError, match=r"digits.wav: offset 7 s is past the end at 6.831 s"):
        read_audio(Recording(str(CLIP), "digits", 7.0))


def test_invalid_manifest_line_affects_no_other(tmp_path):
    """Each invalid line is reported with its number; the others are used."""
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
def test_file_that_is_no_manifest_is_one_error(tmp_path, text):
    """A file without a single entry is reported once, with a hint."""
    path = tmp_path / "m.json"
    path.write_bytes(text.encode("latin-1"))
    paths, errors = find(path)
    assert paths == [] and len(errors) == 1 and str(path) in errors[0] and "NeMo manifest" in errors[0]


def test_missing_manifest_or_list_is_one_error(tmp_path):
    """The line is that of the operating system."""
    paths, errors = find(tmp_path / "m.json", tmp_path / "l.txt")
    assert paths == [] and errors == [f"{tmp_path}/m.json: No such file or directory",
                                      f"{tmp_path}/l.txt: No such file or directory"]  # fmt: skip


# ---------------------------------------------------------------- lists


def test_list_paths_are_relative_to_the_list_or_here(tree):
    """A list has files and folders, relative to its own folder if they exist there."""
    (tree / "lists").mkdir()
    shutil.copytree(tree / "calls" / "mon", tree / "lists" / "beside")
    name = write_lines(tree / "lists" / "all.txt", "calls/b.wav", "", "  beside  ", "/abs/gone.wav")
    paths, errors = find(name)
    assert errors == []
    assert [os.path.relpath(path, tree) if path.startswith(str(tree)) else path for path in paths] == [
        "calls/b.wav", "lists/beside/c.flac", "lists/beside/x/d.ogg", "/abs/gone.wav",
    ]  # fmt: skip


def test_list_with_bom_crlf_and_invalid_utf8_is_read(tmp_path):
    """Lists come from Windows, and have any file name."""
    (tmp_path / "l.txt").write_bytes("\ufeffä.wav\r\n".encode() + b"\xff.wav\r\n")
    assert find(tmp_path / "l.txt")[0] == ["ä.wav", os.fsdecode(b"\xff.wav")]


def test_empty_list_is_one_error(tmp_path):
    """The line has a hint of what a list is."""
    assert len(find(write_lines(tmp_path / "l.txt"))[1]) == 1


def test_counted_recording_reports_each_block(tmp_path):
    """The seconds of all blocks add up to the recording, whose header is known after the first."""
    path = tmp_path / "a.wav"
    soundfile.write(path, np.zeros(40 * 8000), 8000)
    seconds = []
    recording = Recording(str(path), "a")
    assert recording.seconds is None
    blocks = list(CountedRecording(recording, seconds.append).blocks())
    assert len(seconds) == len(blocks) > 1
    assert sum(seconds) == pytest.approx(40.0) == recording.seconds
    assert recording.document_fields() == {"audio": str(path), "sample_rate": 8000, "channels": 1, "format": "WAV"}


# ---------------------------------------------------------------- what NeMo's manifests have besides


def test_other_keys_are_read_as_by_nemo(tmp_path, monkeypatch):
    """Its names of the audio, and its sources of a reference text, in its order."""
    from nemo.collections.common.parts.preprocessing.manifest import item_iter

    monkeypatch.chdir(tmp_path)
    (tmp_path / "ref.txt").write_text("five nine\n")
    entries = [
        {"audio_filename": "a.wav", "audio_filepath": "b.wav", "text": "one", "normalized_text": "two"},
        {"audio_filepath": "c.wav", "text_filepath": "ref.txt", "normalized_text": "two"},
        {"audio_filepath": "d.wav", "normalized_text": "two"},
        {"audio_filepath": "e.wav", "text": "", "text_filepath": "ref.txt"},
    ]
    manifest = write_lines(tmp_path / "m.json", *({**entry, "duration": 1} for entry in entries))
    ours = [(os.path.basename(found.path), found.reference) for found in find_recordings([manifest])]
    theirs = [(os.path.basename(item["audio_file"]), item["text"]) for item in item_iter([manifest])]
    assert ours == theirs == [("a.wav", "one"), ("c.wav", "five nine"), ("d.wav", "two"), ("e.wav", "")]


def test_text_of_a_file_is_found_beside_the_manifest(tmp_path):
    """Its lines become one; a file that is missing, or no text, costs its entry and is named."""
    (tmp_path / "ref.txt").write_text("five\nnine\n")
    (tmp_path / "zeros.txt").write_bytes(bytes(10))
    lines = [{"audio_filepath": "a.wav", "text_filepath": name} for name in ("ref.txt", "none.txt", "zeros.txt")]
    first, *errors = find_recordings([write_lines(tmp_path / "m.json", *lines)])
    assert first.reference == "five nine"
    assert [str(error).partition(":2: " if "none" in str(error) else ":3: ")[2] for error in errors] == [
        "text_filepath none.txt: No such file or directory",
        "text_filepath zeros.txt: not text",
    ]


@pytest.mark.parametrize("indent", [None, 2])
def test_manifest_may_be_one_json_array(tmp_path, indent):
    """On one line or many; elements that are no entries are named by their number."""
    entries = [{"audio_filepath": "a.wav", "text": "one"}, 3, {"audio_filepath": "b.wav"}]
    (tmp_path / "m.json").write_text(json.dumps(entries, indent=indent))
    first, second, error = find_recordings([str(tmp_path / "m.json")])
    assert (first.reference, second.path, second.fields) == ("one", "b.wav", entries[2])
    assert str(error) == f"{tmp_path}/m.json, entry 2: no audio_filepath"


def test_files_that_are_left_out_are_counted_by_ending(tree):
    """Those of folders that are neither audio nor hidden."""
    left_out = Counter()
    assert len(list(find_recordings(["calls"], left_out))) == 5
    assert left_out == {".txt": 1, ".json": 1, ".png": 1}


def test_many_missing_files_are_summed_up(cli, tree):
    """Five are named; the summary counts what the folder has besides audio."""
    (tree / "list.txt").write_text("".join(f"{number}.wav\n" for number in range(12)))
    shutil.rmtree(tree / "calls" / "mon" / "x")
    code, _, err = cli("list.txt", "calls", "--device", "cpu")
    named = [line for line in err.splitlines() if "No such file" in line]
    assert code == 1 and [line.split(": ")[1] for line in named] == [f"{number}.wav" for number in range(5)]
    assert "inference.py: 7 more files do not exist\n" in err
    assert err.splitlines()[-1] == "16 recordings: 0 done, 16 failed; left out: 1 .json, 1 .png, 1 .txt"
