"""Names of the files in an output folder."""

import os

import pytest

from nemotron_npu.cli.output_names import name_outputs
from nemotron_npu.sources import Recording


def recordings(*paths: str, **more) -> list[Recording]:
    return [Recording(path, os.path.splitext(os.path.basename(path))[0], **more) for path in paths]


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
