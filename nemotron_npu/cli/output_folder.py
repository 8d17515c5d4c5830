"""Results of many recordings in a folder: each is on disk as soon as it is complete, and a run can be resumed.

``results.jsonl`` is the record: a recording is complete once its line is there, and that line is written last.  Lines
are in the order of completion; at the end of a run they are put into the order of the input.
"""

from __future__ import annotations

import errno
import fcntl
import os
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import replace
from itertools import accumulate
from pathlib import Path
from typing import Any

from ..errors import InputError, SetupError
from ..formats import FORMATS, Result, encode, to_text
from ..host.files import PART, replace_file
from ..sources import Recording
from ..transcript import Transcript
from .output_names import name_outputs
from .record import BACKUP_SUFFIX, RECORD, Entry, Line, LineFile, keep_lines, read_record, sort_lines
from .run_info import RunSettings

ERRORS_OF_ONE_NAME = {errno.ENAMETOOLONG, errno.EISDIR, errno.ENOTDIR, errno.EEXIST}
"""Errors of one file; any other would affect all results."""


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
        self.restarted = False
        """Whether the record of an earlier run was replaced, and is now ``results.jsonl~``."""
        self._file_formats = [name for name in formats if not FORMATS[name].collected_in]
        self._collected = {name: self.path / file for name, file in _collected_files(formats).items()}
        self._collecting: dict[str, LineFile] = {}  # open files of self._collected
        self._record: LineFile | None = None
        self._lines: dict[int, Line] = {}  # of the record, by index
        self._lock = self._open()

    def _open(self) -> int:
        """Create the folder and lock it; return the descriptor that holds the lock."""
        subject = f"--output_dir {self.path}"
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            lock = os.open(self.path, os.O_RDONLY)
            (self.path / PART).write_bytes(b"")
            (self.path / PART).unlink()
        except OSError as error:
            raise SetupError(subject, f"{error.strerror}") from error
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise SetupError(subject, "another run is writing to this folder", "choose another folder") from error
        except OSError:
            pass  # a file system without locks
        return lock

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
        self._record = LineFile(self.path / RECORD)
        for name, path in self._collected.items():
            self._write_collected(name)
            self._collecting[name] = LineFile(path)
        return [index for index in range(len(recordings)) if index not in self.done]

    def _replace_record(self) -> None:
        """Rename the record of an earlier run; an empty one replaces no backup."""
        record = self.path / RECORD
        if record.exists() and record.stat().st_size:
            os.replace(record, self.path / f"{RECORD}{BACKUP_SUFFIX}")
            self.restarted = True

    def _resume(self, recordings: list[Recording]) -> None:
        """Take over the recordings that the record lists and whose files exist."""
        entries, broken = read_record(self.path / RECORD)
        for entry in entries:
            self._check_settings(entry)
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
            if all(os.path.exists(self._file(recording, name)) for name in self._file_formats):
                self.done[index] = (entry.text, entry.duration)
                found[index] = entry
            else:
                incomplete.add(entry)
        recorded = {entry.output for entry in entries}
        clashing = [recording for recording in new if recording.output in recorded]  # the inputs have changed
        name_outputs(clashing, recorded | {recording.output for recording in recordings})
        kept = [entry for entry in entries if entry not in incomplete]
        if incomplete or broken:
            keep_lines(self.path / RECORD, [entry.line for entry in kept], self.path / PART)
        offsets = dict(zip(kept, accumulate((entry.line.size for entry in kept), initial=0), strict=False))
        self._lines = {index: Line(offsets[entry], entry.line.size) for index, entry in found.items()}

    def _check_settings(self, entry: Entry) -> None:
        for name, theirs, own in entry.settings.differences(self.settings):
            problem = f"the results in {self.path} were made with {name} {theirs or 'none'}, this run has"
            raise SetupError("--resume", f"{problem} {own or 'none'}", "choose another --output_dir")

    def write(self, index: int, transcript: Transcript, document: dict[str, Any]) -> None:
        """Write the results of one recording; ``document`` is the result in JSON.

        Raises InputError for a name that the file system rejects, SetupError when nothing can be written (full disk).
        """
        recording = self.recordings[index]
        result = Result(recording, transcript, document)
        path = self.path
        appended: dict[str, Line] = {}
        try:
            for name in self._file_formats:
                path = self._file(recording, name)
                self._replace(path, FORMATS[name].render(result))
            path = self.path
            self.done[index] = (to_text(transcript), transcript.duration)
            for name, file in self._collecting.items():
                appended[name] = file.append(FORMATS[name].render(result))
            result = replace(result, document={**document, "output": recording.output})
            assert self._record is not None, "begin() comes first"
            self._lines[index] = self._record.append(FORMATS["jsonl"].render(result))
        except OSError as error:
            self.done.pop(index, None)
            for name, line in appended.items():
                self._collecting[name].truncate(line.offset)
            error_type = InputError if error.errno in ERRORS_OF_ONE_NAME else SetupError
            raise error_type(f"{path}", f"cannot be written: {error.strerror}") from error

    def __enter__(self) -> OutputFolder:
        return self

    def __exit__(self, error_type: type[BaseException] | None, *_: object) -> None:
        for file in (self._record, *self._collecting.values()):
            if file is not None:
                file.close()
        path = self.path / RECORD
        try:
            lines = [self._lines[index] for index in sorted(self._lines)]
            sort_lines(path, lines, self.path / PART)
            for name in self._collecting:
                path = self._collected[name]
                self._write_collected(name)
        except OSError as error:
            if error_type is None:  # else the error that ended the run matters more
                raise SetupError(f"{path}", f"cannot be written: {error.strerror}") from error
        finally:
            os.close(self._lock)

    def _file(self, recording: Recording, name: str) -> Path:
        return self.path / f"{recording.output}.{name}"

    def _replace(self, path: Path, text: str) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        replace_file(path, encode(text), self.path / PART)

    def _write_collected(self, name: str) -> None:
        """Write the file of a collected format anew: all complete recordings, in the order of the input."""
        lines = [self._collected_line(name, index) for index in sorted(self.done)]
        self._replace(self._collected[name], "".join(lines))

    def _collected_line(self, name: str, index: int) -> str:
        """Render text and duration, which are all that is known of the recordings of an earlier run."""
        text, duration = self.done[index]
        return FORMATS[name].render(Result(self.recordings[index], Transcript(text, (), duration), {}))


def _collected_files(formats: Sequence[str]) -> dict[str, str]:
    """Return the files of the formats with a line for each recording, without the record, which is always there."""
    files = {name: FORMATS[name].collected_in for name in formats}
    return {name: file for name, file in files.items() if file and file != RECORD}
