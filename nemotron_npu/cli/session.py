"""Data that the parts of one run share."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from ..boosting import Phrase
from ..errors import SetupError
from .console import Console
from .options import Options
from .printer import Printer
from .progress import Progress, show_progress
from .results import Results
from .run_info import RunSettings


@dataclass(frozen=True)
class Session:
    """One run, after its inputs have been found and before its model is loaded."""

    options: Options
    checkpoint: Path
    settings: RunSettings
    phrases: list[Phrase]
    results: Results

    @property
    def printer(self) -> Printer:
        """Return the printer of results and tables."""
        return self.results.printer

    @property
    def console(self) -> Console:
        """Return the console for messages."""
        return self.results.console

    @contextmanager
    def progress(self, *, growing: bool = False) -> Iterator[Progress]:
        """Show the progress of the recordings to transcribe and, however the run ends, its summary."""
        results = self.results
        recordings = [results.recordings[index] for index in results.todo]
        with show_progress(self.console, recordings, growing=growing) as progress:
            try:
                yield progress
            finally:
                progress.close()
                if self.options.input.audio:
                    results.conclude(progress.seconds)

    def report_unknown(self, unknown: list[Phrase]) -> None:
        """Notify of the phrases that the model's vocabulary cannot spell.  Raises SetupError if these are all."""
        subject = f"--boost_words {self.options.search.boost_words}"
        if self.phrases and len(unknown) == len(self.phrases):
            problem = "no phrase can be spelled with the tokens of this model"
            raise SetupError(subject, problem, "check upper and lower case")
        for phrase in unknown:
            self.console.notify(f"{subject}, line {phrase.line}: this model cannot spell {phrase.text!r} (skipped)")
