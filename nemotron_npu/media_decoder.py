"""Decode one audio track with PyAV (ffmpeg's libraries): a program for ``media.py``; ``media_pipe.py`` has its output.

python -m nemotron_npu.media_decoder probe|decode TRACK < FILE
"""

from __future__ import annotations

import io
import json
import resource
import shutil
import signal
import sys
import tempfile
from collections.abc import Iterator
from typing import Any

import av
import numpy as np

from .media_pipe import BLOCK, FAILED, MAX_CHANNELS, NO_TRACK, NOT_RECOGNIZED

MAX_BYTES = 4 << 30  # of address space
SNIFF_BYTES = 12
JOINED = 1 << 16  # values that are written together: a frame has a few thousand, and costs its reader as much
# Formats that are audio or video by themselves.  Playlists (hls, concat, dash) would open other files and addresses.
DEMUXERS = """
aa aac aax ac3 aea aiff amr amrnb amrwb ape asf ast au avi avr caf dsf dts dtshd eac3 flac flv gxf iff ilbc ircam lc3
loas matroska,webm mlp mov,mp4,m4a,3gp,3g2,mj2 mp3 mpc mpc8 mpeg mpegts mxf nistsphere nut ogg oma qcp rm shn sox tak
tta truehd voc vqf w64 wav wtv wv xa
"""


class NotRecognized(Exception):
    """No audio that PyAV knows."""


class Broken(Exception):
    """The audio cannot be decoded, or not any further."""


class NoTrack(Exception):
    """There is no audio track of this number."""


class Pipe:
    """A pipe for PyAV: a read returns what has arrived."""

    def __init__(self, stream: io.BufferedReader) -> None:
        self.read = stream.read1


def main() -> int:
    """Decode stdin and return the exit code."""
    mode, track = sys.argv[1:]
    resource.setrlimit(resource.RLIMIT_AS, (MAX_BYTES, MAX_BYTES))
    signal.signal(signal.SIGPIPE, signal.SIG_DFL)  # whoever reads has enough
    av.logging.set_level(av.logging.PANIC)
    source = open(0, "rb", closefd=False)  # noqa: SIM115
    live = not source.seekable()
    out = sys.stdout.buffer
    try:
        with _open(source) as container:
            stream = _choose(container.streams.audio, int(track))
            joined = 0 if live or mode == "probe" else JOINED
            for number, (rate, samples) in enumerate(_blocks(_frames(container, stream), joined)):
                if not number:
                    out.write(json.dumps(_describe(container, stream, rate, samples)).encode() + b"\n")
                if mode == "probe":
                    break
                out.write(BLOCK.pack(rate, samples.shape[1], len(samples)) + samples.tobytes())
                if live:
                    out.flush()
    except NotRecognized:
        return NOT_RECOGNIZED
    except NoTrack as error:
        print(error, file=sys.stderr)
        return NO_TRACK
    except (Broken, MemoryError, av.FFmpegError, OSError) as error:
        out.flush()
        reason = getattr(error, "strerror", None) or str(error) or "it takes too much memory"
        print(reason, file=sys.stderr)
        return FAILED
    out.flush()
    return 0


def _open(source: io.BufferedReader) -> Any:
    """Return PyAV's container.  Raises NotRecognized."""
    if source.peek(SNIFF_BYTES)[:4] == b"RIFX":  # ffmpeg 8 takes its samples for little-endian ones
        raise NotRecognized
    options = {"format_whitelist": ",".join(DEMUXERS.split())}
    try:
        return av.open(_readable(source), options=options, metadata_errors="ignore")
    except (av.FFmpegError, OSError) as error:
        raise NotRecognized from error


def _readable(source: io.BufferedReader) -> Any:
    """Return what PyAV can read; mp4 may have its index at the end: one from a pipe is copied to a file first."""
    if source.seekable():
        return source
    start = source.peek(SNIFF_BYTES)
    if start[4:8] != b"ftyp" and start[:4] not in (b"caff", b"wvpk"):  # in which ffmpeg must seek
        return Pipe(source)
    copy = tempfile.TemporaryFile()  # noqa: SIM115
    shutil.copyfileobj(source, copy)
    copy.seek(0)
    return copy


def _frames(container: Any, stream: Any) -> Iterator[Any]:
    """Yield the decoded frames.  What comes before the first good one may be the rest of a cut stream."""
    stream.codec_context.thread_count = 1
    seen = False
    for packet in _packets(container, stream):
        try:
            for frame in packet.decode():
                if frame.samples:
                    seen = True
                    yield frame
        except av.FFmpegError:
            if seen:
                raise
    if not seen:
        raise NotRecognized


def _blocks(frames: Iterator[Any], least: int) -> Iterator[tuple[int, np.ndarray]]:
    """Yield the rate and the samples of frames, joined to ``least`` values or more; of those before an error, too."""
    parts: list[np.ndarray] = []
    joined = (0, 0)
    error = None
    try:
        for frame in frames:
            samples = _samples(frame)
            form = (frame.sample_rate, samples.shape[1])
            if parts and form != joined:
                yield joined[0], np.concatenate(parts)
                parts = []
            joined = form
            parts.append(samples)
            if sum(part.size for part in parts) >= least:
                yield joined[0], np.concatenate(parts)
                parts = []
    except Exception as broken:
        error = broken
    if parts:
        yield joined[0], np.concatenate(parts)
    if error:
        raise error


def _packets(container: Any, stream: Any) -> Iterator[Any]:
    """Yield the track's packets.  Raises Broken where PyAV loses count of the tracks: one began in the middle."""
    try:
        yield from container.demux(stream)
    except IndexError as error:
        raise Broken("its tracks change in the middle") from error


def _choose(streams: tuple, track: int) -> Any:
    if not streams:
        raise Broken("it has no audio track")
    if not 1 <= track <= len(streams):
        raise NoTrack(f"no audio track {track}: it has {len(streams)}")
    stream = streams[track - 1]
    if stream.codec_context is None:
        raise NotRecognized
    return stream


def _samples(frame: Any) -> np.ndarray:
    """Return a frame as float32 [samples, channels], full scale 1."""
    channels = frame.layout.nb_channels
    if channels > MAX_CHANNELS:
        raise Broken(f"it has {channels} channels")
    try:
        values = frame.to_ndarray()
    except ValueError as error:
        raise Broken(f"its samples are of the type {frame.format.name}") from error
    values = values.T if frame.format.is_planar else values.reshape(-1, channels)
    if values.dtype == np.uint8:
        values = (values.astype(np.float32) - 128) / 128
    elif values.dtype.kind == "i":
        values = values / (np.iinfo(values.dtype).max + 1.0)
    return np.ascontiguousarray(values, "<f4")


def _describe(container: Any, stream: Any, rate: int, samples: np.ndarray) -> dict:
    seconds = None
    if stream.duration and stream.time_base:
        seconds = float(stream.duration * stream.time_base)
    elif container.duration:
        seconds = container.duration / 1e6
    return {
        "format": container.format.name,
        "sample_rate": rate,
        "channels": samples.shape[1],
        "seconds": seconds,
    }


if __name__ == "__main__":
    sys.exit(main())
