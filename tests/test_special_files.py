"""Files of the kernel, devices and endless files as inputs are refused at once, in one line."""

import json
import os
import time
from pathlib import Path

import pytest
from support import CLIP

from nemotron_npu import boosting, sources
from nemotron_npu.boosting import read_phrases
from nemotron_npu.errors import SetupError
from nemotron_npu.host import ascend

KERNEL = [
    "/proc/kmsg",
    "/proc/self/mem",
    "/proc/self/environ",
    "/proc/cpuinfo",
    "/proc/kcore",
    "/sys/kernel/mm/ksm/run",
]
DEVICES = ["/dev/tty", "/dev/full", "/dev/zero"]
SPECIAL = [path for path in KERNEL + DEVICES if os.path.lexists(path)]


@pytest.mark.parametrize("path", SPECIAL)
@pytest.mark.parametrize("use", ["audio", "list", "manifest", "entry", "phrases", "model"])
def test_special_file_is_refused_at_once(cli, tmp_path, monkeypatch, path, use):
    """As audio, list, manifest, entry of one, phrases or model, also by a link."""
    monkeypatch.chdir(tmp_path)
    for name in ("x.wav", "x.txt", "x.jsonl"):
        os.symlink(path, name)
    Path("entry.json").write_text(json.dumps({"audio_filepath": path}) + "\n")
    arguments = {
        "audio": ["x.wav"],
        "list": ["x.txt"],
        "manifest": ["x.jsonl"],
        "entry": ["entry.json"],
        "phrases": [CLIP, "--boost_words", "x.txt"],
        "model": [CLIP, "--model_path", "x.wav"],
    }
    began = time.process_time()
    code, out, err = cli(*arguments[use], "--device", "cpu", "--quiet")
    assert code == (2 if use in ("phrases", "model") else 1) and not out
    assert len(err.splitlines()) == 1 and ("kernel" in err or "device" in err or "permission" in err.lower()), err
    assert time.process_time() - began < 2


def test_long_pattern_takes_no_time(cli):
    """A pattern of 20,000 brackets is no path: nothing is searched."""
    began = time.process_time()
    code, _, err = cli(20_000 * "[", "--device", "cpu")
    assert code == 1 and "no file matches this pattern" in err and time.process_time() - began < 2


def test_phrases_and_lists_have_limits(cli, tmp_path, monkeypatch):
    """Phrases and lists of too many lines are refused in one line."""
    path = tmp_path / "x.txt"
    path.write_text("a\n" * (boosting.MAX_PHRASES + 1))
    with pytest.raises(SetupError, match="x.txt: has more than 100,000 lines"):
        read_phrases(path)
    path.write_text("a" * (boosting.MAX_CHARACTERS + 1))
    with pytest.raises(SetupError, match="has more than .* characters"):
        read_phrases(path)
    monkeypatch.setattr(sources, "MAX_LINES", 3)
    path.write_text("a.wav\n" * 4)
    code, _, err = cli(path, "--device", "cpu")
    assert code == 1 and "x.txt: more than 3 lines (split it)" in err


def test_endless_npu_smi_is_stopped(tmp_path, monkeypatch):
    """What npu-smi prints is read with a limit."""
    tool = tmp_path / "npu-smi"
    tool.write_text("#!/bin/sh\nexec yes\n")
    tool.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    with pytest.raises(ascend.SmiError, match="npu-smi info: prints more than 1,048,576 bytes"):
        ascend.npu_smi("info")


@pytest.mark.parametrize("name", ["--output_dir=x.wav", "-o.wav", "--quiet"])
def test_file_that_looks_like_an_option_is_refused(cli, tmp_path, monkeypatch, name):
    """A file from a shell's pattern is never an option; after -- it is an input."""
    monkeypatch.chdir(tmp_path)
    Path(name).write_bytes(CLIP.read_bytes())
    code, out, err = cli(name, "--device", "cpu")
    assert code == 2 and not out and f"{name}: a file of this name would be an option (write ./*.wav, or ./" in err
    assert os.listdir() == [name]
    code, out, _ = cli("--device", "cpu", f"./{name}")
    assert code == (0 if name.endswith("wav") else 0) and out
