"""``--doctor``: each thing that can be wrong is named, with what mends it; nothing that it says is private.

There is no NPU here: ``npu-smi`` is a script that prints what real ones print, Ascend's version files are made up after
real ones.  On the fake npu: ``on_fake_npu/test_doctor.py``.
"""

import json
import os
import platform
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from packaging.requirements import Requirement
from support import CLIP, ROOT, run_process

from nemotron_npu.doctor import ascend as doctor_ascend
from nemotron_npu.doctor import host, model, run
from nemotron_npu.doctor.host import Finding, Host, NotChecked, anonymous
from nemotron_npu.doctor.run import check, examine, private, show
from nemotron_npu.errors import Unsupported
from nemotron_npu.host import ascend, resources
from nemotron_npu.recognizer import Recognizer, Stream

DEMO = ROOT / "demo" / "demo.nemo"
INFERENCE = ROOT / "inference.py"
NPU = "npu:0"

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


def found(name, host=None, **asked) -> list[Finding]:
    """What one check finds, in this process."""
    told = check(host or Host(**{"demo": DEMO, "clip": CLIP, **asked}), name)
    needs = [Finding(name, "not checked", told["needs"])] if "needs" in told else []
    return [Finding(**fields) for fields in told["findings"]] + needs


def states(findings) -> list[str]:
    return [finding.state for finding in findings]


@pytest.fixture(autouse=True)
def no_ascend(tmp_path, monkeypatch, no_torch_npu):
    """A host without anything of Ascend's, whatever this one has."""
    for name in ("ASCEND_OPP_PATH", "ASCEND_TOOLKIT_HOME", "ASCEND_HOME_PATH", "ASCEND_RT_VISIBLE_DEVICES"):
        monkeypatch.delenv(name, raising=False)
    for name in ("DRIVER", "FIRMWARE", "DEVICES"):
        monkeypatch.setattr(ascend, name, tmp_path / "Ascend" / name.lower())
    monkeypatch.setattr(doctor_ascend, "TOOLS", ())
    monkeypatch.setattr(ascend, "find_cann", lambda: None)
    (tmp_path / "bin").mkdir()
    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}:/usr/bin:/bin")


@pytest.fixture
def npu_smi(tmp_path):
    """Put a script of this name on PATH, which does what it is told in shell."""

    def make(script: str) -> None:
        (tmp_path / "bin" / "npu-smi").write_text(f"#!/bin/sh\n{script}\n")
        (tmp_path / "bin" / "npu-smi").chmod(0o755)

    return make


@pytest.fixture
def smi_prints(npu_smi):
    def make(table: str, board: str = BOARD) -> None:
        npu_smi(f"case $* in *board*) cat <<'END'\n{board}END\n;; *) cat <<'END'\n{table}END\nesac")

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


# ---------------------------------------------------------------- as a user sees it


def test_on_a_machine_where_all_is_well_each_line_is_ok_and_fits_a_page():
    result = run_process(INFERENCE, "--doctor", "--device", "cpu", cwd="/")
    lines = result.stdout.splitlines()
    assert (result.returncode, result.stderr, lines[-1]) == (0, "", "all is well"), result.stdout
    assert all(line.startswith(("ok ", " " * 9)) for line in lines[:-1])
    assert max(map(len, lines)) <= 100 and "\033" not in result.stdout
    for name in (
        "Python",
        "torch ",
        "triton",
        "nv_one_logger  *the mock",
        "NeMo",
        "mp3",
        "2,144,405",
        "SHA-256 [0-9a-f]{64}",
    ):
        assert re.search(name, result.stdout), name
    assert "as a live stream the same" in lines[-2]


def test_the_same_as_json_without_anything_private(tmp_path):
    home = tmp_path / "marlowe"
    checkpoint = home / "secret project" / "voice.nemo"
    checkpoint.parent.mkdir(parents=True)
    checkpoint.write_bytes(DEMO.read_bytes()[:100_000])
    secrets = {"HOME": str(home), "USER": "marlowe", "HF_TOKEN": "hf_s3cr3t", "ASCEND_HOME_PATH": str(home / "cann")}
    command = [INFERENCE, "--doctor", "--output_format", "json", "--device", NPU, "--model_path", checkpoint]
    result = run_process(*command, env={**os.environ, **secrets})
    document = json.loads(result.stdout)
    assert result.returncode == 2 and list(document) == ["state", "summary", "problems", "warnings", "findings"]
    assert document["state"] == "problem" and document["summary"].startswith(f"{document['problems']} problems")
    assert all(list(finding) == ["name", "state", "found", "mend"] for finding in document["findings"])
    assert all(bool(finding["mend"]) == (finding["state"] != "ok") for finding in document["findings"])
    broken = next(finding for finding in document["findings"] if "voice.nemo" in finding["found"])
    assert broken["state"] == "problem"
    words = ["marlowe", "secret", "s3cr3t", str(tmp_path), "/home/", f" {platform.node()} "]
    assert not [word for word in words if word in result.stdout + result.stderr]


def test_with_nothing_installed_it_still_says_what_is_missing():
    result = run_process("-S", "-E", INFERENCE, "--doctor")
    assert result.returncode == 2 and result.stderr == ""
    assert "problem  packages      neither pip nor packaging" in result.stdout
    assert "problem  torch         not installed\n         -> source setup_env.sh" in result.stdout
    assert "ok       NeMo          not installed: only" in result.stdout
    assert "memory, engine, arithmetic, forward pass: needs torch" in " ".join(result.stdout.split())


@pytest.mark.parametrize(
    "options, words",
    [
        ([CLIP], "leave AUDIO out"),
        (["--chunk_ms", "80"], "omit --chunk_ms"),
        (["--benchmark"], "omit --benchmark"),
        (["--output_format", "srt"], "txt or json"),
    ],
)
def test_what_it_would_not_heed_is_refused(cli, options, words):
    code, out, err = cli("--doctor", *options)
    assert (code, out) == (2, "") and words in err.splitlines()[-1]


def test_the_exit_code_is_that_of_the_worst_finding(cli, monkeypatch):
    for states_, code, summary in [
        ("ok ok", 0, "all is well"),
        ("ok warning ok", 1, "1 warning"),
        ("problem warning warning", 2, "1 problem, 2 warnings"),
    ]:
        made = [Finding("x", state, "y", "" if state == "ok" else "z") for state in states_.split()]
        monkeypatch.setattr(run, "examine", lambda host, debug, made=made: made)
        assert cli("--doctor")[:2] == (code, "\n".join([*map(show, made), summary]) + "\n")


def test_colours_are_for_terminals(cli, monkeypatch):
    monkeypatch.setattr(run, "examine", lambda host, debug: [Finding("x", "problem", "y", "z")])
    monkeypatch.delenv("NO_COLOR", raising=False)
    monkeypatch.setenv("TERM", "xterm")
    assert "\033" not in cli("--doctor")[1]
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    assert "\033[31mproblem\033[0m  x" in show(Finding("x", "problem", "y", "z"), True)


def test_long_findings_are_wrapped_and_commands_are_not():
    command = "pip install --force-reinstall torch==2.13.0+cpu --index-url https://download.pytorch.org/whl/cpu"
    lines = show(Finding("torch", "problem", "word " * 60, command)).splitlines()
    assert max(map(len, lines[:-1])) <= 100 and all(line.startswith(" " * 23) for line in lines[1:-1])
    assert lines[-1] == f"         -> {command}"


# ---------------------------------------------------------------- what crashes, hangs, raises


def test_a_check_that_kills_its_process_or_hangs_costs_no_other(monkeypatch):
    fine = Finding("fine", "ok", "yes")
    monkeypatch.setattr(run, "SECONDS", 1)
    monkeypatch.setattr(
        run,
        "CHECKS",
        {
            "killed": lambda host: os.kill(os.getpid(), signal.SIGKILL),
            "fine": lambda host: [fine],
            "exits": lambda host: os._exit(7),
            "hangs": lambda host: time.sleep(600),
            "raises": lambda host: 1 / 0,
            "knows": lambda host: [Finding("knows", "ok", ", ".join(sorted(host.ended)))],
        },
    )
    began = time.monotonic()
    results = list(examine(Host()))
    assert time.monotonic() - began < 30
    assert [(f.name, f.state) for f in results] == [
        ("killed", "problem"),
        ("fine", "ok"),
        ("exits", "problem"),
        ("hangs", "problem"),
        ("raises", "warning"),
        ("knows", "ok"),
    ]
    assert (
        "SIGKILL: out of memory?" in results[0].found
        and "exit code 7" in results[2].found
        and "within 1 s" in results[3].found
    )
    assert "ZeroDivisionError" in results[4].found and "--debug" in results[4].mend
    assert results[5].found == "exits, hangs, killed"


def test_ctrl_c_ends_it_at_once_and_the_check_that_was_under_way_too(tmp_path):
    code = (
        "import os, signal, sys, time, inference; from nemotron_npu.doctor import run\n"
        "signal.signal(signal.SIGINT, signal.default_int_handler)\n"  # a shell's background ignores it
        "def slow(host): print(os.getpid(), file=open(sys.argv[1], 'w')); time.sleep(600)\n"
        "run.CHECKS = {'slow': slow}; sys.exit(inference.main(['--doctor']))"
    )
    command, told = [sys.executable, "-c", code, str(tmp_path / "pid")], tmp_path / "pid"
    process = subprocess.Popen(command, cwd=ROOT, stderr=subprocess.PIPE, text=True, start_new_session=True)
    while not (told.exists() and told.read_text().endswith("\n")):
        time.sleep(0.02)
    os.killpg(process.pid, signal.SIGINT)
    assert process.communicate(timeout=60)[1] == "inference.py: interrupted\n" and process.returncode == 130
    state = Path(f"/proc/{told.read_text().strip()}/stat")
    assert not state.exists() or state.read_text().split()[2] == "Z"


def test_what_needs_something_that_is_missing_is_one_line(monkeypatch):
    def needs(what):
        def check(host):
            raise NotChecked(what)

        return check

    checks = {"torch": lambda host: [], "a": needs("torch"), "b": needs("a"), "c": needs("soxr")}
    monkeypatch.setattr(run, "CHECKS", checks)
    results = [(finding.found, finding.mend) for finding in examine(Host())]
    assert results == [("a, b: needs torch", "see torch, above"), ("c: needs soxr", "source setup_env.sh")]


# ---------------------------------------------------------------- Python, packages, torch


def test_a_python_that_is_not_supported(monkeypatch):
    assert found("Python")[0].state == "ok"
    monkeypatch.setattr(host, "PYTHONS", ((3, 90), (3, 92)))
    assert found("Python")[0].state == "problem" and "setup_env.sh" in found("Python")[0].mend


@pytest.mark.parametrize(
    "requirement, engine, state",
    [
        ("jiwer>1000", "native", "warning"),
        ("jiwer>1000", "nemo", "problem"),
        ("no-such-package", "native", "warning"),
        ("no-such-package", "nemo", "problem"),
    ],
)
def test_packages_that_are_missing_or_out_of_bounds(monkeypatch, requirement, engine, state):
    assert states(found("packages")) == ["ok"]
    monkeypatch.setattr(host, "needed", lambda extra="": [Requirement(requirement)] if extra else [])
    (finding,) = found("packages", engine=engine)
    assert finding.state == state and Requirement(requirement).name in finding.found
    assert finding.mend == "source setup_env.sh"


@pytest.mark.parametrize("name", [r.name for r in host.needed() if r.name != "torch"])
def test_a_package_that_the_native_engine_needs_is_a_problem_on_any_engine(monkeypatch, name):
    here = host.installed
    monkeypatch.setattr(host, "installed", lambda package: None if package == name else here(package))
    monkeypatch.setattr(host, "fits", lambda requirement: requirement.name != name)
    assert [(f.state, f.found) for f in found("packages")] == [("problem", f"not installed: {name}")]


def test_a_torch_that_cannot_be_imported(package):
    folder = package("torch", "2.9.0+cpu", "raise ImportError('libtorch_cpu.so: cannot open shared object file')")
    result = run_process(
        INFERENCE, "--doctor", env={**os.environ, "PYTHONPATH": f"{folder}:{os.environ['PYTHONPATH']}"}
    )
    assert result.returncode == 2
    assert "2.9.0+cpu cannot be imported: libtorch_cpu.so" in result.stdout
    mend = "pip install --force-reinstall torch==2.9.0+cpu --index-url https://download.pytorch.org/whl/cpu"
    assert f"-> {mend}\n" in result.stdout
    assert "needs torch" in result.stdout.splitlines()[-3]


def test_a_torch_that_is_missing_or_was_not_tested(monkeypatch):
    assert states(found("torch")) == ["ok"]
    monkeypatch.setattr(host, "needed", lambda: [Requirement("torch<2")])
    assert states(found("torch")) == ["warning"]
    monkeypatch.setattr(host, "installed", lambda package: None)
    assert states(found("torch")) == ["problem"]


# ---------------------------------------------------------------- Ascend


def test_without_an_npu_nothing_of_ascends_is_missing_unless_it_is_asked_for():
    for name in ("torch_npu", "CANN", "driver", "NPUs"):
        assert states(found(name)) == states(found(name, device="cpu")) == ["ok"]
        assert "no NPU here" in found(name)[0].found
        (asked,) = found(name, device=NPU)
        assert asked.state == "problem" and asked.mend
    assert states(found("device")) == ["ok"]
    assert [(f.state, f.found) for f in found("device", device=NPU)] == [("not checked", "torch_npu")]


def test_on_an_ascend_host_what_is_missing_is_a_warning_unless_the_cpu_is_asked_for(smi_prints):
    smi_prints(A2)
    for name in ("torch_npu", "CANN"):
        assert states(found(name)) == ["warning"] and states(found(name, device=NPU)) == ["problem"]
        assert states(found(name, device="cpu")) == ["ok"]


def test_torch_npu_without_cann_says_which_library_and_where_cann_is(package, monkeypatch):
    monkeypatch.undo()
    release = torch.__version__.partition("+")[0]
    error = "libhccl.so: cannot open shared object file: No such file or directory"
    package("torch_npu", release, f"raise ImportError({error!r})")
    monkeypatch.setattr(ascend, "find_cann", lambda: None)
    for name in ("ASCEND_OPP_PATH", "ASCEND_TOOLKIT_HOME", "ASCEND_HOME_PATH"):
        monkeypatch.delenv(name, raising=False)
    (finding,) = found("torch_npu")
    assert finding.state == "warning" and "libhccl.so" in finding.found and "CPU only" in finding.found
    assert "hiascend.com/cann" in finding.mend and "pip uninstall torch-npu" in finding.mend
    (finding,) = found("torch_npu", device=NPU)
    assert finding.state == "problem" and "uninstall" not in finding.mend
    assert states(found("device")) == ["ok"]
    assert found("device", device=NPU)[0].found == "torch_npu"
    monkeypatch.setattr(ascend, "find_cann", lambda: "/usr/local/Ascend/cann/set_env.sh")
    assert found("torch_npu", device=NPU)[0].mend == "source /usr/local/Ascend/cann/set_env.sh"


def test_a_torch_npu_for_another_torch(package):
    package("torch_npu", "2.1.0.post12")
    (finding,) = found("torch_npu", device=NPU)
    release = torch.__version__.partition("+")[0]
    assert finding.state == "problem" and finding.mend == f"pip install 'torch-npu=={release}.*'"


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


def test_cann_that_was_not_loaded_in_this_shell(cann, monkeypatch):
    script = cann("8.5.1")
    (finding,) = found("CANN", device=NPU)
    assert finding.state == "problem" and finding.found.startswith("8.5.1, but its variables are not set")
    assert finding.mend == private(f"source {script}")
    monkeypatch.setenv("ASCEND_OPP_PATH", "x")
    assert [(f.state, f.found) for f in found("CANN", device=NPU)] == [("ok", "8.5.1, loaded")]


@pytest.mark.parametrize(
    "version, torch_npu, state",
    [("8.5.1", "2.9.0", "ok"), ("8.3.RC1", "2.9.0", "warning"), ("8.5.0", "2.10.0", "warning"), ("9.9", "2.99", "ok")],
)
def test_cann_that_torch_npu_was_not_made_for(cann, monkeypatch, package, version, torch_npu, state):
    cann(version)
    package("torch_npu", torch_npu)
    monkeypatch.setenv("ASCEND_OPP_PATH", "x")
    (finding,) = found("CANN", device=NPU)
    assert finding.state == state and version in finding.found
    assert ("made for" in finding.found) == (torch_npu != "2.99")


def test_driver_and_firmware_that_do_not_fit(tmp_path):
    ascend.DRIVER.parent.mkdir()
    ascend.DRIVER.write_text(DRIVER_INFO)
    ascend.FIRMWARE.write_text("Version=7.7.0.1.231\nfirmware_version=1.0\n")
    assert [(f.state, f.found) for f in found("driver", device=NPU)] == [("ok", "25.2.0, firmware 7.7.0.1.231")]
    ascend.FIRMWARE.write_text("Version=7.8.0.6.201\n")
    (finding,) = found("driver", device=NPU)
    assert finding.state == "problem" and "[7.0.0,7.7.99]" in finding.found and "reboot" in finding.mend
    assert states(found("driver")) == ["warning"]


def test_in_a_container_without_version_files_the_board_tells_them_and_its_serial_number_stays_there(smi_prints):
    smi_prints(A2)
    assert [(f.state, f.found) for f in found("driver", device=NPU)] == [("ok", "25.5.1, firmware 7.8.0.6.201")]
    smi_prints(A2, "nothing of the kind\n")
    assert states(found("driver", device=NPU)) == ["problem"]


def test_npus_are_named_with_their_health_and_the_least_free_memory(smi_prints, monkeypatch):
    smi_prints(A2)
    monkeypatch.setenv("ASCEND_RT_VISIBLE_DEVICES", "1,0")
    (finding,) = found("NPUs", device=NPU)
    assert finding.state == "ok"
    assert finding.found == "2 x 910B2, health OK, 5.2 of 64.0 GB free at least; ASCEND_RT_VISIBLE_DEVICES=1,0"
    smi_prints(P310)
    assert found("NPUs", device=NPU)[0].found.startswith("1 x 310P3, health OK, 19.2 of 21.0 GB free")


def test_a_chip_that_is_not_healthy_is_named(smi_prints):
    smi_prints(A3)
    fine, ill = found("NPUs", device=NPU)
    assert fine.found.startswith("1 x Ascend910, health OK, 60.7") and ill.state == "problem"
    assert ill.found == "card 0, chip 1: Ascend910, health Alarm" and "reset -i 0 -c 1" in ill.mend
    smi_prints(A3.replace("Alarm  ", "Warning"))
    assert states(found("NPUs", device=NPU)) == ["ok", "warning"]


@pytest.mark.parametrize(
    "script, words",
    [
        ("echo 'DrvMngGetConsoleLogLevel failed. (ret=4)'; echo 'dcmi module initialize failed. ret is -8005'; exit 1",
         "npu-smi info failed (1): dcmi module initialize failed. ret is -8005"),
        ("head -c 2000 /dev/urandom", "prints no NPU that could be read"),
        ("echo", "prints no NPU that could be read"),
        ("exit 9", "npu-smi info failed (9): it says nothing"),
        ("kill -SEGV $$", "npu-smi info failed (-11)"),
    ],
)  # fmt: skip
def test_an_npu_smi_that_fails_or_prints_rubbish(npu_smi, script, words):
    npu_smi(script)
    (finding,) = found("NPUs", device=NPU)
    assert finding.state == "problem" and words in finding.found and finding.mend
    assert states(found("NPUs")) == ["warning"] and states(found("driver", device=NPU)) == ["problem"]


def test_an_npu_smi_that_hangs_is_left_behind(npu_smi, monkeypatch):
    monkeypatch.setattr(ascend, "SMI_SECONDS", 0.3)
    npu_smi("sleep 600 & sleep 600")
    began = time.monotonic()
    host = Host(NPU)
    assert "does not answer within 0.3 s" in found("NPUs", host)[0].found
    assert states(found("driver", host)) == ["problem"] and time.monotonic() - began < 5


def test_an_npu_smi_that_cannot_be_run_and_one_that_is_not_on_the_path(npu_smi, tmp_path, monkeypatch):
    npu_smi("")
    (tmp_path / "bin" / "npu-smi").write_bytes(b"\x7fELF of another machine")
    assert "npu-smi cannot be run" in found("NPUs", device=NPU)[0].found
    monkeypatch.setattr(doctor_ascend, "TOOLS", (str(tmp_path / "bin"),))
    monkeypatch.setenv("PATH", "/usr/bin")
    assert found("NPUs", device=NPU)[0].mend == private(f"export PATH=$PATH:{tmp_path / 'bin'}")


def test_devices_that_this_user_may_not_open(smi_prints, monkeypatch):
    smi_prints(A2)
    ascend.DEVICES.mkdir(parents=True)
    (ascend.DEVICES / "davinci_manager").touch()
    may = os.access
    monkeypatch.setattr(os, "access", lambda path, mode: Path(path).name != "davinci_manager" and may(path, mode))
    first, second = found("NPUs", device=NPU)
    assert (first.state, second.state) == ("problem", "ok") and "usermod -aG HwHiAiUser" in first.mend


# ---------------------------------------------------------------- triton, NeMo, codecs


def test_the_state_of_each_triton_patch(tmp_path, monkeypatch, smi_prints):
    monkeypatch.setitem(sys.modules, "triton", None)  # a torch with CUDA brings one along
    assert "nothing to patch" in found("triton")[0].found
    monkeypatch.delitem(sys.modules, "triton")
    shutil.copytree(ROOT / "tests" / "data" / "triton" / "3.6.0", tmp_path / "triton-3.6.0")
    root = tmp_path / "triton-3.6.0"
    (root / "triton" / "__init__.py").touch()
    monkeypatch.syspath_prepend(str(root))
    (finding,) = found("triton")
    assert "patch 1 (backends) not applied, patch 2 (runtime) not applied" in finding.found
    assert finding.state == "ok", "without an NPU it is not needed"
    smi_prints(A2)
    assert found("triton")[0].state == "warning" and found("triton")[0].mend == "python patches/apply.py"
    assert run_process(ROOT / "patches" / "apply.py", "--root", root).returncode == 0
    (finding,) = found("triton")
    assert finding.state == "ok" and "patch 1 (backends) applied, patch 2 (runtime) applied" in finding.found
    (root / "triton" / "runtime" / "driver.py").write_text("something else")
    assert "patch 2 (runtime) fits no file of this version" in found("triton")[0].found


def test_nv_one_logger_real_mock_or_missing(monkeypatch):
    mock, elsewhere = ROOT / "nv_one_logger_mock" / "nv_one_logger", Path("/elsewhere/nv_one_logger")
    for place, state, words in [
        (mock, "ok", "the mock"),
        (elsewhere, "ok", "NVIDIA's own"),
        (None, "ok", "the mock"),  # the program finds it by itself
    ]:
        spec = place and SimpleNamespace(submodule_search_locations=[str(place)])
        monkeypatch.setattr(host.importlib.util, "find_spec", lambda name, spec=spec: spec)
        (finding,) = found("nv_one_logger")
        assert finding.state == state and words in finding.found


def test_nemo_is_only_needed_where_it_is_asked_for(monkeypatch):
    assert states(found("NeMo")) == ["ok"]
    monkeypatch.setattr(host, "fits", lambda requirement: False)
    assert "is what was tested" in found("NeMo")[0].found
    monkeypatch.setattr(host, "installed", lambda package: None)
    assert states(found("NeMo")) == ["ok"] and states(found("NeMo", engine="nemo")) == ["problem"]
    monkeypatch.setattr(host.importlib.util, "find_spec", lambda name: None)
    assert states(found("nv_one_logger")) == ["ok"]


def test_codecs_that_are_missing(monkeypatch, package):
    import soundfile

    assert "wav, flac, ogg, opus, mp3" in found("sound")[0].found
    monkeypatch.setattr(soundfile, "available_formats", lambda: {"WAV": "", "FLAC": "", "OGG": ""})
    (finding,) = found("sound")
    assert finding.state == "warning" and finding.found.endswith("but not mp3")
    package("soundfile", "0", "raise OSError('sndfile library not found')")
    (finding,) = found("sound")
    assert finding.state == "problem" and finding.mend == "pip install --force-reinstall --no-deps soundfile"
    monkeypatch.setitem(sys.modules, "soundfile", None)
    assert found("sound")[0].found == "soundfile"


# ---------------------------------------------------------------- room


def test_too_little_disk(monkeypatch):
    usage = SimpleNamespace(free=1 << 40)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage)
    assert states(found("disk")) == ["ok"]
    usage.free = 105 * 10**6  # more than a little, but NeMo unpacks the model
    assert states(found("disk")) == ["ok"]
    assert found("disk", engine="nemo")[0].state == "problem" and "TMPDIR" in found("disk", engine="nemo")[0].mend
    usage.free = 10**6
    assert states(found("disk")) == ["warning", "warning"]
    monkeypatch.setattr(os, "access", lambda path, mode: False)
    assert "not writable" in found("disk")[1].found
    monkeypatch.setattr(host.tempfile, "gettempdir", lambda: (_ for _ in ()).throw(FileNotFoundError()))
    assert "no folder for temporary files" in found("disk")[0].found


@pytest.fixture
def machine(tmp_path, monkeypatch):
    """A machine of 8 GB, 6 GB free, and control groups: ``machine({"memory.max": ..., ...}, "0::/")``."""
    (tmp_path / "proc" / "self").mkdir(parents=True)
    (tmp_path / "proc" / "meminfo").write_text("MemTotal: 8000000 kB\nMemFree: 1 kB\nMemAvailable: 6000000 kB\n")
    monkeypatch.setattr(resources, "PROC", tmp_path / "proc")
    monkeypatch.setattr(resources, "CGROUP", tmp_path / "cgroup")

    def make(files: dict, membership: str) -> None:
        (tmp_path / "proc" / "self" / "cgroup").write_text(membership)
        for name, text in files.items():
            path = tmp_path / "cgroup" / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text)

    return make


def test_free_memory_is_the_machines_or_what_a_container_leaves_of_it(machine):
    machine({}, "")
    assert resources.free_memory() == (6_144_000_000, 8_192_000_000, False)
    version_2 = {"memory.max": "max\n", "cpu.max": "max 100000\n", "pod/memory.max": "1000000000\n"}
    version_2 |= {"pod/memory.current": "700000000\n", "pod/memory.stat": "anon 5\ninactive_file 200000000\n"}
    machine({**version_2, "pod/cpu.max": "50000 100000\n"}, "0::/pod/one\n")
    assert resources.free_memory() == (500_000_000, 1_000_000_000, True) and resources.cores() == 0.5
    version_1 = {"memory/memory.limit_in_bytes": "2000000000\n", "memory/memory.usage_in_bytes": "1500000000\n"}
    version_1 |= {"memory/memory.stat": "total_inactive_file 0\n", "cpu/cpu.cfs_period_us": "100000\n"}
    machine({**version_1, "cpu/cpu.cfs_quota_us": "25000\n"}, "9:memory:/docker/x\n3:cpuacct,cpu:/docker/x\n")
    assert resources.free_memory() == (500_000_000, 2_000_000_000, True) and resources.cores() == 0.25


@pytest.mark.parametrize(
    "memory, state, mend",
    [
        ((9e9, 9e9, False), "ok", ""),
        ((1e8, 9e9, False), "warning", "ps aux"),
        ((1e8, 1e8, False), "problem", "--dtype int8"),
        ((1e8, 1e8, True), "problem", "docker run --memory"),
    ],
)
def test_too_little_memory_for_the_model(monkeypatch, memory, state, mend):
    monkeypatch.setattr(model, "free_memory", lambda: memory)
    (finding,) = found("memory")
    assert finding.state == state and mend in finding.mend
    assert ("container" in finding.found) == memory[2]


# ---------------------------------------------------------------- the model


@pytest.fixture(scope="module")
def demo():
    """A host on the CPU whose demo model is loaded."""
    host = Host("cpu", demo=DEMO, clip=CLIP)
    assert states(found("engine", host)) == ["ok"]
    return host


def test_the_checkpoint_is_told_by_its_file_name_class_chunks_and_hash(demo):
    kind, digest = found("checkpoint", demo)
    assert kind.found == "demo.nemo: EncDecRNNTBPEModel, chunks of 80, 160, 560, 1120 ms, 8,980,480 bytes"
    assert digest.found.startswith("SHA-256 d2abe98e7b97")
    assert found("engine", demo)[0].found == "2,144,405 parameters, saved in float32: the native engine runs it"


@pytest.mark.parametrize(
    "name, words",
    [
        ("missing/none.nemo", "none.nemo: no such file"),
        ("folder", "folder: "),
        ("text/bad.nemo", "bad.nemo: "),
        ("acme/voice", "voice.nemo was not downloaded"),
    ],
)
def test_a_checkpoint_that_cannot_be_used(tmp_path, monkeypatch, name, words):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "folder").mkdir()
    (tmp_path / "text").mkdir()
    (tmp_path / "text" / "bad.nemo").write_text("no archive")
    host = Host("cpu", name, demo=DEMO)
    (finding,) = found("checkpoint", host)
    assert finding.state == "problem" and finding.found.startswith(words) and finding.mend
    for check_ in ("memory", "engine", "forward pass"):
        assert [(f.state, f.found) for f in found(check_, host)] == [("not checked", "checkpoint")]


def test_weights_that_are_broken_and_a_kind_that_only_nemo_knows(tmp_path, monkeypatch):
    (tmp_path / "cut.nemo").write_bytes(DEMO.read_bytes()[:4_000_000])
    (finding,) = found("engine", model_path=str(tmp_path / "cut.nemo"))
    assert finding.state == "problem" and finding.found.startswith("cut.nemo: ")
    assert found("forward pass", model_path=str(tmp_path / "cut.nemo"))[0].found == "engine"
    monkeypatch.setattr(Recognizer, "__init__", lambda *_: (_ for _ in ()).throw(Unsupported("spliced frames")))
    (finding,) = found("engine")
    assert finding.state == "warning" and "spliced frames: runs on NeMo" in finding.found


@pytest.mark.skipif(torch.cuda.is_available(), reason="this host has a GPU")
def test_a_gpu_that_is_not_there():
    (finding,) = found("device", device="cuda:0")
    assert finding.state == "problem" and finding.mend.startswith(("pip install", "nvidia-smi"))
    assert found("arithmetic", device="cuda:0")[0].found == "device"


def test_a_cpu_that_computes_something_else_is_found_out(demo, monkeypatch):
    assert states(found("arithmetic", demo)) == states(found("forward pass", demo)) == ["ok"]
    finish = Stream.finish
    monkeypatch.setattr(Stream, "finish", lambda self: SimpleNamespace(tokens=finish(self).tokens[1:]))
    (finding,) = found("forward pass", demo)
    assert finding.state == "problem" and "as a live stream others" in finding.found
    assert "--precision_compare" in finding.mend
    monkeypatch.setattr(model, "DEMO_WORDS", "other words")
    assert "where 'other words' was said" in found("forward pass", demo)[0].found


# ---------------------------------------------------------------- privacy


def test_paths_are_shown_from_home_on_or_by_their_last_part(monkeypatch):
    monkeypatch.setenv("HOME", "/home/marlowe")
    for text, shown in [
        ("/home/marlowe/Ascend/set_env.sh", "~/Ascend/set_env.sh"),
        ("/home/marlowe2/x.so: no", ".../x.so: no"),
        ("cannot open '/data/my own/lib x.so'", "cannot open '.../lib x.so'"),
        ("in /srv/acme/venv/lib/libc.so.6, line 3", "in .../libc.so.6, line 3"),
        ("source /usr/local/Ascend/cann/set_env.sh", "source /usr/local/Ascend/cann/set_env.sh"),
        ("https://www.hiascend.com/cann/download", "https://www.hiascend.com/cann/download"),
        ("a\x1b[31mb\0c", "a [31mb c"),
    ]:
        assert private(text) == shown


def test_names_and_addresses_in_the_errors_of_others_are_left_out(monkeypatch):
    monkeypatch.setenv("USER", "marlowe")
    monkeypatch.setattr(platform, "node", lambda: "node-17.acme")
    text = "marlowe@node-17.acme (10.0.3.17): torch 2.13.0, firmware 7.8.0.6.201, libc 2.36"
    assert anonymous(text) == "...@... (...): torch 2.13.0, firmware 7.8.0.6.201, libc 2.36"
