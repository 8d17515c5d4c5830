"""Results of many recordings in a folder: each on disk as soon as it is there, whole or not at all, and told apart
from what an interrupted run has left to do.

``results.jsonl`` is the record: a recording is done once its line is there, and the line is written last.  Lines come
in the order in which recordings are done, and are put into that of the input when a run ends.
"""

from __future__ import annotations

import errno
import fcntl
import json
import os
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import accumulate, count, islice
from pathlib import Path

from ..errors import InputError, SetupError
from ..formats import FORMATS, Result, encode, to_text
from ..host.files import PART, replace_file
from ..sources import Recording
from ..transcript import Transcript

RECORD = "results.jsonl"
SETTINGS = ("model", "chunk_ms", "dtype", "confidence", "boost_words")  # what the results of a folder have in common
OF_ONE_NAME = {errno.ENAMETOOLONG, errno.EISDIR, errno.ENOTDIR, errno.EEXIST}  # other failures would meet all results


class OutputFolder:
    """The results of one run; use it as a context manager: leaving it puts record and manifest in order, whatever
    happened.

    Parameters
    ----------
    path : the folder, made if it is not there.
    kinds : names of ``formats.FORMATS``.
    settings : the ``SETTINGS`` of this run.
    resume : keep what an earlier run has finished; else the run begins anew and that record becomes ``results.jsonl~``.

    Raises SetupError when the folder cannot be used, or its results were made with other settings.
    """

    def __init__(self, path: str, kinds: list[str], settings: dict, resume: bool = False):
        self.path, self.resume = Path(path), resume
        self.kinds = [kind for kind in kinds if not FORMATS[kind].collected_in]
        """Formats with a file per recording."""
        self.collected = [kind for kind in kinds if FORMATS[kind].collected_in not in (None, RECORD)]
        """Formats with one file, beside the record."""
        self.files: dict[str, int] = {}
        """Descriptors of these files."""
        self.settings = _comparable(settings)
        self.recordings: list[Recording] = []
        self.done: dict[int, tuple[str, float]] = {}
        """Text and duration (s) of each recording that is done, by its place among all."""
        self.began_anew = False
        """Whether there was a record of another run, now ``results.jsonl~``."""
        self.record = None
        self.lines: dict[int, tuple[int, int]] = {}  # where in the record each of these is, and its size
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            self.lock = os.open(self.path, os.O_RDONLY)
            (self.path / PART).write_bytes(b"")
            (self.path / PART).unlink()
        except OSError as error:
            raise SetupError(f"--output_dir {path}: {error.strerror}") from error
        try:
            fcntl.flock(self.lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise SetupError(f"--output_dir {path}: another run is writing there: take another folder") from error
        except OSError:
            pass  # a file system without locks

    def begin(self, recordings: list[Recording]) -> list[int]:
        """Give each recording the name of its files, and return the places of those that are still to be done.

        Raises SetupError when the results of an earlier run do not go with these, or the folder takes nothing.
        """
        try:
            return self._begin(recordings)
        except OSError as error:
            raise SetupError(f"--output_dir {self.path}: cannot be written: {error.strerror}") from error

    def _begin(self, recordings: list[Recording]) -> list[int]:
        self.recordings = recordings
        name_outputs(recordings, set())  # as in a run that is not interrupted
        entries, broken = self._earlier() if self.resume else ([], 0)
        waiting = defaultdict(list)
        for entry in entries:
            waiting[entry.key].append(entry)
        dropped, new, found = set(), [], {}
        for place, recording in enumerate(recordings):
            if not waiting[recording.key]:
                new.append(recording)
                continue
            entry = waiting[recording.key].pop(0)
            recording.output = entry.output
            if all(os.path.exists(self._file(recording, kind)) for kind in self.kinds):
                self.done[place] = entry.text, entry.duration
                found[place] = entry
            else:
                dropped.add(entry)
        recorded = {entry.output for entry in entries}
        clashing = [recording for recording in new if recording.output in recorded]  # the inputs are not the same
        name_outputs(clashing, recorded | {recording.output for recording in recordings})
        record = self.path / RECORD
        if not self.resume and record.exists() and record.stat().st_size:  # one of nothing replaces no earlier one
            os.replace(record, self.path / f"{RECORD}~")
            self.began_anew = True
        kept = [entry for entry in entries if entry not in dropped]
        if dropped or broken:
            self._keep([(entry.at, entry.size) for entry in kept])
        at = dict(zip(kept, accumulate((entry.size for entry in kept), initial=0), strict=False))
        self.lines = {place: (at[entry], entry.size) for place, entry in found.items()}
        self.record = _append_to(self.path / RECORD)
        for kind in self.collected:
            self._write_collected(kind)
            self.files[kind] = _append_to(self._collected_path(kind))
        return [place for place in range(len(recordings)) if place not in self.done]

    def write(self, place: int, transcript: Transcript, document: dict) -> None:
        """Put the results of one recording on disk; ``document`` is the result in JSON.

        Raises InputError for names that the file system does not take, SetupError when it takes nothing (full ...).
        """
        recording = self.recordings[place]
        result = Result(recording, transcript, document)
        at = self.path
        appended: dict[str, int] = {}
        try:
            for kind in self.kinds:
                at = self._file(recording, kind)
                self._replace(at, FORMATS[kind].render(result))
            at = self.path
            self.done[place] = to_text(transcript), transcript.duration
            for kind, file in self.files.items():
                appended[kind], _ = _append(file, FORMATS[kind].render(result))
            result = replace(result, document={**document, "output": recording.output})
            self.lines[place] = _append(self.record, FORMATS["jsonl"].render(result))
        except OSError as error:
            self.done.pop(place, None)
            for kind, before in appended.items():
                os.ftruncate(self.files[kind], before)
            kind = InputError if error.errno in OF_ONE_NAME else SetupError
            raise kind(f"{at}: cannot be written: {error.strerror}") from error

    def __enter__(self) -> OutputFolder:
        return self

    def __exit__(self, kind, *_) -> None:
        for file in (self.record, *self.files.values()):
            if file is not None:
                os.close(file)
        name = RECORD
        try:
            self._sort_record()
            for collected in self.files:
                name = FORMATS[collected].collected_in
                self._write_collected(collected)
        except OSError as error:
            if kind is None:  # else there is worse to say
                raise SetupError(f"{self.path / name}: cannot be written: {error.strerror}") from error
        finally:
            os.close(self.lock)

    def _file(self, recording: Recording, kind: str) -> Path:
        return self.path / f"{recording.output}.{kind}"

    def _replace(self, path: Path, text: str) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        replace_file(path, encode(text), self.path / PART)

    def _sort_record(self) -> None:
        """Put the lines in the order of the input, behind those of recordings that are not in it."""
        lines = [self.lines[place] for place in sorted(self.lines)]
        if lines == sorted(lines):
            return
        others, end = [], 0
        for at, size in [*sorted(lines), (os.path.getsize(self.path / RECORD), 0)]:
            if at > end:
                others.append((end, at - end))
            end = at + size
        self._keep(others + lines)

    def _collected_path(self, kind: str) -> Path:
        return self.path / FORMATS[kind].collected_in

    def _write_collected(self, kind: str) -> None:
        """What is done, in the order of the input; lines that are added later come in the order in which they are."""
        lines = (self._collected_line(kind, place) for place in sorted(self.done))
        self._replace(self._collected_path(kind), "".join(lines))

    def _collected_line(self, kind: str, place: int) -> str:
        """Of what an earlier run has done, only text and duration are known."""
        text, duration = self.done[place]
        return FORMATS[kind].render(Result(self.recordings[place], Transcript(text, (), duration), {}))

    # ------------------------------------------------------------------ what an earlier run has done

    def _earlier(self) -> tuple[list[_Entry], int]:
        """The entries of the record, and how many lines are none: a kill in mid-write leaves half a line."""
        entries, broken, at = [], 0, 0
        if not (self.path / RECORD).exists():
            return entries, broken
        with open(self.path / RECORD, "rb") as file:
            for line in file:
                try:
                    if not line.endswith(b"\n"):
                        raise ValueError
                    entries.append(_entry(json.loads(line), at, len(line)))
                except (ValueError, KeyError, TypeError, AttributeError):
                    broken += 1
                else:
                    self._check_settings(entries[-1])
                at += len(line)
        return entries, broken

    def _check_settings(self, entry: _Entry) -> None:
        for name, value in self.settings.items():
            if entry.settings.get(name) != value:
                raise SetupError(
                    f"--resume: the results in {self.path} were made with {name} {entry.settings.get(name) or 'none'}, "
                    f"this run has {value or 'none'}: take another --output_dir"
                )

    def _keep(self, lines: list[tuple[int, int]]) -> None:
        """Make these, by place and size, all of the record."""
        part = self.path / PART
        try:
            with open(self.path / RECORD, "rb") as whole, open(part, "wb") as file:
                for at, size in lines:
                    whole.seek(at)
                    file.write(whole.read(size))
            os.replace(part, self.path / RECORD)
        except OSError:
            part.unlink(missing_ok=True)  # it may be large
            raise


@dataclass(frozen=True, eq=False)
class _Entry:
    """A line of the record: what it is of, where it is."""

    key: tuple
    output: str
    text: str
    duration: float
    settings: dict
    at: int
    size: int


def _entry(document: dict, at: int, size: int) -> _Entry:
    length = (document.get("manifest") or {}).get("duration") or None
    key = os.path.abspath(document["audio"]), document.get("offset", 0.0), length
    return _Entry(key, document["output"], document["text"], document["duration"], _comparable(document), at, size)


def _comparable(settings: dict) -> dict:
    return {name: settings.get(name) for name in SETTINGS} | {"model": os.path.realpath(settings["model"])}


def _append_to(path: Path) -> int:
    return os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o666)


def _append(file: int, line: str) -> tuple[int, int]:
    """In one call where the system takes it so: nothing stays in a buffer of this process, and no part of a line if it
    takes no more.  Where it begins, and its bytes."""
    data, at = encode(line), os.fstat(file).st_size
    size = len(data)
    try:
        while data:
            data = data[os.write(file, data) :]
    except OSError:
        os.ftruncate(file, at)
        raise
    return at, size


# ---------------------------------------------------------------- names


def name_outputs(recordings: list[Recording], taken: set[str]) -> None:
    """Make each recording's ``output`` its own, and none of ``taken``.

    Where several would have the same name, they get whichever tells all of them apart: the full name of the sound file
    (``a.wav``, ``a.mp3``), the folders in which they differ (``x/a``, ``y/a``), the offset (``a_12.50``), a number.
    """
    same = defaultdict(list)
    for recording in recordings:
        same[recording.output].append(recording)
    given = taken | same.keys()
    for output, group in same.items():
        if len(group) == 1 and output not in taken:
            continue
        others = given if output in taken else given - {output}
        names = next((n for n in _distinct(output, group) if len({*n} - others) == len(n)), None)
        if names is None:
            numbered = (output if number == 1 else f"{output}_{number}" for number in count(1))
            names = list(islice((name for name in numbered if name not in others), len(group)))
        for recording, name in zip(group, names, strict=True):
            recording.output = name
        given |= {*names}


def _distinct(output: str, group: list[Recording]) -> Iterator[list[str]]:
    """Names that may tell recordings of one name apart."""
    yield [os.path.join(os.path.dirname(output), os.path.basename(recording.path)) for recording in group]
    paths = [os.path.splitext(os.path.abspath(recording.path))[0] for recording in group]
    common = os.path.commonpath([os.path.dirname(path) for path in paths])
    yield [os.path.relpath(path, common) for path in paths]
    yield [f"{output}_{recording.offset:.2f}" for recording in group]
