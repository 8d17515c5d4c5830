"""Results in a folder: complete or absent, and an interrupted run can be resumed."""

import json
import os
import random
from dataclasses import replace

import pytest

from nemotron_npu.cli.output_folder import OutputFolder
from nemotron_npu.cli.run_info import RunSettings
from nemotron_npu.errors import InputError, SetupError
from nemotron_npu.formats import to_document
from nemotron_npu.sources import Recording
from nemotron_npu.transcript import Token, Transcript, Word

KINDS = ("txt", "json", "srt", "manifest", "jsonl")


SETTINGS = RunSettings("demo.nemo", 1120, "float32", "max_prob", None)


def recordings(*paths: str, **more) -> list[Recording]:
    return [Recording(path, os.path.splitext(os.path.basename(path))[0], **more) for path in paths]


def transcript(text: str) -> Transcript:
    words = text.split()
    tokens = tuple(Token(1, f"▁{word}", i, i * 0.08, 0.9) for i, word in enumerate(words))
    return Transcript(text, tokens, 2.0, tuple(Word(word, i * 0.08, (i + 1) * 0.08) for i, word in enumerate(words)))


def write(folder: OutputFolder, place: int, text: str) -> None:
    result = transcript(text)
    folder.write(place, result, to_document(result, **folder.recordings[place].document_fields(), **SETTINGS.as_dict()))


def run(path, inputs, resume=True, stop_after=None, kinds=KINDS, settings=SETTINGS) -> list[str]:
    """Recognise what is left, ``stop_after`` at most; the names of what was."""
    written = []
    with OutputFolder(path, kinds, settings, resume=resume) as folder:
        for place in folder.begin(inputs)[:stop_after]:
            write(folder, place, f"words of {inputs[place].path}")
            written.append(inputs[place].output)
    return written


def lines(path) -> list[dict]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def contents(path) -> dict[str, bytes]:
    return {str(file.relative_to(path)): file.read_bytes() for file in path.rglob("*") if file.is_file()}


def test_each_recording_has_its_files_and_lines(tmp_path):
    """Each recording has its files, and its lines in record and manifest."""
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


def test_manifest_is_in_order_of_input(tmp_path):
    """At the end the manifest is in the order of the input, not of completion."""
    inputs = recordings("a.wav", "b.wav", "c.wav")
    with OutputFolder(tmp_path, KINDS, SETTINGS) as folder:
        folder.begin(inputs)
        for place in (2, 0, 1):
            write(folder, place, "x")
        assert [line["audio_filepath"] for line in lines(tmp_path / "manifest.jsonl")] == ["c.wav", "a.wav", "b.wav"]
    assert [line["audio_filepath"] for line in lines(tmp_path / "manifest.jsonl")] == ["a.wav", "b.wav", "c.wav"]


# ---------------------------------------------------------------- resume


def test_resume_transcribes_only_what_is_left(tmp_path):
    """A resumed run transcribes what is left, and nothing twice."""
    inputs = recordings(*(f"{i}.wav" for i in range(5)))
    assert run(tmp_path, inputs, stop_after=2) == ["0", "1"]
    assert run(tmp_path, inputs) == ["2", "3", "4"]
    assert run(tmp_path, inputs) == []
    assert [line["audio"] for line in lines(tmp_path / "results.jsonl")] == [f"{i}.wav" for i in range(5)]
    assert [line["audio_filepath"] for line in lines(tmp_path / "manifest.jsonl")] == [f"{i}.wav" for i in range(5)]


def test_record_cut_anywhere_is_completed(tmp_path):
    """A record that was cut anywhere has each recording once after a resumed run."""
    inputs = recordings("a.wav", "b.wav", "c.wav")
    run(tmp_path, inputs)
    whole, record = contents(tmp_path), tmp_path / "results.jsonl"
    size = len(whole["results.jsonl"])
    for length in sorted({0, 1, size - 1, *random.Random(0).sample(range(size), 40)}):
        record.write_bytes(whole["results.jsonl"][:length])
        (tmp_path / "manifest.jsonl").write_bytes(whole["manifest.jsonl"][: length // 4])
        (tmp_path / ".0123456789abcdef.part").write_bytes(b"half a fi")
        run(tmp_path, inputs)
        assert contents(tmp_path) == whole, length


def test_invalid_line_of_record_is_dropped(tmp_path):
    """A line that is no entry of a record is dropped."""
    inputs = recordings("a.wav", "b.wav")
    run(tmp_path, inputs)
    good = (tmp_path / "results.jsonl").read_bytes()
    (tmp_path / "results.jsonl").write_bytes(b'[1]\n{"audio": 3}\n\xff\n\n' + good)
    assert run(tmp_path, inputs) == []
    assert (tmp_path / "results.jsonl").read_bytes() == good


def test_deleted_file_and_new_format_are_written_again(tmp_path):
    """A recording is transcribed again if a file of it was deleted or a format is new."""
    inputs = recordings("a.wav", "b.wav")
    run(tmp_path, inputs)
    (tmp_path / "a.srt").unlink()
    assert run(tmp_path, inputs) == ["a"]
    assert run(tmp_path, inputs, kinds=("vtt",)) == ["a", "b"]
    assert sorted(line["output"] for line in lines(tmp_path / "results.jsonl")) == ["a", "b"]


def test_new_or_removed_recordings_leave_others_alone(tmp_path):
    """Recordings that are new or removed do not affect the others."""
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


def test_names_do_not_depend_on_interruption(tmp_path):
    """Names of files do not depend on where a run was interrupted."""

    def inputs():
        return recordings("x/a.wav", "y/a.wav", "b.wav", "b.mp3")

    assert run(tmp_path / "whole", inputs()) == ["x/a", "y/a", "b.wav", "b.mp3"]
    assert run(tmp_path / "cut", inputs(), stop_after=1) == ["x/a"]
    assert run(tmp_path / "cut", inputs(), stop_after=2) == ["y/a", "b.wav"]
    assert run(tmp_path / "cut", inputs()) == ["b.mp3"]
    assert contents(tmp_path / "cut") == contents(tmp_path / "whole")


def test_parts_and_copies_of_a_file_are_distinct(tmp_path):
    """Parts of one file, and the same file twice, are distinct recordings."""

    def inputs():
        line = '{"audio_filepath": "a.wav", "offset": %s, "duration": 2.0}'
        parts = [Recording("a.wav", "a", offset, 2.0, line % offset) for offset in (0.0, 2.5, 2.5)]
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
    """A resumed run with other settings is an error."""
    inputs = recordings("a.wav", "b.wav")
    run(tmp_path, inputs, stop_after=1)
    with pytest.raises(SetupError, match=f"{name} .*choose another --output_dir"):
        run(tmp_path, inputs, settings=replace(SETTINGS, **{name: value}))
    assert len(lines(tmp_path / "results.jsonl")) == 1


def test_model_is_compared_by_its_id():
    """A copy at another path is the same model, another one at the same path is not; without an id the path counts."""
    named = replace(SETTINGS, model_id="0123456789abcdef")
    copy = replace(named, model="copy.nemo")
    other = replace(named, model_id="fedcba9876543210")
    differing = [[name for name, _, _ in named.differences(each)] for each in (copy, other, SETTINGS)]
    assert differing == [[], ["model_id"], []]
    assert [name for name, _, _ in SETTINGS.differences(copy)] == ["model"]


def test_run_without_resume_keeps_earlier_record_as_backup(tmp_path):
    """A run without --resume restarts, and keeps the earlier record as a backup."""
    inputs = recordings("a.wav", "b.wav")
    run(tmp_path, inputs)
    assert run(tmp_path, inputs, resume=False, stop_after=1) == ["a"]
    assert [line["output"] for line in lines(tmp_path / "results.jsonl")] == ["a"]
    assert [line["output"] for line in lines(tmp_path / "results.jsonl~")] == ["a", "b"]
    assert run(tmp_path, inputs, resume=False, stop_after=0) == run(tmp_path, inputs, resume=False, stop_after=0) == []
    assert [line["output"] for line in lines(tmp_path / "results.jsonl~")] == ["a"], "that a run did nothing costs none"


# ---------------------------------------------------------------- errors of the file system


def test_unusable_folder_is_an_error_before_the_work(tmp_path):
    """A folder that cannot be used is an error before the work."""
    (tmp_path / "file").write_bytes(b"")
    for path in (tmp_path / "file", tmp_path / "file" / "below"):
        with pytest.raises(SetupError, match="--output_dir .*file"):
            OutputFolder(path, KINDS, SETTINGS)


def test_two_runs_cannot_share_a_folder(tmp_path):
    """Two runs cannot write to one folder at the same time."""
    with OutputFolder(tmp_path, KINDS, SETTINGS), pytest.raises(SetupError, match="another run"):
        OutputFolder(tmp_path, KINDS, SETTINGS)
    run(tmp_path, recordings("a.wav"))


def test_name_that_is_too_long_costs_one_recording(tmp_path):
    """A name that the file system rejects costs its recording only."""
    inputs = recordings("a.wav", "ä" * 126 + ".mp3", "b.wav")  # 252 bytes: one too many with .json
    with OutputFolder(tmp_path, KINDS, SETTINGS) as folder:
        folder.begin(inputs)
        write(folder, 0, "x")
        with pytest.raises(InputError, match="cannot be written: File name too long"):
            write(folder, 1, "x")
        write(folder, 2, "x")
    assert [line["audio_filepath"] for line in lines(tmp_path / "manifest.jsonl")] == ["a.wav", "b.wav"]


def test_full_disk_ends_run_and_keeps_results(tmp_path, monkeypatch):
    """A full disk ends the run and leaves no partial line; what was done stays."""
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


def test_name_that_is_no_text_is_resumed(tmp_path):
    """A name that is no text is written, and found again by a resumed run."""
    inputs = recordings(os.fsdecode(b"a\xff.wav"))
    assert len(run(tmp_path, inputs)) == 1 and run(tmp_path, inputs) == []
    assert os.fsencode(tmp_path) + b"/a\xff.txt" in [
        os.path.join(os.fsencode(tmp_path), n) for n in os.listdir(os.fsencode(tmp_path))
    ]
    assert lines(tmp_path / "manifest.jsonl")[0]["audio_filepath"] == inputs[0].path
