"""``--precision_compare``: the chosen device, engine and dtype against stock NeMo, float32, on the CPU.

Both get the same samples.  ``compare`` gives the write-up's figures of one signal.  ``Precision`` walks through
recordings with both in lock-step, stage by stage:

    log-mel, subsampling, layer 0 .. layer N (as the checkpoint numbers them), encoder output, prediction network,
    joint (log-probabilities along the reference's own path), tokens, words

once as whole recordings and once for each chunk length as a live stream, there also with what each layer keeps of the
past (keys, values, convolution cache).  Each stage is measured twice: *accumulated*, with all that came before it on
its own side, and *alone*, given the reference's input, so that an operator that is wrong shows as itself and not as
everything behind it.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass

import numpy as np
import torch

from ..audio import SAMPLE_RATE
from ..checkpoint.load import attention_contexts
from ..errors import ModelError
from ..host.table import format_table
from ..recognizer import Recognizer
from ..transcript import Transcript
from .lockstep import Failure, Walk, stage_names, walk
from .metrics import Difference, Tally, difference
from .probes import CACHES, make_probe
from .tokens import BINS, Decisions
from .tolerances import BOUNDS, Bounds

THRESHOLD = 1.0  # percent of relative error below which the write-up calls a device right
SCHEMA = "nemotron-npu/precision"
SCHEMA_VERSION = 1  # of ``precision.json``, see report.schema.json beside this file
TRACE_POINTS = 400  # of an error over time, at most


# ---------------------------------------------------------------- the write-up's figures


@dataclass(frozen=True)
class Comparison:
    """One signal on the device and on the CPU."""

    features_shape: list[int]
    encoded_shape: list[int]
    preprocessor: Difference
    encoder: Difference
    device_range: tuple[float, float]
    """Smallest and largest value of the encoder output on the device."""
    cpu_range: tuple[float, float]
    cpu_against_cpu: Difference
    """The CPU's encoder output of two runs: must be exactly 0, or the method itself is not to be trusted."""
    threshold: float
    """Percent of relative error that PASSED needs to be under."""
    failures: list[str]
    """Why the verdict is FAILED; empty when it is PASSED."""

    @property
    def passed(self) -> bool:
        return not self.failures

    def as_dict(self) -> dict:
        return {**asdict(self), "verdict": verdict(self.passed)}


def compare(
    candidate: Recognizer, reference: Recognizer, waveform: np.ndarray, threshold: float = THRESHOLD
) -> Comparison:
    """Run preprocessor and encoder of both on ``waveform``, the reference twice.

    The candidate's encoder is fed its own features, as it is in use.
    """
    features, encoded = _run(candidate, waveform)
    features_cpu, encoded_cpu = _run(reference, waveform)
    _, again = _run(reference, waveform)
    encoder, repeat = difference(encoded, encoded_cpu), difference(again, encoded_cpu)
    failures = []
    if not (torch.isfinite(encoded).all() and torch.isfinite(encoded_cpu).all()):
        failures.append("encoder output is not finite")
    elif not encoder.relative_error_percent < threshold:
        failures.append(f"relative error {encoder.relative_error_percent:.4f} % is not under {threshold:g} %")
    if not torch.equal(again, encoded_cpu):
        failures.append(f"two runs on the CPU differ by up to {repeat.max_error:.3g}")
    return Comparison(
        features_shape=list(features.shape),
        encoded_shape=list(encoded.shape),
        preprocessor=difference(features, features_cpu),
        encoder=encoder,
        device_range=(float(encoded.min()), float(encoded.max())),
        cpu_range=(float(encoded_cpu.min()), float(encoded_cpu.max())),
        cpu_against_cpu=repeat,
        threshold=threshold,
        failures=failures,
    )


def _run(recognizer: Recognizer, waveform: np.ndarray) -> tuple[torch.Tensor, torch.Tensor]:
    """Features [1, mels, T] and valid encoder output [1, width, frames] of one recording, on the host."""
    features, lengths = recognizer.preprocess([waveform])
    encoded, frames = recognizer.encode(features, lengths)
    return features.cpu(), encoded[:, :, : int(frames[0])].cpu()


def to_table(comparison: Comparison, name: str, device: str) -> str:
    """The write-up's table, row by row, for a terminal."""
    c = comparison
    rows = [
        ("Preprocessor MAE", f"{c.preprocessor.mae:.10f}"),
        ("Preprocessor Max Error", f"{c.preprocessor.max_error:.10f}"),
        ("Encoder MSE", f"{c.encoder.mse:.3g}"),
        ("Encoder MAE", f"{c.encoder.mae:.10f}"),
        ("Max Absolute Error", f"{c.encoder.max_error:.10f}"),
        ("Relative Error", f"{c.encoder.relative_error_percent:.6f} %"),
        (f"Output range, {device}", f"{c.device_range[0]:.6f} .. {c.device_range[1]:.6f}"),
        ("Output range, cpu", f"{c.cpu_range[0]:.6f} .. {c.cpu_range[1]:.6f}"),
        ("cpu against cpu", f"MAE = {c.cpu_against_cpu.mae}, max = {c.cpu_against_cpu.max_error}"),
        ("Verdict", f"PASSED (< {c.threshold:g} %)" if c.passed else "FAILED: " + "; ".join(c.failures)),
    ]
    return format_table(rows, title=f"Precision of {device} against cpu: {name}", left=2)


def verdict(passed: bool) -> str:
    return "PASSED" if passed else "FAILED"


# ---------------------------------------------------------------- recordings


@dataclass
class Recording:
    """One recording that both sides were walked through."""

    audio: str
    seconds: float
    walks: dict[str, Walk]
    """By ``Walk.name``: as a whole, then as a stream of each chunk length."""
    transcript: Transcript
    """The candidate's."""

    @property
    def failures(self) -> list[Failure]:
        return [failure for walk in self.walks.values() for failure in walk.failures()]

    @property
    def passed(self) -> bool:
        return not self.failures

    def as_dict(self) -> dict:
        return {
            "audio": self.audio,
            "seconds": round(self.seconds, 3),
            "verdict": verdict(self.passed),
            "failures": [asdict(failure) for failure in self.failures],
            "text": self.transcript.text,
            "walks": {
                name: {
                    "frames": walk.frames,
                    "encoder_output": walk.accumulated["encoder output"].as_dict(),
                    "drift": drift(walk.accumulated["encoder output"]),
                    "decisions": walk.decisions.as_dict(),
                }
                for name, walk in self.walks.items()
            },
            "stages": stages_as_dict(next(iter(self.walks.values()))),
        }


class Precision:
    """The proof: what all recordings together say of the candidate.

    Parameters
    ----------
    candidate : a recognizer on the device, engine and dtype in question.
    reference : stock NeMo on the CPU, an instance of its own.
    config : the checkpoint's.
    bounds : what is allowed; None takes those of the candidate's dtype.
    chunk_ms : the only chunk length to stream at; None streams at each that the checkpoint offers.
    """

    def __init__(
        self,
        candidate: Recognizer,
        reference: Recognizer,
        config: dict,
        bounds: Bounds | None = None,
        chunk_ms: int | None = None,
    ):
        self.candidate, self.reference = candidate, reference
        self.probes = make_probe(candidate), make_probe(reference)
        self.bounds = bounds or BOUNDS[getattr(candidate, "dtype", "float32")]
        self.contexts = attention_contexts(config)
        greedy = (config.get("decoding") or {}).get("greedy") or {}
        self.max_symbols = greedy.get("max_symbols") or greedy.get("max_symbols_per_step")
        streams = self.probes[0].streams and self.probes[1].streams
        self.chunks = sorted(ms for ms in self.contexts if streams and chunk_ms in (None, ms))
        self.totals: dict[str, Walk] = {}
        self.recordings: list[dict] = []
        self.shown: Recording | None = None
        """The recording that stands for all in plots: the first that failed, else the longest."""
        self.signal: Comparison | None = None
        self.seconds = 0.0
        self.missing: list[Failure] = []
        """Recordings that could not be compared."""

    def add_signal(self, waveform: np.ndarray) -> Comparison:
        """The write-up's comparison, of its signal."""
        self.signal = compare(self.candidate, self.reference, waveform, self.bounds.encoder)
        return self.signal

    def add(
        self, audio: str, waveform: np.ndarray, transcript: Transcript | None = None, text: str | None = None
    ) -> Recording:
        """Walk through one recording, float32 [samples] at 16 kHz.

        ``transcript`` is what the candidate recognised in it (None: it does so here), ``text`` what was really said.
        """
        if transcript is None:
            try:
                transcript = self.candidate.transcribe([waveform])[0]
            except ModelError:  # the stages tell where it fails
                transcript = Transcript("", (), len(waveform) / SAMPLE_RATE)
        options = {"text": text, "max_symbols": self.max_symbols}
        walks = [walk(*self.probes, waveform, self.bounds, transcript=transcript, **options)]
        default = self.candidate.chunk_ms
        try:
            for chunk_ms in self.chunks:
                self._use(chunk_ms)
                walks.append(walk(*self.probes, waveform, self.bounds, live=True, **options))
        finally:
            if default:
                self._use(default)
        seconds = len(waveform) / SAMPLE_RATE
        recording = Recording(audio, seconds, {walk.name: walk for walk in walks}, transcript)
        for name, one in recording.walks.items():
            total = self.totals.setdefault(name, Walk.like(one))
            total.absorb(one, audio)
        self.recordings.append(recording.as_dict())
        self.seconds += seconds
        shown = self.shown
        if shown is None or (shown.passed and (not recording.passed or recording.seconds > shown.seconds)):
            self.shown = recording
        return recording

    def miss(self, reason: str, audio: str = "") -> None:
        """A recording, or some, could not be compared: nothing that was not seen is PASSED."""
        self.missing.append(Failure("recording", " ".join(reason.split()), audio))

    def _use(self, chunk_ms: int) -> None:
        for probe in self.probes:
            probe.use(chunk_ms, self.contexts[chunk_ms])

    @property
    def pictures(self) -> dict[str, list[np.ndarray]]:
        """Differences of the recording that is shown, by stage; see ``Walk.pictures``."""
        return self.shown.walks["recording"].pictures if self.shown else {}

    @property
    def failures(self) -> list[Failure]:
        """Everything that speaks against the candidate, the first stage of the whole recordings first."""
        found = [failure for walk in self.totals.values() for failure in walk.failures()]
        if self.signal:
            found += [Failure("sine", failure) for failure in self.signal.failures]
        return found + self.missing

    @property
    def passed(self) -> bool:
        return not self.failures

    def as_dict(self, facts: dict, environment: dict) -> dict:
        """``precision.json``, as ``report.schema.json`` describes it."""
        return {
            "schema": SCHEMA,
            "schema_version": SCHEMA_VERSION,
            "verdict": verdict(self.passed),
            "failures": [asdict(failure) for failure in self.failures],
            "candidate": facts,
            "reference": {"engine": "nemo", "device": "cpu", "dtype": "float32"},
            "environment": environment,
            "bounds": asdict(self.bounds),
            "sine": self.signal and self.signal.as_dict(),
            "seconds": round(self.seconds, 3),
            "walks": {name: self._walk_as_dict(name, walk) for name, walk in self.totals.items()},
            "recordings": self.recordings,
        }

    def _walk_as_dict(self, name: str, walk: Walk) -> dict:
        shown = self.shown.walks[name].accumulated["encoder output"]
        return {
            "chunk_ms": walk.chunk_ms,
            "live": walk.live,
            "frames": walk.frames,
            "verdict": verdict(not walk.failures()),
            "stages": stages_as_dict(walk),
            "decisions": walk.decisions.as_dict(),
            "margin_histogram": {
                "edges": BINS.tolist(),
                "margins": walk.decisions.margins.tolist(),
                "errors": walk.decisions.errors.tolist(),
            },
            "repeated": None
            if walk.live
            else {"candidate": asdict(walk.candidate_repeat), "reference": asdict(walk.reference_repeat)},
            "error_over_time": {"audio": self.shown.audio, **over_time(shown, walk.frame_seconds)},
        }


def stages_as_dict(walk: Walk) -> list[dict]:
    """Every stage that was measured, in the order in which sound passes them."""
    rows = []
    for stage in stage_names(walk.layers):
        accumulated, alone = walk.accumulated.get(stage), walk.alone.get(stage)
        if accumulated is not None:
            exceeds = accumulated.exceeds or (alone is not None and alone.exceeds)
            rows.append(
                {
                    "stage": stage,
                    "verdict": verdict(not exceeds),
                    "accumulated": accumulated.as_dict(),
                    "alone": alone and alone.as_dict(),
                }
            )
    return rows


def over_time(tally: Tally, frame_seconds: float) -> dict:
    """The error of each encoder frame, the largest of neighbours where there are more than ``TRACE_POINTS``."""
    rows = np.concatenate(tally.trace) if tally.trace else np.zeros(0, np.float32)
    size = max(1, -(-len(rows) // TRACE_POINTS))
    return {
        "seconds": [round(first * frame_seconds, 3) for first in range(0, len(rows), size)],
        "percent": [float(rows[first : first + size].max()) for first in range(0, len(rows), size)],
    }


def drift(tally: Tally) -> dict | None:
    """Mean error of the frames in the first and in the last tenth of a recording of ten frames or more."""
    rows = np.concatenate(tally.trace) if tally.trace else np.zeros(0, np.float32)
    tenth = len(rows) // 10
    if not tenth:
        return None
    return {"first_tenth_percent": float(rows[:tenth].mean()), "last_tenth_percent": float(rows[-tenth:].mean())}


# ---------------------------------------------------------------- for a terminal


def stage_table(precision: Precision, facts: dict) -> str:
    """Every stage of the whole recordings, then decisions, streams, repeats and the verdict."""
    walk = next(iter(precision.totals.values()))
    count = len(precision.recordings)
    what = precision.recordings[0]["audio"] if count == 1 else f"{count} recordings"
    lines = [
        f"{facts['device']} ({facts['engine']}, {facts['dtype']}) against NeMo (cpu, float32), stage by stage: {what}, "
        f"{precision.seconds:.1f} s",
        f"  {'':<20}{'error %':>10}{'alone %':>10}{'worst frame %':>15}{'max error':>11}{'SNR dB':>8}{'cosine':>11}",
    ]
    for stage in stage_names(walk.layers):
        tally, alone = walk.accumulated.get(stage), walk.alone.get(stage)
        if tally is None:
            continue
        failed = "  FAILED" if tally.exceeds or (alone is not None and alone.exceeds) else ""
        lines.append(
            f"  {stage:<20}{tally.percent:>10.2g}{'-' if alone is None else f'{alone.percent:.2g}':>10}"
            f"{tally.worst.percent if tally.worst else 0:>15.2g}{tally.max_error:>11.2g}{tally.snr_db:>8.1f}"
            f"{tally.cosine:>11.8f}{failed}"
        )
    rows = [("tokens", tokens_line(walk.decisions)), ("words", words_line(walk.decisions))]
    rows += [(name, stream_line(precision, name)) for name, other in precision.totals.items() if other.live]
    rows += [("the same twice", repeat_line(walk, facts["device"])), ("Verdict", verdict_line(precision))]
    return "\n".join(lines + [f"  {label:<20}  {value}" for label, value in rows])


def tokens_line(d: Decisions) -> str:
    if not d.token_errors:
        equal = f"{d.reference_tokens:,} of {d.reference_tokens:,} equal"
    else:
        equal = f"{d.token_errors:,} of {d.reference_tokens:,} differ ({d.token_percent:.2g} %)"
        if first := d.first_difference:
            equal += (
                f", the first at {first['time']:.2f} s: {first['candidate']} by {first['candidate_margin']:.2g} nats "
                f"instead of {first['reference']} by {first['reference_margin']:.2g}"
            )
            equal += f" in {first['audio']}" if "audio" in first else ""
    return equal + f"; {safety_line(d)}"


def safety_line(d: Decisions) -> str:
    """How safe "equal" is: a choice can only differ where twice the error reaches its margin."""
    if not d.steps:
        return "no decisions"
    line = f"smallest margin {d.smallest_margin:.2g} nats, largest joint error {d.largest_error:.2g}"
    if d.undecided:
        return f"{line}: {d.undecided:,} of {d.steps:,} decisions within reach of it"
    return line + (f": safe by a factor of {d.safety:,.0f}" if np.isfinite(d.safety) else "")


def words_line(d: Decisions) -> str:
    line = f"{d.reference_words:,} of {d.reference_words:,} equal"
    if d.word_errors:
        line = f"{d.word_errors:,} of {d.reference_words:,} wrong against the reference ({d.word_percent:.2g} %)"
    if d.transcript_words:
        own, theirs = (
            100 * errors / d.transcript_words
            for errors in (d.candidate_transcript_errors, d.reference_transcript_errors)
        )
        line += f"; against the transcript {own:.2f} % WER, the reference {theirs:.2f} % ({own - theirs:+.2f})"
    return line


def stream_line(precision: Precision, name: str) -> str:
    walk = precision.totals[name]
    d = walk.decisions
    output = walk.accumulated["encoder output"]
    caches = [
        (tally.percent, stage)
        for stage in stage_names(walk.layers)
        if any(stage.startswith(cache) for cache in CACHES) and (tally := walk.accumulated.get(stage))
    ]
    line = f"encoder output {output.percent:.2g} %"
    if caches:
        line += f", caches up to {max(caches)[0]:.2g} % ({max(caches)[1]})"
    line += f", {d.equal_tokens:,} of {d.reference_tokens:,} tokens equal"
    moved = drift(precision.shown.walks[name].accumulated["encoder output"])
    if moved:
        line += f"; first tenth {moved['first_tenth_percent']:.2g} %, last {moved['last_tenth_percent']:.2g} %"
    failures = walk.failures()
    return line + ("  FAILED" if failures else "")


def repeat_line(walk: Walk, device: str) -> str:
    def tell(side: str, repeat) -> str:
        return f"{side} differs by up to {repeat.max_error:.2g} in {repeat.stage}" if repeat.stage else f"{side} 0"

    return f"{tell(device, walk.candidate_repeat)}, {tell('NeMo on the cpu', walk.reference_repeat)}"


def verdict_line(precision: Precision) -> str:
    failures = precision.failures
    if not failures:
        return "PASSED"
    more = f" (and {len(failures) - 1:,} more)" if len(failures) > 1 else ""
    return f"FAILED, first at {failures[0]}{more}"
