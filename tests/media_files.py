"""The bundled clip as video and in the formats of phones, made by PyAV."""

from __future__ import annotations

import io
from fractions import Fraction
from typing import Any

import av
import numpy as np
import soundfile
import soxr
from support import CLIP

CONTAINERS = {  # extension -> (muxer, codec, rate in Hz, samples of a codec frame)
    "mp4": ("mp4", "aac", 48000, 1024),
    "m4a": ("ipod", "aac", 16000, 1024),
    "mov": ("mov", "alac", 44100, 4096),
    "mkv": ("matroska", "ac3", 48000, 1536),
    "webm": ("webm", "libopus", 48000, 960),
    "ts": ("mpegts", "aac", 44100, 1024),
    "wma": ("asf", "wmav2", 44100, 2048),
    "3gp": ("3gp", "libopencore_amrnb", 8000, 160),
    "avi": ("avi", "libmp3lame", 44100, 1152),
    "wv": ("wv", "wavpack", 16000, 32000),
    "aac": ("adts", "aac", 16000, 1024),
    "ac3": ("ac3", "ac3", 48000, 1536),
    "amr": ("amr", "libopencore_amrnb", 8000, 160),
    "flv": ("flv", "libmp3lame", 44100, 1152),
}


def media_bytes(extension: str, *, video: bool = False, tracks: int = 1, seconds: float | None = None) -> bytes:
    """Return the clip, or its first ``seconds``, in a container; track n is 1/n as loud."""
    muxer, codec, rate, _ = CONTAINERS[extension]
    buffer = io.BytesIO()
    clip, own = soundfile.read(CLIP, dtype="float32")
    if seconds:
        clip = clip[: int(seconds * own)]
    samples = soxr.resample(clip, own, rate)
    with av.open(buffer, "w", format=muxer) as container:
        if video:
            pictures = container.add_stream("mpeg4", rate=5)
            pictures.width = pictures.height = 64
        streams = [container.add_stream(codec, rate=rate, layout="mono") for _ in range(tracks)]
        if video:
            for _ in range(10):
                picture = av.VideoFrame.from_ndarray(np.zeros((64, 64, 3), np.uint8), format="rgb24")
                container.mux(pictures.encode(picture))
            container.mux(pictures.encode(None))
        for number, stream in enumerate(streams, 1):
            stream.bit_rate = 12200 if codec == "libopencore_amrnb" else 96000
            add_samples(container, stream, (samples / number * 32767).astype(np.int16), rate)
    return buffer.getvalue()


def add_samples(container: Any, stream: Any, samples: np.ndarray, rate: int) -> None:
    """Encode int16 [samples] into a track of PyAV's ``container``, all of it."""
    frame = av.AudioFrame.from_ndarray(samples[None], format="s16", layout="mono")
    frame.sample_rate, frame.pts, frame.time_base = rate, 0, Fraction(1, rate)
    resampler = av.AudioResampler(stream.codec_context.format, "mono", rate, stream.codec_context.frame_size)
    for part in [*resampler.resample(frame), *resampler.resample(None)]:
        container.mux(stream.encode(part))
    container.mux(stream.encode(None))
