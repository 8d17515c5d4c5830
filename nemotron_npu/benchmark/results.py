"""The figures of one benchmark.  The names of the fields are those in ``benchmark.json``."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field

import numpy as np


@dataclass(frozen=True)
class Times:
    """Several runs of the same call, in milliseconds."""

    median: float
    p95: float
    max: float
    mean: float
    runs: list[float] = field(repr=False)

    @classmethod
    def of(cls, runs: Sequence[float]) -> Times:
        """Summarize the milliseconds of ``runs``."""
        p95 = float(np.percentile(runs, 95))
        return cls(statistics.median(runs), p95, max(runs), statistics.fmean(runs), list(runs))


@dataclass(frozen=True)
class Rates:
    """What the machine can do."""

    read_gb_s: float
    gflop_s: dict[str, float]
    """By dtype."""


@dataclass(frozen=True)
class Work:
    """The least that an encoder step has to read and compute."""

    bytes: int
    """Weights and the cached keys and values, each read once."""
    flop: int
    """Floating-point operations of the products and convolutions."""

    def bound(self, rates: Rates, dtype: str) -> float:
        """Return the least milliseconds: the longer of reading and computing, as if they overlapped."""
        return max(self.bytes / rates.read_gb_s, self.flop / rates.gflop_s[dtype]) / 1e6


@dataclass(frozen=True)
class Start:
    """A process from the start of the command to the text of 1 s of speech; medians over several processes."""

    total_s: float
    load_s: float
    """Seconds of ``total_s`` that the model takes to load."""
    first_s: float
    """Seconds of ``total_s`` that the transcription takes."""
    peak_bytes: float
    """Resident memory of the process."""
    import_s: float
    """The rest of ``total_s``: Python and the libraries."""
    processes: int


@dataclass
class Candidate:
    """An engine in a dtype, and its figures; those by chunk size or length are keyed by ms or s."""

    engine: str
    dtype: str
    start: Start | None = None
    device_peak_bytes: int | None = None
    """Memory that torch held on the device for weights and the longest recording; None on a CPU."""
    forward: Times | None = None
    """Preprocessor and encoder over the reference guide's sine of 1 s."""
    forward_operators: int | None = None
    """Dispatched operators that are not views: they decide the speed of a device that waits for its host."""
    steps: dict[int, Times] = field(default_factory=dict)
    """One encoder step of a live stream whose left context is full."""
    step_operators: dict[int, int] = field(default_factory=dict)
    step_work: dict[int, Work] = field(default_factory=dict)
    step_bound_ms: dict[int, float] = field(default_factory=dict)
    live: dict[int, Times] = field(default_factory=dict)
    """One whole step of a live stream: samples, log-mel, encoder, decoder.  Native engine only."""
    rtfx: dict[int, float] = field(default_factory=dict)
    """Seconds of audio transcribed in a second, of one recording."""
    rtfx_bound: float | None = None
    """The largest that the machine's rates allow, of a long recording."""
    batch_rtfx: float | None = None
    """The same of a batch of recordings."""
    search_share: dict[int, float] = field(default_factory=dict)
    """Part of the time of a recording that decoding took."""

    @property
    def name(self) -> str:
        """Engine and dtype."""
        return f"{self.engine} {self.dtype}"


@dataclass
class Benchmark:
    """All figures of one run."""

    device: str
    threads: int
    chunk_ms: int | None
    """Chunk size of the forward pass and of recordings: the longest that is measured."""
    rates: Rates
    candidates: list[Candidate]
    instructions: str = ""
    """The CPU's instruction sets, see ``dtypes.instructions``."""
    waited: float = 0.0
    """Part of the time that the measuring thread could have run but other programs had its core."""
    left_out: dict[str, str] = field(default_factory=dict)
    """Dtypes that this CPU does not compute in, and why."""

    @property
    def title(self) -> str:
        """Device, threads and instruction sets."""
        plural = "s" * (self.threads > 1)
        return f"{self.device}, {self.threads} CPU thread{plural} ({self.instructions})"

    def as_dict(self) -> dict:
        """Return every figure for JSON."""
        return asdict(self)
