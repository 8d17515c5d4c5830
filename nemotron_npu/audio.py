"""Decode audio files to blocks of 16 kHz mono samples: float32 [samples], full scale 1."""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from typing import Any, Protocol, TypeGuard

import numpy as np
import soundfile
import soxr

from .containers import (
    UNKNOWN_FRAMES,
    AudioFile,
    AudioInfo,
    ForeignFormat,
    file_version,
    library_reason,
    open_audio,
    open_regular,
)
from .errors import InputError
from .media import Media, open_media

SINE = "1 s sine of 440 Hz"  # name of the reference guide's input
SAMPLE_RATE = 16_000  # Hz, of the audio that the model was trained on
FULL_SCALE = 32768  # of int16 samples
EXPECTED = "expected float32 in -1 .. 1 or int16, numpy or torch"
MAX_LEVEL = 1000  # of float samples: larger ones are integers that were never scaled
EVERY_CHANNEL = 0  # in place of a channel's number: all, each by itself
CANCELS = "its channels cancel each other out when they are mixed (take --channel 1, or --channel each)"
BLOCK_SECONDS = 30  # decoded at a time
BLOCK_VALUES = 1 << 24  # decoded at a time at most, counting all channels


class HasBlocks(Protocol):
    """Any source of 16 kHz mono audio, such as a ``Recording``."""

    def blocks(self) -> Iterator[np.ndarray]:
        """Yield float32 [samples]."""


@dataclass(frozen=True)
class Selection:
    """The part of a file's audio to read."""

    channel: int | None = None
    """From 1 on; None averages all."""
    track: int = 1
    """Audio track of a container, from 1 on."""


DEFAULT = Selection()


class Tensor(Protocol):
    """A torch.Tensor, on any device: this module does not load torch, which takes a second."""

    def detach(self) -> Any:
        """Return it without its gradient."""


Samples = np.ndarray | Tensor
"""Audio at 16 kHz: float32 in -1 .. 1 or int16, [samples] or [samples, 1]."""
Source = Samples | str | os.PathLike | HasBlocks
"""One recording: ``Samples``, the path of a file, or an object with ``blocks()``."""


def sine() -> np.ndarray:
    """Return the reference guide's test signal, float32 [16000]: 1 s of 440 Hz, computed exactly as there."""
    t = np.linspace(0, 1.0, SAMPLE_RATE, dtype=np.float32)
    return 0.5 * np.sin(2 * np.pi * 440 * t).astype(np.float32)


def check_audio(path: str, selection: Selection = DEFAULT) -> AudioInfo:
    """Read the header of a file, without decoding.

    Raises InputError for a file that is known to be unreadable before a model is loaded, or lacks this track or
    channel.
    """
    try:
        with _open_sound(path, selection.track) as file:
            info = _info(file)
    except ForeignFormat as error:
        with _open_foreign(path, error, selection.track, probe=True) as media:
            info = media.info
    check_channel(path, selection.channel, info.channels)
    return info


def read_audio(source: Source) -> np.ndarray:
    """Return all ``blocks`` of a recording in one array, float32 [samples]."""
    return np.concatenate(list(blocks(source)))


def is_source(value: object) -> TypeGuard[Source]:
    """Return whether ``value`` is one recording and not a list of recordings."""
    return isinstance(value, (np.ndarray, str, os.PathLike)) or hasattr(value, "blocks") or hasattr(value, "detach")


def blocks(source: Source) -> Iterator[np.ndarray]:
    """Yield the audio of a recording in blocks, float32 [samples] at 16 kHz.  Raises InputError."""
    if isinstance(source, (str, os.PathLike)):
        return read_blocks(str(source))
    if isinstance(source, np.ndarray) or not hasattr(source, "blocks"):
        return split_blocks(to_samples(source))
    return source.blocks()


def to_samples(audio: Samples) -> np.ndarray:
    """Return audio as the model takes it: float32 [samples]; int16 is divided by 32768.

    For anything else, raises TypeError that names the type, the shape or the level.
    """
    given = audio.detach().cpu().numpy() if hasattr(audio, "detach") else audio
    if not isinstance(given, np.ndarray):
        raise TypeError(f"samples are of type {type(audio).__name__}: {EXPECTED}")
    kind = given.dtype.kind + str(given.dtype.itemsize)
    if kind not in ("f4", "i2"):
        raise TypeError(f"samples are {given.dtype}: {EXPECTED}")
    if given.ndim not in (1, 2) or given.shape[1:] not in ((), (1,)):
        raise TypeError(f"samples have shape {list(given.shape)}: expected one channel, [samples] or [samples, 1]")
    samples = np.ascontiguousarray(given.reshape(-1), dtype=np.float32)
    if kind == "i2":
        return samples / FULL_SCALE
    if len(samples) and (level := np.abs(samples).max()) > MAX_LEVEL:
        raise TypeError(f"samples reach {level:.2g}, where full scale is 1: {EXPECTED}")
    return samples


def split_blocks(samples: np.ndarray) -> Iterator[np.ndarray]:
    """Yield samples at 16 kHz in blocks as long as those of ``read_blocks``."""
    size = BLOCK_SECONDS * SAMPLE_RATE
    return (samples[first : first + size] for first in range(0, len(samples), size))


def counted(blocks: Iterable[np.ndarray], on_read: Callable[[float], None]) -> Iterator[np.ndarray]:
    """Yield ``blocks`` unchanged; call ``on_read`` with the seconds of each before it is yielded."""
    for samples in blocks:
        on_read(len(samples) / SAMPLE_RATE)
        yield samples


def read_blocks(
    path: str,
    offset: float = 0.0,
    duration: float | None = None,
    *,
    selection: Selection = DEFAULT,
    on_open: Callable[[AudioInfo], None] | None = None,
) -> Iterator[np.ndarray]:
    """Decode a file in blocks, float32 [samples] at 16 kHz; memory does not grow with its length.

    Channels are averaged, or that of the ``selection`` is taken; other rates are resampled by soxr (HQ).  Only
    ``duration`` seconds from ``offset`` are read, cut to whole samples of the file as NeMo cuts the entries of a
    manifest; None or 0 reads all that follow.  ``on_open`` gets what ``check_audio`` returns, and again, with a remark,
    after channels that cancel each other out.
    Raises InputError if the file is missing, unreadable, not audio, broken, empty or truncated while it is read, if it
    has no such track or channel, if the offset is past its end, or if samples are not finite.
    """
    with ExitStack() as stack:
        try:
            file = stack.enter_context(_open_sound(path, selection.track))
        except ForeignFormat as error:
            media = stack.enter_context(_open_foreign(path, error, selection.track))
            info, first, decoded = media.info, 0, media.blocks()
        else:
            info, first = _info(file), _seekable_frames(file, offset)
            decoded = _sound_blocks(file, first, _max_frames(duration, file.sound.samplerate))
        if on_open:
            on_open(info)
        mixer = Mixer(path, selection.channel)
        yield from Part(path, info.sample_rate, offset, duration, first).cut(decoded, mixer)
        if on_open and mixer.cancels:
            on_open(replace(info, remark="; ".join(filter(None, (info.remark, CANCELS)))))


@dataclass(frozen=True)
class Part:
    """The part of a recording from ``offset`` (s) on, ``duration`` (s) long; the decoder begins at sample ``first``."""

    name: str
    """The file or stream, for messages."""
    rate: int
    """Hz, of the first samples."""
    offset: float = 0.0
    duration: float | None = None
    first: int = 0

    def cut(self, blocks: Iterable[tuple[int, np.ndarray]], mixer: Mixer) -> Iterator[np.ndarray]:
        """Take (rate in Hz, float32 [samples, channels]) from the decoder; yield the part, as one channel, resampled.

        Raises InputError if it has no samples, and as ``Mixer`` does.
        """
        resampler = Resampler(self.rate)
        skipped = int(self.offset * self.rate) - self.first
        left = _max_frames(self.duration, self.rate)
        seconds, is_empty = self.first / self.rate, True
        for rate, samples in blocks:
            if rate != resampler.rate:
                yield resampler.finish()
                skipped = skipped * rate // resampler.rate
                left = left if left == math.inf else left * rate // resampler.rate
                resampler = Resampler(rate)
            wanted = samples[skipped : skipped + int(min(left, len(samples)))]
            skipped = max(0, skipped - len(samples))
            left -= len(wanted)
            seconds += len(samples) / rate
            if len(wanted):
                is_empty = False
                check_samples(wanted, self.name)
                yield resampler(mixer(wanted))
            if not left:
                break
        if is_empty and self.offset and seconds:
            raise _past_the_end(self.name, self.offset, seconds)
        if is_empty:
            raise InputError(self.name, "no audio samples, only a header")
        yield resampler.finish()


class Mixer:
    """Makes one channel of several: their average, or ``channel``, from 1 on; ``EVERY_CHANNEL`` keeps them."""

    def __init__(self, name: str, channel: int | None = None) -> None:
        self.name = name
        self.channel = channel
        self.before = self.after = 0.0  # sums of squares of the channels, averaged, and of the result

    def __call__(self, samples: np.ndarray) -> np.ndarray:
        """Convert float32 [samples, channels] to [samples].  Raises InputError if there is no such channel."""
        count = samples.shape[1]
        if self.channel == EVERY_CHANNEL:
            return samples
        if self.channel:
            check_channel(self.name, self.channel, count)
            return np.ascontiguousarray(samples[:, self.channel - 1])
        mono = samples.mean(axis=1)
        if count > 1:
            self.before += float(np.square(samples).sum(dtype=np.float64)) / count
            self.after += float(np.square(mono).sum(dtype=np.float64))
        return mono

    @property
    def cancels(self) -> bool:
        """Whether the average is silent, 20 dB or more below the channels: one of them is the other, inverted."""
        return self.after < 0.01 * self.before


def check_channel(name: str, channel: int | None, count: int) -> None:
    """Raise InputError unless audio of ``count`` channels has this one, from 1 on; None averages whatever there is."""
    if channel and channel > count:
        raise InputError(name, f"no channel {channel}: it has {count}", "--channel mix averages all channels")


class Resampler:
    """Convert samples of any rate to 16 kHz, block by block."""

    def __init__(self, rate: int) -> None:
        self.rate = rate
        self.stream: soxr.ResampleStream | None = None
        self.channels: tuple[int, ...] = ()
        """The shape of a sample: () or (channels,)."""

    def __call__(self, samples: np.ndarray, *, last: bool = False) -> np.ndarray:
        """Convert float32 [samples] or [samples, channels] to 16 kHz, as many as are final yet."""
        self.channels = samples.shape[1:]
        if self.rate != SAMPLE_RATE:
            if self.stream is None:
                self.stream = soxr.ResampleStream(self.rate, SAMPLE_RATE, *(self.channels or (1,)))
            samples = self.stream.resample_chunk(samples, last=last)
        return np.ascontiguousarray(samples, dtype=np.float32)

    def finish(self) -> np.ndarray:
        """Return the samples that the resampler still holds."""
        return self(np.zeros((0, *self.channels), np.float32), last=True)


def check_samples(samples: np.ndarray, name: str) -> None:
    """Raise InputError for samples that no model can use; ``name`` is the file or stream."""
    largest = max(samples.max(), -samples.min())  # NaN if one of them is
    if not np.isfinite(largest):
        raise InputError(name, "samples are NaN or infinite", "re-encode it as 16-bit PCM")
    if largest > MAX_LEVEL:
        problem = f"samples reach {largest:.2g}, where full scale is 1"
        raise InputError(name, problem, "scale them: ffmpeg -i FILE -af volume=1/32768 FILE.wav")


def no_track(name: str, track: int) -> ForeignFormat:
    """Return the error for a track of a file that has only one."""
    return ForeignFormat(name, f"no audio track {track}: it has 1")


@contextmanager
def _open_sound(path: str, track: int) -> Iterator[AudioFile]:
    """Open a file with libsndfile, which supports one track only.  Raises InputError."""
    with open_audio(path) as file:
        if track > 1:  # Ogg may have others
            raise no_track(path, track)
        yield file


@contextmanager
def _open_foreign(path: str, reason: ForeignFormat, track: int, *, probe: bool = False) -> Iterator[Media]:
    """Open a file that libsndfile does not read.  Raises InputError: ``reason`` if it is no other format either."""
    descriptor = open_regular(path)
    try:
        with open_media(descriptor, path, track, probe=probe) as media:
            yield media
    except ForeignFormat:
        raise reason from None
    finally:
        os.close(descriptor)


def _info(file: AudioFile) -> AudioInfo:
    sound = file.sound
    seconds = sound.frames / sound.samplerate if sound.frames < UNKNOWN_FRAMES else None
    version = file_version(file.descriptor)
    return AudioInfo(sound.samplerate, sound.channels, sound.format, seconds, file.remark, version)


def _seekable_frames(file: AudioFile, offset: float) -> int:
    """Return the number of samples before ``offset`` (s) if the file can be read from there, else 0.

    Raises InputError if the file has no more than these.
    """
    sound = file.sound
    frames = int(offset * sound.samplerate)
    if frames and offset * sound.samplerate >= sound.frames and not file.has_parts:
        raise _past_the_end(file.path, offset, sound.frames / sound.samplerate)
    return frames if sound.seekable() and frames < sound.frames else 0  # GSM and other telephone codecs cannot


def _past_the_end(name: str, offset: float, seconds: float) -> InputError:
    return InputError(name, f"offset {offset:g} s is past the end at {seconds:.3f} s")


def _max_frames(duration: float | None, rate: int) -> float:
    """Return the number of samples in ``duration`` (s); infinity for all."""
    frames = duration * rate if duration else math.inf
    return int(frames) if frames < UNKNOWN_FRAMES else math.inf


def _sound_blocks(file: AudioFile, first: int, at_once: float) -> Iterator[tuple[int, np.ndarray]]:
    """Yield rate (Hz) and samples, float32 [samples, channels], from sample ``first`` on; at most ``at_once`` of them.

    Raises InputError.
    """
    size = file.size()
    for part in file.parts():
        for samples in _decode(part, file.path, first, at_once):
            yield part.samplerate, samples
        first = 0
    if file.size() < size:
        raise InputError(file.path, "was truncated while it was read", "wait until it is complete, and run again")


def _decode(sound: soundfile.SoundFile, path: str, first: int, at_once: float) -> Iterator[np.ndarray]:
    """Yield samples from sample ``first`` on in blocks: float32 [samples, channels]."""
    size = int(min(BLOCK_SECONDS * sound.samplerate, BLOCK_VALUES // sound.channels, max(1, at_once)))
    position = first
    try:
        if first:
            sound.seek(first)
        while len(samples := sound.read(size, dtype="float32", always_2d=True)):
            position += len(samples)
            yield samples
    except soundfile.SoundFileError as error:
        raise _broken(path, position / sound.samplerate, error) from error


def _broken(path: str, seconds: float, error: Exception) -> InputError:
    """Return the error for a file that can be decoded up to here."""
    position = f" after {seconds:.1f} s" if seconds else ""
    problem = f"broken audio{position}: {library_reason(error)}"
    return InputError(path, problem, "keep what can be read: ffmpeg -i FILE FILE.wav")
