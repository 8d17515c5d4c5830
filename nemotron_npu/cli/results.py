"""What a run shows and keeps: messages, progress, and each result on stdout or in a folder."""

from __future__ import annotations

import argparse
import sys
from contextlib import contextmanager, nullcontext

from ..audio import SINE
from ..errors import InputError, ModelError
from ..formats import FORMATS, Result, to_document, to_text
from .console import Console
from .progress import Progress

EARLY_CHECKS = 1000  # recordings whose headers are looked at before the model is loaded


class Results:
    """Where results go, to stdout or into a folder, and the count of them."""

    def __init__(self, args: argparse.Namespace, console: Console, recordings: list, failed: int, folder=None):
        self.args, self.console, self.recordings, self.folder = args, console, recordings, folder
        self.failed = failed
        """How many inputs have failed."""
        self.broken: set[int] = set()
        """Places of those that have."""
        self.total = len(recordings) + failed
        self.todo = folder.begin(recordings) if folder else list(range(len(recordings)))
        """Places among ``recordings`` of those that are still to be recognised."""
        self.skipped = len(recordings) - len(self.todo)
        self.done: dict[int, tuple[str, float]] = folder.done if folder else {}
        """Text and duration (s) by place, of an earlier run too."""
        if folder and folder.began_anew:
            console.say(
                f"{args.output_dir}: begun anew, the record of the last run is kept as results.jsonl~ "
                "(--resume goes on with it instead)"
            )

    def check(self) -> None:
        """Look at the first headers: what cannot be read need not wait for the model."""
        for number, place in enumerate(self.todo):
            if number >= EARLY_CHECKS and not (self.args.num_workers or self.args.ray_address):
                break
            if number >= EARLY_CHECKS and self.recordings[place].seconds is not None:
                continue  # work is shared out by length, which a manifest tells
            try:
                self.recordings[place].check()
            except InputError as error:
                self.fail(place, error)
        self.todo = [place for place in self.todo if place not in self.broken]
        if self.folder and self.args.batch_size != 1:  # where no order is kept: side by side are those of one length
            lengths = {place: self.recordings[place].seconds for place in self.todo}
            if None not in lengths.values():
                self.todo.sort(key=lengths.get, reverse=True)

    def fail(self, place: int, error: Exception) -> None:
        """One line for a recording that gave no transcript; an InputError names it itself."""
        self.failed += 1
        self.broken.add(place)
        if isinstance(error, InputError):
            self.console.error(str(error))
        else:
            kind = "" if isinstance(error, ModelError) else f"{type(error).__name__}: "
            self.console.error(f"{self.recordings[place].name}: cannot be transcribed: {kind}{error}", error)

    def add(self, place: int, transcript, facts: dict, comparison=None, shown: bool = False) -> None:
        """One result, whose text may be ``shown`` already.

        Raises InputError when it cannot be written, SetupError when nothing can.
        """
        recording = self.recordings[place]
        facts = {**recording.document_fields(), **facts}
        if comparison:
            facts["precision_compare"] = comparison.as_dict()
        if recording.reference is not None:
            from ..evaluation.wer import score

            errors = score(recording.name, recording.reference, transcript.text, transcript.duration)
            facts |= {"reference": recording.reference, "errors": errors.as_dict()}
        document = to_document(transcript, **facts)
        if self.folder:
            self.folder.write(place, transcript, document)
        else:
            self.done[place] = to_text(transcript), transcript.duration
            beside_the_sine = (
                comparison and not self.args.audio and recording.path != SINE
            )  # its table is all it is for
            if not (shown or (beside_the_sine and shows_text(self.args))):
                self._print(recording, transcript, document)
        if comparison and recording.path == SINE and shows_text(self.args):
            from ..precision.guide import format_signal

            self.console.result(format_signal(comparison, SINE, document["device"]))

    def _print(self, recording, transcript, document: dict) -> None:
        (kind,) = self.args.output_format
        text = to_text(transcript)
        if kind != "txt":
            self.console.result(FORMATS[kind].render(Result(recording, transcript, document)), end="")
        elif self.args.model_path and not self.args.audio:  # as the write-up prints it
            self.console.result(
                f"Parameters: {document['parameters']:,}\n"
                f"Preprocessed shape: {document['preprocessed_shape']}\n"
                f"Encoder output shape: {document['encoder_output_shape']}\n"
                f"Transcription: {text}"
            )
        elif recording.path != SINE:  # which says nothing
            self.console.result((f"{recording.name}: " if self.total > 1 else "") + text)

    def missing(self) -> tuple[str, ...]:
        """``7 of 12 not done``, of several recordings or a folder."""
        if self.total == 1 and not self.folder:
            return ()
        return (f"{self.total - len(self.done)} of {self.total} not done",)

    def summary(self, seconds: float) -> str:
        """``500 recordings: 480 done, 15 done before, 5 failed; 0.93 h of sound in 41.2 s (RTFx 81.3)``."""
        new = [self.done[place][1] for place in self.todo if place in self.done]
        left = len(self.todo) - len(new) - len(self.broken.intersection(self.todo))
        counts = [f"{len(new)} done"]
        if self.args.resume:
            counts.append(f"{self.skipped} done before")
        counts.append(f"{self.failed} failed")
        if left:
            counts.append(f"{left} left" + (": --resume goes on with them" if self.folder else ""))
        speed = f"; {sum(new) / 3600:.2f} h of sound in {seconds:.1f} s (RTFx {sum(new) / seconds:.1f})" if new else ""
        return f"{self.total} recording{'s' * (self.total > 1)}: {', '.join(counts)}{speed}"


def shows_text(args) -> bool:
    """Whether stdout is for people to read, not for documents alone."""
    return bool(args.output_dir) or args.output_format == ("txt",)


def show_table(args, console: Console, table: str) -> None:
    if shows_text(args):
        console.result(table)
    else:
        console.say(table)


def timings(facts: dict, transcript, seconds: float) -> dict:
    """Seconds of loading the model, and of this recording since the one before it."""
    return {
        **facts["timings"],
        "seconds": round(seconds, 4),
        "rtfx": round(transcript.duration / max(seconds, 1e-6), 2),
    }


@contextmanager
def progress_of(args, console: Console, results: Results):
    """The progress of what is to be done; at the end, however it comes, what became of it."""
    with show_progress(args, console, [results.recordings[place] for place in results.todo]) as progress:
        try:
            yield progress
        finally:
            progress.close()
            if args.audio and (results.total > 1 or results.folder):
                console.say(results.summary(progress.seconds))


@contextmanager
def show_progress(args, console: Console, recordings: list):
    """A bar or lines for ``recordings``, which makes way for what the console writes."""
    quiet = args.quiet or (args.stream and sys.stdout.isatty())  # there the words grow
    progress = Progress(recordings, console.say, quiet)
    console.aside = progress.aside
    try:
        yield progress
    finally:
        console.aside = nullcontext
        progress.close()
