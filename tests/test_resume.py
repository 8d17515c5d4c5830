"""--resume skips a recording only if the same recording was transcribed with the same settings."""

import json
import os
import unicodedata
from dataclasses import fields, replace

import numpy as np
import pytest
import soundfile
from test_output_folder import KINDS, SETTINGS, lines, transcript

from nemotron_npu.cli.identity import Source, is_unchanged, source_of
from nemotron_npu.cli.output_folder import OutputFolder
from nemotron_npu.cli.run_info import RunSettings
from nemotron_npu.cli.scores import reference_fields
from nemotron_npu.errors import SetupError
from nemotron_npu.formats import to_document
from nemotron_npu.sources import Recording

RUN = replace(SETTINGS, engine="native", model_id="0123456789abcdef", language="en-US")
OTHERS = {
    "chunk_ms": 80,
    "dtype": "int8",
    "confidence": "gibbs",
    "boost_words": "1 phrase, alpha 1, sha256 0123456789abcdef",
    "allow_hf32": True,
    "npu_fused": True,
    "language": "de-DE",
    "engine": "nemo",
    "model_id": "fedcba9876543210",
    "subtitles": "max_line_width 30",
}
"""Another value of each setting of a run."""
ANY = {"model": "copy.nemo", "wer_normalizer": "basic"}
"""Another value of those that may differ: the model's id counts, not its path, and texts are scored again."""


def audio(path, seconds=0.5, level=0.1):
    path.parent.mkdir(parents=True, exist_ok=True)
    soundfile.write(path, np.full(int(seconds * 16000), level, np.float32), 16000)
    return path


def write(folder, index, text) -> None:
    result, recording = transcript(text), folder.recordings[index]
    own = {**recording.document_fields(), **folder.settings.as_dict()}
    scores = reference_fields(recording, text, result.duration, folder.settings.wer_normalizer)
    folder.write(index, result, to_document(result, **own, **scores))


def resume(out, *recordings, settings=RUN) -> list[str]:
    """Resume a run over real files; return the outputs of what it transcribes."""
    written = []
    with OutputFolder(out, KINDS, settings, resume=True) as folder:
        for index in folder.begin(list(recordings)):
            recordings[index].check()
            write(folder, index, "three one")
            written.append(recordings[index].output)
    return written


@pytest.mark.parametrize("name", [field.name for field in fields(RunSettings)])
def test_each_setting_of_a_run_is_compared(tmp_path, name):
    """Another value of any of them, but for ``ANY``, is an error that names it and both values."""
    path = str(audio(tmp_path / "x.wav"))
    assert resume(tmp_path / "out", Recording(path, "x")) == ["x"]
    if name in ANY:
        assert resume(tmp_path / "out", Recording(path, "x"), settings=replace(RUN, **{name: ANY[name]})) == []
        return
    other = replace(RUN, **{name: OTHERS[name]})
    with pytest.raises(SetupError, match=f"made with {name} .*, this run has {OTHERS[name]} .choose another"):
        resume(tmp_path / "out", Recording(path, "x"), settings=other)


@pytest.mark.parametrize("name", [field.name for field in fields(Source)])
def test_each_field_of_a_file_is_compared(tmp_path, name):
    """Another path or size is another recording; another time alone asks the content, which decides."""
    path = audio(tmp_path / "x.wav")
    recording = Recording(str(path), "x")
    recording.check()
    source = source_of(recording)
    os.utime(path, ns=(0, source.modified))
    assert is_unchanged(str(path), source)
    if name == "path":
        moved = Recording(str(audio(tmp_path / "other" / "x.wav")), "x")
        assert resume(tmp_path / "out", recording) == ["x"]
        assert resume(tmp_path / "out", moved) == ["x.wav"]
    elif name == "size":
        assert not is_unchanged(str(path), replace(source, size=source.size + 1))
    elif name == "modified":
        assert is_unchanged(str(path), replace(source, modified=0))
    else:
        assert is_unchanged(str(path), replace(source, sha256="0"))
        assert not is_unchanged(str(path), replace(source, modified=0, sha256="0"))
        assert not is_unchanged(str(path), replace(source, modified=0, sha256=None))


def test_changed_recording_is_transcribed_again(tmp_path, monkeypatch):
    """With another size, or as many bytes of other audio; its files get the new words, and a line names it."""
    path = audio(tmp_path / "x.wav")
    resume(tmp_path / "out", Recording(str(path), "x"))
    for seconds, level in ((1.0, 0.1), (1.0, 0.2)):
        audio(path, seconds, level)
        with OutputFolder(tmp_path / "out", KINDS, RUN, resume=True) as folder:
            recording = Recording(str(path), "x")
            assert folder.begin([recording]) == [0]
            assert folder.remarks == [f"{path}: has changed since its transcription: transcribed again"]
            recording.check()
            write(folder, 0, "seven")
        assert (tmp_path / "out" / "x.txt").read_text() == "seven\n"
        assert [line["text"] for line in lines(tmp_path / "out" / "results.jsonl")] == ["seven"]
    os.utime(path)  # copied again
    assert resume(tmp_path / "out", Recording(str(path), "x")) == []
    path.unlink()  # what is missing now cannot have changed
    assert resume(tmp_path / "out", Recording(str(path), "x")) == []


def test_recording_that_changes_meanwhile_is_not_done(tmp_path):
    """The words are those of the file that was opened: what has taken its place since is another recording."""
    path = audio(tmp_path / "x.wav")
    recording = Recording(str(path), "x")
    recording.check()
    audio(path, level=0.3)
    os.utime(path, ns=(0, 0))
    assert source_of(recording).sha256 is None
    assert not is_unchanged(str(path), source_of(recording))


def test_spelling_of_a_path_makes_no_difference(tmp_path, monkeypatch):
    """Relative from anywhere, through linked folders and files, composed letters or not."""
    name = unicodedata.normalize("NFC", "gespräch.wav")
    audio(tmp_path / "calls" / name)
    (tmp_path / "mount").symlink_to(tmp_path / "calls")
    (tmp_path / "link.wav").symlink_to(tmp_path / "calls" / name)
    monkeypatch.chdir(tmp_path)
    assert resume(tmp_path / "out", Recording(f"calls/{name}", "gespräch")) == ["gespräch"]
    for spelling in (f"mount/{name}", str(tmp_path / "calls" / ".." / "calls" / name), "link.wav"):
        assert resume(tmp_path / "out", Recording(spelling, "gespräch")) == []
    monkeypatch.chdir(tmp_path / "calls")
    assert resume(tmp_path / "out", Recording(name, "gespräch")) == []
    decomposed = unicodedata.normalize("NFD", name)
    os.rename(name, decomposed)  # as a file system of another kind gives it back
    assert resume(tmp_path / "out", Recording(decomposed, "gespräch")) == []


def test_each_part_of_a_file_is_a_recording(tmp_path):
    """Offset and duration count."""
    path = str(audio(tmp_path / "x.wav"))
    assert resume(tmp_path / "out", Recording(path, "x", 0.1, 0.2, '{"duration": 0.2}')) == ["x"]
    assert resume(tmp_path / "out", Recording(path, "x", 0.1, 0.2, '{"duration": 0.2}')) == []
    assert resume(tmp_path / "out", Recording(path, "x", 0.15, 0.2, '{"duration": 0.2}')) == ["x.wav"]
    assert resume(tmp_path / "out", Recording(path, "x", 0.1, 0.3, '{"duration": 0.3}')) == ["x_0.10"]


def test_two_files_that_differ_in_composition_keep_apart(tmp_path):
    """Each takes the entry of its own path."""
    paths = [str(audio(tmp_path / unicodedata.normalize(form, "ä.wav"), n)) for n, form in ((1, "NFC"), (2, "NFD"))]
    first = [Recording(path, "ä") for path in paths]
    assert len(resume(tmp_path / "out", *first)) == 2
    assert resume(tmp_path / "out", *(Recording(path, "ä") for path in reversed(paths))) == []


def test_links_to_one_file_keep_apart(tmp_path):
    """Those that an interrupted run has left are the ones that are done, whichever they are."""
    audio(tmp_path / "x.wav")
    for name in "abc":
        (tmp_path / f"{name}.wav").symlink_to("x.wav")
    a, b, c = (Recording(str(tmp_path / f"{name}.wav"), name) for name in "abc")
    assert resume(tmp_path / "out", c) == ["c"]
    assert resume(tmp_path / "out", a, b, c) == ["a", "b"]
    assert resume(tmp_path / "out", a, b, c) == []
    assert sorted(path.name for path in (tmp_path / "out").glob("*.txt")) == ["a.txt", "b.txt", "c.txt"]


def test_corrected_reference_text_scores_again_everywhere(tmp_path):
    """Record, json and collected manifest have the errors against the text of today, without transcribing."""
    path = str(audio(tmp_path / "x.wav"))
    out = tmp_path / "out"

    def recording(text):
        return Recording(path, "x", line=json.dumps({"audio_filepath": path, "text": text}))

    with OutputFolder(out, KINDS, RUN) as folder:
        first = recording("three two")
        folder.begin([first])
        first.check()
        write(folder, 0, "three one")
    assert lines(out / "results.jsonl")[0]["errors"]["words"]["substitutions"] == 1
    assert lines(out / "results.jsonl")[0]["errors"]["normalized_words"]["length"] == 1, "as whisper: 32"
    fresh = out / "fresh"
    with OutputFolder(fresh, KINDS, RUN) as folder:
        corrected = recording("three one")
        folder.begin([corrected])
        corrected.check()
        write(folder, 0, "three one")
    assert resume(out, recording("three one")) == []
    for name in ("results.jsonl", "x.json", "manifest.jsonl"):
        assert json.loads((out / name).read_text()) == json.loads((fresh / name).read_text())
    assert resume(out, recording("three one"), settings=replace(RUN, wer_normalizer="basic")) == []
    for document in (*lines(out / "results.jsonl"), *lines(out / "x.json")):
        assert document["wer_normalizer"] == "basic" and document["errors"]["normalized_words"]["length"] == 2
    assert resume(out, Recording(path, "x")) == []
    document = lines(out / "results.jsonl")[0]
    assert not {"reference", "errors", "manifest"} & document.keys()


def test_records_of_earlier_versions_are_read(tmp_path):
    """They have no source, model id or engine: the path that the user gave counts."""
    path = str(audio(tmp_path / "x.wav"))
    out = tmp_path / "out"
    assert resume(out, Recording(path, "x")) == ["x"]
    document = lines(out / "results.jsonl")[0]
    for name in ("source", "model_id", "engine"):
        del document[name]
    document["model"] = os.path.abspath(document["model"])
    (out / "results.jsonl").write_text(json.dumps(document) + "\n")
    assert resume(out, Recording(path, "x")) == []
