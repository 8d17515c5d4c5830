"""Names of the files in an output folder."""

import os

import pytest

from nemotron_npu.cli import output_names
from nemotron_npu.cli.output_names import name_outputs
from nemotron_npu.sources import Recording


def recordings(*paths: str, **more) -> list[Recording]:
    return [Recording(path, os.path.splitext(os.path.basename(path))[0], **more) for path in paths]


def test_many_repeated_names_are_compared_with_one_set(monkeypatch):
    """The names that are given are kept once, not copied for each name that is repeated."""
    free_names, sets = output_names._free_names, []
    monkeypatch.setattr(output_names, "_free_names", lambda *args: sets.append(args[2]) or free_names(*args))
    inputs = recordings(*(f"{folder}/{number}.wav" for number in range(500) for folder in "xy"))
    name_outputs(inputs, set())
    assert len(sets) == 500 and all(each is sets[0] for each in sets)
    assert {recording.output for recording in inputs} == {f"{x}/{number}" for number in range(500) for x in "xy"}


@pytest.mark.parametrize(
    "paths, names",
    [
        (["x/a.wav", "x/b.wav"], ["a", "b"]),
        (["x/a.wav", "x/a.mp3", "x/b.wav"], ["a.wav", "a.mp3", "b"]),
        (["x/a.wav", "y/a.wav"], ["x/a", "y/a"]),
        (["a.wav", "x/a.wav"], ["a", "x/a"]),
        (["x/1/a.wav", "x/2/b/a.wav", "../a.wav"], None),
        (["a.wav", "a.wav", "a.wav"], ["a", "a_2", "a_3"]),
        (["x/a.wav", "y/a.wav", "y/a.wav", "a_2.wav"], ["a", "a_3", "a_4", "a_2"]),
        (["a.wav", "a.mp3", "a.wav.wav"], None),
    ],
)
def test_names_are_unique_and_inside_the_folder(paths, names):
    """No two recordings have the same name, and none leads out of the folder."""
    inputs = recordings(*paths)
    name_outputs(inputs, set())
    given = [recording.output for recording in inputs]
    assert len(set(given)) == len(given) and not any(".." in name.split("/") or name[0] == "/" for name in given)
    assert names is None or given == names
