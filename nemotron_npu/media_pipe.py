"""The output of ``media_decoder.py``, which ``media.py`` reads: a line of JSON, then blocks of samples."""

import struct

BLOCK = struct.Struct("<IHI")
"""Rate in Hz, channels, samples; float32 [samples, channels] follow, little-endian."""
MAX_CHANNELS = 1024  # as in libsndfile
FAILED = 1  # exit code: the audio cannot be decoded, or not any further; a line on stderr says why
NOT_RECOGNIZED = 3  # exit code: no known format
NO_TRACK = 4  # exit code: there is no such audio track; a line on stderr says how many there are
