"""Word error rates of a run, and the files of --report that need no torch."""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from ..dtypes import instructions
from ..errors import SetupError, first_line
from ..evaluation.report import alignment_report, summary_table, use_color
from ..evaluation.wer import evaluate
from ..formats import dump, encode
from ..host.files import write_file
from ..host.provenance import environment
from .session import Session


def report_word_errors(session: Session, fields: dict[str, Any]) -> None:
    """Print the error rates of all recordings with a reference text, and write evaluation.json with --report.

    ``fields`` describe the run in that file.  Recordings that an earlier run has finished count too.
    """
    results = session.results
    scored = []
    for index in sorted(results.done):
        recording = results.recordings[index]
        text, duration = results.done[index]
        if recording.reference is not None:
            scored.append((recording.name, recording.reference, text, duration))
    if not scored:
        return
    evaluation = evaluate(scored, session.settings.wer_normalizer)
    console, readable = session.console, session.printer.readable
    to_terminal = readable and sys.stdout.isatty() and not console.quiet
    show: Callable[..., None] = console.note if readable else console.notify
    if to_terminal:  # a file or pipe gets the transcripts alone
        show = console.result
    show(summary_table(evaluation))
    measure = session.options.measure
    if measure.wer_report:
        width = shutil.get_terminal_size((80, 24)).columns
        color = use_color(sys.stdout if to_terminal else sys.stderr)
        show("\n" + alignment_report(evaluation, width, color=color), colored=color)
    if measure.report:
        path = Path(measure.report, "evaluation.json")
        write_figures(path, {**fields, "evaluation": evaluation.as_dict()}, session.checkpoint)


def make_report_folder(name: str, option: str = "--report") -> None:
    """Create the folder of ``option`` before the work.  Raises SetupError if it cannot be written."""
    subject = f"{option} {name}"
    try:
        os.makedirs(name, exist_ok=True)
    except OSError as error:
        raise SetupError(subject, f"the folder cannot be created: {first_line(error)}") from error
    if not os.access(name, os.W_OK | os.X_OK):
        raise SetupError(subject, "the folder cannot be written")


def write_figures(path: Path, figures: dict[str, Any], checkpoint: Path) -> None:
    """Write figures, and the environment that they were measured in, as JSON."""
    text = dump({**figures, "environment": run_environment(checkpoint)}, indent=1)
    write_file(path, encode(text + "\n"))


def run_environment(checkpoint: Path) -> dict[str, Any]:
    """Return versions, hardware, checkpoint and command of this run."""
    computed = "torch" in sys.modules  # else all results are those of an earlier run
    return environment(checkpoint, instructions() if computed else None)
