"""Sound in: files of any kind that libsndfile reads, and the write-up's sine, as 16 kHz mono float32 in [-1, 1]."""

from __future__ import annotations

import os

import numpy as np
import soundfile
import soxr

from .errors import InputError

SAMPLE_RATE = 16_000  # Hz, what the model was trained on


def sine() -> np.ndarray:
    """The write-up's test signal: 1 s of 440 Hz at amplitude 0.5, as it computes it.  float32 [16000]."""
    t = np.linspace(0, 1.0, SAMPLE_RATE, dtype=np.float32)
    return 0.5 * np.sin(2 * np.pi * 440 * t).astype(np.float32)


def check_audio(path: str) -> None:
    """Look at the header only: raise InputError for what can be known to be unreadable before a model is loaded."""
    with _open(path):
        pass


def read_audio(path: str) -> np.ndarray:
    """Decode ``path`` to float32 [samples] at 16 kHz; channels are averaged, other rates resampled by soxr (HQ).

    Raises InputError: missing, unreadable, not audio, broken inside, no samples, or samples that are not finite.
    """
    with _open(path) as file:
        try:
            samples = file.read(dtype="float32", always_2d=True)
        except soundfile.SoundFileError as error:
            raise InputError(f"{path}: broken audio: {_reason(error)}") from error
        rate = file.samplerate
    if not len(samples):
        raise InputError(f"{path}: no samples: the file holds a header but no sound")
    samples = samples.mean(axis=1)
    if not np.isfinite(samples).all():
        raise InputError(f"{path}: samples are not finite (NaN or infinity): export the file again")
    if rate != SAMPLE_RATE:
        samples = soxr.resample(samples, rate, SAMPLE_RATE)
    return np.ascontiguousarray(samples, dtype=np.float32)


def _open(path: str) -> soundfile.SoundFile:
    if os.path.isdir(path):
        raise InputError(f"{path}: is a directory: name the audio files in it")
    try:
        if os.stat(path).st_size == 0:
            raise InputError(f"{path}: the file is empty")
        return soundfile.SoundFile(os.fsencode(path))  # soundfile itself fails on names that are not text
    except OSError as error:  # missing, no permission, name too long
        raise InputError(f"{path}: {error.strerror or error}") from error
    except soundfile.SoundFileError as error:
        if not os.access(path, os.R_OK):
            raise InputError(f"{path}: Permission denied") from error
        raise InputError(
            f"{path}: not audio that libsndfile reads ({_reason(error)}): convert it to wav or flac first"
        ) from error


def _reason(error: Exception) -> str:
    return str(getattr(error, "error_string", error)).strip().rstrip(".")
