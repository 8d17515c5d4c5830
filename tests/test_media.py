"""Video and the formats of phones: what libsndfile does not read is decoded by PyAV in a process of its own."""

import os
import subprocess
import sys

import numpy as np
import pytest
from hostile_audio import clip_at
from media_files import CONTAINERS, media_bytes
from support import ROOT

from nemotron_npu import media
from nemotron_npu.audio import AudioInfo, check_audio, read_audio, read_blocks
from nemotron_npu.errors import InputError
from nemotron_npu.sources import find_recordings


@pytest.fixture
def write(tmp_path):
    """Write bytes to a file of this name; its path."""

    def write(name: str, data: bytes) -> str:
        (tmp_path / name).write_bytes(data)
        return str(tmp_path / name)

    return write


@pytest.mark.parametrize("extension", CONTAINERS)
def test_every_container_has_the_samples_of_the_clip(write, extension):
    """As many samples as the clip within two codec frames (ac3, aac and mp3 pad), at the right place."""
    _, _, rate, frame = CONTAINERS[extension]
    decoded = read_audio(write(f"x.{extension}", media_bytes(extension, video=extension in ("mp4", "mkv"))))
    clip = clip_at(16000)
    assert abs(len(decoded) - len(clip)) <= 2 * frame * 16000 / rate + 2
    spectra = [np.fft.rfft(x, 1 << 18) for x in (decoded, clip)]
    lag = int(np.argmax(np.fft.irfft(spectra[0] * spectra[1].conj())))
    lag = min(lag, (1 << 18) - lag)
    assert lag <= 2 * frame * 16000 / rate
    if lag < 3:
        assert np.corrcoef(decoded[: len(clip)], clip[: len(decoded)])[0, 1] > 0.9


def test_a_part_equals_the_slice_of_the_whole(write):
    """``offset`` and ``duration`` are exact to a sample."""
    path = write("x.m4a", media_bytes("m4a"))
    whole = read_audio(path)
    part = np.concatenate(list(read_blocks(path, 1.5, 2.0001)))
    assert np.array_equal(part, whole[24000 : 24000 + 32001])
    with pytest.raises(InputError, match=r"x.m4a: offset 60 s is past the end at 6\.[89]\d\d s"):
        list(read_blocks(path, 60))


def test_check_audio_describes_a_video(write):
    """Rate, channels, container and length come from the first frame and the header."""
    info = check_audio(write("x.mp4", media_bytes("mp4", video=True)))
    assert (info.sample_rate, info.channels, info.format) == (48000, 1, "MP4")
    assert info.seconds == pytest.approx(6.83, abs=0.05)


def test_tracks_are_counted_from_one(write):
    """The first audio track by default, another by its number."""
    path = write("x.mka", media_bytes("mkv", tracks=2))
    with open(path, "rb") as file:
        levels = []
        for track in (1, 2):
            with media.open_media(file.fileno(), path, track) as opened:
                assert isinstance(opened.info, AudioInfo)
                levels.append(max(np.abs(samples).max() for _, samples in opened.blocks()))
        assert levels[0] == pytest.approx(2 * levels[1], rel=0.2)
        with (
            pytest.raises(InputError, match="x.mka: no audio track 3: it has 2"),
            media.open_media(file.fileno(), path, 3) as opened,
        ):
            assert opened.info


@pytest.mark.parametrize("name, data, message", [
    ("x.mp4", lambda: media_bytes("mp4")[:3000], "unsupported mp4 audio"),
    ("x.webm", lambda: b"\x1aE\xdf\xa3" + bytes(3000), "unsupported matroska or webm audio"),
    ("x.ts", lambda: bytes(range(256)) * 40, "unsupported audio format"),
    ("x.m3u8", lambda: b"#EXTM3U\n#EXTINF:5\nother.wav\n#EXT-X-ENDLIST\n", "is text, not audio"),
    ("x.mov", lambda: broken(media_bytes("mov")), r"broken audio after \d\.\d s: Invalid data found"),
], ids=["mp4 without its index", "matroska of zeros", "noise", "playlist", "broken alac"])  # fmt: skip
def test_bad_media_give_one_line(write, name, data, message):
    """Each line names the file; no other file or address is ever opened."""
    with pytest.raises(InputError, match=f"{name}: {message}"):
        read_audio(write(name, data()))


def broken(data: bytes) -> bytes:
    """Overwrite the second half of the samples."""
    first = data.index(b"mdat") + 4
    half = first + (len(data) - first) // 2
    return data[:half] + b"\xff" * 5000 + data[half + 5000 :]


@pytest.mark.parametrize("program, message", [
    ("import os; os.kill(os.getpid(), 11)", r"its decoder crashed \(SIGSEGV\)"),
    ("import time; time.sleep(60)", "its decoder gave nothing for 0.2 s"),
    ("print('x' * 100_000)", "its decoder sent invalid data"),
    ("raise SystemExit('no memory')", "no memory"),
    ("1 / 0", "ZeroDivisionError: division by zero"),
])  # fmt: skip
def test_a_decoder_that_fails_costs_its_file_alone(write, tmp_path, monkeypatch, program, message):
    """A crash, a hang or an endless line becomes the error of this file."""
    (tmp_path / "decoder.py").write_text(program)
    monkeypatch.setattr(media, "DECODER", [str(tmp_path / "decoder.py")])
    monkeypatch.setattr(media, "MAX_SILENCE", 0.2)
    with pytest.raises(InputError, match=f"x.m4a: .*{message}"):
        read_audio(write("x.m4a", media_bytes("m4a")))


def test_without_pyav_the_hint_installs_it(write, monkeypatch):
    """PyAV may be missing from an installation without dependencies."""
    monkeypatch.setattr(media, "find_spec", lambda name: None)
    with pytest.raises(InputError, match=r"x.m4a: needs the package av to be decoded \(pip install av, or convert it"):
        check_audio(write("x.m4a", media_bytes("m4a")))


def test_folders_have_media_too(write, tmp_path):
    """Whatever libsndfile or ffmpeg decodes is found by its extension."""
    for name in ("a.wave", "b.MP4", "c.m4b", "d.webm", "e.txt", "f.jpg"):
        write(name, b"x")
    assert [recording.output for recording in find_recordings([str(tmp_path)])] == ["a", "b", "c", "d"]


def test_media_are_decoded_in_a_repl_of_a_clone(tmp_path):
    """From a REPL or python -c in a clone, where sys.path has the empty string, media are decoded as well."""
    path = tmp_path / "clip.m4a"
    path.write_bytes(media_bytes("m4a"))
    code = "import sys; from nemotron_npu.audio import read_audio; print(len(read_audio(sys.argv[1])) > 16000)"
    command = [sys.executable, "-c", code, str(path)]
    result = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, env={**os.environ, "PYTHONPATH": ""})
    assert result.stdout == "True\n", result.stderr
