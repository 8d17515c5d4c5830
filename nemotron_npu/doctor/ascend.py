"""What ``--doctor`` asks an Ascend host: driver, firmware, NPUs, CANN, torch_npu."""

from __future__ import annotations

import os
import shutil
import sys
from contextlib import suppress

from ..host import ascend
from ..host.packages import install_command, installed
from .host import OK, PROBLEM, SETUP, WARNING, Finding, Host, of_npu, said

CANN_DOWNLOAD = "https://www.hiascend.com/cann/download"
DRIVER_DOWNLOAD = "https://www.hiascend.com/hardware/firmware-drivers"
TOOLS = ("/usr/local/sbin", "/usr/local/bin", "/usr/local/Ascend/driver/tools")  # where npu-smi is
CONTAINER = """\
docker run --device /dev/davinci0 --device /dev/davinci_manager --device /dev/hisi_hdc \\
  --device /dev/devmm_svm -v /usr/local/Ascend/driver:/usr/local/Ascend/driver ..."""


def driver(host: Host):
    version, firmware = ascend.driver_version(), ascend.field(ascend.FIRMWARE, "version")
    board = {}
    if not (version and firmware) and isinstance(host.smi, list) and host.smi:  # a container seldom has the files
        with suppress(ascend.SmiError):
            lines = ascend.npu_smi("info", "-t", "board", "-i", str(host.smi[0].card)).splitlines()
            board = {name.strip(): value.strip() for name, _, value in (line.partition(":") for line in lines)}
    version = version or board.get("Software Version")
    firmware = firmware or board.get("Firmware Version")
    if not version:
        found = "no driver is installed" if host.npu_state != OK else f"none: {host.no_npu}"
        yield of_npu(host, "driver", found, f"{DRIVER_DOWNLOAD} has it")
    elif firmware and ascend.firmware_fits(firmware) is False:
        allowed = ascend.field(ascend.DRIVER, "compatible_version_fw")
        found = f"driver {version} does not work with firmware {firmware}, but with {allowed}"
        yield of_npu(host, "driver", found, f"{DRIVER_DOWNLOAD} has both; then: sudo reboot")
    else:
        yield Finding("driver", OK, f"{version}, firmware {firmware or 'unknown'}")


def npus(host: Host):
    if not shutil.which("npu-smi"):
        found = "npu-smi is not on PATH" if host.npu_state != OK else f"no npu-smi: {host.no_npu}"
        place = next((place for place in TOOLS if os.access(f"{place}/npu-smi", os.X_OK)), None)
        yield of_npu(host, "NPUs", found, f"export PATH=$PATH:{place}" if place else f"{DRIVER_DOWNLOAD} has it")
        return
    manager = ascend.DEVICES / "davinci_manager"
    if manager.exists() and not os.access(manager, os.R_OK | os.W_OK):
        mend = "sudo usermod -aG HwHiAiUser $USER   (then log in again)"
        yield of_npu(host, "NPUs", "this user may not open the NPUs' devices", mend)
    chips = host.smi
    if isinstance(chips, ascend.SmiError):
        mend = "sudo reboot   (after an update of the driver, or if a card hangs)" if manager.exists() else CONTAINER
        yield of_npu(host, "NPUs", said(chips), mend)
        return
    if not chips:
        yield of_npu(host, "NPUs", "npu-smi info prints no NPU that could be read here", "npu-smi info")
    for name in dict.fromkeys(chip.name for chip in chips if chip.health == "OK"):
        same = [chip for chip in chips if (chip.name, chip.health) == (name, "OK")]
        least = min((c for c in same if c.total), key=lambda c: c.total - c.used, default=None)
        memory = f", {(least.total - least.used) / 1024:.1f} of {least.total / 1024:.1f} GB free" if least else ""
        each = " at least" if len(same) > 1 and least else ""
        yield Finding("NPUs", OK, f"{len(same)} x {name}, health OK{memory}{each}{_visible()}")
    for chip in chips:
        if chip.health != "OK":
            state = WARNING if chip.health == "Warning" else host.npu_state
            found = f"card {chip.card}, chip {chip.chip}: {chip.name}, health {chip.health}"
            mend = f"npu-smi info -t health -i {chip.card} -c {chip.chip}   (says why)"
            if chip.health != "Warning":
                mend += f"\nsudo npu-smi set -t reset -i {chip.card} -c {chip.chip}   (stops what runs there)"
            yield Finding("NPUs", state, found, mend if state != OK else "")


def _visible() -> str:
    visible = os.environ.get("ASCEND_RT_VISIBLE_DEVICES")
    return f"; ASCEND_RT_VISIBLE_DEVICES={visible}" if visible and visible.replace(",", "").isdigit() else ""


def cann(host: Host):
    script, loaded = ascend.find_cann(), ascend.cann_is_loaded()
    version, torch_npu = ascend.cann_version(script), installed("torch-npu")
    made_for = ascend.CANN_OF.get(torch_npu)
    if not script and not loaded:
        found = "CANN was not found" if host.npu_state != OK else f"none: {host.no_npu}"
        yield of_npu(host, "CANN", found, _cann_download(torch_npu))
    elif not loaded:
        found = f"{version or 'found'}, but its variables are not set in this shell"
        yield of_npu(host, "CANN", found, f"source {script}")
    elif version and made_for and not version.startswith(made_for):
        found = f"{version}: torch_npu {torch_npu} is made for CANN {made_for}"
        yield Finding("CANN", WARNING, found, f"{CANN_DOWNLOAD} has CANN {made_for}")
    else:
        known = f", which torch_npu {torch_npu} is made for" if version and made_for else ""
        yield Finding("CANN", OK, f"{version or 'of unknown version'}, loaded{known}")


def _cann_download(torch_npu: str | None) -> str:
    version = ascend.CANN_OF.get(torch_npu or "2.9.0")  # what requirements-npu.txt installs
    return f"{CANN_DOWNLOAD} has CANN{f' {version}' if version else ''}; then: {SETUP}"


def torch_npu(host: Host):
    version = installed("torch-npu") or getattr(sys.modules.get("torch_npu"), "__version__", None)
    if not version:
        found = "not installed" if host.npu_state != OK else f"not installed: {host.no_npu}"
        yield of_npu(host, "torch_npu", found, install_command("npu"))
        return
    release = ".".join(host.torch.__version__.partition("+")[0].split(".")[:3])
    if version.split("+")[0].split(".")[:3] != release.split("."):
        state = PROBLEM if host.asks_npu else WARNING
        mend = f"pip install 'torch-npu=={release}.*'"
        yield Finding("torch_npu", state, f"{version} is not for torch {release}", mend)
        return
    if error := host.torch_npu_error:
        state = PROBLEM if host.asks_npu else WARNING
        found = f"{version} cannot load CANN ({said(error)}){'' if host.asks_npu else ': CPU only'}"
        script = ascend.find_cann()
        mend = f"source {script}" if script else _cann_download(version)
        mend += "" if host.asks_npu or host.has_npu else "\npip uninstall torch-npu   (if this machine has no NPU)"
        yield Finding("torch_npu", state, found, mend)
        return
    yield Finding("torch_npu", OK, f"{version}, for torch {release}")
