"""--resume: find the results of an earlier run that this run would repeat."""

from __future__ import annotations

import json
import os
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from ..errors import SetupError, one_line, shown
from ..formats import FORMATS, Result, encode
from ..host.files import Folder
from ..sources import Recording
from ..transcript import Transcript
from .identity import is_unchanged, key_of
from .output_names import name_outputs
from .record import CUT_SHORT, RECORD, Entry, Fault, Line, read_record
from .run_info import RunSettings
from .scores import reference_digest, rescored

MAX_FAULTS_SHOWN = 10
MAX_CHANGES_SHOWN = 5
DROPPED = "dropped; a recording without a valid line is transcribed again"


@dataclass
class Resumed:
    """What an earlier run has finished, by the index of this run's recordings."""

    done: dict[int, tuple[str, float]] = field(default_factory=dict)
    """Text and duration (s)."""
    lines: dict[int, Line] = field(default_factory=dict)
    """Of the record."""
    remarks: list[str] = field(default_factory=list)
    """What the user should know."""


class Resumption:
    """Take over results of an earlier run; ``file_formats`` are those with a file for each recording.

    A recording is done if its file has not changed since, and all of its files are there.  One whose reference text is
    another now is scored again.
    """

    def __init__(self, folder: Folder, path: Path, file_formats: Sequence[str]) -> None:
        self.folder = folder
        self.path = path
        self.file_formats = file_formats
        self.result = Resumed()
        self.dropped: set[Entry] = set()
        self.rescored: dict[Entry, Recording] = {}
        self.normalizer = ""  # of this run

    def run(self, recordings: list[Recording], settings: RunSettings) -> Resumed:
        """Name the outputs of recordings that are in the record, and tidy the record up.

        Raises SetupError if its results were made with other settings; OSError.
        """
        try:
            with self.folder.read(RECORD) as record:
                entries, faults = read_record(record)
                others_name = os.fstat(record.fileno()).st_nlink > 1  # a hard link: lines would appear there too
        except FileNotFoundError:
            return self.result
        self.normalizer = settings.wer_normalizer
        for theirs in dict.fromkeys(entry.settings for entry in entries):
            self._check_settings(theirs, settings)
        self._report(faults)
        found = self._find(recordings, entries)
        kept = [entry for entry in entries if entry not in self.dropped]
        if self.dropped or self.rescored or faults or others_name:
            self.folder.write(RECORD, self._rewritten(kept, found))
        else:
            self.result.lines = {index: entry.line for index, entry in found.items()}
        return self.result

    def _check_settings(self, theirs: RunSettings, own: RunSettings) -> None:
        for name, value, own_value in theirs.differences(own):
            problem = f"the results in {self.path} were made with {name} {shown(value or 'none')}, this run has"
            raise SetupError("--resume", f"{problem} {own_value or 'none'}", "choose another --output_dir")

    def _find(self, recordings: list[Recording], entries: list[Entry]) -> dict[int, Entry]:
        """Return the entries of the recordings that are done; the others get names that none of the record's has."""
        matches = _match(recordings, entries)
        found: dict[int, Entry] = {}
        new: list[Recording] = []
        changed: list[str] = []
        for index, recording in enumerate(recordings):
            entry = matches.get(index)
            if not entry:
                new.append(recording)
                continue
            recording.output = entry.output
            is_same = not entry.source or is_unchanged(recording.path, entry.source)
            if not is_same:
                changed.append(recording.name)
            if is_same and self._has_files(entry):
                found[index] = entry
                self.result.done[index] = (entry.text, entry.duration)
                if self._is_scored_otherwise(entry, recording):
                    self.rescored[entry] = recording
            else:
                self.dropped.add(entry)
        recorded = {entry.output for entry in entries}
        clashing = [recording for recording in new if recording.output in recorded]  # the inputs have changed
        name_outputs(clashing, recorded | {recording.output for recording in recordings})
        self._report_changed(changed)
        return found

    def _is_scored_otherwise(self, entry: Entry, recording: Recording) -> bool:
        if entry.reference != reference_digest(recording.fields, recording.reference):
            return True
        return recording.reference is not None and entry.settings.wer_normalizer != self.normalizer

    def _has_files(self, entry: Entry) -> bool:
        names = (f"{entry.output}.{name}" for name in self.file_formats)
        return self.folder.has(names, with_content=bool(entry.text))

    def _rewritten(self, entries: list[Entry], found: dict[int, Entry]) -> Iterator[bytes]:
        """Yield the lines of these entries, scored again where needed, and note where each of ``found`` will be."""
        indices = {entry: index for index, entry in found.items()}
        offset = 0
        with self.folder.read(RECORD) as file:
            for entry in entries:
                file.seek(entry.line.offset)
                data = file.read(entry.line.size)
                if entry in self.rescored:
                    data = self._rescore(data, self.rescored[entry])
                if entry in indices:
                    self.result.lines[indices[entry]] = Line(offset, len(data))
                offset += len(data)
                yield data

    def _rescore(self, data: bytes, recording: Recording) -> bytes:
        """Return a line of the record with the errors against the reference text of today; the json file gets them."""
        document = rescored(json.loads(data), recording, self.normalizer)
        transcript = Transcript(document["text"], (), document["duration"])
        name = f"{recording.output}.json"
        if self.folder.has([name], with_content=False):
            own = {key: value for key, value in document.items() if key not in ("output", "source")}
            self.folder.write(name, [encode(FORMATS["json"].render(Result(recording, transcript, own)))])
        return encode(FORMATS["jsonl"].render(Result(recording, transcript, document)))

    def _report(self, faults: list[Fault]) -> None:
        """Name the lines of the record that are dropped, but for the end that a kill has cut off."""
        faults = [fault for fault in faults if fault.problem != CUT_SHORT]
        subject = f"{self.path / RECORD}"
        for fault in faults[:MAX_FAULTS_SHOWN]:
            self.result.remarks.append(one_line(f"{subject}, line {fault.number}", fault.problem, DROPPED))
        if len(faults) > MAX_FAULTS_SHOWN:
            self.result.remarks.append(one_line(subject, f"{len(faults) - MAX_FAULTS_SHOWN} more lines are not valid"))

    def _report_changed(self, names: list[str]) -> None:
        for name in names[:MAX_CHANGES_SHOWN]:
            self.result.remarks.append(one_line(name, "has changed since its transcription: transcribed again"))
        if len(names) > MAX_CHANGES_SHOWN:
            self.result.remarks.append(f"{len(names) - MAX_CHANGES_SHOWN} more recordings have changed")


def _match(recordings: list[Recording], entries: list[Entry]) -> dict[int, Entry]:
    """Return the entry of each recording that has one, by index: the one with its name, if there are several.

    Several recordings are of one file where it is listed twice, or links lead to it, or names differ in ä and a¨.
    """
    waiting: dict[tuple, dict[str, Entry]] = defaultdict(dict)  # by key, and by name
    for entry in entries:
        waiting[entry.key][entry.output] = entry
    matches: dict[int, Entry] = {}
    unnamed: list[tuple[int, dict[str, Entry]]] = []
    for index, recording in enumerate(recordings):
        same = waiting[key_of(recording.path, recording.offset, recording.length, recording.selection)]
        if recording.output in same:
            matches[index] = same.pop(recording.output)
        else:
            unnamed.append((index, same))
    for index, same in unnamed:
        if same:
            matches[index] = same.pop(next(iter(same)))
    return matches
