"""Audio files of any format become 16 kHz mono float32."""

import json
import struct
from dataclasses import replace

import numpy as np
import pytest
import soundfile
import soxr
from hostile_audio import clip_at, encoded
from support import CLIP, CLIP_WORDS

from nemotron_npu.audio import AudioInfo, check_audio, counted, read_audio, read_blocks, sine
from nemotron_npu.errors import InputError


def tone(seconds: float, rate: int, channels: int = 1) -> np.ndarray:
    wave = 0.4 * np.sin(2 * np.pi * 300 * np.arange(int(seconds * rate)) / rate)
    return np.repeat(wave[:, None], channels, axis=1).astype(np.float32)


def test_sine_equals_that_of_the_reference_guide():
    """The samples are computed exactly as in the reference guide."""
    t = np.linspace(0, 1.0, 16000, dtype=np.float32)
    assert np.array_equal(sine(), 0.5 * np.sin(2 * np.pi * 440 * t).astype(np.float32))
    assert sine().dtype == np.float32


@pytest.mark.parametrize("suffix", ["wav", "flac", "ogg", "mp3"])
@pytest.mark.parametrize("rate, channels", [(8000, 1), (16000, 2), (44100, 2), (48000, 1)])
def test_any_format_rate_and_channels_give_the_same_tone(tmp_path, suffix, rate, channels):
    """Pitch, level and length of a tone survive decoding, mixing down and resampling."""
    path = tmp_path / f"tone.{suffix}"
    soundfile.write(path, tone(1.0, rate, channels), rate)
    samples = read_audio(str(path))
    assert samples.dtype == np.float32 and samples.ndim == 1 and samples.flags.c_contiguous
    assert abs(len(samples) - 16000) <= 1200  # mp3 pads
    spectrum = np.abs(np.fft.rfft(samples[2000:14000]))
    assert abs(spectrum.argmax() * 16000 / 12000 - 300) < 3
    assert 0.35 < np.abs(samples[2000:14000]).max() < 0.45


@pytest.mark.parametrize("subtype", ["PCM_U8", "PCM_16", "PCM_24", "PCM_32", "FLOAT", "DOUBLE", "ULAW", "ALAW"])
def test_any_sample_encoding_is_scaled_to_one(tmp_path, subtype):
    """Integers, floats and telephone encodings become floats of full scale 1."""
    path = tmp_path / "tone.wav"
    soundfile.write(path, tone(0.5, 16000), 16000, subtype=subtype)
    np.testing.assert_allclose(read_audio(str(path)), tone(0.5, 16000)[:, 0], atol=0.02)


def test_16_khz_mono_is_returned_unchanged(tmp_path):
    """Float samples that need no conversion are returned bit for bit."""
    path = tmp_path / "tone.wav"
    soundfile.write(path, tone(0.5, 16000), 16000, subtype="FLOAT")
    assert np.array_equal(read_audio(str(path)), tone(0.5, 16000)[:, 0])


def test_channels_are_averaged(tmp_path):
    """Stereo becomes the mean of both channels."""
    path = tmp_path / "stereo.wav"
    soundfile.write(path, np.stack([np.full(100, 0.5), np.full(100, -0.1)], 1), 16000, subtype="FLOAT")
    np.testing.assert_allclose(read_audio(str(path)), 0.2, atol=1e-6)


def test_other_rates_are_resampled_by_soxr(tmp_path):
    """The result equals soxr's for the whole signal."""
    path = tmp_path / "tone.wav"
    soundfile.write(path, tone(0.5, 22050), 22050, subtype="FLOAT")
    assert np.array_equal(read_audio(str(path)), soxr.resample(tone(0.5, 22050)[:, 0], 22050, 16000))


@pytest.mark.parametrize("rate", [8000, 16000, 22050, 44100, 48000])
def test_blocks_of_a_long_file_equal_resampling_as_a_whole(tmp_path, rate):
    """Blocks of half a minute, joined, equal the result for the whole signal bit for bit."""
    noise = np.random.default_rng(rate).uniform(-0.5, 0.5, int(64.3 * rate)).astype(np.float32)
    path = tmp_path / "noise.wav"
    soundfile.write(path, noise, rate, subtype="FLOAT")
    whole = noise if rate == 16000 else soxr.resample(noise, rate, 16000)
    blocks = list(read_blocks(str(path)))
    assert len(blocks) > 2 and max(map(len, blocks)) <= 31 * 16000
    assert np.array_equal(np.concatenate(blocks), whole) and np.array_equal(read_audio(str(path)), whole)


def test_check_audio_returns_what_the_header_states(tmp_path):
    """Rate, channels, container and length are known without decoding; a folder is refused."""
    path = tmp_path / "good.wav"
    soundfile.write(path, tone(0.5, 44100, 2), 44100)
    assert replace(check_audio(str(path)), version=None) == AudioInfo(44100, 2, "WAV", 0.5)
    with pytest.raises(InputError, match="is a directory"):
        check_audio(str(tmp_path))


def test_counted_reports_seconds_before_each_block():
    """Counting changes no block, and is up to date when a block is used."""
    seconds = []
    given = [np.zeros(16000, np.float32), np.ones(8000, np.float32)]
    for number, block in enumerate(counted(given, seconds.append)):
        assert block is given[number]
        assert len(seconds) == number + 1
    assert seconds == [1.0, 0.5]


def test_offset_behind_the_first_part_is_found(tmp_path):
    """A header that states one part, or too little, does not end the audio."""
    clip = clip_at(16000)
    for kind in ("OGG", "MP3"):
        (tmp_path / "x").write_bytes(2 * encoded(kind=kind))
        whole = read_audio(tmp_path / "x")
        assert len(whole) > 1.9 * len(clip)
        part = np.concatenate(list(read_blocks(str(tmp_path / "x"), 8.0, 3.0)))
        np.testing.assert_allclose(part, whole[128000 : 128000 + 48000], atol=1e-3)
        with pytest.raises(InputError, match=r"x: offset 20 s is past the end at 13\.\d+ s"):
            list(read_blocks(str(tmp_path / "x"), 20.0))


def test_flac_of_unknown_length_is_decoded(tmp_path):
    """Programs that write FLAC into a pipe leave its length at 0."""
    data = bytearray(encoded(kind="FLAC"))
    data[21] &= 0xF0  # the total of 36 bits in STREAMINFO
    data[22:26] = bytes(4)
    (tmp_path / "x.flac").write_bytes(data)
    np.testing.assert_allclose(read_audio(tmp_path / "x.flac"), clip_at(16000), atol=1e-4)


def long_wav(path, stated: str) -> float:
    """Write a sparse wav of 4 GB and 3 s with the clip at both ends and a chunk behind it; return its seconds."""
    speech, rate = soundfile.read(CLIP, dtype="int16")
    size = (1 << 32) + 6 * rate
    sizes = {"wrapped": size % (1 << 32), "unknown": (1 << 32) - 1, "0": 0}
    layout = struct.pack("<HHIIHH", 1, 1, rate, 2 * rate, 2, 16)
    with path.open("wb") as file:
        file.write(struct.pack("<4sI8sI16s4sI", b"RIFF", 0, b"WAVEfmt ", 16, layout, b"data", sizes[stated]))
        file.write(speech.tobytes())
        file.seek(44 + size - speech.nbytes)
        file.write(speech.tobytes() + b"LIST\4\0\0\0INFO")
    return size / 2 / rate


@pytest.mark.parametrize("stated", ["wrapped", "unknown", "0"])
def test_wav_over_4_gb_is_read_to_its_end(tmp_path, stated):
    """32 bits cannot state the size: it has wrapped, or means "unknown"."""
    path = tmp_path / "x.wav"
    seconds = long_wav(path, stated)
    info = check_audio(str(path))
    assert info.seconds == pytest.approx(seconds, abs=0.01)
    assert info.remark == f"longer than a wav header can state: read to its end at {info.seconds:,.1f} s"
    whole, length = read_audio(CLIP), soundfile.info(CLIP).duration
    for offset in (0, seconds - length):
        assert np.array_equal(np.concatenate(list(read_blocks(str(path), offset, length))), whole)


def test_wav_over_4_gb_is_named_in_a_message(cli, tmp_path):
    """The user learns that the header does not state the length."""
    seconds = long_wav(tmp_path / "x.wav", "wrapped")
    entry = {"audio_filepath": str(tmp_path / "x.wav"), "offset": seconds - 6.83, "duration": 6.83}
    (tmp_path / "m.json").write_text(json.dumps(entry))
    code, out, err = cli(tmp_path / "m.json", "--device", "cpu")
    assert (code, out) == (0, f"{CLIP_WORDS}\n")
    assert "s]: longer than a wav header can state: read to its end at" in err
