"""``doctor/npu.py`` and ``host/ascend.py``: torch_npu, CANN, driver, firmware, NPUs.

There is no NPU here: ``npu-smi`` is a script that prints what real ones print, Ascend's version files are made up after
real ones.
"""

import os
import platform
import time
from pathlib import Path

import pytest
import torch
from doctors import NPU, found, states

from nemotron_npu.doctor import npu
from nemotron_npu.doctor.finding import Context, private
from nemotron_npu.host import ascend

# Atlas 800T A2, driver 25.2.0; an A3 has two chips on a card and numbers them; a 310P has DDR; all are of real hosts.
A2 = """\
+------------------------------------------------------------------------------------------------+
| npu-smi 25.2.0                   Version: 25.2.0                                               |
+---------------------------+---------------+----------------------------------------------------+
| NPU   Name                | Health        | Power(W)    Temp(C)           Hugepages-Usage(page)|
| Chip                      | Bus-Id        | AICore(%)   Memory-Usage(MB)  HBM-Usage(MB)        |
+===========================+===============+====================================================+
| 0     910B2               | OK            | 94.2        49                0    / 0             |
| 0                         | 0000:C1:00.0  | 0           0    / 0          3418 / 65536         |
+===========================+===============+====================================================+
| 1     910B2               | OK            | 91.5        49                0    / 0             |
| 0                         | 0000:01:00.0  | 0           0    / 0          60185/ 65536         |
+===========================+===============+====================================================+
+---------------------------+---------------+----------------------------------------------------+
| NPU     Chip              | Process id    | Process name             | Process memory(MB)      |
+===========================+===============+====================================================+
| 1       0                 | 115133        | python                   | 56780                   |
+===========================+===============+====================================================+
"""
A3 = """\
| NPU   Name                | Health        | Power(W)    Temp(C)           Hugepages-Usage(page)|
| Chip  Phy-ID              | Bus-Id        | AICore(%)   Memory-Usage(MB)  HBM-Usage(MB)        |
+===========================+===============+====================================================+
| 0     Ascend910           | OK            | 178.5       36                0    / 0             |
| 0     0                   | 0000:9D:00.0  | 0           0    / 0          3416 / 65536         |
+------------------------------------------------------------------------------------------------+
| 0     Ascend910           | Alarm         | -           36                0    / 0             |
| 1     1                   | 0000:9F:00.0  | 0           0    / 0          3195 / 65536         |
"""
P310 = """\
| NPU     Name                  | Health          | Power(W)     Temp(C)           Hugepages-Usage(page) |
| Chip    Device                | Bus-Id          | AICore(%)    Memory-Usage(MB)                        |
+===============================+=================+======================================================+
| 6       310P3                 | OK              | NA           50                0     / 0             |
| 0       0                     | NA              | 0            1839 / 21525                            |
"""
BOARD = """\
        NPU ID                         : 0
        Product Name                   : IT21HMDC_Bin5
        Serial Number                  : 1025C9048791
        Software Version               : 25.5.1
        Firmware Version               : 7.8.0.6.201
        Compatibility                  : OK
        PCIe Bus Info                  : 0000:C1:00.0
"""
DRIVER_INFO = (
    "Version=25.2.0\nascendhal_version=7.35.23\ncompatible_version_fw=[7.0.0,7.7.99]\npackage_version=25.2.0\n"
)


@pytest.fixture
def smi_prints(npu_smi):
    """A host whose ``npu-smi`` prints this table: ``smi_prints(A2)``."""

    def make(table: str, board: str = BOARD) -> None:
        npu_smi(f"case $* in *board*) cat <<'END'\n{board}END\n;; *) cat <<'END'\n{table}END\nesac")

    return make


def test_ascend_parts_are_needed_only_if_an_npu_is_requested():
    for name in ("torch_npu", "CANN", "driver", "NPUs"):
        assert states(found(name)) == states(found(name, device="cpu")) == ["ok"]
        assert "no NPU on this host" in found(name)[0].found
        (asked,) = found(name, device=NPU)
        assert asked.state == "problem" and asked.fix
    assert states(found("device")) == ["ok"]
    assert [(f.state, f.found) for f in found("device", device=NPU)] == [("not checked", "torch_npu")]


def test_missing_parts_on_an_ascend_host_are_warnings(smi_prints):
    """They are a problem where the NPU was requested, and needless where the CPU was."""
    smi_prints(A2)
    for name in ("torch_npu", "CANN"):
        assert states(found(name)) == ["warning"] and states(found(name, device=NPU)) == ["problem"]
        assert states(found(name, device="cpu")) == ["ok"]


def test_torch_npu_without_cann_names_library_and_download(package, monkeypatch):
    monkeypatch.undo()
    release = torch.__version__.partition("+")[0]
    error = "libhccl.so: cannot open shared object file: No such file or directory"
    package("torch_npu", release, f"raise ImportError({error!r})")
    monkeypatch.setattr(ascend, "find_cann", lambda: None)
    for name in ("ASCEND_OPP_PATH", "ASCEND_TOOLKIT_HOME", "ASCEND_HOME_PATH"):
        monkeypatch.delenv(name, raising=False)
    (finding,) = found("torch_npu")
    assert finding.state == "warning" and "libhccl.so" in finding.found and "CPU only" in finding.found
    assert "hiascend.com/cann" in finding.fix and "pip uninstall torch-npu" in finding.fix
    (finding,) = found("torch_npu", device=NPU)
    assert finding.state == "problem" and "uninstall" not in finding.fix
    assert states(found("device")) == ["ok"]
    assert found("device", device=NPU)[0].found == "torch_npu"
    monkeypatch.setattr(ascend, "find_cann", lambda: "/usr/local/Ascend/cann/set_env.sh")
    assert found("torch_npu", device=NPU)[0].fix == "source /usr/local/Ascend/cann/set_env.sh"


def test_torch_npu_for_another_torch_is_a_problem(package):
    package("torch_npu", "2.1.0.post12")
    (finding,) = found("torch_npu", device=NPU)
    release = torch.__version__.partition("+")[0]
    assert finding.state == "problem" and finding.fix == f"pip install 'torch-npu=={release}.*'"


@pytest.fixture
def cann(tmp_path, monkeypatch):
    """An installed toolkit of CANN: ``cann("8.5.1")`` -> its set_env.sh."""

    def make(version: str) -> str:
        folder = tmp_path / "cann" / f"{platform.machine()}-linux"
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "ascend_toolkit_install.info").write_text(f"package_name=Ascend-cann-toolkit\nversion={version}\n")
        script = str(tmp_path / "cann" / "set_env.sh")
        monkeypatch.setattr(ascend, "find_cann", lambda: script)
        return script

    return make


def test_cann_that_is_not_loaded_names_its_set_env(cann, monkeypatch):
    script = cann("8.5.1")
    (finding,) = found("CANN", device=NPU)
    assert finding.state == "problem" and finding.found.startswith("8.5.1, but its variables are not set")
    assert finding.fix == private(f"source {script}")
    monkeypatch.setenv("ASCEND_OPP_PATH", "x")
    assert [(f.state, f.found) for f in found("CANN", device=NPU)] == [("ok", "8.5.1, loaded")]


@pytest.mark.parametrize(
    "version, torch_npu, state",
    [
        ("8.5.1", "2.9.0", "ok"),
        ("8.3.RC1", "2.9.0", "warning"),
        ("8.5.0", "2.10.0", "warning"),
        ("9.2.0", "2.14.0", "ok"),
        ("9.9", "2.99", "ok"),
    ],
)
def test_cann_that_torch_npu_was_not_made_for_is_a_warning(cann, monkeypatch, package, version, torch_npu, state):
    cann(version)
    package("torch_npu", torch_npu)
    monkeypatch.setenv("ASCEND_OPP_PATH", "x")
    (finding,) = found("CANN", device=NPU)
    assert finding.state == state and version in finding.found
    assert ("made for" in finding.found) == (state == "warning")


def test_driver_and_firmware_that_do_not_fit_are_a_problem(tmp_path):
    ascend.DRIVER.parent.mkdir()
    ascend.DRIVER.write_text(DRIVER_INFO)
    ascend.FIRMWARE.write_text("Version=7.7.0.1.231\nfirmware_version=1.0\n")
    assert [(f.state, f.found) for f in found("driver", device=NPU)] == [("ok", "25.2.0, firmware 7.7.0.1.231")]
    ascend.FIRMWARE.write_text("Version=7.8.0.6.201\n")
    (finding,) = found("driver", device=NPU)
    assert finding.state == "problem" and "[7.0.0,7.7.99]" in finding.found and "reboot" in finding.fix
    assert states(found("driver")) == ["warning"]


def test_driver_version_in_a_container_comes_from_the_board(smi_prints):
    """The board's serial number is not shown."""
    smi_prints(A2)
    assert [(f.state, f.found) for f in found("driver", device=NPU)] == [("ok", "25.5.1, firmware 7.8.0.6.201")]
    smi_prints(A2, "nothing of the kind\n")
    assert states(found("driver", device=NPU)) == ["problem"]


def test_npus_show_name_health_and_least_free_memory(smi_prints, monkeypatch):
    smi_prints(A2)
    monkeypatch.setenv("ASCEND_RT_VISIBLE_DEVICES", "1,0")
    (finding,) = found("NPUs", device=NPU)
    assert finding.state == "ok"
    assert finding.found == "2 x 910B2, health OK, 5.2 of 64.0 GB free at least; ASCEND_RT_VISIBLE_DEVICES=1,0"
    smi_prints(P310)
    assert found("NPUs", device=NPU)[0].found.startswith("1 x 310P3, health OK, 19.2 of 21.0 GB free")


def test_chip_that_is_not_healthy_is_named(smi_prints):
    smi_prints(A3)
    fine, ill = found("NPUs", device=NPU)
    assert fine.found.startswith("1 x Ascend910, health OK, 60.7") and ill.state == "problem"
    assert ill.found == "card 0, chip 1: Ascend910, health Alarm" and "reset -i 0 -c 1" in ill.fix
    smi_prints(A3.replace("Alarm  ", "Warning"))
    assert states(found("NPUs", device=NPU)) == ["ok", "warning"]


@pytest.mark.parametrize(
    "script, words",
    [
        ("echo 'DrvMngGetConsoleLogLevel failed. (ret=4)'; echo 'dcmi module initialize failed. ret is -8005'; exit 1",
         "npu-smi info: failed with exit code 1: dcmi module initialize failed. ret is -8005"),
        ("head -c 2000 /dev/urandom", "lists no NPU in a known format"),
        ("echo", "lists no NPU in a known format"),
        ("exit 9", "npu-smi info: failed with exit code 9: no output"),
        ("kill -SEGV $$", "npu-smi info: failed with exit code -11"),
    ],
)  # fmt: skip
def test_npu_smi_that_fails_or_prints_garbage_is_a_problem(npu_smi, script, words):
    npu_smi(script)
    (finding,) = found("NPUs", device=NPU)
    assert finding.state == "problem" and words in finding.found and finding.fix
    assert states(found("NPUs")) == ["warning"] and states(found("driver", device=NPU)) == ["problem"]


def test_npu_smi_that_hangs_is_abandoned(npu_smi, monkeypatch):
    monkeypatch.setattr(ascend, "SMI_SECONDS", 0.3)
    npu_smi("sleep 600 & sleep 600")
    began = time.monotonic()
    context = Context(NPU)
    assert "no answer within 0.3 s" in found("NPUs", context)[0].found
    assert states(found("driver", context)) == ["problem"] and time.monotonic() - began < 5


def test_npu_smi_that_cannot_be_run_or_is_not_on_path(npu_smi, tmp_path, monkeypatch):
    npu_smi("")
    (tmp_path / "bin" / "npu-smi").write_bytes(b"\x7fELF of another machine")
    assert "npu-smi: cannot be run" in found("NPUs", device=NPU)[0].found
    monkeypatch.setattr(npu, "TOOL_FOLDERS", str(tmp_path / "bin"))
    monkeypatch.setenv("PATH", "/usr/bin")
    assert found("NPUs", device=NPU)[0].fix == private(f"export PATH=$PATH:{tmp_path / 'bin'}")


def test_devices_that_this_user_may_not_open_are_a_problem(smi_prints, monkeypatch):
    smi_prints(A2)
    ascend.DEVICES.mkdir(parents=True)
    (ascend.DEVICES / "davinci_manager").touch()
    may = os.access
    monkeypatch.setattr(os, "access", lambda path, mode: Path(path).name != "davinci_manager" and may(path, mode))
    first, second = found("NPUs", device=NPU)
    assert (first.state, second.state) == ("problem", "ok") and "usermod -aG HwHiAiUser" in first.fix
