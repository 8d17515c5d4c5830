"""A host without anything of Ascend's for all tests of ``--doctor``, and what can be put there."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from nemotron_npu.doctor import npu
from nemotron_npu.host import ascend


@pytest.fixture(autouse=True)
def no_ascend(tmp_path, monkeypatch, no_torch_npu):
    """A host without anything of Ascend's, whatever this one has."""
    for name in ("ASCEND_OPP_PATH", "ASCEND_TOOLKIT_HOME", "ASCEND_HOME_PATH", "ASCEND_RT_VISIBLE_DEVICES"):
        monkeypatch.delenv(name, raising=False)
    for name in ("DRIVER", "FIRMWARE", "DEVICES"):
        monkeypatch.setattr(ascend, name, tmp_path / "Ascend" / name.lower())
    monkeypatch.setattr(npu, "TOOL_FOLDERS", "")
    monkeypatch.setattr(ascend, "find_cann", lambda: None)
    (tmp_path / "bin").mkdir()
    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}:/usr/bin:/bin")


@pytest.fixture
def npu_smi(tmp_path):
    """Put a shell script of this name on PATH: ``npu_smi(script)``."""

    def make(script: str) -> None:
        (tmp_path / "bin" / "npu-smi").write_text(f"#!/bin/sh\n{script}\n")
        (tmp_path / "bin" / "npu-smi").chmod(0o755)

    return make


@pytest.fixture
def package(tmp_path, monkeypatch):
    """Put a package in front of all others: ``package("torch_npu", "2.13.0", "raise ImportError('x')")``."""

    def make(name: str, version: str, code: str = "") -> Path:
        folder = tmp_path / "packages"
        (folder / name).mkdir(parents=True)
        (folder / name / "__init__.py").write_text(code)
        info = folder / f"{name}-{version}.dist-info"
        info.mkdir()
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n")
        monkeypatch.syspath_prepend(str(folder))
        monkeypatch.delitem(sys.modules, name, raising=False)
        return folder

    return make
