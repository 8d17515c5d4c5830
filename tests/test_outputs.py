"""Results in a folder: whole or not there, under names of their own, and an interrupted run goes on where it was."""

import json
import os
import random

import pytest

from nemotron_npu.cli.output_folder import OutputFolder, name_outputs
from nemotron_npu.errors import InputError, SetupError
from nemotron_npu.formats import to_document
from nemotron_npu.sources import Recording
from nemotron_npu.transcript import Token, Transcript, Word

KINDS = ("txt", "json", "srt", "manifest", "jsonl")
SETTINGS = {"model": "demo.nemo", "chunk_ms": 1120, "dtype": "float32", "confidence": "max_prob", "boost_words": None}


def recordings(*paths: str, **more) -> list[Recording]:
    return [Recording(path, os.path.splitext(os.path.basename(path))[0], **more) for path in paths]


def transcript(text: str) -> Transcript:
    words = text.split()
    tokens = tuple(Token(1, f"▁{word}", i, i * 0.08, 0.9) for i, word in enumerate(words))
    return Transcript(text, tokens, 2.0, tuple(Word(word, i * 0.08, (i + 1) * 0.08) for i, word in enumerate(words)))


def write(folder: OutputFolder, place: int, text: str) -> None:
    said = transcript(text)
    folder.write(place, said, to_document(said, **folder.recordings[place].document_fields(), **SETTINGS))


def run(path, inputs, resume=True, stop_after=None, kinds=KINDS, settings=SETTINGS) -> list[str]:
    """Recognise what is left, ``stop_after`` at most; the names of what was."""
    written = []
    with OutputFolder(path, kinds, settings, resume) as folder:
        for place in folder.begin(inputs)[:stop_after]:
            write(folder, place, f"words of {inputs[place].path}")
            written.append(inputs[place].output)
    return written


def lines(path) -> list[dict]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def contents(path) -> dict[str, bytes]:
    return {str(file.relative_to(path)): file.read_bytes() for file in path.rglob("*") if file.is_file()}


def test_every_recording_has_its_files_and_its_lines(tmp_path):
    inputs = recordings("x/a.wav", "x/b.wav")
    assert run(tmp_path / "new" / "out", inputs) == ["a", "b"]
    names = {f"{name}.{kind}" for name in "ab" for kind in ("txt", "json", "srt")}
    out = tmp_path / "new" / "out"
    assert set(contents(out)) == names | {"results.jsonl", "manifest.jsonl"}
    assert (out / "a.txt").read_text() == "words of x/a.wav\n"
    assert [line["output"] for line in lines(out / "results.jsonl")] == ["a", "b"]
    assert lines(out / "results.jsonl")[0] == {**json.loads((out / "a.json").read_text()), "output": "a"}
    assert lines(out / "manifest.jsonl")[1] == {
        "audio_filepath": "x/b.wav", "duration": 2.0, "pred_text": "words of x/b.wav",
    }  # fmt: skip


def test_the_manifest_is_in_the_order_of_the_input_however_they_were_done(tmp_path):
    inputs = recordings("a.wav", "b.wav", "c.wav")
    with OutputFolder(tmp_path, KINDS, SETTINGS) as folder:
        folder.begin(inputs)
        for place in (2, 0, 1):
            write(folder, place, "x")
        assert [line["audio_filepath"] for line in lines(tmp_path / "manifest.jsonl")] == ["c.wav", "a.wav", "b.wav"]
    assert [line["audio_filepath"] for line in lines(tmp_path / "manifest.jsonl")] == ["a.wav", "b.wav", "c.wav"]


# ---------------------------------------------------------------- resume


def test_resume_does_what_is_left_and_nothing_twice(tmp_path):
    inputs = recordings(*(f"{i}.wav" for i in range(5)))
    assert run(tmp_path, inputs, stop_after=2) == ["0", "1"]
    assert run(tmp_path, inputs) == ["2", "3", "4"]
    assert run(tmp_path, inputs) == []
    assert [line["audio"] for line in lines(tmp_path / "results.jsonl")] == [f"{i}.wav" for i in range(5)]
    assert [line["audio_filepath"] for line in lines(tmp_path / "manifest.jsonl")] == [f"{i}.wav" for i in range(5)]


def test_a_record_that_was_cut_anywhere_gives_each_recording_once_in_the_end(tmp_path):
    inputs = recordings("a.wav", "b.wav", "c.wav")
    run(tmp_path, inputs)
    whole, record = contents(tmp_path), tmp_path / "results.jsonl"
    size = len(whole["results.jsonl"])
    for length in sorted({0, 1, size - 1, *random.Random(0).sample(range(size), 40)}):
        record.write_bytes(whole["results.jsonl"][:length])
        (tmp_path / "manifest.jsonl").write_bytes(whole["manifest.jsonl"][: length // 4])
        (tmp_path / ".part").write_bytes(b"half a fi")
        run(tmp_path, inputs)
        assert contents(tmp_path) == whole, length


def test_a_line_that_is_no_record_is_dropped(tmp_path):
    inputs = recordings("a.wav", "b.wav")
    run(tmp_path, inputs)
    good = (tmp_path / "results.jsonl").read_bytes()
    (tmp_path / "results.jsonl").write_bytes(b'[1]\n{"audio": 3}\n\xff\n\n' + good)
    assert run(tmp_path, inputs) == []
    assert (tmp_path / "results.jsonl").read_bytes() == good


def test_a_file_that_was_deleted_or_a_format_that_is_new_is_made_again(tmp_path):
    inputs = recordings("a.wav", "b.wav")
    run(tmp_path, inputs)
    (tmp_path / "a.srt").unlink()
    assert run(tmp_path, inputs) == ["a"]
    assert run(tmp_path, inputs, kinds=("vtt",)) == ["a", "b"]
    assert sorted(line["output"] for line in lines(tmp_path / "results.jsonl")) == ["a", "b"]


def test_recordings_that_are_new_or_gone_disturb_no_other(tmp_path):
    run(tmp_path, recordings("a.wav", "b.wav", "c.wav"))
    inputs = recordings("0.wav", "c.wav", "x/b.wav", "a.wav")
    assert run(tmp_path, inputs) == ["0", "b.wav"], "b.txt is of another recording: it is kept"
    assert (tmp_path / "b.txt").read_text() == "words of b.wav\n"
    assert (tmp_path / "b.wav.txt").read_text() == "words of x/b.wav\n"
    assert [line["audio"] for line in lines(tmp_path / "results.jsonl")] == [
        "b.wav", "0.wav", "c.wav", "x/b.wav", "a.wav",
    ], "what is no input of this run comes first"  # fmt: skip
    assert [line["audio_filepath"] for line in lines(tmp_path / "manifest.jsonl")] == [i.path for i in inputs]
    assert run(tmp_path, recordings("a.wav", "x/b.wav", "c.wav", "0.wav")) == []


def test_names_do_not_depend_on_where_the_run_was_interrupted(tmp_path):
    def inputs():
        return recordings("x/a.wav", "y/a.wav", "b.wav", "b.mp3")

    assert run(tmp_path / "whole", inputs()) == ["x/a", "y/a", "b.wav", "b.mp3"]
    assert run(tmp_path / "cut", inputs(), stop_after=1) == ["x/a"]
    assert run(tmp_path / "cut", inputs(), stop_after=2) == ["y/a", "b.wav"]
    assert run(tmp_path / "cut", inputs()) == ["b.mp3"]
    assert contents(tmp_path / "cut") == contents(tmp_path / "whole")


def test_parts_of_one_file_and_the_same_file_twice_are_told_apart(tmp_path):
    def inputs():
        parts = [Recording("a.wav", "a", offset, 2.0, {"audio_filepath": "a.wav", "offset": offset, "duration": 2.0})
                 for offset in (0.0, 2.5, 2.5)]  # fmt: skip
        return [*parts, *recordings("b.wav", "b.wav")]

    assert run(tmp_path, inputs(), stop_after=2) == ["a", "a_2"]
    assert run(tmp_path, inputs()) == ["a_3", "b", "b_2"]
    assert run(tmp_path, inputs()) == []
    assert [line.get("offset") for line in lines(tmp_path / "results.jsonl")] == [None, 2.5, 2.5, None, None]


@pytest.mark.parametrize(
    "name, value",
    [
        ("chunk_ms", 80),
        ("dtype", "int8"),
        ("model", "other.nemo"),
        ("confidence", "gibbs"),
        ("boost_words", "1 phrase, alpha 1, sha256 0123456789abcdef"),
    ],
)
def test_results_of_different_settings_are_not_mixed(tmp_path, name, value):
    inputs = recordings("a.wav", "b.wav")
    run(tmp_path, inputs, stop_after=1)
    with pytest.raises(SetupError, match=f"{name} .*take another --output_dir"):
        run(tmp_path, inputs, settings={**SETTINGS, name: value})
    assert len(lines(tmp_path / "results.jsonl")) == 1


def test_without_resume_a_run_begins_anew_and_the_earlier_record_is_kept(tmp_path):
    inputs = recordings("a.wav", "b.wav")
    run(tmp_path, inputs)
    assert run(tmp_path, inputs, resume=False, stop_after=1) == ["a"]
    assert [line["output"] for line in lines(tmp_path / "results.jsonl")] == ["a"]
    assert [line["output"] for line in lines(tmp_path / "results.jsonl~")] == ["a", "b"]
    assert run(tmp_path, inputs, resume=False, stop_after=0) == run(tmp_path, inputs, resume=False, stop_after=0) == []
    assert [line["output"] for line in lines(tmp_path / "results.jsonl~")] == ["a"], "that a run did nothing costs none"


# ---------------------------------------------------------------- the file system says no


def test_a_folder_that_cannot_be_used_is_known_before_the_work(tmp_path):
    (tmp_path / "file").write_bytes(b"")
    for path in (tmp_path / "file", tmp_path / "file" / "below"):
        with pytest.raises(SetupError, match="--output_dir .*file"):
            OutputFolder(path, KINDS, SETTINGS)


def test_two_runs_do_not_write_into_one_folder(tmp_path):
    with OutputFolder(tmp_path, KINDS, SETTINGS), pytest.raises(SetupError, match="another run"):
        OutputFolder(tmp_path, KINDS, SETTINGS)
    run(tmp_path, recordings("a.wav"))


def test_a_name_that_the_file_system_does_not_take_costs_only_its_recording(tmp_path):
    inputs = recordings("a.wav", "ä" * 126 + ".mp3", "b.wav")  # 252 bytes: one too many with .json
    with OutputFolder(tmp_path, KINDS, SETTINGS) as folder:
        folder.begin(inputs)
        write(folder, 0, "x")
        with pytest.raises(InputError, match="cannot be written: File name too long"):
            write(folder, 1, "x")
        write(folder, 2, "x")
    assert [line["audio_filepath"] for line in lines(tmp_path / "manifest.jsonl")] == ["a.wav", "b.wav"]


def test_a_full_disk_ends_the_run_and_what_was_done_stays(tmp_path, monkeypatch):
    inputs = recordings("a.wav", "b.wav")
    real = os.write

    def full(file, data):
        if b"b.wav" in data and b"tokens" in data:
            real(file, data[:100])
            raise OSError(28, "No space left on device")
        return real(file, data)

    monkeypatch.setattr(os, "write", full)
    with pytest.raises(SetupError, match="No space left on device"):
        run(tmp_path, inputs)
    monkeypatch.undo()
    assert [line["output"] for line in lines(tmp_path / "results.jsonl")] == ["a"], "no half line is left"
    assert len(lines(tmp_path / "manifest.jsonl")) == 1
    with open(tmp_path / "results.jsonl", "ab") as record:  # a kill in the middle of a line does leave one
        record.write(b'{"audio": "b')
    assert run(tmp_path, inputs) == ["b"]
    assert [line["output"] for line in lines(tmp_path / "results.jsonl")] == ["a", "b"]


def test_a_name_that_is_no_text_is_written_and_known_again(tmp_path):
    inputs = recordings(os.fsdecode(b"a\xff.wav"))
    assert len(run(tmp_path, inputs)) == 1 and run(tmp_path, inputs) == []
    assert os.fsencode(tmp_path) + b"/a\xff.txt" in [
        os.path.join(os.fsencode(tmp_path), n) for n in os.listdir(os.fsencode(tmp_path))
    ]
    assert lines(tmp_path / "manifest.jsonl")[0]["audio_filepath"] == inputs[0].path


# ---------------------------------------------------------------- names


@pytest.mark.parametrize(
    "paths, names",
    [
        (["x/a.wav", "x/b.wav"], ["a", "b"]),
        (["x/a.wav", "x/a.mp3", "x/b.wav"], ["a.wav", "a.mp3", "b"]),
        (["x/a.wav", "y/a.wav"], ["x/a", "y/a"]),
        (["a.wav", "x/a.wav"], ["a", "x/a"]),
        (["x/1/a.wav", "x/2/b/a.wav", "../a.wav"], None),
        (["a.wav", "a.wav", "a.wav"], ["a", "a_2", "a_3"]),
        (["x/a.wav", "y/a.wav", "y/a.wav", "a_2.wav"], ["a", "a_3", "a_4", "a_2"]),
        (["a.wav", "a.mp3", "a.wav.wav"], None),
    ],
)
def test_no_two_recordings_have_one_name_and_none_leads_out_of_the_folder(paths, names):
    inputs = recordings(*paths)
    name_outputs(inputs, set())
    given = [recording.output for recording in inputs]
    assert len(set(given)) == len(given) and not any(".." in name.split("/") or name[0] == "/" for name in given)
    assert names is None or given == names
