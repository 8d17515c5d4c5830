"""Functions and paths for tests, and the command line in a process of its own."""

from __future__ import annotations

import fcntl
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
INFERENCE = ROOT / "inference.py"
CLIP = ROOT / "demo" / "digits.wav"
GUARD = ROOT / "tests" / "guard"
CLIP_WORDS = "three one four one five nine two six"
DEMO = ROOT / "demo" / "demo.nemo"
PER_FILE = ("txt", "json", "srt", "vtt", "tsv", "ctm")
COLLECTED = {"results.jsonl", "manifest.jsonl"}
BROKEN = ["broken.flac", "empty.wav", "header.wav", "nan.wav", "text.mp3"]
"""Files of the fixture ``calls`` that cannot be transcribed."""
POISON, POISON_FEATURES, POISON_FRAMES = 12345, 77, 11
"""Samples, feature frames and encoder frames of the recording in the fixture ``poison``."""

PARITY = pytest.StashKey[dict]()
"""Largest difference from NeMo by kind, kept for the end of the report."""


def run_process(*args, timeout: float = 600, **kwargs) -> subprocess.CompletedProcess:
    """Run a script with this Python in a process of its own; ``timeout`` is for one that hangs, not for a slow one."""
    command = [sys.executable, *map(str, args)]
    timeout = float(os.environ.get("TEST_TIMEOUT", timeout))  # an emulated CPU takes longer: see other_cpus.py
    return subprocess.run(command, capture_output=True, text=True, timeout=timeout, **kwargs)


def make_once(factory: pytest.TempPathFactory, name: str, make: Callable[[Path], None]) -> Path:
    """Return the folder ``name``, which ``make(folder)`` fills once for all processes of this test run."""
    root = factory.getbasetemp()
    if "PYTEST_XDIST_WORKER" in os.environ:
        root = root.parent
    folder = root / name
    with open(root / f"{name}.lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not (folder / ".made").exists():
            shutil.rmtree(folder, ignore_errors=True)
            folder.mkdir()
            make(folder)
            (folder / ".made").touch()
    return folder


def take_certainties(value) -> list[float]:
    """Remove the probabilities and confidences from a document, and return them."""
    taken = []
    if isinstance(value, dict):
        taken = [value.pop(name) for name in ("probability", "confidence") if value.get(name) is not None]
        value = list(value.values())
    return taken + [x for item in value if isinstance(item, (dict, list)) for x in take_certainties(item)]


def contents(folder: Path) -> tuple[dict, list[float]]:
    """What a run has written, without its timings; and apart, in a fixed order, probabilities and confidences, whose
    last digits depend on the recordings that were batched together."""
    found, certainties = {}, []
    for path in sorted(path for path in folder.rglob("*") if path.is_file()):
        content = path.read_text()
        if path.suffix in (".json", ".jsonl"):
            content = [json.loads(line) for line in content.splitlines()]
            if path.name == "results.jsonl":
                content.sort(key=lambda document: document["audio"])
            for document in content:
                document.pop("timings", None)
                certainties += take_certainties(document)
        elif path.suffix == ".ctm":
            rows = [line.split() for line in content.splitlines()]
            content = [row[:5] for row in rows]
            certainties += [float(row[5]) for row in rows]
        found[str(path.relative_to(folder))] = content
    return found, certainties


def assert_same_run(ours: Path, theirs: Path, tolerance: float = 2e-4) -> None:
    """Two runs have written the same files, words, tokens, frames and times; certainties differ by ``tolerance``."""
    (found, certainties), (expected, others) = contents(ours), contents(theirs)
    assert found == expected
    assert certainties == pytest.approx(others, abs=tolerance)


def words_of(name: str) -> str:
    """Return the words of a recording in the fixture ``calls``."""
    return "three" if int(Path(name).stem[4:]) % 3 == 0 else CLIP_WORDS


def lines(path: Path) -> list[dict]:
    """Return the documents of a file with a JSON object on each line."""
    return [json.loads(line) for line in path.read_text().splitlines()]


def files(folder: Path) -> set[str]:
    """Return the relative paths of all files below a folder."""
    return {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}


def fail_where(monkeypatch, owner, method, poisoned):
    """Let ``owner.method`` fail for arguments that are ``poisoned``."""
    real = getattr(owner, method)

    def failing(self, *args):
        if poisoned(*args):
            raise RuntimeError("the device said no\nat some length")
        return real(self, *args)

    monkeypatch.setattr(owner, method, failing)


def poison_the_encoder(monkeypatch):
    """Let the encoder fail for the recording of the fixture ``poison``."""
    from nemotron_npu.encoder import Encoder

    fail_where(monkeypatch, Encoder, "step", lambda rows, state, ends: POISON_FEATURES in ends)


def poison_the_decoder(monkeypatch):
    """Let the decoder fail for the recording of the fixture ``poison``."""
    from nemotron_npu.decoder import Decoder

    fail_where(monkeypatch, Decoder, "step", lambda frames, state, counts: POISON_FRAMES in counts)


def token_frames(transcript) -> list[tuple[int, int]]:
    """Return what has to be equal in two transcripts of a recording: the id and the frame of each token."""
    return [(token.id, token.frame) for token in transcript.tokens]


def assert_whole(folder: Path) -> int:
    """Assert that all recorded results of the fixture ``clips`` are whole, and no others begun; return their number."""
    record = lines(folder / "results.jsonl")
    assert len(lines(folder / "manifest.jsonl")) == len(record)
    for document in record:
        assert document["text"] == CLIP_WORDS
        assert all((folder / f"{document['output']}.{kind}").stat().st_size for kind in PER_FILE)
        assert json.loads((folder / f"{document['output']}.json").read_text())["text"] == CLIP_WORDS
    assert not list(folder.glob("*.part"))
    return len(record)


def processes(session: int, name: str = "") -> list[int]:
    """Return the processes of a session that live, those whose command has ``name`` in it."""
    found = []
    for entry in Path("/proc").iterdir():
        with suppress(OSError, ValueError):
            state, _, _, sid = (entry / "stat").read_text().rpartition(")")[2].split()[:4]
            if int(sid) == session and state != "Z" and name in (entry / "cmdline").read_text():
                found.append(int(entry.name))
    return found
