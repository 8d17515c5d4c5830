"""Results of many recordings in a folder: each is on disk as soon as it is complete, and a run can be resumed.

``results.jsonl`` is the record: a recording is complete once its line is there, and that line is written last.  Lines
are in the order of completion; at the end of a run they are put into the order of the input.

The folder is untrusted, since other users may have changed it: only one run at a time writes to it, nothing is
written through a link, and the record is checked.
"""

from __future__ import annotations

import errno
from collections.abc import Sequence
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

from ..errors import InputError, SetupError
from ..formats import FILES, FORMATS, Result, encode, to_text
from ..host.files import Folder
from ..sources import Recording
from ..subtitles import DEFAULT, Layout
from ..transcript import Transcript
from .identity import source_of
from .output_names import name_outputs
from .record import BACKUP, RECORD, Line, LineFile, sort_lines
from .resume import Resumption
from .run_info import RunSettings

EVENTS = "events"  # extension of the file that a live stream appends to
ERRORS_OF_ONE_NAME = {errno.ENAMETOOLONG, errno.EISDIR, errno.ENOTDIR, errno.EEXIST, errno.EINVAL}
"""Errors of one file; any other would affect all results."""


class OutputFolder:
    """The results of one run; use it as a context manager, which sorts record and manifest however the run ends.

    Parameters
    ----------
    path : the folder; it is created if it is missing.
    formats : names of ``formats.FORMATS``.
    settings : settings of this run.
    resume : keep what an earlier run has finished; otherwise its record becomes ``results.jsonl~``.
    layout : of subtitles.

    Raises SetupError when the folder cannot be used, or its results were made with other settings.

    """

    def __init__(
        self,
        path: str | Path,
        formats: Sequence[str],
        settings: RunSettings,
        *,
        resume: bool = False,
        layout: Layout = DEFAULT,
    ) -> None:
        self.path = Path(path)
        self.settings = settings
        self.resume = resume
        self.layout = layout
        self.recordings: list[Recording] = []
        self.done: dict[int, tuple[str, float]] = {}
        """Text and duration (s) of each recording that is complete, by its index."""
        self.remarks: list[str] = []
        """What the user should know of the record of an earlier run."""
        self._file_formats = [name for name in formats if name in FILES]
        self._collected = _collected_files(formats)
        self._collecting: dict[str, LineFile] = {}  # open files of self._collected
        self._record: LineFile | None = None
        self._live: set[int] = set()  # indices of the live streams, which have events
        self._lines: dict[int, Line] = {}  # of the record, by index
        self._folder = self._open()

    def _open(self) -> Folder:
        """Create the folder and lock it; a run that is refused leaves no trace in it."""
        subject = f"--output_dir {self.path}"
        try:
            return Folder.alone(self.path)
        except BlockingIOError as error:
            raise SetupError(subject, "another run is writing to this folder", "choose another folder") from error
        except OSError as error:
            raise SetupError(subject, f"{error.strerror}") from error

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
            resumed = Resumption(self._folder, self.path, self._file_formats).run(recordings, self.settings)
            self.done, self._lines, self.remarks = resumed.done, resumed.lines, resumed.remarks
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

    def add_event(self, index: int, line: str, *, first: bool = False) -> None:
        """Append an event of a live stream to its file, which ``first`` empties.  Raises as ``write`` does."""
        self._live.add(index)
        name = f"{self.recordings[index].output}.{EVENTS}"
        try:
            with closing(LineFile(self._folder, name)) as events:  # there may be more streams than files may be open
                if first:
                    events.truncate(0)
                if line:
                    events.append(line)
        except OSError as error:
            raise self._failure(name, error) from error

    def _failure(self, name: str, error: OSError) -> Exception:
        error_type = InputError if error.errno in ERRORS_OF_ONE_NAME else SetupError
        return error_type(f"{self.path / name}", f"cannot be written: {error.strerror}")

    def write(self, index: int, transcript: Transcript, document: dict[str, Any]) -> None:
        """Write the results of one recording; ``document`` is the result in JSON.

        Raises InputError for a name that the file system rejects, SetupError when nothing can be written (full disk).
        """
        recording = self.recordings[index]
        result = Result(recording, transcript, document, self.layout)
        if index in self._live:
            self.add_event(index, FORMATS[EVENTS].render(result))
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
            own: dict[str, Any] = {"output": recording.output}
            if source := source_of(recording):
                own["source"] = source.as_dict()
            result = replace(result, document={**document, **own})
            assert self._record is not None, "begin() comes first"
            self._lines[index] = self._record.append(FORMATS["jsonl"].render(result))
        except OSError as error:
            self.done.pop(index, None)
            for name, line in appended.items():
                self._collecting[name].truncate(line.offset)
            raise self._failure(file, error) from error

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
