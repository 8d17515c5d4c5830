"""Containers: what a file is, where its audio continues, and the size that a wav from a pipe lacks."""

import gzip
import os

import pytest
import soundfile
from hostile_audio import ID3, chunk, clip_at, encoded, replaced, wav, wav_of_unknown_length

from nemotron_npu.containers import identify, open_audio, open_regular
from nemotron_npu.errors import InputError

CLIP_FRAMES = len(clip_at(16000))


@pytest.mark.parametrize("name", ["flac", "ogg", "mp3", "aiff", "au", "caf", "w64"])
def test_identify_names_the_container_by_its_first_bytes(name):
    """Each file that libsndfile writes is recognized."""
    assert identify(encoded(kind=name.upper())[:64]) == name


@pytest.mark.parametrize("kind", ["WAV", "RF64"])
def test_identify_returns_none_for_wav(kind):
    """Wav needs no conversion on stdin."""
    assert identify(encoded(kind=kind)[:64]) is None


@pytest.mark.parametrize(
    "start, name",
    [
        (ID3, "mp3"),
        (gzip.compress(b"", mtime=0), "gzip"),
        (b"\0\0\0 ftypisom", "mp4"),
        (b"RIFF\0\0\0\0AVI ", "avi"),
        (b"", None),
        (b"\xff\xfb", None),
    ],
)
def test_identify_accepts_starts_of_any_length(start, name):
    """Files may be shorter than the bytes that identify looks at."""
    assert identify(start[:64]) == name


@pytest.mark.parametrize("content, lengths", [
    (lambda: wav(), [CLIP_FRAMES]),
    (lambda: 2 * encoded(kind="OGG"), [CLIP_FRAMES] * 2),
    (lambda: wav_of_unknown_length(0, 0), [CLIP_FRAMES]),
    (lambda: replaced(wav(), 40, bytes(4)) + chunk(b"LIST", b"INFO"), [CLIP_FRAMES + 6]),
    (lambda: wav()[:36] + chunk(b"data", b"") + chunk(b"LIST", b"INFO"), [0]),
], ids=["wav", "chained Ogg", "wav from a pipe", "wav cut off, with bytes after it", "empty wav"])  # fmt: skip
def test_parts_have_all_samples_of_the_file(tmp_path, content, lengths):
    """Chained streams are separate parts; a size of 0 is unknown unless valid chunks follow up to the end."""
    path = tmp_path / "x"
    path.write_bytes(content())
    with open_audio(str(path)) as file:
        assert [len(part.read(dtype="int16")) for part in file.parts()] == lengths


def test_open_regular_never_waits_for_a_pipe(tmp_path):
    """A pipe without a writer would block open(2) forever; the hint is to read it from stdin."""
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(InputError, match=r"pipe: is a pipe \(read it from stdin: .* - < PIPE\)"):
        open_regular(str(tmp_path / "pipe"))


def test_open_audio_closes_the_file_after_an_error(tmp_path, monkeypatch):
    """A failure in the block or in libsndfile leaves no descriptor open."""
    path = tmp_path / "x.wav"
    soundfile.write(path, clip_at(16000), 16000)
    closed = []
    monkeypatch.setattr("nemotron_npu.containers.os.close", lambda number, close=os.close: closed.append(close(number)))
    with pytest.raises(KeyError), open_audio(str(path)):
        raise KeyError
    path.write_bytes(b"text")
    with pytest.raises(InputError, match="x.wav: is text, not audio"), open_audio(str(path)):
        pass
    assert len(closed) == 2
