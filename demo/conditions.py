"""Degrade speech as on its way to a recognizer: pace, rooms, noise, telephones, codecs, clipping.

Each function takes and returns float32 [n] at 16 kHz; ``degrade`` draws from all of them.
"""

from __future__ import annotations

import io

import numpy as np
import scipy.signal
import soundfile
import soxr

RATE = 16000
PHONE = scipy.signal.butter(4, (300, 3400), "bandpass", fs=8000, output="sos")


def change_pace(samples: np.ndarray, pace: float) -> np.ndarray:
    """Speak ``pace`` times as fast at the same pitch (phase vocoder of librosa, frames of 32 ms)."""
    import librosa

    return librosa.effects.time_stretch(samples, rate=pace, n_fft=512, hop_length=128)


def change_speed(samples: np.ndarray, speed: float) -> np.ndarray:
    """Play ``speed`` times as fast: pitch and formants move along, as if somebody else spoke."""
    return soxr.resample(samples, RATE * speed, RATE, quality="LQ")


def room(samples: np.ndarray, seconds: float, distance: float, rng: np.random.Generator) -> np.ndarray:
    """Reverberate: noise that decays by 60 dB in ``seconds``, ``distance`` times as strong as the direct sound."""
    n = int(seconds * RATE)
    tail = rng.standard_normal(n) * 10 ** (-3 * np.arange(n) / n)
    tail[: int(rng.uniform(0.001, 0.012) * RATE)] = 0  # nothing comes back before the nearest wall
    tail *= distance / np.sqrt((tail**2).sum() + 1e-9)
    tail[0] = 1
    return scipy.signal.fftconvolve(samples, tail)[: len(samples)].astype(np.float32)


def tilt(samples: np.ndarray, amount: float) -> np.ndarray:
    """Tilt the spectrum, as another microphone does: -1 to 1, positive for less bass."""
    return scipy.signal.lfilter([1.0, -amount], [1.0], samples).astype(np.float32)


def telephone(samples: np.ndarray) -> np.ndarray:
    """300 to 3,400 Hz at 8 kHz and back."""
    narrow = scipy.signal.sosfilt(PHONE, soxr.resample(samples, RATE, 8000, quality="LQ"))
    return _fit(soxr.resample(narrow, 8000, RATE, quality="LQ"), len(samples))


def mu_law(samples: np.ndarray) -> np.ndarray:
    """ITU-T G.711 mu-law of the 8 kHz signal, 8 bits a sample."""
    return _through(samples, 8000, format="WAV", subtype="ULAW")


def gsm(samples: np.ndarray) -> np.ndarray:
    """GSM 06.10 full rate at 8 kHz, 13 kbit/s."""
    return _through(samples, 8000, format="WAV", subtype="GSM610")


def mp3(samples: np.ndarray) -> np.ndarray:
    """MP3 at 16 kHz and a constant 24 kbit/s, with its delay of 1105 samples."""
    # libsndfile goes from the highest bit rate of MPEG-2 (160) down to its lowest (8) as the level rises
    return _through(
        samples, RATE, format="MP3", subtype="MPEG_LAYER_III", bitrate_mode="CONSTANT", compression_level=0.89
    )


def add_noise(samples: np.ndarray, loudness: float, color: float, rng: np.random.Generator) -> np.ndarray:
    """Add noise of RMS ``loudness``; ``color`` is from -0.9 (brownish) to 0.3 (slightly blue)."""
    noise = scipy.signal.lfilter([1.0], [1.0, color], rng.standard_normal(len(samples)))
    return (samples + noise * loudness / (noise.std() + 1e-9)).astype(np.float32)


def babble(samples: np.ndarray, others: list[np.ndarray], loudness: float, rng: np.random.Generator) -> np.ndarray:
    """Add two to five talkers in the background, ``loudness`` their RMS together."""
    talk = np.zeros(len(samples), np.float32)
    for _ in range(int(rng.integers(2, 6))):
        other = others[rng.integers(len(others))]
        talk += np.roll(np.resize(other, len(talk)), rng.integers(len(talk))) / (other.std() + 1e-9)
    return samples + talk * np.float32(loudness / (talk.std() + 1e-9))


def degrade(samples: np.ndarray, hard: float, others: list[np.ndarray], rng: np.random.Generator) -> np.ndarray:
    """Draw conditions that grow with ``hard``, from 0 (clean) to 1; ``others`` are talkers of the background."""
    if rng.random() < 0.3 * hard:
        samples = room(samples, rng.uniform(0.1, 0.7), rng.uniform(0.1, 1.2), rng)
    if rng.random() < hard:
        samples = tilt(samples, rng.uniform(-0.5, 0.7))
    peak = np.abs(samples).max() + 1e-6
    wanted = 10 ** (rng.uniform(-32, -1) / 20) if rng.random() < 0.7 else min(peak, 1.0)
    samples = samples * np.float32(wanted / peak)
    if rng.random() < 0.5:  # the other half keeps digital silence between the words
        level = wanted * 10 ** (rng.uniform(-62, -62 + 44 * hard) / 20)
        samples = add_noise(samples, level, rng.uniform(-0.9, 0.3), rng)
    if others and rng.random() < 0.12 * hard:
        samples = babble(samples, others, wanted * 10 ** (rng.uniform(-45, -26) / 20), rng)
    if rng.random() < 0.06 * hard:
        samples = np.clip(samples * np.float32(rng.uniform(1.5, 6) / (np.abs(samples).max() + 1e-6)), -1, 1)
    if rng.random() < 0.35 * hard:
        samples = telephone(samples)
        samples = [mu_law, gsm, np.asarray][rng.choice(3, p=[0.5, 0.3, 0.2])](samples)
    elif rng.random() < 0.1 * hard:
        samples = mp3(samples)
    return samples.astype(np.float32)


def _through(samples: np.ndarray, rate: int, **codec) -> np.ndarray:
    """Encode and decode at ``rate``."""
    narrow = soxr.resample(samples, RATE, rate, quality="LQ") if rate != RATE else samples
    file = io.BytesIO()
    soundfile.write(file, np.clip(narrow, -1, 1), rate, **codec)
    file.seek(0)
    decoded, _ = soundfile.read(file, dtype="float32")
    return _fit(soxr.resample(decoded, rate, RATE, quality="LQ") if rate != RATE else decoded, len(samples))


def _fit(samples: np.ndarray, count: int) -> np.ndarray:
    """Cut or pad to ``count`` samples: codecs work in whole frames."""
    return np.pad(samples[:count], (0, max(0, count - len(samples)))).astype(np.float32)
