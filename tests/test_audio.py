"""Any sound file becomes 16 kHz mono float32; what is no sound is named in one line."""

import numpy as np
import pytest
import soundfile
import soxr

from nemotron_npu.audio import check_audio, read_audio, sine
from nemotron_npu.errors import InputError


def tone(seconds: float, rate: int, channels: int = 1) -> np.ndarray:
    wave = 0.4 * np.sin(2 * np.pi * 300 * np.arange(int(seconds * rate)) / rate)
    return np.repeat(wave[:, None], channels, axis=1).astype(np.float32)


def test_the_sine_is_the_one_of_the_write_up():
    t = np.linspace(0, 1.0, 16000, dtype=np.float32)
    assert np.array_equal(sine(), 0.5 * np.sin(2 * np.pi * 440 * t).astype(np.float32))
    assert sine().dtype == np.float32


@pytest.mark.parametrize("suffix", ["wav", "flac", "ogg", "mp3"])
@pytest.mark.parametrize("rate, channels", [(8000, 1), (16000, 2), (44100, 2), (48000, 1)])
def test_every_format_rate_and_channel_count_becomes_the_same_tone(tmp_path, suffix, rate, channels):
    path = tmp_path / f"tone.{suffix}"
    soundfile.write(path, tone(1.0, rate, channels), rate)
    samples = read_audio(str(path))
    assert samples.dtype == np.float32 and samples.ndim == 1 and samples.flags.c_contiguous
    assert abs(len(samples) - 16000) <= 1200  # mp3 pads
    spectrum = np.abs(np.fft.rfft(samples[2000:14000]))
    assert abs(spectrum.argmax() * 16000 / 12000 - 300) < 3
    assert 0.35 < np.abs(samples[2000:14000]).max() < 0.45


@pytest.mark.parametrize("subtype", ["PCM_U8", "PCM_16", "PCM_24", "PCM_32", "FLOAT", "DOUBLE", "ULAW", "ALAW"])
def test_every_sample_format_is_scaled_to_one(tmp_path, subtype):
    path = tmp_path / "tone.wav"
    soundfile.write(path, tone(0.5, 16000), 16000, subtype=subtype)
    np.testing.assert_allclose(read_audio(str(path)), tone(0.5, 16000)[:, 0], atol=0.02)


def test_sixteen_kilohertz_mono_is_returned_bit_for_bit(tmp_path):
    path = tmp_path / "tone.wav"
    soundfile.write(path, tone(0.5, 16000), 16000, subtype="FLOAT")
    assert np.array_equal(read_audio(str(path)), tone(0.5, 16000)[:, 0])


def test_channels_are_averaged(tmp_path):
    path = tmp_path / "stereo.wav"
    soundfile.write(path, np.stack([np.full(100, 0.5), np.full(100, -0.1)], 1), 16000, subtype="FLOAT")
    np.testing.assert_allclose(read_audio(str(path)), 0.2, atol=1e-6)


def test_other_rates_are_resampled_by_soxr(tmp_path):
    path = tmp_path / "tone.wav"
    soundfile.write(path, tone(0.5, 22050), 22050, subtype="FLOAT")
    assert np.array_equal(read_audio(str(path)), soxr.resample(tone(0.5, 22050)[:, 0], 22050, 16000))


def _missing(path):
    pass


def _folder(path):
    path.mkdir()


def _empty(path):
    path.write_bytes(b"")


def _text(path):
    path.write_text("these are words, not sound\n" * 40)


def _noise(path):
    path.write_bytes(np.random.default_rng(0).bytes(5000))


def _no_samples(path):
    soundfile.write(path, np.zeros(0), 16000)


def _nan(path):
    soundfile.write(path, np.array([0.0, np.nan, 0.1]), 16000, subtype="FLOAT")


@pytest.mark.parametrize(
    "make, words",
    [
        (_missing, "No such file"),
        (_folder, "directory"),
        (_empty, "empty"),
        (_text, "not audio"),
        (_noise, "not audio"),
        (_no_samples, "no samples"),
        (_nan, "not finite"),
    ],
)
def test_what_is_no_sound_is_named_in_one_line(tmp_path, make, words):
    path = tmp_path / "bad.wav"
    make(path)
    with pytest.raises(InputError, match=words) as caught:
        read_audio(str(path))
    assert str(path) in str(caught.value) and "\n" not in str(caught.value)


def test_a_file_that_ends_early_gives_what_it_holds_or_a_clear_error(tmp_path):
    path = tmp_path / "cut.wav"
    soundfile.write(path, tone(1.0, 16000), 16000)
    path.write_bytes(path.read_bytes()[:20000])
    assert len(read_audio(str(path))) == (20000 - 44) // 2
    path = tmp_path / "cut.flac"
    soundfile.write(path, np.random.default_rng(0).uniform(-1, 1, 16000), 16000)
    path.write_bytes(path.read_bytes()[:9000])
    with pytest.raises(InputError, match="cut.flac"):
        read_audio(str(path))


def test_the_header_alone_tells_most_bad_files_from_good(tmp_path):
    good = tmp_path / "good.wav"
    soundfile.write(good, tone(0.1, 16000), 16000)
    check_audio(str(good))
    with pytest.raises(InputError):
        check_audio(str(tmp_path))
