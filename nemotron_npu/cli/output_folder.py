"""Results of many recordings in a folder: each is on disk as soon as it is complete, and a run can be resumed.

``results.jsonl`` is the record: a recording is complete once its line is there, and that line is written last.  Lines
are in the order of completion; at the end of a run they are put into the order of the input.

Somebody else may have touched the folder: only this run writes to it, nothing is written through a link, and what the
record says is checked.
"""

from __future__ import annotations

import errno
import os
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import replace
from itertools import accumulate
from pathlib import Path
from typing import Any

from ..errors import InputError, SetupError, one_line, shown
from ..formats import FORMATS, Result, encode, to_text
from ..host.files import Folder
from ..sources import Recording
from ..transcript import Transcript
from .output_names import name_outputs
from .record import BACKUP, CUT_SHORT, RECORD, Entry, Fault, Line, LineFile, keep_lines, read_record, sort_lines
from .run_info import RunSettings

ERRORS_OF_ONE_NAME = {errno.ENAMETOOLONG, errno.EISDIR, errno.ENOTDIR, errno.EEXIST, errno.EINVAL}
"""Errors of one file; any other would affect all results."""
MAX_FAULTS_SHOWN = 10
DROPPED = "dropped; a recording without a valid line is transcribed again"


class OutputFolder:
    """The results of one run; use it as a context manager, which sorts record and manifest however the run ends.

    Parameters
    ----------
    path : the folder; it is created if it is missing.
    formats : names of ``formats.FORMATS``.
    settings : settings of this run.
    resume : keep what an earlier run has finished; otherwise its record becomes ``results.jsonl~``.

    Raises SetupError when the folder cannot be used, or its results were made with other settings.

    """

    def __init__(
        self, path: str | Path, formats: Sequence[str], settings: RunSettings, *, resume: bool = False
    ) -> None:
        self.path = Path(path)
        self.settings = settings
        self.resume = resume
        self.recordings: list[Recording] = []
        self.done: dict[int, tuple[str, float]] = {}
        """Text and duration (s) of each recording that is complete, by its index."""
        self.remarks: list[str] = []
        """What the user should know of the record of an earlier run."""
        self._file_formats = [name for name in formats if not FORMATS[name].collected_in]
        self._collected = _collected_files(formats)
        self._collecting: dict[str, LineFile] = {}  # open files of self._collected
        self._record: LineFile | None = None
        self._lines: dict[int, Line] = {}  # of the record, by index
        self._folder = self._open()

    def _open(self) -> Folder:
        """Create the folder and lock it; a run that is refused leaves no trace in it."""
        subject = f"--output_dir {self.path}"
        try:
            folder = Folder(self.path)
        except OSError as error:
            raise SetupError(subject, f"{error.strerror}") from error
        try:
            folder.lock()
            folder.check_writable()
        except BlockingIOError as error:
            folder.close()
            raise SetupError(subject, "another run is writing to this folder", "choose another folder") from error
        except OSError as error:
            folder.close()
            raise SetupError(subject, f"{error.strerror}") from error
        return folder

    def begin(self, recordings: list[Recording]) -> list[int]:
        """Name the files of each recording, and return the indices of those that are still to be transcribed.

        Raises SetupError when an earlier run had other settings, or the folder cannot be written.
        """
        try:
            return self._begin(recordings)
        except OSError as error:
            raise SetupError(f"--output_dir {self.path}", f"cannot be written: {error.strerror}") from error

    def _begin(self, recordings: list[Recording]) -> list[int]:
        self.recordings = recordings
        name_outputs(recordings, set())  # the same names as in a run without interruption
        if self.resume:
            self._resume(recordings)
        else:
            self._replace_record()
        self._record = LineFile(self._folder, RECORD)
        for name, file in self._collected.items():
            self._write_collected(name)
            self._collecting[name] = LineFile(self._folder, file)
        return [index for index in range(len(recordings)) if index not in self.done]

    def _replace_record(self) -> None:
        """Rename the record of an earlier run; an empty one replaces no backup."""
        try:
            with self._folder.read(RECORD) as record:
                is_empty = not record.read(1)
        except FileNotFoundError:
            return
        if not is_empty:
            self._folder.rename(RECORD, BACKUP)
            remark = f"restarted, the earlier record is now {BACKUP} (--resume continues it instead)"
            self.remarks.append(f"--output_dir {self.path}: {remark}")

    def _resume(self, recordings: list[Recording]) -> None:
        """Take over the recordings that the record lists and whose files exist."""
        try:
            with self._folder.read(RECORD) as record:
                entries, faults = read_record(record)
                others_name = os.fstat(record.fileno()).st_nlink > 1  # a hard link: lines would appear there too
        except FileNotFoundError:
            return
        for entry in entries:
            self._check_settings(entry)
        self._report(faults)
        waiting: dict[tuple, list[Entry]] = defaultdict(list)
        for entry in entries:
            waiting[entry.key].append(entry)
        found: dict[int, Entry] = {}
        incomplete: set[Entry] = set()
        new: list[Recording] = []
        for index, recording in enumerate(recordings):
            if not waiting[recording.key]:
                new.append(recording)
                continue
            entry = waiting[recording.key].pop(0)
            recording.output = entry.output
            files = (f"{recording.output}.{name}" for name in self._file_formats)
            if self._folder.has(files, with_content=bool(entry.text)):
                self.done[index] = (entry.text, entry.duration)
                found[index] = entry
            else:
                incomplete.add(entry)
        recorded = {entry.output for entry in entries}
        clashing = [recording for recording in new if recording.output in recorded]  # the inputs have changed
        name_outputs(clashing, recorded | {recording.output for recording in recordings})
        kept = [entry for entry in entries if entry not in incomplete]
        if incomplete or faults or others_name:
            keep_lines(self._folder, [entry.line for entry in kept])
        offsets = dict(zip(kept, accumulate((entry.line.size for entry in kept), initial=0), strict=False))
        self._lines = {index: Line(offsets[entry], entry.line.size) for index, entry in found.items()}

    def _report(self, faults: list[Fault]) -> None:
        """Name the lines of the record that are dropped, but for the end that a kill has cut off."""
        faults = [fault for fault in faults if fault.problem != CUT_SHORT]
        subject = f"{self.path / RECORD}"
        for fault in faults[:MAX_FAULTS_SHOWN]:
            self.remarks.append(one_line(f"{subject}, line {fault.number}", fault.problem, DROPPED))
        if len(faults) > MAX_FAULTS_SHOWN:
            self.remarks.append(one_line(subject, f"{len(faults) - MAX_FAULTS_SHOWN} more lines are not valid"))

    def _check_settings(self, entry: Entry) -> None:
        for name, theirs, own in entry.settings.differences(self.settings):
            problem = f"the results in {self.path} were made with {name} {shown(theirs or 'none')}, this run has"
            raise SetupError("--resume", f"{problem} {own or 'none'}", "choose another --output_dir")

    def write(self, index: int, transcript: Transcript, document: dict[str, Any]) -> None:
        """Write the results of one recording; ``document`` is the result in JSON.

        Raises InputError for a name that the file system rejects, SetupError when nothing can be written (full disk).
        """
        recording = self.recordings[index]
        result = Result(recording, transcript, document)
        file = ""
        appended: dict[str, Line] = {}
        try:
            for name in self._file_formats:
                file = f"{recording.output}.{name}"
                self._folder.write(file, [encode(FORMATS[name].render(result))])
            file = ""
            self.done[index] = (to_text(transcript), transcript.duration)
            for name, collected in self._collecting.items():
                appended[name] = collected.append(FORMATS[name].render(result))
            result = replace(result, document={**document, "output": recording.output})
            assert self._record is not None, "begin() comes first"
            self._lines[index] = self._record.append(FORMATS["jsonl"].render(result))
        except OSError as error:
            self.done.pop(index, None)
            for name, line in appended.items():
                self._collecting[name].truncate(line.offset)
            error_type = InputError if error.errno in ERRORS_OF_ONE_NAME else SetupError
            raise error_type(f"{self.path / file}", f"cannot be written: {error.strerror}") from error

    def __enter__(self) -> OutputFolder:
        return self

    def __exit__(self, error_type: type[BaseException] | None, *_: object) -> None:
        for file in (self._record, *self._collecting.values()):
            if file is not None:
                file.close()
        name = RECORD
        try:
            sort_lines(self._folder, [self._lines[index] for index in sorted(self._lines)])
            for format_name in self._collecting:
                name = self._collected[format_name]
                self._write_collected(format_name)
        except OSError as error:
            if error_type is None:  # else the error that ended the run matters more
                raise SetupError(f"{self.path / name}", f"cannot be written: {error.strerror}") from error
        finally:
            self._folder.close()

    def _write_collected(self, name: str) -> None:
        """Write the file of a collected format anew: all complete recordings, in the order of the input."""
        lines = (encode(self._collected_line(name, index)) for index in sorted(self.done))
        self._folder.write(self._collected[name], lines)

    def _collected_line(self, name: str, index: int) -> str:
        """Render text and duration, which are all that is known of the recordings of an earlier run."""
        text, duration = self.done[index]
        return FORMATS[name].render(Result(self.recordings[index], Transcript(text, (), duration), {}))


def _collected_files(formats: Sequence[str]) -> dict[str, str]:
    """Return the files of the formats with a line for each recording, without the record, which is always there."""
    files = {name: FORMATS[name].collected_in for name in formats}
    return {name: file for name, file in files.items() if file and file != RECORD}
