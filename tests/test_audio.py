"""Any sound, of a file or live, becomes 16 kHz mono float32; what is no sound is named in one line."""

import io
import itertools
import os
import socket
import struct
import threading
import time

import numpy as np
import pytest
import soundfile
import soxr

from nemotron_npu.audio import LiveInput, check_audio, read_audio, read_blocks, sine
from nemotron_npu.errors import InputError, SetupError


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


@pytest.mark.parametrize("rate", [8000, 16000, 22050, 44100, 48000])
def test_a_long_recording_is_resampled_piece_by_piece_as_if_it_were_whole(tmp_path, rate):
    noise = np.random.default_rng(rate).uniform(-0.5, 0.5, int(64.3 * rate)).astype(np.float32)
    path = tmp_path / "noise.wav"
    soundfile.write(path, noise, rate, subtype="FLOAT")
    whole = noise if rate == 16000 else soxr.resample(noise, rate, 16000)
    blocks = list(read_blocks(str(path)))
    assert len(blocks) > 2 and max(map(len, blocks)) <= 31 * 16000
    assert np.array_equal(np.concatenate(blocks), whole) and np.array_equal(read_audio(str(path)), whole)


def test_the_header_alone_tells_most_bad_files_from_good(tmp_path):
    good = tmp_path / "good.wav"
    soundfile.write(good, tone(0.1, 16000), 16000)
    check_audio(str(good))
    with pytest.raises(InputError):
        check_audio(str(tmp_path))


# ---------------------------------------------------------------- live


def pcm(samples: np.ndarray) -> bytes:
    return (samples * 32768).astype("<i2").tobytes()


NOISE = np.round(np.random.default_rng(1).uniform(-0.5, 0.5, 4001) * 32768).astype(np.float32) / 32768
FOREVER = 0xFFFFFFFF


def chunk(name: bytes, content: bytes, size: int | None = None) -> bytes:
    size = len(content) if size is None else size
    return name + struct.pack("<I", size) + content + b"\0" * (len(content) % 2)


def pcm_format(rate: int = 16000, channels: int = 1) -> bytes:
    return chunk(b"fmt ", struct.pack("<HHIIHH", 1, channels, rate, 2 * channels * rate, 2 * channels, 16))


def wav(*chunks: bytes, size: int = FOREVER) -> bytes:
    return b"RIFF" + struct.pack("<I", size) + b"WAVE" + b"".join(chunks)


def encoded(samples: np.ndarray, rate: int, **options) -> bytes:
    buffer = io.BytesIO()
    soundfile.write(buffer, samples, rate, **options)
    return buffer.getvalue()


@pytest.fixture
def listen():
    """Take everything from a pipe into which ``data`` is written, as one array."""

    def call(data: bytes, rate: int | None = None) -> np.ndarray:
        reading, writing = os.pipe()
        source = LiveInput(reading, rate)
        with os.fdopen(writing, "wb") as pipe:
            pipe.write(data)
        return np.concatenate(list(source))

    return call


@pytest.fixture
def listen_in_pieces():
    """The same of a socket that keeps the ``pieces`` apart, as a slow pipe does."""

    def call(pieces: list[bytes]) -> np.ndarray:
        here, there = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with here, there:
            source = LiveInput(there.fileno())
            for piece in filter(None, pieces):
                here.send(piece)
            here.shutdown(socket.SHUT_WR)
            return np.concatenate(list(source))

    return call


def test_raw_pcm_is_taken_bit_for_bit(listen):
    samples = listen(pcm(NOISE))
    assert samples.dtype == np.float32 and np.array_equal(samples, NOISE)


def test_half_a_sample_at_the_end_is_dropped(listen):
    assert np.array_equal(listen(pcm(NOISE) + b"\x7f"), NOISE)


@pytest.mark.parametrize("count", [1, 2, 5, 6])
def test_a_few_raw_samples_are_sound_too(listen, count):
    assert np.array_equal(listen(pcm(NOISE[:count])), NOISE[:count])


@pytest.mark.parametrize("rate", [8000, 44100, 48000])
def test_raw_pcm_of_another_rate_is_resampled_as_a_file_is(listen, rate):
    samples = listen(pcm(NOISE), rate)
    np.testing.assert_allclose(samples, soxr.resample(NOISE, rate, 16000), atol=1e-6)


def test_samples_that_are_cut_by_the_pipe_are_put_together_again(listen_in_pieces):
    data = pcm(NOISE)
    pieces = [data[first:last] for first, last in itertools.pairwise([0, 1, 2, 5, 12, 13, 700, 701, 4000, len(data)])]
    assert np.array_equal(listen_in_pieces(pieces), NOISE)


@pytest.mark.parametrize("size", [FOREVER, 0, 0x7FFFFFFF, 0x7FFFF000, 0xFFFFFFFF - 36, None])
def test_a_wav_stream_of_unknown_length_goes_on_to_its_end(listen, size):
    assert np.array_equal(listen(wav(pcm_format(), chunk(b"data", pcm(NOISE), size))), NOISE)


def test_a_wav_stream_tells_its_own_rate_and_channels(listen):
    stereo = np.stack([NOISE, -NOISE / 2], 1)
    samples = listen(wav(pcm_format(48000, 2), chunk(b"data", pcm(stereo), FOREVER)), rate=8000)
    np.testing.assert_allclose(samples, soxr.resample(pcm_mean(stereo), 48000, 16000), atol=1e-6)


def pcm_mean(samples: np.ndarray) -> np.ndarray:
    """The mean of the channels after rounding to 16 bits."""
    return (np.frombuffer(pcm(samples), "<i2").reshape(samples.shape) / np.float32(32768)).mean(1, dtype=np.float32)


@pytest.mark.parametrize("title", [b"odd", b"even"])
def test_what_a_wav_stream_says_beside_its_sound_is_not_heard(listen, title):
    notes = chunk(b"LIST", b"INFOISFT" + title)
    sound = chunk(b"data", pcm(NOISE))
    assert np.array_equal(listen(wav(notes, pcm_format(), notes, sound, notes)), NOISE)
    assert np.array_equal(listen(wav(pcm_format(), notes, chunk(b"data", pcm(NOISE), FOREVER))), NOISE)


@pytest.mark.parametrize(
    "subtype, kind",
    [
        ("PCM_U8", "WAV"),
        ("PCM_16", "WAVEX"),
        ("PCM_24", "WAV"),
        ("PCM_24", "WAVEX"),
        ("PCM_32", "WAV"),
        ("FLOAT", "WAV"),
        ("FLOAT", "WAVEX"),
        ("DOUBLE", "WAV"),
        ("ULAW", "WAV"),
        ("ULAW", "WAVEX"),
        ("ALAW", "WAV"),
        ("PCM_16", "RF64"),
    ],
)
@pytest.mark.parametrize("channels", [1, 2])
def test_a_wav_stream_of_every_sample_format_is_heard_as_the_file_is(tmp_path, listen, subtype, kind, channels):
    samples = np.stack([NOISE, NOISE / 3], 1)[:, :channels]
    data = encoded(samples, 16000, subtype=subtype, format=kind)
    path = tmp_path / "sound.wav"
    path.write_bytes(data)
    assert np.array_equal(listen(data), read_audio(str(path)))


@pytest.mark.parametrize("size", [FOREVER, 2 * len(NOISE)])
def test_a_wav_stream_may_be_cut_at_any_byte_of_its_header(listen_in_pieces, size):
    header = wav(chunk(b"JUNK", b"odd"), pcm_format(), chunk(b"LIST", b"INFO"))
    data = header + chunk(b"data", pcm(NOISE), size) + (b"" if size == FOREVER else chunk(b"LIST", b"INFO"))
    for cut in range(1, len(header) + 12):
        assert np.array_equal(listen_in_pieces([data[:cut], data[cut:]]), NOISE), cut


def test_a_wav_stream_may_come_byte_by_byte(listen_in_pieces):
    header = wav(pcm_format(), b"data" + struct.pack("<I", FOREVER))
    data = header + pcm(NOISE[:20])
    assert np.array_equal(listen_in_pieces([data[i : i + 1] for i in range(len(data))]), NOISE[:20])


@pytest.mark.parametrize("data", [b"", b"\x7f", wav(pcm_format(), chunk(b"data", b"")), wav(pcm_format())[:44]])
def test_a_stream_without_sound_is_named_in_one_line(listen, data):
    with pytest.raises(InputError, match="stdin: ") as caught:
        listen(data)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("kind", ["FLAC", "OGG"])
def test_a_compressed_stream_is_refused_with_the_remedy(listen, kind):
    with pytest.raises(InputError, match=f"stdin: {kind.lower()}: pipe it through ffmpeg"):
        listen(encoded(NOISE, 16000, format=kind))


@pytest.mark.parametrize("tag", [b"ID3\x04\0\0\0\0\0\0", b""])
def test_an_mp3_stream_is_refused_with_the_remedy(listen, tag):
    with pytest.raises(InputError, match="stdin: mp3: pipe it through ffmpeg"):
        listen(tag + encoded(NOISE, 16000, format="MP3"))


@pytest.mark.parametrize("kind", ["AIFF", "AU", "CAF", "W64"])
def test_other_containers_are_refused_instead_of_heard_as_raw_samples(listen, kind):
    with pytest.raises(InputError, match="stdin: .*pipe it through ffmpeg"):
        listen(encoded(NOISE, 16000, format=kind))


@pytest.mark.parametrize(
    "data, words",
    [
        (wav(chunk(b"data", pcm(NOISE))), "without a format"),
        (wav(chunk(b"fmt ", b"\1\0\1\0"), chunk(b"data", pcm(NOISE))), "broken format"),
        (wav(pcm_format(channels=0), chunk(b"data", pcm(NOISE))), "unknown kind"),
        (wav(pcm_format(rate=0), chunk(b"data", pcm(NOISE))), "unknown kind"),
        (wav(pcm_format())[:30], "ends inside its header"),
        (wav(chunk(b"LIST", b"INFO" * 1000, FOREVER)), "header"),
        (encoded(np.array([0.0, np.nan, 0.1]), 16000, format="WAV", subtype="FLOAT"), "not finite"),
        (encoded(NOISE, 16000, format="WAV", subtype="IMA_ADPCM"), "unknown kind"),
        (encoded(NOISE, 16000, format="WAV", endian="BIG"), "big-endian"),
    ],
    ids=itertools.count(),
)
def test_a_wav_stream_that_makes_no_sense_is_named_in_one_line(listen, data, words):
    with pytest.raises(InputError, match=f"stdin: .*{words}") as caught:
        listen(data)
    assert "\n" not in str(caught.value)


def test_a_header_that_never_ends_is_given_up_while_the_stream_goes_on():
    reading, writing = os.pipe()
    source, gave_up = LiveInput(reading), threading.Event()

    def write():
        data = wav(chunk(b"LIST", b"", FOREVER)) + bytes(1 << 16)
        while not gave_up.is_set():
            os.write(writing, data)
            data = bytes(1 << 16)
            time.sleep(0.002)
        os.close(writing)

    writer = threading.Thread(target=write)
    writer.start()
    overdue = threading.Timer(10, gave_up.set)
    overdue.start()
    try:
        with pytest.raises(InputError, match="stdin: .*header"):
            next(iter(source))
        assert not gave_up.is_set(), "only the end of the stream ended it"
    finally:
        gave_up.set()
        overdue.cancel()
        writer.join()


def test_a_terminal_is_no_source_of_sound():
    primary, terminal = os.openpty()
    with pytest.raises(SetupError, match="stdin is a terminal"):
        LiveInput(terminal)
    os.close(primary)
    os.close(terminal)


def test_the_speaker_never_waits_for_a_recogniser_that_is_late():
    reading, writing = os.pipe()
    source = LiveInput(reading)
    minute = pcm(np.tile(NOISE, 240))
    sent = threading.Thread(target=lambda: (os.write(writing, minute), os.close(writing)))
    sent.start()
    sent.join(10)
    assert not sent.is_alive(), "a pipe holds 64 KiB: the rest must have been read"
    assert np.array_equal(np.concatenate(list(source)), np.tile(NOISE, 240))


def test_a_stopped_stream_ends_with_what_has_come():
    reading, writing = os.pipe()
    source = LiveInput(reading)
    os.write(writing, pcm(NOISE))
    while source.received < 2 * len(NOISE):
        time.sleep(0.001)
    source.stop()
    assert np.array_equal(np.concatenate(list(source)), NOISE)
    os.close(writing)


def test_the_delay_is_that_behind_a_live_speaker(monkeypatch):
    reading, writing = os.pipe()
    source = LiveInput(reading)
    assert source.delay(0) == 0, "nobody has spoken yet"
    clock = 100.0
    monkeypatch.setattr("nemotron_npu.audio.time.monotonic", lambda: clock)
    source.began, source.received = 100.0, 0
    clock, source.received = 105.0, 5 * 32000
    assert source.delay(5.0) == pytest.approx(0)
    assert source.delay(2.0) == pytest.approx(3), "2 of 5 s are recognised"
    clock = 110.0
    assert source.delay(5.0) == pytest.approx(0), "the speaker pauses"
    clock, source.received = 111.0, 3600 * 32000
    assert source.delay(60.0) < 0, "an hour that came at once is ahead of its time"
    os.close(writing)


def test_the_delay_knows_the_rate_of_the_stream(monkeypatch):
    reading, writing = os.pipe()
    source = LiveInput(reading, 8000)
    clock = 110.0
    monkeypatch.setattr("nemotron_npu.audio.time.monotonic", lambda: clock)
    source.began, source.received = 100.0, 4 * 16000
    assert source.delay(1.0) == pytest.approx(3)
    os.close(writing)
