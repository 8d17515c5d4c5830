"""Files on the command line -> text and JSON, with every engine, batch size and chunk length."""

import json
import os
import shutil
import subprocess
import sys
import tarfile

import numpy as np
import pytest
import soundfile
from support import CLIP, CLIP_WORDS, INFERENCE, POISON, fail_where, poison_the_decoder, poison_the_encoder

from nemotron_npu.nemo_engine import NemoRecognizer


@pytest.fixture
def bad_files(tmp_path):
    """One of every kind of input that cannot be used."""
    (tmp_path / "folder.wav").mkdir()
    (tmp_path / "empty.wav").write_bytes(b"")
    (tmp_path / "text.wav").write_text("not sound at all\n" * 50)
    soundfile.write(tmp_path / "silent header.wav", np.zeros(0), 16000)
    names = ["missing.wav", "folder.wav", "empty.wav", "text.wav", "silent header.wav"]
    return [tmp_path / name for name in names]


# ---------------------------------------------------------------- files


def test_files_of_any_rate_and_channels_are_transcribed(cli, stereo_mp3):
    """A 44.1 kHz stereo mp3 and an 8 kHz wav give the same words."""
    code, out, _ = cli(stereo_mp3, CLIP, "--device", "cpu")
    assert code == 0
    assert out.splitlines() == [f"{stereo_mp3}: {CLIP_WORDS}", f"{CLIP}: {CLIP_WORDS}"]


def test_json_prints_one_document_for_each_file(cli, stereo_mp3):
    """With --output_format json stdout has one document for each file and nothing else."""
    code, out, _ = cli(stereo_mp3, CLIP, "--device", "cpu", "--output_format", "json")
    documents = [json.loads(line) for line in out.splitlines()]
    assert code == 0 and [d["audio"] for d in documents] == [str(stereo_mp3), str(CLIP)]
    for document in documents:
        assert document["text"] == CLIP_WORDS
        assert document["device"] == "cpu" and document["engine"] == "native" and document["chunk_ms"] == 1120
        assert document["duration"] == pytest.approx(6.83, abs=0.2)
        assert "".join(t["piece"] for t in document["tokens"]).replace("▁", " ").strip() == CLIP_WORDS
        times = [token["time"] for token in document["tokens"]]
        assert times == sorted(times) and times[0] > 0 and times[-1] <= document["duration"]
        assert all(0 < token["probability"] <= 1 for token in document["tokens"])


def test_nemo_gives_same_tokens_without_probabilities(cli):
    """NeMo gives the tokens of the native engine, without their probabilities."""
    documents = []
    for engine in ("native", "nemo"):
        code, out, _ = cli(CLIP, "--engine", engine, "--device", "cpu", "--output_format", "json")
        assert code == 0
        documents.append(json.loads(out))
    native, nemo = documents
    assert (nemo["engine"], nemo["text"], nemo["parameters"]) == ("nemo", CLIP_WORDS, native["parameters"])
    assert {token["probability"] for token in nemo["tokens"]} == {None}
    unmeasured = {"probability": None, "confidence": None}
    assert [token | unmeasured for token in native["tokens"]] == nemo["tokens"]


@pytest.mark.parametrize("chunk_ms", [80, 160, 560, 1120])
def test_every_chunk_length_transcribes_the_clip(cli, chunk_ms):
    """The words are the same at every chunk length."""
    code, out, _ = cli(CLIP, "--chunk_ms", chunk_ms, "--device", "cpu", "--output_format", "json")
    document = json.loads(out)
    assert (code, document["text"], document["chunk_ms"]) == (0, CLIP_WORDS, chunk_ms)


@pytest.mark.parametrize("batch_size", [1, 2, 5])
def test_batch_prints_texts_in_order_of_files(cli, tmp_path, digits, batch_size):
    """A batch gives the same words, in the order of the files."""
    audio, rate = digits
    short = tmp_path / "short.wav"
    soundfile.write(short, audio[: int(1.0 * rate)], rate)
    files = [CLIP, short, CLIP]
    code, out, _ = cli(*files, "--batch_size", batch_size, "--device", "cpu")
    texts = [line.partition(": ") for line in out.splitlines()]
    assert code == 0 and [name for name, _, _ in texts] == [str(f) for f in files]
    assert [words for _, _, words in texts] == [CLIP_WORDS, "three", CLIP_WORDS]


def test_unusable_files_are_one_line_each(cli, bad_files):
    """Each unusable file is one error line, and the others are transcribed."""
    code, out, err = cli(bad_files[0], CLIP, *bad_files[1:], CLIP, "--quiet", "--batch_size", 3, "--device", "cpu")
    assert code == 1
    assert out.splitlines() == [f"{CLIP}: {CLIP_WORDS}"] * 2
    assert len(err.splitlines()) == len(bad_files)
    for path in bad_files:
        assert sum(str(path) in line for line in err.splitlines()) == 1, err


def test_unusable_files_alone_load_no_model(cli, bad_files, monkeypatch):
    """If no file is usable, no model is loaded."""
    monkeypatch.setattr("nemotron_npu.cli.transcribe.load_recognizer", None)
    code, out, err = cli(*bad_files[:4])
    *problems, summary = err.splitlines()
    assert (code, out, len(problems)) == (1, "", 4) and summary == "4 recordings: 0 done, 4 failed"


@pytest.mark.parametrize("samples", [1, 50, 159, 160, 161, 1279, 1280, 1281])
def test_recording_of_a_few_samples_gives_empty_text(cli, tmp_path, samples):
    """A recording of a few samples gives an empty text."""
    path = tmp_path / "blip.wav"
    soundfile.write(path, np.full(samples, 0.01), 16000)
    code, out, err = cli(path, "--quiet", "--device", "cpu")
    assert (code, out, err) == (0, "\n", "")


def poison_nemo(monkeypatch):
    fail_where(monkeypatch, NemoRecognizer, "_transcribe_batch", lambda waves: any(len(w) == POISON for w in waves))


@pytest.mark.parametrize("batch_size", [1, 2, 3])
@pytest.mark.parametrize(
    "engine, make_fail",
    [("native", poison_the_encoder), ("native", poison_the_decoder), ("nemo", poison_nemo)],
    ids=["encoder", "decoder", "nemo"],
)
def test_failure_inside_model_costs_no_other_file(cli, poison, monkeypatch, engine, make_fail, batch_size):
    """A file that fails inside the model is one error line, and its batch is transcribed."""
    make_fail(monkeypatch)
    options = ["--engine", engine, "--batch_size", batch_size, "--quiet", "--device", "cpu"]
    code, out, err = cli(CLIP, poison, CLIP, *options)
    assert code == 1 and out.splitlines() == [f"{CLIP}: {CLIP_WORDS}"] * 2
    assert err.splitlines() == [
        f"inference.py: {poison}: cannot be transcribed: RuntimeError: the device said no at some length"
    ]


@pytest.mark.parametrize("batch_size", [1, 3])
def test_file_that_breaks_off_costs_no_other_file(cli, tmp_path, batch_size):
    """A file that breaks off is one error line, and its batch is transcribed."""
    broken = tmp_path / "broken.flac"
    soundfile.write(broken, np.random.default_rng(0).uniform(-1, 1, 40000), 16000)
    broken.write_bytes(broken.read_bytes()[:9000])
    code, out, err = cli(CLIP, broken, CLIP, "--batch_size", batch_size, "--quiet", "--device", "cpu")
    assert code == 1 and out.splitlines() == [f"{CLIP}: {CLIP_WORDS}"] * 2
    assert len(err.splitlines()) == 1 and f"{broken}: broken audio" in err


def test_file_name_with_invalid_text_is_accepted(tmp_path):
    """A file name may have spaces, line breaks and bytes that are no text."""
    path = os.fsencode(tmp_path) + b"/a b\nc \xff.wav"
    shutil.copy(CLIP, path)
    command = [sys.executable, INFERENCE, "--output_format", "json", "--quiet", "--device", "cpu", path]
    result = subprocess.run(command, capture_output=True, timeout=120)
    assert result.returncode == 0, result.stderr
    assert json.loads(result.stdout)["text"] == CLIP_WORDS


# ---------------------------------------------------------------- the model


def test_model_without_audio_is_checked_on_the_sine(cli, tiny):
    """A model without AUDIO prints the lines of the reference guide's check on the sine."""
    code, out, _ = cli("--model_path", tiny, "--device", "cpu")
    lines = out.splitlines()
    assert code == 0
    assert lines[:3] == [
        "Parameters: 242,305",
        "Preprocessed shape: [1, 128, 101]",
        "Encoder output shape: [1, 64, 14]",
    ]
    assert lines[3].startswith("Transcription: ") and len(lines) == 4


def test_model_check_in_json_has_the_same_shapes(cli, tiny):
    """The JSON document of the sine has the same shapes."""
    code, out, _ = cli("--model_path", tiny, "--device", "cpu", "--output_format", "json")
    document = json.loads(out)
    assert code == 0 and document["parameters"] == 242305
    assert document["preprocessed_shape"] == [1, 128, 101] and document["encoder_output_shape"] == [1, 64, 14]


def test_chunk_length_not_offered_lists_those_offered(cli):
    """A chunk length that the checkpoint does not offer is an error line with those that it offers."""
    code, out, err = cli("--chunk_ms", 100)
    assert (code, out) == (2, "")
    assert err == "inference.py: --chunk_ms 100: this checkpoint offers 80, 160, 560, 1120\n"


def test_checkpoint_without_weights_is_one_error_line(cli, tiny, tmp_path):
    """A checkpoint without weights is one error line."""
    broken = tmp_path / "broken.nemo"
    with tarfile.open(tiny) as whole, tarfile.open(broken, "w") as part:
        for member in whole:
            if member.isfile() and "weights" not in member.name:
                part.addfile(member, whole.extractfile(member))
    code, out, err = cli("--model_path", broken, "--device", "cpu", "--quiet")
    assert (code, out) == (2, "")
    assert len(err.splitlines()) == 1 and str(broken) in err


def test_unusable_device_is_one_line_and_not_replaced(cli, no_torch_npu):
    """A device that is not usable is one error line; no other device takes its place."""
    code, out, err = cli(CLIP, "--device", "npu:0")
    assert (code, out) == (2, "")
    assert len(err.splitlines()) == 1 and "npu:0: torch_npu is not installed" in err
