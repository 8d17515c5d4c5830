"""``--benchmark``: start, steps, recordings and memory, engine beside engine and dtype beside dtype, in one run.

Every timing is taken in turn: each round times all candidates once, so that a machine that slows down slows all of
them and the ratios hold.  The machine's own rates are measured in the same run; from them, and from what a step cannot
do without reading and computing, follows the least time that it can take: its bound.
"""

from __future__ import annotations

import io
import json
import os
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from subprocess import PIPE

import numpy as np
import soundfile
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from ..audio import SAMPLE_RATE, sine
from ..checkpoint.load import attention_contexts, read_config
from ..device import allocated_memory, peak_memory, reset_peak_memory, synchronize, traits_of
from ..encoder import Encoder
from ..engine import ModelOptions
from ..errors import SetupError
from ..host import packages, program
from ..host.files import write_file
from ..host.table import format_table
from ..linear import make_linear
from ..recognizer import Recognizer, load_recognizer

WARM_UP, RUNS = 3, 10  # of the write-up's forward pass
ROUNDS, ROUND_SECONDS = 20, 3.0  # of steps: at least so many, and more while there is time
STARTS, START_SECONDS = 3, 15  # processes that are started, and the time after which no other one is
END_SECONDS = 2  # that they have to end in when this one is interrupted
OFFLINE_SECONDS = (10, 60, 600)  # lengths of recordings
NEMO_SECONDS = 60  # NeMo's longest: its attention takes memory with the square of the length
LIVE_WARM_UP = 6.0  # seconds of sound after which the left context is full
BATCH, BATCH_SECONDS = 8, 10  # recordings side by side, and the length of each
NEMO_SEARCH = "rnnt_decoder_predictions_tensor"
START_PARTS = ("import_s", "load_s", "first_s")
# a process's peak is never less than that of the one that forked it: so this one, which is large, forks a small one
MEASURED = [sys.executable, "-I", "-S", "-c"]
MEASURED += [
    "import os, sys; child = os.spawnv(os.P_NOWAIT, sys.argv[1], sys.argv[1:]); _, status, used = os.wait4(child, 0);"
    "print(used.ru_maxrss, file=sys.stderr); sys.exit(os.waitstatus_to_exitcode(status))"
]


def command() -> list[str]:
    """The command line as this process was started: with Python's own options, or on the tests' fake npu."""
    for place, word in enumerate(sys.orig_argv):
        if place and Path(word).name in (program.SCRIPT, program.COMMAND):
            return [sys.executable, *sys.orig_argv[1 : place + 1]]
        if sys.orig_argv[place - 1 : place + 1] == ["-m", __package__]:
            return [sys.executable, *sys.orig_argv[1 : place + 1]]
    if packages.CLONE:
        return [sys.executable, str(packages.CLONE / program.SCRIPT)]
    return [sys.executable, "-m", __package__]


@dataclass(frozen=True)
class Times:
    """Milliseconds."""

    median: float
    p95: float
    max: float
    mean: float
    runs: list[float] = field(repr=False)


@dataclass(frozen=True)
class Work:
    """What an encoder step cannot do without."""

    bytes: int
    """Weights, and the caches of keys and values: read once."""
    flop: int
    """Of its products and convolutions."""

    def bound(self, rates: dict, dtype: str) -> float:
        """The least milliseconds that it can take: the longer of reading and computing, as if they overlapped."""
        return max(self.bytes / rates["read_gb_s"], self.flop / rates["gflop_s"][dtype]) / 1e6


@dataclass
class Candidate:
    """An engine in a dtype, and its figures; those by chunk size or length are keyed by ms or s."""

    engine: str
    dtype: str
    start: dict[str, float] = field(default_factory=dict)
    """Seconds from the start of the command to the text of 1 s of speech: ``total_s``, and of these ``load_s`` for the
    model and ``first_s`` for the recognition; the rest, ``import_s``, is Python's and the libraries' start.
    ``peak_bytes``: resident memory of that process."""
    device_peak_bytes: int | None = None
    """What torch held on the device for weights and the longest recording; None on a CPU."""
    forward: Times | None = None
    """Preprocessor + encoder over the write-up's 1 s sine."""
    forward_operators: int | None = None
    """Dispatched operators that are not views: what decides the speed of a device that the host has to feed."""
    steps: dict[int, Times] = field(default_factory=dict)
    """One encoder step of a live stream whose left context is full."""
    step_operators: dict[int, int] = field(default_factory=dict)
    step_work: dict[int, Work] = field(default_factory=dict)
    step_bound_ms: dict[int, float] = field(default_factory=dict)
    live: dict[int, Times] = field(default_factory=dict)
    """One whole step of a live stream: samples -> log-mel -> encoder -> search.  Native engine only."""
    rtfx: dict[int, float] = field(default_factory=dict)
    """Seconds of sound recognised in a second, of one recording."""
    rtfx_bound: float | None = None
    """The largest that the machine's rates allow, of a long recording."""
    batch_rtfx: float | None = None
    """The same of ``BATCH`` recordings of ``BATCH_SECONDS`` together."""
    search_share: dict[int, float] = field(default_factory=dict)
    """Part of the time of a recording that the search for the tokens took."""

    @property
    def name(self) -> str:
        return f"{self.engine} {self.dtype}"


@dataclass
class Benchmark:
    """All figures of one run."""

    device: str
    threads: int
    chunk_ms: int | None
    """Chunk size of the forward pass and of recordings: the longest that is measured."""
    rates: dict
    """Of the machine: ``read_gb_s``, and by dtype ``gflop_s``."""
    candidates: list[Candidate]
    left_out: dict[str, str] = field(default_factory=dict)
    """Dtypes that this CPU does not compute in, and why."""


def benchmark(
    path: Path,
    device: torch.device,
    candidates: list[tuple[str, str]],
    waveform: np.ndarray,
    chunk_ms: int | None = None,
    decoder_device: torch.device | None = None,
    record: bool = False,
    slots: int | None = None,
    block_ms: int | None = None,
    say: Callable[[str], None] = lambda line: None,
) -> Benchmark:
    """Measure (engine, dtype) beside (engine, dtype); ``waveform`` is the speech that streams and recordings repeat.

    ``chunk_ms`` is the only chunk length to measure; None measures all.  ``slots`` is how many recordings of the batch
    are side by side; None takes what suits.  The others are those of ``Recognizer``.
    Raises SetupError when one of them cannot be used.
    """
    rows = [Candidate(engine, dtype) for engine, dtype in candidates]
    chunks = [chunk_ms] if chunk_ms else sorted(attention_contexts(read_config(path)), reverse=True) or [None]
    arguments = ["--chunk_ms", chunk_ms] if chunk_ms else []
    own_options = (["--decoder_device", decoder_device] if decoder_device else []) + ["--graph", "on"] * record
    say("measuring the machine ...")
    rates = machine_rates(device, {row.dtype for row in rows})
    for row in rows:
        say(f"{row.name}: from the shell to the first words ...")
        more = [*arguments, *own_options] if row.engine == "native" else arguments
        row.start = start_times(path, device, row, waveform, more)
    engines, weights = [], []
    for row in rows:
        say(f"{row.name}: loading ...")
        before = allocated_memory(device)
        options = ModelOptions(row.engine, chunks[0], row.dtype)
        if row.engine == "native":
            options = replace(options, decoder_device=decoder_device, graph=record, block_ms=block_ms)
        engine = load_recognizer(path, device, options=options)
        if engine.engine != row.engine:
            raise SetupError(
                f"{path}: the {row.engine} engine does not know it: --engine {engine.engine} measures that"
            )
        engines.append(engine)
        weights.append(allocated_memory(device) - before)
    say("forward pass of 1 s ...")
    _measure_forward(rows, engines)
    for row, engine, held in zip(rows, engines, weights, strict=True):
        say(f"{row.name}: recordings ...")
        _measure_recordings(row, engine, waveform, slots)
        row.device_peak_bytes = row.device_peak_bytes + held or None
    live = all(engine.encoder.streams for engine in engines if engine.engine == "native")
    for chunk_ms in filter(None, chunks if live else []):
        say(f"steps of {chunk_ms} ms ...")
        _measure_steps(rows, [engine.at_chunk(chunk_ms) for engine in engines], chunk_ms, waveform, rates)
    return Benchmark(str(device), torch.get_num_threads(), chunks[0], rates, rows)


# ---------------------------------------------------------------------- the machine, and what a step asks of it


def machine_rates(device: torch.device, dtypes: set[str]) -> dict:
    """Reading memory, and the engine's own products with many rows; medians of 5.  See ``Benchmark.rates``."""
    big = torch.ones(1 << 28, device=device)  # 1 GiB; not zeros: untouched memory is one page
    read = statistics.median(timed(big.sum, device) for _ in range(5))
    rates = {"read_gb_s": round(big.nbytes / 1e6 / read, 1), "gflop_s": {}}
    del big
    for dtype in sorted(dtypes):
        kind = traits_of(device).storage_dtype(dtype)
        weight = torch.randn(4096, 1024, device=device, dtype=kind)
        linear, x = make_linear(weight, None, dtype), torch.randn(512, 1024, device=device, dtype=kind)
        linear(x)
        product = statistics.median(timed(lambda linear=linear, x=x: linear(x), device) for _ in range(5))
        rates["gflop_s"][dtype] = round(2 * len(x) * weight.numel() / 1e6 / product, 1)
    return rates


def step_work(encoder: Encoder, frames: int) -> Work:
    """Of one step of so many frames whose left context is full."""
    width, keys = encoder.width, encoder.keep + frames
    positions = keys + frames - 1
    linears = [
        encoder.subsampling_out,
        encoder.out,
        *(value for layer in encoder.layers for value in vars(layer).values()),
    ]
    linears = [linear for linear in linears if hasattr(linear, "elements")]
    products = sum(linear.elements for linear in linears) * frames
    products += (
        len(encoder.layers) * frames * width * (2 * keys + positions + encoder.conv_left + encoder.conv_right + 1)
    )
    rows, features = frames * encoder.factor, encoder.mels
    for stage in encoder.stages:
        rows, features = rows // 2, features // 2
        products += rows * features * sum(part[0].numel() for part in (stage.convolution, stage.pointwise) if part)
    item = encoder.kind["dtype"].itemsize
    cached = len(encoder.layers) * width * (2 * encoder.keep + positions) * item  # keys, values, projected positions
    return Work(sum(linear.bytes for linear in linears) + cached, 2 * products)


class _Count(TorchDispatchMode):
    """Count what reaches the kernels: composite operators by their parts, views not at all."""

    def __init__(self):
        super().__init__()
        self.operators = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        with self:
            result = function.decompose(*args, **kwargs)
        if result is not NotImplemented:
            return result
        self.operators += not (function.is_view or function is torch.ops.aten._unsafe_view.default)
        return function(*args, **kwargs)


def count_operators(call: Callable[[], object]) -> int:
    """Dispatched operators of a call that are not views."""
    with _Count() as count:
        call()
    return count.operators


# ---------------------------------------------------------------------- timing


def timed(call: Callable[[], object], device: torch.device) -> float:
    """Milliseconds of one call; the device is synchronised before each reading of the clock."""
    synchronize(device)
    began = time.perf_counter()
    call()
    synchronize(device)
    return (time.perf_counter() - began) * 1000


def in_turn(calls: list[Callable[[], object]], device: torch.device, rounds: int, seconds: float = 0.0) -> list[Times]:
    """Time every call once in each round: ``rounds`` of them, and more while ``seconds`` are not over."""
    began, runs = time.perf_counter(), []
    while len(runs) < rounds or time.perf_counter() - began < seconds:
        runs.append([timed(call, device) for call in calls])
    return [
        Times(statistics.median(own), float(np.percentile(own, 95)), max(own), statistics.fmean(own), list(own))
        for own in zip(*runs, strict=True)
    ]


def start_times(
    path: Path, device: torch.device, row: Candidate, waveform: np.ndarray, options: list
) -> dict[str, float]:
    """Medians over processes of the command line that recognise 1 s of sound; see ``Candidate.start``.

    Raises SetupError with the command's own line when it fails.
    """
    runs, began = [], time.monotonic()
    with tempfile.TemporaryDirectory() as folder:
        clip = os.path.join(folder, "clip.wav")
        soundfile.write(clip, np.resize(waveform, SAMPLE_RATE), SAMPLE_RATE)
        command_line = [*command(), clip, "--model_path", path, "--device", device, "--engine", row.engine]
        command_line += [
            "--dtype",
            row.dtype,
            "--threads",
            torch.get_num_threads(),
            "--output_format",
            "json",
            "--quiet",
        ]
        command_line += options
        while len(runs) < STARTS and (not runs or time.monotonic() - began < START_SECONDS):
            started = time.monotonic()
            with _process([*MEASURED, *map(str, command_line)]) as child:
                line = child.stdout.readline()
                total = time.monotonic() - started
                _, errors = child.communicate()
            *errors, peak = errors.splitlines()
            if child.returncode:
                raise SetupError(f"{row.name}: {' '.join(errors) or 'the process failed'}")
            spent = json.loads(line)["timings"]
            parts = {"load_s": spent["load"], "first_s": spent["seconds"]}
            runs.append({"total_s": total, **parts, "peak_bytes": int(peak) * 1024})
    start = {name: statistics.median(run[name] for run in runs) for name in runs[0]}
    return {**start, "import_s": start["total_s"] - start["load_s"] - start["first_s"], "processes": len(runs)}


@contextmanager
def _process(command: list[str]) -> Iterator[subprocess.Popen]:
    """A process that does not outlive the block, nor do its children: an interruption of this one reaches them so."""
    child = subprocess.Popen(command, stdout=PIPE, stderr=PIPE, text=True, start_new_session=True)
    try:
        yield child
    except BaseException:
        with suppress(ProcessLookupError):
            os.killpg(child.pid, signal.SIGTERM)
        with suppress(subprocess.TimeoutExpired):
            child.communicate(timeout=END_SECONDS)
        with suppress(ProcessLookupError):
            os.killpg(child.pid, signal.SIGKILL)
        raise


def _measure_forward(rows: list[Candidate], engines: list) -> None:
    calls = [lambda engine=engine: engine.encode(*engine.preprocess([sine()])) for engine in engines]
    in_turn(calls, engines[0].device, WARM_UP)
    for row, call, times in zip(rows, calls, in_turn(calls, engines[0].device, RUNS), strict=True):
        row.forward, row.forward_operators = times, count_operators(call)


def _measure_recordings(row: Candidate, engine, waveform: np.ndarray, slots: int | None) -> None:
    """Recordings of each length; the first is recognised once before, uncounted."""
    searched = 0.0
    search, name = (engine.decoder, "step") if row.engine == "native" else (engine.model.decoding, NEMO_SEARCH)
    plain = getattr(search, name)

    def watched(*args, **kwargs):
        nonlocal searched
        synchronize(engine.device)
        began = time.perf_counter()
        result = plain(*args, **kwargs)
        searched += (time.perf_counter() - began) * 1000
        return result

    reset_peak_memory(engine.device)
    before = allocated_memory(engine.device)
    setattr(search, name, watched)
    try:
        for seconds in OFFLINE_SECONDS:
            if row.engine == "nemo" and seconds > NEMO_SECONDS:
                continue
            sound = np.resize(waveform, seconds * SAMPLE_RATE)
            if not row.rtfx:
                engine.transcribe([sound])
            searched = 0.0
            total = timed(lambda sound=sound: engine.transcribe([sound]), engine.device)
            row.rtfx[seconds], row.search_share[seconds] = seconds * 1000 / total, searched / total
    finally:
        delattr(search, name)
    together = [np.roll(np.resize(waveform, BATCH_SECONDS * SAMPLE_RATE), place * 1000) for place in range(BATCH)]
    slots = slots or (engine.batch_slots if row.engine == "native" else BATCH)
    row.batch_rtfx = BATCH * BATCH_SECONDS * 1000 / timed(lambda: list(engine.results(together, slots)), engine.device)
    row.device_peak_bytes = peak_memory(engine.device).get("device", 0) - before


def _measure_steps(rows: list[Candidate], engines: list, chunk_ms: int, waveform: np.ndarray, rates: dict) -> None:
    device = engines[0].device
    calls = [(nemo_step if engine.engine == "nemo" else steady_step)(engine) for engine in engines]
    for row, call, times in zip(rows, calls, in_turn(calls, device, ROUNDS, ROUND_SECONDS), strict=True):
        row.steps[chunk_ms], row.step_operators[chunk_ms] = times, count_operators(call)
    native = [(row, engine) for row, engine in zip(rows, engines, strict=True) if row.engine == "native"]
    for row, engine in native:
        row.step_work[chunk_ms] = step_work(engine.encoder, engine.encoder.chunk)
        row.step_bound_ms[chunk_ms] = row.step_work[chunk_ms].bound(rates, row.dtype)
        block = engine.block(1)
        bound = step_work(engine.encoder, block).bound(rates, row.dtype)
        row.rtfx_bound = row.rtfx_bound or 1000 * block * engine.frame_seconds / bound
    calls = [live_step(engine, waveform) for _, engine in native]
    for (row, _), times in zip(native, in_turn(calls, device, ROUNDS, ROUND_SECONDS), strict=True):
        row.live[chunk_ms] = times


def steady_step(recognizer: Recognizer) -> Callable[[], torch.Tensor]:
    """A call that encodes the next chunk of a native live stream whose left context is full."""
    encoder = recognizer.encoder
    state = encoder.new_state(1, encoder.chunk)
    features = torch.randn(1, encoder.chunk * encoder.factor, encoder.mels).to(recognizer.device)
    while state.position[0] < encoder.keep + 2 * encoder.chunk:  # two more: a recorded step is recorded by then
        encoder.step(features, state, [None])
    return lambda: encoder.step(features, state, [None])


def nemo_step(recognizer) -> Callable[[], object]:
    """The same by NeMo's ``cache_aware_stream_step``."""
    encoder, device = recognizer.model.encoder, recognizer.device
    settings = encoder.streaming_cfg
    frames = settings.chunk_size[1] + settings.pre_encode_cache_size[1]
    caches = encoder.get_initial_cache_state(batch_size=1)
    features, length = torch.randn(1, encoder._feat_in, frames).to(device), torch.tensor([frames]).to(device)

    @torch.inference_mode()
    def step():
        nonlocal caches
        caches = encoder.cache_aware_stream_step(
            processed_signal=features,
            processed_signal_length=length,
            cache_last_channel=caches[0],
            cache_last_time=caches[1],
            cache_last_channel_len=caches[2],
            keep_all_outputs=False,
            drop_extra_pre_encoded=settings.drop_extra_pre_encoded,
        )[2:]

    for _ in range(-(-settings.last_channel_cache_size // settings.valid_out_len)):
        step()
    return step


def live_step(recognizer: Recognizer, waveform: np.ndarray) -> Callable[[], None]:
    """A call that feeds the next chunk of sound to a live stream whose left context is full."""
    stream, size, position = recognizer.stream(), recognizer.chunk_samples, 0

    def feed():
        nonlocal position
        stream.feed(np.take(waveform, range(position, position + size), mode="wrap"))
        position += size

    while stream.seconds < LIVE_WARM_UP:
        feed()
    return feed


# ---------------------------------------------------------------------- for people


def as_dict(result: Benchmark) -> dict:
    """For a JSON report: the dataclasses' own names."""
    return asdict(result)


def to_table(result: Benchmark, model: str) -> str:
    """All figures for a terminal, a column a candidate.  Behind a time, how many times faster it is than NeMo's."""
    rows = result.candidates
    baseline = rows[0] if rows[0].engine == "nemo" else None
    table: list[list[str]] = [["", *(row.name for row in rows)]]

    def add(label: str, value: Callable[[Candidate], str | None]) -> None:
        cells = [value(row) for row in rows]
        if any(cells):
            table.append([label, *(cell or "-" for cell in cells)])

    def time_of(get: Callable[[Candidate], float | None], digits: int = 1) -> Callable[[Candidate], str | None]:
        def cell(row: Candidate) -> str | None:
            own, nemo = get(row), get(baseline) if baseline and row is not baseline else None
            if own is None:
                return None
            return f"{own:.{digits}f}" + (f" ({nemo / own:.1f} x)" if nemo else "")

        return cell

    def spread(times: Times | None) -> str | None:
        return f"{times.p95:.1f}, {times.max:.1f}" if times else None

    add("from the shell to the first words, s", time_of(lambda row: row.start["total_s"], 2))
    add("  import, load, recognise", lambda row: ", ".join(f"{row.start[part]:.2f}" for part in START_PARTS))
    add("  peak memory, MB", lambda row: f"{row.start['peak_bytes'] / 1e6:,.0f}")
    add("device memory, MB", lambda row: row.device_peak_bytes and f"{row.device_peak_bytes / 1e6:,.0f}")
    add("forward pass of 1 s, mean ms", time_of(lambda row: row.forward.mean))
    add("  median, p95", lambda row: f"{row.forward.median:.1f}, {row.forward.p95:.1f}")
    add("  operators", lambda row: f"{row.forward_operators:,}")
    for chunk in sorted(rows[0].steps):
        add(f"encoder step of {chunk} ms, median ms", time_of(lambda row, c=chunk: row.steps[c].median))
        add("  p95, max", lambda row, c=chunk: spread(row.steps[c]))
        add("  least possible here, ms", lambda row, c=chunk: _reached(row, c))
        add("  operators", lambda row, c=chunk: f"{row.step_operators[c]:,}")
        add("  MB read", lambda row, c=chunk: c in row.step_work and f"{row.step_work[c].bytes / 1e6:,.0f}")
        add(f"live step of {chunk} ms, median ms", lambda row, c=chunk: c in row.live and f"{row.live[c].median:.1f}")
        add("  p95, max", lambda row, c=chunk: spread(row.live.get(c)))
        add("  p95 of real time", lambda row, c=chunk: c in row.live and f"{100 * row.live[c].p95 / c:.0f} %")
    for seconds in OFFLINE_SECONDS:
        nemo = baseline and baseline.rtfx.get(seconds)

        def rtfx(row: Candidate, seconds=seconds, nemo=nemo) -> str | None:
            own = row.rtfx.get(seconds)
            return own and f"{own:.1f}" + (f" ({own / nemo:.1f} x)" if nemo and row is not baseline else "")

        add(f"recording of {seconds} s, RTFx", rtfx)
        add("  search", lambda row, s=seconds: s in row.search_share and f"{100 * row.search_share[s]:.1f} %")
    add(f"{BATCH} of {BATCH_SECONDS} s together, RTFx", lambda row: row.batch_rtfx and f"{row.batch_rtfx:.1f}")
    add("largest RTFx possible here", lambda row: row.rtfx_bound and f"{row.rtfx_bound:.1f}")
    notes = [f"{dtype} is left out: {reason}." for dtype, reason in result.left_out.items()]
    rates = ", ".join(f"{dtype} {rate:g}" for dtype, rate in result.rates["gflop_s"].items())
    head = [
        f"Benchmark of {model} on {result.device}, {_threads(result)}",
        f"This machine reads {result.rates['read_gb_s']:g} GB/s and multiplies with {rates} GFLOP/s.",
    ]
    return "\n".join([*head, format_table(table), *notes])


def _reached(row: Candidate, chunk_ms: int) -> str | None:
    bound = row.step_bound_ms.get(chunk_ms)
    return bound and f"{bound:.1f} ({100 * bound / row.steps[chunk_ms].median:.0f} %)"


def _threads(result: Benchmark) -> str:
    return f"{result.threads} CPU thread{'s' * (result.threads > 1)}"


def plot(result: Benchmark, model: str, path: Path) -> None:
    """Latency against chunk size, with the line at which a stream is just live; a PNG."""
    import matplotlib

    matplotlib.use("agg")
    from matplotlib import pyplot

    chunks = sorted(result.candidates[0].steps)
    figure, axes = pyplot.subplots(figsize=(8, 5), layout="constrained")
    places = range(len(chunks))
    axes.plot(places, chunks, color="black", linestyle="--", label="real time")
    for number, row in enumerate(result.candidates):
        times = [row.live.get(chunk) or row.steps[chunk] for chunk in chunks]
        medians = [t.median for t in times]
        over = [max(t.p95 - t.median, 0) for t in times]
        what = "log-mel, encoder, search" if row.live else "encoder alone"
        spread = [[0] * len(chunks), over]
        axes.errorbar(places, medians, spread, marker="o", capsize=3, color=f"C{number}", label=f"{row.name}: {what}")
    axes.set_yscale("log")
    axes.yaxis.set_major_formatter("{x:g}")
    axes.set_xticks(places, [f"{chunk} ms" for chunk in chunks])
    axes.set_xlabel("chunk")
    axes.set_ylabel("ms for a chunk: median, and up to the 95th percentile")
    axes.set_title(f"A step of a live stream: {model} on {result.device}, {_threads(result)}")
    axes.grid(True, axis="y", which="both", alpha=0.2)
    axes.legend()
    picture = io.BytesIO()
    figure.savefig(picture, dpi=120)
    pyplot.close(figure)
    write_file(path, picture.getvalue())
