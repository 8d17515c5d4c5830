"""--precision_compare: compare each recording with stock NeMo on the CPU while it is transcribed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from ..audio import SINE, read_audio, sine
from ..device import trim_memory
from ..engine import LocalEngine, ModelOptions
from ..errors import InputError, ModelError
from ..precision.compare import Precision
from ..precision.guide import format_signal
from ..precision.report import write_report
from ..precision.summary import format_precision
from ..precision.tolerances import Tolerances
from ..recognizer import load_recognizer
from ..sources import Recording
from ..transcript import Transcript
from .reports import run_environment
from .results import transcription_problem
from .run_info import RunInfo
from .session import Session
from .transcribe import ModelCheck


def load_reference(session: Session) -> LocalEngine:
    """Load stock NeMo on the CPU.  It comes before the candidate: for a moment it takes twice its memory."""
    session.console.notify("loading the CPU reference: NeMo ...")
    settings = session.settings
    options = ModelOptions(engine="nemo", chunk_ms=settings.chunk_ms, language=settings.language)
    reference = load_recognizer(session.checkpoint, torch.device("cpu"), options=options)
    trim_memory()
    return reference


class PrecisionCheck(ModelCheck):
    """Compares recordings, prints the tables and writes the report.

    With AUDIO every chunk length is compared as a stream, after the sine of the reference guide; without AUDIO one
    chunk length has to do, since the bundled clip gives a first impression only.
    """

    def __init__(self, session: Session, engine: LocalEngine, reference: LocalEngine, tolerances: Tolerances) -> None:
        super().__init__(session, engine)
        self.session = session
        self.console = session.console
        self.printer = session.printer
        self.has_audio = bool(session.options.input.audio)
        chunk_ms = session.options.model.chunk_ms
        if chunk_ms is None and not self.has_audio:
            chunk_ms = engine.chunk_ms
        self.precision = Precision(engine, reference, tolerances=tolerances, chunk_ms=chunk_ms)
        if self.has_audio:
            self.precision.add_signal(sine())
            self._print_signal()

    def fields(self, recording: Recording, transcript: Transcript) -> dict[str, Any]:
        """Compare a recording; return its figures, or none if it cannot be compared."""
        fields = super().fields(recording, transcript)
        figures = self._compare(recording, transcript)
        if figures:
            fields["precision_compare"] = figures
        return fields

    def failed(self, recording: Recording, error: Exception) -> None:
        """Find the stage at which the model fails; any other failure but an unusable file fails the comparison."""
        if isinstance(error, ModelError):
            self._compare(recording, None)
        elif not isinstance(error, InputError):
            self.precision.add_missing(transcription_problem(error), recording.name)

    def shows(self, recording: Recording) -> bool:
        """Return whether the transcript is printed; that of the bundled clip only serves the comparison."""
        is_clip = not self.has_audio and recording.path != SINE
        return not (is_clip and self.printer.readable)

    def added(self, recording: Recording) -> None:
        """Print the table of the sine where it is a recording of the run."""
        if recording.path == SINE and self.printer.readable:
            self._print_signal()

    def finish(self, run: RunInfo) -> bool:
        """Print the table of all recordings, and write the report; return whether the comparison passed."""
        results = self.session.results
        left = [index for index in results.todo if index not in results.done and index not in results.broken]
        if left:
            self.precision.add_missing(f"interrupted: {len(left)} of {len(results.todo)} not compared")
        if self.precision.recordings:
            self.printer.table(format_precision(self.precision, run.as_dict()))
        folder = self.session.options.measure.report
        if folder:
            environment = run_environment(self.session.checkpoint)
            page = write_report(self.precision, run.as_dict(), environment, Path(folder))
            self.console.notify(f"report: {page}")
        return self.precision.passed

    def _print_signal(self) -> None:
        assert self.precision.signal is not None
        self.printer.table(format_signal(self.precision.signal, SINE, str(self.engine.device)))

    def _compare(self, recording: Recording, transcript: Transcript | None) -> dict[str, Any] | None:
        """Compare one recording; return its figures, or None after an error line."""
        try:
            waveform = read_audio(recording)
            if recording.path == SINE:
                return self.precision.add_signal(waveform).as_dict()
            name = recording.name if self.has_audio else Path(recording.path).name
            self.console.notify(f"comparing {name} ...")
            comparison = self.precision.add_recording(name, waveform, transcript, recording.reference)
        except Exception as error:
            problem = f"cannot be compared: {type(error).__name__}: {error}"
            self.console.error(f"{recording.name}: {problem}", error)
            self.precision.add_missing(problem, recording.name)
            return None
        if not comparison.passed:
            self.console.notify(f"{recording.name}: FAILED, first at {comparison.failures[0]}")
        return comparison.as_dict()
