"""Results and tables on stdout, in the format that --output_format selects."""

from __future__ import annotations

from typing import Any

from ..audio import SINE
from ..formats import FORMATS, Result, to_text
from ..sources import Recording
from ..transcript import Transcript
from .console import Console
from .options import Options


class Printer:
    """Print results and tables; documents on stdout keep tables for people on stderr."""

    def __init__(self, console: Console, options: Options, total: int) -> None:
        self.console = console
        self.format = options.output.formats[0]
        self.readable = options.output.readable
        self._checks_model = options.checks_model
        self._layout = options.output.layout
        self.total = total
        """Recordings of the run: the name of each is shown if there are several."""

    def result(self, recording: Recording, transcript: Transcript, document: dict[str, Any]) -> None:
        """Print one result."""
        if self.format != "txt":
            result = Result(recording, transcript, document, self._layout)
            self.console.result(FORMATS[self.format].render(result), end="")
        elif self._checks_model:
            self.console.result(_model_check(document))
        elif recording.path != SINE:  # the bundled model has no words for a sine
            self.console.result(self.prefix(recording) + to_text(transcript))

    def prefix(self, recording: Recording) -> str:
        """Return the text before a transcript: the name of the recording, if there are several."""
        return f"{recording.name}: " if self.total > 1 else ""

    def table(self, text: str) -> None:
        """Print a table."""
        if self.readable:
            self.console.result(text)
        else:
            self.console.notify(text)


def _model_check(document: dict[str, Any]) -> str:
    """Return the lines of the reference guide's check of a checkpoint."""
    lines = [
        f"Parameters: {document['parameters']:,}",
        f"Preprocessed shape: {document['preprocessed_shape']}",
        f"Encoder output shape: {document['encoder_output_shape']}",
        f"Transcription: {document['text']}",
    ]
    return "\n".join(lines)
