"""What an Ascend host tells about itself: CANN, driver, firmware and NPUs, from version files and ``npu-smi``.

Standard library only: setup_env.sh runs this before anything is installed.
"""

from __future__ import annotations

import os
import platform
import re
import shutil
import signal
import subprocess
from contextlib import suppress
from dataclasses import dataclass
from glob import escape, glob
from pathlib import Path

DRIVER = Path("/usr/local/Ascend/driver/version.info")
FIRMWARE = Path("/usr/local/Ascend/firmware/version.info")
DEVICES = Path("/dev")  # davinci0, davinci1 ... and davinci_manager
SMI_SECONDS = 10

# torch_npu -> the CANN that it was made for (gitcode.com/Ascend/pytorch, COMPATIBILITY.md and README.md), without its
# patch release: the write-up ran 2.9.0 on CANN 8.5.1.
CANN_OF = {
    **dict.fromkeys(("2.9.0", "2.10.0rc2", "2.11.0rc1", "2.12.0rc1"), "8.5"),
    **dict.fromkeys(("2.9.0.post2", "2.10.0"), "9.0"),
    **dict.fromkeys(("2.9.0.post6", "2.9.0.post8", "2.10.0.post4", "2.10.0.post6"), "9.1"),
    **dict.fromkeys(("2.11.0", "2.11.0.post2", "2.12.0", "2.12.0.post2"), "9.1"),
}


def field(path: Path, name: str) -> str | None:
    """The value of ``name=value`` in one of Ascend's version files."""
    with suppress(OSError):
        match = re.search(rf"^{name}\s*=\s*(\S+)", path.read_text(errors="replace"), re.MULTILINE | re.IGNORECASE)
        return match and match[1]
    return None


def find_cann() -> str | None:
    """CANN's set_env.sh, where Huawei's installer or the environment says that it is."""
    roots = [os.environ.get("ASCEND_TOOLKIT_HOME"), os.environ.get("ASCEND_HOME_PATH"), "/usr/local/Ascend", "~/Ascend"]
    places = ("set_env.sh", "ascend-toolkit/set_env.sh", "cann*/set_env.sh", "../../ascend-toolkit/set_env.sh")
    for root in filter(None, roots):
        for place in places:
            if found := sorted(glob(os.path.join(escape(os.path.expanduser(root)), place))):
                return found[0]
    return None


def cann_is_loaded() -> bool:
    """Whether set_env.sh was sourced in the shell that started this."""
    return bool(os.environ.get("ASCEND_OPP_PATH"))


def cann_version(script: str | None = None) -> str | None:
    """Of the CANN that is loaded, else of the one whose set_env.sh is ``script``."""
    homes = [os.environ.get("ASCEND_TOOLKIT_HOME"), os.environ.get("ASCEND_HOME_PATH")]
    if script:
        homes += [os.path.dirname(script), os.path.join(os.path.dirname(script), "latest")]
    for home in filter(None, homes):
        if found := field(Path(home) / f"{platform.machine()}-linux" / "ascend_toolkit_install.info", "version"):
            return found
    return None


def driver_version() -> str | None:
    return field(DRIVER, "package_version") or field(DRIVER, "version")


def firmware_fits(firmware: str) -> bool | None:
    """Whether the driver says that it works with this firmware (``compatible_version_fw=[7.0.0,7.7.99]``), or None."""
    ranges = re.findall(r"\[([\d.]+),([\d.]+)\]", field(DRIVER, "compatible_version_fw") or "")
    wanted = _numbers(firmware)
    return any(_numbers(low) <= wanted <= _numbers(high) for low, high in ranges) if ranges and wanted else None


def _numbers(version: str) -> list[int]:
    return [int(part) for part in re.findall(r"\d+", version)[:3]]


def is_here() -> bool:
    """Whether this host has, or once had, an NPU: a driver, a device or its tool."""
    return bool(shutil.which("npu-smi") or DRIVER.exists() or any(DEVICES.glob("davinci[0-9]*")))


class SmiError(Exception):
    """npu-smi cannot be run, does not end or fails; the message is one line."""


def npu_smi(*args: str) -> str:
    """What ``npu-smi ARGS`` prints.  One that hangs, as on a dead card, is left behind after ``SMI_SECONDS``."""
    try:
        process = subprocess.Popen(
            ["npu-smi", *args],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
            start_new_session=True,
        )
    except OSError as error:
        raise SmiError(f"npu-smi cannot be run: {error.strerror}") from error
    try:
        output, _ = process.communicate(timeout=SMI_SECONDS)
    except subprocess.TimeoutExpired:
        with suppress(OSError):
            os.killpg(process.pid, signal.SIGKILL)  # not waited for: what waits for a driver may not be killed
        raise SmiError(f"npu-smi {' '.join(args)} does not answer within {SMI_SECONDS} s") from None
    if process.returncode:
        lines = [line.strip() for line in output.splitlines() if line.strip()] or ["no output"]
        raise SmiError(f"npu-smi {' '.join(args)} failed ({process.returncode}): {lines[-1]}")
    return output


@dataclass(frozen=True)
class Npu:
    """A chip as ``npu-smi info`` has it."""

    card: int
    chip: int
    name: str
    health: str
    """OK, Warning, Alarm, Critical, UNKNOWN."""
    used: int | None
    """MB of its memory (HBM, or DDR where it has none), also those of other programs."""
    total: int | None


def npus(table: str) -> list[Npu]:
    """The chips in the table that ``npu-smi info`` prints, two rows each; what cannot be read is left out.

    ::

        | 0     910B2               | OK            | 94.2        49                0    / 0             |
        | 0                         | 0000:C1:00.0  | 0           0    / 0          3418 / 65536         |
    """
    found, rows = [], iter(table.splitlines())
    for row in rows:
        match = re.match(r"\|\s*(\d+)\s*\|?\s+(\S+)\s*\|\s*([A-Za-z]+)\s*\|", row)
        if not match:
            continue
        row = next(rows, "")
        chip = re.match(r"\|\s*(\d+)", row)
        memory = [(int(used), int(total)) for used, total in re.findall(r"(\d+)\s*/\s*(\d+)", row)]
        used, total = next((pair for pair in reversed(memory) if pair[1]), (None, None))
        found.append(Npu(int(match[1]), int(chip[1]) if chip else 0, match[2], match[3], used, total))
    return found
