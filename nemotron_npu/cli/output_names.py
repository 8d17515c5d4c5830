"""Names of the files of an output folder: one for each recording, all different."""

from __future__ import annotations

import os
from collections import defaultdict
from collections.abc import Iterator
from itertools import count, islice

from ..sources import Recording


def name_outputs(recordings: list[Recording], taken: set[str]) -> None:
    """Change ``output`` of the recordings so that each is unique and none is in ``taken``.

    Recordings of the same name get the first of these that distinguishes all of them: the full name of the audio file
    (``a.wav``, ``a.mp3``), the folders in which they differ (``x/a``, ``y/a``), the offset (``a_12.50``), a number.
    """
    given = set(taken)
    repeated: set[str] = set()
    for recording in recordings:
        (repeated if recording.output in given else given).add(recording.output)
    groups = defaultdict(list)
    for recording in recordings:
        if recording.output in repeated:
            groups[recording.output].append(recording)
    for output, group in groups.items():
        if output not in taken:
            given.remove(output)
        names = _free_names(output, group, given)
        for recording, name in zip(group, names, strict=True):
            recording.output = name
        given.update(names, {output})


def _free_names(output: str, group: list[Recording], others: set[str]) -> list[str]:
    """Return a name for each recording of ``group``, all different and none in ``others``."""
    for names in _distinct_names(output, group):
        if len(set(names) - others) == len(names):
            return names
    numbered = (output if number == 1 else f"{output}_{number}" for number in count(1))
    return list(islice((name for name in numbered if name not in others), len(group)))


def _distinct_names(output: str, group: list[Recording]) -> Iterator[list[str]]:
    """Yield lists of names that may distinguish recordings of the same name."""
    yield [os.path.join(os.path.dirname(output), os.path.basename(recording.path)) for recording in group]
    paths = [os.path.splitext(os.path.abspath(recording.path))[0] for recording in group]
    common = os.path.commonpath({os.path.dirname(path) for path in paths})
    yield [path[len(common) :].lstrip("/") for path in paths]
    yield [f"{output}_{recording.offset:.2f}" for recording in group]
