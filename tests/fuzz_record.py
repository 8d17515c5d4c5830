"""Broken records of an output folder, for ``fuzz.py``."""

from __future__ import annotations

import functools
import json
import os
import random
from pathlib import Path

from fuzz import VALUES, broken_bytes
from test_output_folder import KINDS, SETTINGS, contents, recordings, run, write

from nemotron_npu.cli.output_folder import OutputFolder
from nemotron_npu.errors import SetupError

AUDIO = ("a.wav", "b.wav", "c.wav")
MARKS = (b"../", b'"output"', b'"audio"', b"\\u0000", b"\\ud800", b"\n", b"[" * 3000, b"/tmp/", b"\x1b[2J")


@functools.cache
def seed() -> bytes:
    """The record of a run over ``AUDIO``."""
    import tempfile

    with tempfile.TemporaryDirectory() as folder:
        run(folder, recordings(*AUDIO))
        return contents(Path(folder))["results.jsonl"]


def broken(rng: random.Random) -> bytes:
    """A record with fields of other values, or other bytes."""
    if rng.random() < 0.4:
        return broken_bytes(rng, seed(), MARKS)
    documents = [json.loads(line) for line in seed().splitlines()]
    for document in rng.sample(documents, rng.randint(1, 3)):
        for field in rng.sample(sorted(document), rng.randint(1, 3)):
            value = rng.choice(
                [*VALUES, *AUDIO, "../a", "/tmp/a", "a/../../a", "x/a", document[rng.choice(sorted(document))]]
            )
            document[field] = value if rng.random() < 0.7 else {"duration": value}
    return "".join(json.dumps(rng.choice(documents)) + "\n" for _ in range(rng.randint(1, 5))).encode()


def resume(rng: random.Random, folder: Path) -> str:
    """Break a record and resume the run: all is done, nothing lies outside the folder, each message is one line."""
    out = folder / "out"
    out.mkdir(exist_ok=True)
    for file in out.iterdir():
        if file.is_file():
            file.unlink()
    (out / "results.jsonl").write_bytes(broken(rng))
    inputs = recordings(*AUDIO)
    try:
        with OutputFolder(out, KINDS, SETTINGS, resume=True) as opened:
            left = opened.begin(inputs)
            assert all(remark.isprintable() for remark in opened.remarks), opened.remarks
            for index in left:
                write(opened, index, f"words of {inputs[index].path}")
    except SetupError as error:
        assert str(error).isprintable() and len(str(error)) < 1000, error
        return "refused"
    names = {recording.output for recording in inputs}
    assert len(names) == 3 and all((out / f"{name}.json").is_file() for name in names), names
    for line in (out / "results.jsonl").read_bytes().splitlines():
        json.loads(line)
    assert os.listdir(folder) == ["out"]
    return "done"
