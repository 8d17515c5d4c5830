"""The environment of a measurement: versions, hardware, checkpoint and command."""

import platform

from support import DEMO

from nemotron_npu.host import ascend
from nemotron_npu.host.provenance import environment


def test_versions_of_cann_and_driver_come_from_ascend_files(tmp_path, monkeypatch):
    """The versions of CANN and driver are read where Ascend keeps them; without the files they are None."""
    folder = tmp_path / f"{platform.machine()}-linux"
    folder.mkdir()
    (folder / "ascend_toolkit_install.info").write_text("package_name=Ascend-cann-toolkit\nversion=8.5.1\n")
    (tmp_path / "version.info").write_text("Version=25.2.0\nascendhal_version=7.35.23\n")
    monkeypatch.setenv("ASCEND_TOOLKIT_HOME", str(tmp_path))
    monkeypatch.setattr(ascend, "DRIVER", tmp_path / "version.info")
    found = environment(DEMO)
    assert (found["cann"], found["npu_driver"]) == ("8.5.1", "25.2.0")
    monkeypatch.delenv("ASCEND_TOOLKIT_HOME")
    monkeypatch.delenv("ASCEND_HOME_PATH", raising=False)
    monkeypatch.setattr(ascend, "DRIVER", tmp_path / "none")
    assert environment(DEMO)["cann"] is None and environment(DEMO)["npu_driver"] is None
