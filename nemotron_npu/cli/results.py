"""All results of a run: which recordings are left, done or failed."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable, Collection, Sequence
from typing import Any

from ..errors import InputError, ModelError, shown
from ..formats import to_document, to_text
from ..sources import Recording, stem
from ..transcript import Transcript
from .output_folder import OutputFolder
from .output_names import name_outputs
from .printer import Printer
from .scores import reference_fields

MAX_ABSENT_SHOWN = 5  # files that do not exist; the others of a list are counted
MAX_ENDINGS = 5  # in the summary
EARLY_CHECKS = 1000  # recordings whose headers are read before the model is loaded
HOURS_FROM = 360.0  # minimum seconds of audio that the summary shows in hours: less would be 0.0x h
EARLY_LENGTHS = 10_000  # those with workers, which share work by length


class Results:
    """Take each result, write it to the folder or print it, and count it.

    Parameters
    ----------
    recordings : all recordings of the run.
    unusable : number of inputs that give no recording; they count as failed.
    folder : where results are written; None prints them.
    printer : prints results.
    left_out : numbers of the other files in folders, by extension.

    """

    def __init__(
        self,
        recordings: list[Recording],
        unusable: int,
        folder: OutputFolder | None,
        printer: Printer,
        left_out: Counter[str] | None = None,
    ) -> None:
        self.recordings = recordings
        self.folder = folder
        self.printer = printer
        self.left_out = left_out or Counter()
        self.console = printer.console
        self.failed = unusable
        """Number of inputs that have failed."""
        self.broken: set[int] = set()
        """Indices of recordings that have failed."""
        self.absent = 0
        """Number of these whose file does not exist."""
        self.total = len(recordings) + unusable
        self.todo = folder.begin(recordings) if folder else list(range(len(recordings)))
        """Indices of the recordings to transcribe in this run."""
        self.has_pipes = False
        """Whether some are pipes, which no later run can read again."""
        self.skipped = len(recordings) - len(self.todo)
        self.done: dict[int, tuple[str, float]] = folder.done if folder else {}
        """Text and duration (s) by index, including those of the run that is resumed."""
        for remark in folder.remarks if folder else ():
            self.console.notify(remark)

    def check(
        self, report: Callable[[int, InputError], None], pipes: Collection[int] = (), *, lengths: bool, sort: bool
    ) -> None:
        """Read headers before the model is loaded, so that unusable files are reported at once; ``pipes`` are none.

        ``report`` is ``fail``, or calls it: it is called with each unusable recording.
        ``lengths``: read those of the first ``EARLY_LENGTHS`` recordings whose length is unknown, not only of the
        first ``EARLY_CHECKS``.  ``sort``: order a folder's recordings by length, so that a batch has similar lengths.
        """
        self.has_pipes = bool(pipes)
        for number, index in enumerate(self.todo[: EARLY_LENGTHS if lengths else EARLY_CHECKS]):
            recording = self.recordings[index]
            if index in pipes or index in self.broken or (number >= EARLY_CHECKS and recording.seconds is not None):
                continue
            try:
                recording.check()
            except InputError as error:
                report(index, error)
        self.todo = [index for index in self.todo if index not in self.broken]
        if self.folder and sort:
            seconds = [self.recordings[index].seconds for index in self.todo]
            if None not in seconds:
                self.todo.sort(key=lambda index: self.recordings[index].seconds or 0.0, reverse=True)

    def split(self, index: int, channels: int) -> list[int]:
        """Make a recording of each channel of a pipe, whose number is known now; return their indices."""
        parts = [self.recordings[index].of_channel(number) for number in range(1, channels + 1)]
        others = {recording.output for number, recording in enumerate(self.recordings) if number != index}
        name_outputs(parts, others)
        indices = [index, *range(len(self.recordings), len(self.recordings) + channels - 1)]
        self.recordings[index] = parts[0]
        self.recordings += parts[1:]
        self.todo += indices[1:]
        self.total += channels - 1
        self.printer.total += channels - 1
        return indices

    def add_refused(self, errors: Sequence[InputError]) -> range:
        """Name inputs that gave no recording, and have been counted, as streams are named; return their indices."""
        first, taken = len(self.recordings), {recording.output for recording in self.recordings}
        refused = [Recording(error.subject, stem(error.subject.rstrip("/"))) for error in errors]
        name_outputs(refused, taken)
        self.recordings += refused
        return range(first, len(self.recordings))

    def fail(self, index: int, error: Exception) -> None:
        """Report a recording that gave no transcript; the line of an InputError names the recording itself."""
        self.failed += 1
        self.broken.add(index)
        if isinstance(error, InputError):
            is_absent = not os.path.lexists(self.recordings[index].path)
            self.absent += is_absent
            if not is_absent or self.absent <= MAX_ABSENT_SHOWN:
                self.console.error(str(error))
        else:
            self.console.error(self.problem(index, error), error)

    def problem(self, index: int, error: Exception) -> str:
        """Return the error line of a recording."""
        if isinstance(error, InputError):
            return str(error)
        return f"{self.recordings[index].name}: {transcription_problem(error)}"

    def add(self, index: int, transcript: Transcript, fields: dict[str, Any], *, shown: bool = False) -> None:
        """Write or print one result; ``fields`` describe the run, and ``shown`` text is not printed again.

        Raises InputError when this result cannot be written, SetupError when none can.
        """
        recording = self.recordings[index]
        if recording.info and recording.info.remark:
            self.console.notify(f"{recording.name}: {recording.info.remark}")
        fields = {**recording.document_fields(), **fields}
        fields |= reference_fields(recording, transcript.text, transcript.duration, fields["wer_normalizer"])
        document = to_document(transcript, **fields)
        if self.folder:
            self.folder.write(index, transcript, document)
            return
        self.done[index] = (to_text(transcript), transcript.duration)
        if not shown:
            self.printer.result(recording, transcript, document)

    def missing(self) -> tuple[str, ...]:
        """Return ``7 of 12 not done`` for an interrupted run; nothing for a single recording on stdout."""
        left = self.total - len(self.done)
        if not left or (self.total == 1 and not self.folder):
            return ()
        return (f"{left} of {self.total} not done",)

    def conclude(self, seconds: float) -> None:
        """Write what the run has done in ``seconds``, unless it was a single file, and how many files do not exist."""
        if self.absent > MAX_ABSENT_SHOWN:
            self.console.error(f"{self.absent - MAX_ABSENT_SHOWN:,} more files do not exist")
        if self.total > 1 or self.folder or self.left_out:
            self.console.notify(self.summary(seconds))

    def summary(self, seconds: float) -> str:
        """Return ``500 recordings: 480 done, 15 done before, 5 failed; 0.93 h of audio in 41.2 s (RTFx 81.3)``."""
        durations = [self.done[index][1] for index in self.todo if index in self.done]
        left = len(self.todo) - len(durations) - len(self.broken.intersection(self.todo))
        counts = [f"{len(durations)} done"]
        if self.folder and self.folder.resume:
            counts.append(f"{self.skipped} done before")
        counts.append(f"{self.failed} failed")
        if left and self.folder and not self.has_pipes:
            counts.append(f"{left} left (--resume continues)")
        elif left:
            counts.append(f"{left} left")
        noun = "recording" if self.total == 1 else "recordings"
        line = f"{self.total} {noun}: {', '.join(counts)}"
        if durations:
            audio = sum(durations)
            amount = f"{audio / 3600:.2f} h" if audio >= HOURS_FROM else f"{audio:.1f} s"
            line += f"; {amount} of audio in {seconds:.1f} s (RTFx {audio / seconds:.1f})"
        if self.left_out:
            line += f"; left out: {_by_ending(self.left_out)}"
        return line


def _by_ending(counts: Counter[str]) -> str:
    """Return ``12 .txt, 3 .pdf, 1 without an ending``, the most frequent first, with the rest as one number."""
    common = sorted(counts.items(), key=lambda item: (-item[1], item[0]))[:MAX_ENDINGS]
    parts = [f"{count:,} {shown(ending) or 'without an ending'}" for ending, count in common]
    if rest := counts.total() - sum(count for _, count in common):
        parts.append(f"{rest:,} others")
    return ", ".join(parts)


def transcription_problem(error: Exception) -> str:
    """Return the problem of an error line; the type of an unexpected error is part of it."""
    if isinstance(error, ModelError):
        return f"cannot be transcribed: {error}"
    return f"cannot be transcribed: {type(error).__name__}: {error}"
