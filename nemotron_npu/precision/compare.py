"""``--precision_compare``: the chosen device, engine and dtype against stock NeMo, float32, on the CPU.

Both sides get the same samples.  ``add_signal`` gives the reference guide's figures of one signal.
``add_recording`` processes recordings with both sides in lockstep, and compares every stage:

    log-mel, subsampling, layer 0 .. layer N (numbered as in the checkpoint), encoder output, prediction network,
    joint (log-probabilities along the reference's own path), tokens, words

once as a whole recording and once for each chunk length as a live stream.  Streams also compare the keys, values and
convolution inputs that each layer keeps.  Each stage is measured twice: *accumulated*, after all earlier stages of its
own side, and *alone*, given the reference's input.  The second shows a wrong operator in its own stage only, and not in
every stage after it.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, cast

import numpy as np

from ..audio import SAMPLE_RATE
from ..engine import LocalEngine
from ..errors import ModelError
from ..transcript import Transcript
from .document import recording_run_as_dict, run_as_dict, stages_as_dict
from .guide import SignalComparison, compare_signal
from .hf32 import explain_float32
from .lockstep import Probes, Sample, run_lockstep
from .metrics import verdict
from .probes import NemoProbe, make_probe
from .stages import Failure, LockstepRun, Picture
from .tolerances import TOLERANCES, Tolerances

if TYPE_CHECKING:
    from ..nemo_engine import NemoRecognizer

SCHEMA = "nemotron-npu/precision"
SCHEMA_VERSION = 1  # of ``precision.json``, see report.schema.json in this folder


@dataclass
class ComparedRecording:
    """One recording that both sides processed."""

    audio: str
    seconds: float
    runs: dict[str, LockstepRun]
    """By ``LockstepRun.name``: as a whole, then as a stream of each chunk length."""
    transcript: Transcript
    """The candidate's transcript."""

    @property
    def failures(self) -> list[Failure]:
        """Every failure, the first stage of the whole recording first."""
        return [failure for run in self.runs.values() for failure in run.failures()]

    @property
    def passed(self) -> bool:
        """Whether nothing exceeds its tolerance."""
        return not self.failures

    def as_dict(self) -> dict:
        """Return an item of ``recordings`` in ``precision.json``."""
        return {
            "audio": self.audio,
            "seconds": round(self.seconds, 3),
            "verdict": verdict(passed=self.passed),
            "failures": [asdict(failure) for failure in self.failures],
            "text": self.transcript.text,
            "walks": {name: recording_run_as_dict(run) for name, run in self.runs.items()},
            "stages": stages_as_dict(next(iter(self.runs.values()))),
        }


class Precision:
    """The comparison of one candidate, over any number of recordings.

    ``candidate`` is a recognizer on the device, engine and dtype in question; ``reference`` is stock NeMo on the CPU,
    in an instance of its own.  ``tolerances`` are those of the candidate's dtype unless others are given.
    ``chunk_ms`` is the only chunk length of the streams; None takes each one that the checkpoint offers.
    """

    def __init__(
        self,
        candidate: LocalEngine,
        reference: LocalEngine,
        *,
        tolerances: Tolerances | None = None,
        chunk_ms: int | None = None,
    ) -> None:
        config = candidate.config
        self.candidate, self.reference = candidate, reference
        self.probes = Probes(make_probe(candidate), NemoProbe(cast("NemoRecognizer", reference)))
        self.tolerances = tolerances or TOLERANCES[getattr(candidate, "dtype", "float32")]
        self.max_symbols = config.decoding.max_symbols
        streams = self.probes.candidate.streams and self.probes.reference.streams
        contexts = config.contexts if streams else {}
        self.chunks = sorted(ms for ms in contexts if chunk_ms in (None, ms))
        self.totals: dict[str, LockstepRun] = {}
        self.recordings: list[dict] = []
        self.shown: ComparedRecording | None = None
        """The recording in the figures: the first that failed, otherwise the longest."""
        self.signal: SignalComparison | None = None
        self.seconds = 0.0
        self.missing: list[Failure] = []
        """Recordings that could not be compared."""

    def add_signal(self, waveform: np.ndarray) -> SignalComparison:
        """Compare the reference guide's signal as the guide does."""
        self.signal = compare_signal(self.candidate, self.reference, waveform, self.tolerances.encoder)
        return self.signal

    def add_recording(
        self, audio: str, waveform: np.ndarray, transcript: Transcript | None = None, text: str | None = None
    ) -> ComparedRecording:
        """Compare one recording, float32 [samples] at 16 kHz, under the name ``audio``.

        ``transcript`` is the candidate's; None transcribes the recording here.  ``text`` are the spoken words, if they
        are known.
        """
        if transcript is None:
            transcript = self._transcribe(waveform)
        runs = [self._run(Sample(waveform, transcript, text, self.max_symbols))]
        default = self.candidate.chunk_ms
        try:
            for chunk_ms in self.chunks:
                self._use(chunk_ms)
                runs.append(self._run(Sample(waveform, None, text, self.max_symbols), live=True))
        finally:
            self._use(default)
        recording = ComparedRecording(audio, len(waveform) / SAMPLE_RATE, {run.name: run for run in runs}, transcript)
        self._sum_up(recording)
        return recording

    def _transcribe(self, waveform: np.ndarray) -> Transcript:
        """Transcribe with the candidate; a model that fails gives an empty transcript, and its stages show where."""
        try:
            return self.candidate.transcribe([waveform])[0]
        except ModelError:
            return Transcript("", (), len(waveform) / SAMPLE_RATE)

    def _use(self, chunk_ms: int | None) -> None:
        self.probes.candidate.use(chunk_ms)
        self.probes.reference.use(chunk_ms)

    def _run(self, sample: Sample, *, live: bool = False) -> LockstepRun:
        return run_lockstep(self.probes, sample, self.tolerances, live=live)

    def _sum_up(self, recording: ComparedRecording) -> None:
        for name, run in recording.runs.items():
            total = self.totals.setdefault(name, LockstepRun.like(run))
            total.absorb(run, recording.audio)
        self.recordings.append(recording.as_dict())
        self.seconds += recording.seconds
        shown = self.shown
        if shown is None or (shown.passed and (not recording.passed or recording.seconds > shown.seconds)):
            self.shown = recording

    def add_missing(self, reason: str, audio: str = "") -> None:
        """Record that a recording, or some, could not be compared: the verdict cannot be PASSED."""
        self.missing.append(Failure("recording", " ".join(reason.split()), audio))

    @property
    def pictures(self) -> dict[str, Picture]:
        """Differences of the recording in the figures, by stage; see ``LockstepRun.pictures``."""
        return self.shown.runs["recording"].pictures if self.shown else {}

    @property
    def failures(self) -> list[Failure]:
        """Every failure, the first stage of the whole recordings first."""
        found = [failure for total in self.totals.values() for failure in total.failures()]
        if self.signal:
            found += [Failure("sine", failure) for failure in self.signal.failures]
        return found + self.missing

    @property
    def passed(self) -> bool:
        """Whether nothing exceeds its tolerance, and everything was compared."""
        return not self.failures

    def explanation(self, candidate: dict) -> str | None:
        """Describe an error that float32 arithmetic does not explain; None if there is none, and for other dtypes."""
        whole = self.totals.get("recording")
        if whole is None or candidate.get("dtype") != "float32":
            return None
        return explain_float32(whole, candidate.get("device_settings", {}))

    def as_dict(self, candidate: dict, environment: dict) -> dict:
        """Return ``precision.json``.

        ``candidate`` describes model, engine, device and dtype; ``environment`` is that of ``host.provenance``.
        """
        return {
            "schema": SCHEMA,
            "schema_version": SCHEMA_VERSION,
            "verdict": verdict(passed=self.passed),
            "failures": [asdict(failure) for failure in self.failures],
            "explanation": self.explanation(candidate),
            "candidate": candidate,
            "reference": {"engine": "nemo", "device": "cpu", "dtype": "float32"},
            "environment": environment,
            "bounds": asdict(self.tolerances),
            "sine": self.signal and self.signal.as_dict(),
            "seconds": round(self.seconds, 3),
            "walks": self._runs_as_dict(),
            "recordings": self.recordings,
        }

    def _runs_as_dict(self) -> dict:
        shown = self.shown
        if shown is None:
            return {}
        return {name: run_as_dict(total, shown.runs[name], shown.audio) for name, total in self.totals.items()}
