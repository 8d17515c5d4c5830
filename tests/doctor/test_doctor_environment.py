"""``doctor/environment.py``: Python, packages, torch, triton's patches, NeMo, codecs, disk."""

import os
import re
import shutil
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
from doctors import found, states
from packaging.requirements import Requirement
from support import ROOT, run_process

from nemotron_npu.doctor import environment


def test_python_that_is_not_supported_is_a_problem(monkeypatch):
    assert found("Python")[0].state == "ok"
    monkeypatch.setattr(environment, "PYTHONS", ((3, 90), (3, 92)))
    assert found("Python")[0].state == "problem" and "setup_env.sh" in found("Python")[0].fix


@pytest.mark.parametrize(
    "requirement, engine, state",
    [
        ("jiwer>1000", "native", "warning"),
        ("jiwer>1000", "nemo", "problem"),
        ("no-such-package", "native", "warning"),
        ("no-such-package", "nemo", "problem"),
    ],
)
def test_packages_of_nemo_that_are_missing_or_too_old(monkeypatch, requirement, engine, state):
    """They are a problem where NeMo was requested, else a warning."""
    assert states(found("packages")) == ["ok"]
    monkeypatch.setattr(environment, "needed", lambda extra="": [Requirement(requirement)] if extra else [])
    (finding,) = found("packages", engine=engine)
    assert finding.state == state and Requirement(requirement).name in finding.found
    assert finding.fix == "source setup_env.sh"


def test_packages_of_the_native_engine_are_always_needed(monkeypatch):
    """Each that is missing is a problem, whichever engine was requested."""
    installed = environment.installed
    for name in [requirement.name for requirement in environment.needed() if requirement.name != "torch"]:
        here = {name: None}
        monkeypatch.setattr(environment, "installed", lambda package, here=here: here.get(package, installed(package)))
        monkeypatch.setattr(environment, "fits", lambda requirement, name=name: requirement.name != name)
        assert [(f.state, f.found) for f in found("packages")] == [("problem", f"not installed: {name}")]


def test_torch_that_is_missing_or_was_not_tested(monkeypatch):
    """A missing one is a problem, of its own check only; another version is a warning."""
    assert states(found("torch")) == ["ok"]
    monkeypatch.setattr(environment, "needed", lambda extra="": [] if extra else [Requirement("torch<2")])
    (finding,) = found("packages")
    assert finding.state == "warning" and finding.found.startswith("unsupported versions: torch 2.")
    monkeypatch.setattr(environment, "installed", lambda package: None)
    assert states(found("torch")) == ["problem"] and states(found("packages")) == ["ok"]


def test_triton_reports_the_state_of_each_patch(tmp_path, monkeypatch, npu_smi):
    monkeypatch.setitem(sys.modules, "triton", None)  # a torch with CUDA brings one along
    assert "nothing to patch" in found("triton")[0].found
    monkeypatch.delitem(sys.modules, "triton")
    shutil.copytree(ROOT / "tests" / "data" / "triton" / "3.6.0", tmp_path / "triton-3.6.0")
    root = tmp_path / "triton-3.6.0"
    (root / "triton" / "__init__.py").touch()
    monkeypatch.syspath_prepend(str(root))
    (finding,) = found("triton")
    assert "triton/backends/__init__.py: original; triton/runtime/driver.py: original" in finding.found
    assert finding.state == "ok", "without an NPU it is not needed"
    npu_smi("")
    assert found("triton")[0].state == "warning" and found("triton")[0].fix == "python patches/apply.py"
    assert run_process(ROOT / "patches" / "apply.py", "--root", root).returncode == 0
    (finding,) = found("triton")
    assert (
        finding.state == "ok"
        and "triton/backends/__init__.py: patched; triton/runtime/driver.py: patched" in finding.found
    )
    (root / "triton" / "runtime" / "driver.py").write_text("something else")
    assert ".../driver.py: no patch fits this version" in found("triton")[0].found


def test_nv_one_logger_is_real_or_the_mock(monkeypatch):
    mock = ROOT / "nv_one_logger_mock" / "nv_one_logger"
    for folder, words in [
        (mock, "the mock"),
        (Path("/elsewhere/nv_one_logger"), "NVIDIA's own"),
        (None, "the mock"),  # the program finds it by itself
    ]:
        spec = folder and SimpleNamespace(submodule_search_locations=[str(folder)])
        monkeypatch.setattr(environment.importlib.util, "find_spec", lambda name, spec=spec: spec)
        (finding,) = found("nv_one_logger")
        assert finding.state == "ok" and words in finding.found


def test_nemo_is_needed_only_where_it_is_requested(monkeypatch):
    assert states(found("NeMo")) == ["ok"]
    monkeypatch.setattr(environment, "fits", lambda requirement: requirement.name != "nemo-toolkit")
    for engine, state in (("native", "warning"), ("nemo", "problem")):
        (finding,) = found("packages", engine=engine)
        assert finding.state == state and finding.found.startswith("unsupported versions: nemo-toolkit 2.")
    monkeypatch.setattr(environment, "installed", lambda package: None)
    assert states(found("NeMo")) == ["ok"] and states(found("NeMo", engine="nemo")) == ["problem"]
    monkeypatch.setattr(environment.importlib.util, "find_spec", lambda name: None)
    assert states(found("nv_one_logger")) == ["ok"]


def test_audio_libraries_that_lack_a_codec_or_fail(monkeypatch, package):
    import soundfile

    whole = found("audio")[0].found
    assert "wav, flac, ogg, opus, mp3" in whole and re.search(r"PyAV [\d.]+ \(ffmpeg's libavcodec \d+\.\d+", whole)
    monkeypatch.setattr(soundfile, "available_formats", lambda: {"WAV": "", "FLAC": "", "OGG": ""})
    (finding,) = found("audio")
    assert finding.state == "warning" and finding.found.endswith("but not mp3")
    package("soundfile", "0", "raise OSError('sndfile library not found')")
    (finding,) = found("audio")
    assert finding.state == "problem" and finding.fix == "pip install --force-reinstall --no-deps soundfile"
    monkeypatch.setitem(sys.modules, "soundfile", None)
    assert [(f.state, f.found) for f in found("audio")] == [("not checked", "soundfile")]


def test_disk_with_too_little_space(monkeypatch):
    """NeMo needs space to unpack the checkpoint; results need a folder that can be written."""
    usage = SimpleNamespace(free=1 << 40)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage)
    assert states(found("disk")) == ["ok", "ok"]
    usage.free = 105 * 10**6  # above the minimum, but NeMo unpacks the model
    assert states(found("disk")) == ["ok", "ok"]
    assert found("disk", engine="nemo")[0].state == "problem" and "TMPDIR" in found("disk", engine="nemo")[0].fix
    usage.free = 10**6
    assert states(found("disk")) == ["warning", "warning"]
    monkeypatch.setattr(os, "access", lambda path, mode: False)
    assert "not writable" in found("disk")[1].found
    monkeypatch.setattr(environment.tempfile, "gettempdir", lambda: (_ for _ in ()).throw(FileNotFoundError()))
    assert "no folder for temporary files" in found("disk")[0].found
