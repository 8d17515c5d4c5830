"""Checks of ``--doctor`` on an Ascend host: torch_npu, CANN, driver, firmware, NPUs."""

from __future__ import annotations

import os
import re
import shutil
import sys
from contextlib import suppress

from ..host import ascend
from ..host.packages import install_command, installed
from .finding import OK, PROBLEM, SETUP, WARNING, Context, Finding, error_text, try_import

CANN_DOWNLOAD = "https://www.hiascend.com/cann/download"
DRIVER_DOWNLOAD = "https://www.hiascend.com/hardware/firmware-drivers"
GET_DRIVER = f"{DRIVER_DOWNLOAD} has it"
PINNED_TORCH_NPU = "2.9.0"  # requirements-npu.txt installs it
TOOL_FOLDERS = "/usr/local/sbin:/usr/local/bin:/usr/local/Ascend/driver/tools"  # of npu-smi
CONTAINER = """\
docker run --device /dev/davinci0 --device /dev/davinci_manager --device /dev/hisi_hdc \\
  --device /dev/devmm_svm -v /usr/local/Ascend/driver:/usr/local/Ascend/driver ..."""


def torch_npu(context: Context) -> list[Finding]:
    """Check that torch_npu is made for this torch and can load CANN."""
    version = installed("torch-npu") or getattr(sys.modules.get("torch_npu"), "__version__", None)
    if not version:
        return [context.without_npu_part("not installed", install_command("npu"))]
    state = PROBLEM if context.asks_npu else WARNING
    release = sys.modules["torch"].__version__.partition("+")[0]
    if not version.startswith(release):
        return [Finding(state, f"{version} is not for torch {release}", f"pip install 'torch-npu=={release}.*'")]
    module = try_import("torch_npu")
    if not isinstance(module, Exception):
        if os.environ.get("TASK_QUEUE_ENABLE") == "2":
            return [Finding(OK, f"{version}, for torch {release}; TASK_QUEUE_ENABLE=2 excludes --graph on")]
        advice = "export TASK_QUEUE_ENABLE=2   (launches faster; not with --graph on)"
        return [Finding(OK, f"{version}, for torch {release}", advice)]
    found = f"{version} cannot load CANN ({error_text(module)})"
    script = ascend.find_cann()
    fix = f"source {script}" if script else _download_cann(version)
    if not context.asks_npu:
        found += ": CPU only"
        if not ascend.is_here():
            fix += "\npip uninstall torch-npu   (if this machine has no NPU)"
    return [Finding(state, found, fix)]


def cann(context: Context) -> list[Finding]:
    """Check that CANN is loaded, and that it is the version that torch_npu is made for."""
    script = ascend.find_cann()
    version = ascend.cann_version(script)
    torch_npu = installed("torch-npu")
    made_for = ascend.CANN_OF.get(torch_npu or "", "")
    if ascend.cann_is_loaded():
        found = f"{version or 'of unknown version'}, loaded"
        if not version or version.startswith(made_for):
            return [Finding(OK, found)]
        found += f"; torch_npu {torch_npu} is made for CANN {made_for}"
        return [Finding(WARNING, found, f"{CANN_DOWNLOAD} has CANN {made_for}")]
    if not script:
        return [context.without_npu_part("not found", _download_cann(torch_npu))]
    found = f"{version or 'found'}, but its variables are not set in this shell"
    return [context.without_npu_part(found, f"source {script}")]


def _download_cann(torch_npu: str | None) -> str:
    version = ascend.CANN_OF.get(torch_npu or PINNED_TORCH_NPU)
    name = f"CANN {version}" if version else "CANN"
    return f"{CANN_DOWNLOAD} has {name}; then: {SETUP}"


def driver(context: Context) -> list[Finding]:
    """Check that a driver is installed and works with the firmware."""
    version = ascend.driver_version()
    firmware = ascend.field(ascend.FIRMWARE, "version")
    if not (version and firmware):  # a container seldom has the version files
        board = {}
        with suppress(ascend.SmiError, IndexError):  # IndexError: it lists no NPU
            first = ascend.npus(ascend.npu_smi("info"))[0]
            lines = ascend.npu_smi("info", "-t", "board", "-i", str(first.card))
            board = dict(re.findall(r"^\s*(.+?)\s*:\s*(.*)", lines, re.MULTILINE))
        version = version or board.get("Software Version")
        firmware = firmware or board.get("Firmware Version")
    if not version:
        return [context.without_npu_part("not installed", GET_DRIVER)]
    if not firmware:
        return [Finding(OK, f"{version}, firmware unknown")]
    if ascend.firmware_fits(firmware) is not False:  # None: the driver names none
        return [Finding(OK, f"{version}, firmware {firmware}")]
    allowed = ascend.field(ascend.DRIVER, "compatible_version_fw")
    found = f"driver {version} does not work with firmware {firmware}, but with {allowed}"
    return [context.without_npu_part(found, f"{DRIVER_DOWNLOAD} has both; then: sudo reboot")]


def npus(context: Context) -> list[Finding]:
    """Check that this user can use the NPUs, and report their names, health and free memory."""
    if not shutil.which("npu-smi"):
        tool = shutil.which("npu-smi", path=TOOL_FOLDERS)
        fix = f"export PATH=$PATH:{os.path.dirname(tool)}" if tool else GET_DRIVER
        return [context.without_npu_part("npu-smi is not on PATH", fix)]
    findings = []
    manager = ascend.DEVICES / "davinci_manager"
    if manager.exists() and not os.access(manager, os.R_OK | os.W_OK):
        fix = "sudo usermod -aG HwHiAiUser $USER   (then log in again)"
        findings.append(context.without_npu_part("this user may not open the NPUs' devices", fix))
    try:
        chips = ascend.npus(ascend.npu_smi("info"))
    except ascend.SmiError as error:
        fix = "sudo reboot   (after an update of the driver, or if a card hangs)" if manager.exists() else CONTAINER
        return [*findings, context.without_npu_part(error_text(error), fix)]
    if not chips:
        findings.append(context.without_npu_part("npu-smi info lists no NPU in a known format", "npu-smi info"))
    healthy: dict[str, list[ascend.Npu]] = {}
    for chip in chips:
        if chip.health == "OK":
            healthy.setdefault(chip.name, []).append(chip)
    findings += [_healthy(alike) for alike in healthy.values()]
    return findings + [_unhealthy(context, chip) for chip in chips if chip.health != "OK"]


def _healthy(chips: list[ascend.Npu]) -> Finding:
    """Report chips of one name, with the free memory of the fullest."""
    found = f"{len(chips)} x {chips[0].name}, health OK"
    if sizes := [(chip.total - (chip.used or 0), chip.total) for chip in chips if chip.total]:
        free, total = min(sizes)
        found += f", {free / 1024:.1f} of {total / 1024:.1f} GB free"
        if len(chips) > 1:
            found += " at least"
    visible = os.environ.get("ASCEND_RT_VISIBLE_DEVICES", "")
    if visible.replace(",", "").isdigit():
        found += f"; ASCEND_RT_VISIBLE_DEVICES={visible}"
    return Finding(OK, found)


def _unhealthy(context: Context, chip: ascend.Npu) -> Finding:
    found = f"card {chip.card}, chip {chip.chip}: {chip.name}, health {chip.health}"
    show = f"npu-smi info -t health -i {chip.card} -c {chip.chip}   (shows the reason)"
    reset = f"sudo npu-smi set -t reset -i {chip.card} -c {chip.chip}   (stops what runs there)"
    if chip.health == "Warning":
        return Finding(WARNING, found, show)
    return context.without_npu_part(found, f"{show}\n{reset}")
