"""Live audio from a pipe, wav or raw PCM, becomes 16 kHz mono float32; any other stream is refused in one line."""

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
from hostile_audio import clip_at
from media_files import CONTAINERS, media_bytes

from nemotron_npu.audio import read_audio
from nemotron_npu.errors import InputError, SetupError
from nemotron_npu.live_input import LiveInput
from nemotron_npu.media import is_media


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

    def call(data: bytes, rate: int | None = None, **options) -> np.ndarray:
        reading, writing = os.pipe()
        source = LiveInput(reading, rate, **options)
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


def test_raw_pcm_is_returned_unchanged(listen):
    """16-bit samples at 16 kHz are exact in float32."""
    samples = listen(pcm(NOISE))
    assert samples.dtype == np.float32 and np.array_equal(samples, NOISE)


def test_raw_pcm_half_a_sample_at_the_end_is_dropped(listen):
    """A pipe may end in the middle of a sample."""
    assert np.array_equal(listen(pcm(NOISE) + b"\x7f"), NOISE)


@pytest.mark.parametrize("count", [1, 2, 5, 6])
def test_raw_pcm_of_a_few_samples_is_accepted(listen, count):
    """Streams shorter than a wav header are audio too."""
    assert np.array_equal(listen(pcm(NOISE[:count])), NOISE[:count])


@pytest.mark.parametrize("rate", [8000, 44100, 48000])
def test_raw_pcm_of_another_rate_is_resampled(listen, rate):
    """Raw samples are resampled as those of a file are."""
    samples = listen(pcm(NOISE), rate)
    np.testing.assert_allclose(samples, soxr.resample(NOISE, rate, 16000), atol=1e-6)


def test_raw_pcm_cut_between_bytes_is_joined(listen_in_pieces):
    """Reads that end inside a sample lose nothing."""
    data = pcm(NOISE)
    pieces = [data[first:last] for first, last in itertools.pairwise([0, 1, 2, 5, 12, 13, 700, 701, 4000, len(data)])]
    assert np.array_equal(listen_in_pieces(pieces), NOISE)


@pytest.mark.parametrize("size", [FOREVER, 0, 0x7FFFFFFF, 0x7FFFF000, 0xFFFFFFFF - 36, None])
def test_wav_of_unknown_length_is_read_to_its_end(listen, size):
    """Sizes that programs write into pipes mean that the length is unknown."""
    assert np.array_equal(listen(wav(pcm_format(), chunk(b"data", pcm(NOISE), size))), NOISE)


def test_wav_states_its_own_rate_and_channels(listen):
    """The header of a wav wins over --sample_rate."""
    stereo = np.stack([NOISE, -NOISE / 2], 1)
    samples = listen(wav(pcm_format(48000, 2), chunk(b"data", pcm(stereo), FOREVER)), rate=8000)
    np.testing.assert_allclose(samples, soxr.resample(pcm_mean(stereo), 48000, 16000), atol=1e-6)


def pcm_mean(samples: np.ndarray) -> np.ndarray:
    """The mean of the channels after rounding to 16 bits."""
    return (np.frombuffer(pcm(samples), "<i2").reshape(samples.shape) / np.float32(32768)).mean(1, dtype=np.float32)


@pytest.mark.parametrize("title", [b"odd", b"even"])
def test_wav_chunks_before_and_after_samples_are_skipped(listen, title):
    """Titles and notes are not decoded as samples."""
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
def test_wav_of_any_encoding_equals_the_file(tmp_path, listen, subtype, kind, channels):
    """A stream and a file with the same bytes give the same samples."""
    samples = np.stack([NOISE, NOISE / 3], 1)[:, :channels]
    data = encoded(samples, 16000, subtype=subtype, format=kind)
    path = tmp_path / "sound.wav"
    path.write_bytes(data)
    assert np.array_equal(listen(data), read_audio(str(path)))


@pytest.mark.parametrize("size", [FOREVER, 2 * len(NOISE)])
def test_wav_header_may_be_cut_at_any_byte(listen_in_pieces, size):
    """Reads may end anywhere inside the header."""
    header = wav(chunk(b"JUNK", b"odd"), pcm_format(), chunk(b"LIST", b"INFO"))
    data = header + chunk(b"data", pcm(NOISE), size) + (b"" if size == FOREVER else chunk(b"LIST", b"INFO"))
    for cut in range(1, len(header) + 12):
        assert np.array_equal(listen_in_pieces([data[:cut], data[cut:]]), NOISE), cut


def test_wav_may_arrive_byte_by_byte(listen_in_pieces):
    """Reads of one byte lose nothing."""
    header = wav(pcm_format(), b"data" + struct.pack("<I", FOREVER))
    data = header + pcm(NOISE[:20])
    assert np.array_equal(listen_in_pieces([data[i : i + 1] for i in range(len(data))]), NOISE[:20])


@pytest.mark.parametrize("data", [b"", b"\x7f", wav(pcm_format(), chunk(b"data", b"")), wav(pcm_format())[:44]])
def test_stream_without_samples_is_an_input_error(listen, data):
    """An empty stream is reported in one line."""
    with pytest.raises(InputError, match="stdin: ") as caught:
        listen(data)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("kind", ["FLAC", "AIFF", "AU", "CAF", "W64"])
def test_lossless_streams_are_decoded(listen, kind):
    """Every sample of the stream arrives."""
    np.testing.assert_allclose(listen(encoded(NOISE, 16000, format=kind)), NOISE, atol=1e-6)


@pytest.mark.parametrize("name", [*CONTAINERS, "mp3", "cut mp3", "ogg"])
def test_compressed_streams_are_decoded(listen, tmp_path, name):
    """With or without a signature, seekable or not: what arrives equals what a file gives."""
    if name in CONTAINERS:
        data = media_bytes(name)
    else:
        data = encoded(clip_at(16000), 16000, format=name[-3:].upper())
        data = data[1000:] if name == "cut mp3" else data
    (tmp_path / "x").write_bytes(data)
    samples, expected = listen(data), read_audio(tmp_path / "x")
    frame = CONTAINERS[name][3] if name in CONTAINERS else 1152
    assert abs(len(samples) - len(expected)) <= 2 * frame  # libsndfile and ffmpeg drop other parts of an mp3's padding
    if name in CONTAINERS:
        assert np.array_equal(samples, expected)


def test_raw_is_not_looked_at(listen):
    """With ``raw`` a stream is PCM, even if it has the signature of another format."""
    data = b"fLaC" + pcm(NOISE)
    assert len(listen(data, raw=True)) == 2 + len(NOISE)
    assert not is_media(pcm(NOISE))


@pytest.mark.parametrize(
    "data, words",
    [
        (wav(chunk(b"data", pcm(NOISE))), "without a fmt chunk"),
        (wav(chunk(b"fmt ", b"\1\0\1\0"), chunk(b"data", pcm(NOISE))), "broken fmt chunk"),
        (wav(pcm_format(channels=0), chunk(b"data", pcm(NOISE))), "unsupported wav stream"),
        (wav(pcm_format(rate=0), chunk(b"data", pcm(NOISE))), "unsupported wav stream"),
        (wav(pcm_format())[:30], "ends inside the wav header"),
        (wav(chunk(b"LIST", b"INFO" * 1000, FOREVER)), "header"),
        (encoded(np.array([0.0, np.nan, 0.1]), 16000, format="WAV", subtype="FLOAT"), "samples are NaN"),
        (wav(chunk(b"fmt ", struct.pack("<HHIIHH", 99, 1, 16000, 32000, 2, 16)), chunk(b"data", pcm(NOISE))), "unsupp"),
        (encoded(NOISE, 16000, format="WAV", endian="BIG"), "big-endian"),
        (b"these are words, not sound\n" * 9, "is text, not audio"),
    ],
    ids=itertools.count(),
)
def test_invalid_wav_stream_is_an_input_error(listen, data, words):
    """Each defect is reported in one line."""
    with pytest.raises(InputError, match=f"stdin: .*{words}") as caught:
        listen(data)
    assert "\n" not in str(caught.value)


def test_endless_header_is_refused_while_the_stream_lasts():
    """The error does not wait for the end of the stream."""
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


def test_terminal_is_a_setup_error():
    """A terminal as stdin is refused at once."""
    primary, terminal = os.openpty()
    with pytest.raises(SetupError, match="stdin is a terminal"):
        LiveInput(terminal)
    os.close(primary)
    os.close(terminal)


def test_pipe_is_read_while_nobody_takes_samples():
    """A recorder never waits for transcription that is late."""
    reading, writing = os.pipe()
    source = LiveInput(reading)
    minute = pcm(np.tile(NOISE, 240))
    sent = threading.Thread(target=lambda: (os.write(writing, minute), os.close(writing)))
    sent.start()
    sent.join(10)
    assert not sent.is_alive(), "a pipe holds 64 KiB: the rest must have been read"
    assert np.array_equal(np.concatenate(list(source)), np.tile(NOISE, 240))


def test_stopped_stream_ends_after_what_has_arrived():
    """Samples that have arrived before stop() are returned."""
    reading, writing = os.pipe()
    source = LiveInput(reading)
    os.write(writing, pcm(NOISE))
    while source.received < 2 * len(NOISE):
        time.sleep(0.001)
    source.stop()
    assert np.array_equal(np.concatenate(list(source)), NOISE)
    os.close(writing)


def test_delay_is_relative_to_a_live_speaker(monkeypatch):
    """Neither pauses nor audio faster than real time count as delay."""
    reading, writing = os.pipe()
    source = LiveInput(reading)
    assert source.delay(0) == 0, "nobody has spoken yet"
    clock = 100.0
    monkeypatch.setattr("nemotron_npu.live_input.time.monotonic", lambda: clock)
    source.started, source.received = 100.0, 0
    clock, source.received = 105.0, 5 * 32000
    assert source.delay(5.0) == pytest.approx(0)
    assert source.delay(2.0) == pytest.approx(3), "2 of 5 s are recognised"
    clock = 110.0
    assert source.delay(5.0) == pytest.approx(0), "the speaker pauses"
    clock, source.received = 111.0, 3600 * 32000
    assert source.delay(60.0) < 0, "an hour that came at once is ahead of its time"
    os.close(writing)


def test_delay_depends_on_the_rate_of_the_stream(monkeypatch):
    """Seconds are computed from the stream's own rate."""
    reading, writing = os.pipe()
    source = LiveInput(reading, 8000)
    clock = 110.0
    monkeypatch.setattr("nemotron_npu.live_input.time.monotonic", lambda: clock)
    source.started, source.received = 100.0, 4 * 16000
    assert source.delay(1.0) == pytest.approx(3)
    os.close(writing)


@pytest.mark.parametrize("live", [False, True])
def test_pipe_faster_than_real_time_waits_unless_live(monkeypatch, live):
    """A pipe that is faster than real time has to wait; a live speaker never has to, however late the reader is."""
    monkeypatch.setattr("nemotron_npu.live_input.BACKLOG_BYTES", 200_000)
    reading, writing = os.pipe()
    source = LiveInput(reading)
    if live:
        source.started = time.monotonic() - 100
    writer = threading.Thread(target=lambda: (os.write(writing, bytes(2_000_000)), os.close(writing)))
    writer.start()
    time.sleep(0.4)
    assert source.received == 2_000_000 if live else 200_000 <= source.received < 400_000
    assert sum(len(samples) for samples in source) == 1_000_000
    writer.join()
    os.close(reading)


def rf64(size: int) -> bytes:
    """A wav whose size is in its ds64 chunk, with a note behind the samples."""
    ds64 = chunk(b"ds64", struct.pack("<QQQI", 0, size, len(NOISE), 0))
    data = ds64 + pcm_format() + chunk(b"data", pcm(NOISE), FOREVER)
    return b"RF64" + struct.pack("<I", FOREVER) + b"WAVE" + data


NOTE = chunk(b"LIST", bytes(200_000))
ONE = wav(pcm_format(), chunk(b"data", pcm(NOISE)), size=36 + 2 * len(NOISE))
ENDLESS = wav(pcm_format(), chunk(b"data", pcm(NOISE), FOREVER))
EMPTY = wav(pcm_format(), chunk(b"data", pcm(NOISE), 0))


def test_rf64_stream_ends_with_its_samples(listen):
    """The size is in the ds64 chunk; chunks behind the samples are not audio."""
    assert np.array_equal(listen(rf64(2 * len(NOISE)) + NOTE), NOISE)


@pytest.mark.parametrize("size", [0, (1 << 64) - 1])
def test_rf64_stream_of_unknown_size_is_read_to_its_end(listen, size):
    """A recorder fills the ds64 chunk in when it ends."""
    assert np.array_equal(listen(rf64(size)), NOISE)


@pytest.mark.parametrize(
    "data, wavs",
    [
        (ONE * 2, 2),
        (ONE + NOTE + ONE + b"\0" * 512 + ONE, 3),
        (ENDLESS * 3, 3),
        (EMPTY * 3, 3),
        (EMPTY + ENDLESS + ONE, 3),
        (rf64(2 * len(NOISE)) + NOTE + ONE, 2),
        (rf64(0) * 2, 2),
    ],
    ids=["sized", "notes and zeros between", "unknown size", "size 0", "mixed", "rf64", "rf64 of unknown size"],
)
def test_several_wavs_in_a_stream_are_all_samples(listen, listen_in_pieces, data, wavs):
    """Each header begins the next wav, whatever the one before stated; a header is not audio."""
    expected = np.tile(NOISE, wavs)
    assert np.array_equal(listen(data), expected)
    assert np.array_equal(listen_in_pieces([data[i : i + 37] for i in range(0, len(data), 37)]), expected)


def test_several_wavs_of_other_rates_and_channels_are_joined(listen):
    """Each wav has its own rate and channels."""
    stereo = wav(pcm_format(8000, 2), chunk(b"data", pcm(np.repeat(NOISE, 2))))
    samples = listen(ONE + stereo)
    assert np.array_equal(samples[: len(NOISE)], NOISE)
    np.testing.assert_allclose(samples[len(NOISE) :], soxr.resample(NOISE, 8000, 16000), atol=1e-6)


def test_wav_with_a_large_chunk_first_does_not_wait():
    """A header larger than the backlog does not wait for real time."""
    began = time.monotonic()
    data = wav(pcm_format(), chunk(b"LIST", bytes(12 << 20)), chunk(b"data", pcm(NOISE)))
    reading, writing = os.pipe()
    source = LiveInput(reading)
    threading.Thread(target=lambda: os.write(writing, data), daemon=True).start()
    first = next(samples for samples in source if len(samples))
    assert np.array_equal(first, NOISE[: len(first)])
    assert time.monotonic() - began < 20


def packed(bits: int, width: int) -> bytes:
    """NOISE as integers of so many bits, the upper ones of so many bytes."""
    values = np.round(NOISE * (1 << (bits - 1))).astype(np.int64) << (8 * width - bits)
    return values.astype("<i8").view(np.uint8).reshape(-1, 8)[:, :width].tobytes()


@pytest.mark.parametrize("bits, width", [(20, 3), (20, 4), (24, 4), (18, 3)])
@pytest.mark.parametrize("header", ["plain", "valid bits", "bits of the container"])
def test_wav_samples_fill_the_upper_bits_of_whole_bytes(listen, bits, width, header):
    """20 bits lie in 24, and 24 in 32: both kinds of header that programs write for it."""
    stated = 8 * width if header == "bits of the container" else bits
    tag = 1 if header == "plain" else 0xFFFE
    layout = struct.pack("<HHIIHH", tag, 1, 16000, 16000 * width, width, stated)
    if tag != 1:
        layout += struct.pack("<HHI", 22, bits, 0) + bytes.fromhex("0100000000001000800000aa00389b71")
    assert np.array_equal(listen(wav(chunk(b"fmt ", layout), chunk(b"data", packed(bits, width)))), NOISE)


@pytest.mark.parametrize("subtype", ["IMA_ADPCM", "MS_ADPCM"])
def test_compressed_wav_streams_are_decoded(listen, subtype):
    """What is not PCM goes through PyAV; the last block of the codec is filled up."""
    quiet = NOISE[:1] + np.sin(np.arange(4001, dtype=np.float32) / 40) / 2
    samples = listen(encoded(quiet, 16000, format="WAV", subtype=subtype))
    assert 0 <= len(samples) - len(quiet) < 1024
    np.testing.assert_allclose(samples[500:4000], quiet[500:4000], atol=0.02)


@pytest.mark.parametrize("sign, remark", [(-1, "cancel each other out"), (1, "None")])
def test_channels_of_a_stream_that_cancel_are_noticed(sign, remark):
    """One channel is the other, inverted: nothing is left of both."""
    reading, writing = os.pipe()
    source = LiveInput(reading)
    data = wav(pcm_format(16000, 2), chunk(b"data", pcm(np.stack([NOISE, sign * NOISE], 1))))
    with os.fdopen(writing, "wb") as pipe:
        pipe.write(data)
    assert sum(map(len, source)) == len(NOISE)
    assert remark in str(source.info.remark)
