"""Read the state of an Ascend host from version files and ``npu-smi``: CANN, driver, firmware and NPUs.

Standard library only: setup_env.sh runs this before anything is installed.
"""

from __future__ import annotations

import os
import platform
import re
import select
import shutil
import signal
import subprocess
import time
from contextlib import suppress
from dataclasses import dataclass
from glob import escape, glob
from pathlib import Path

DRIVER = Path("/usr/local/Ascend/driver/version.info")
FIRMWARE = Path("/usr/local/Ascend/firmware/version.info")
DEVICES = Path("/dev")  # davinci0, davinci1 ... and davinci_manager
SMI_SECONDS = 10
MAX_OUTPUT = 1 << 20  # bytes of npu-smi

CANN_OF = {
    **dict.fromkeys(("2.9.0", "2.10.0rc1", "2.10.0rc2", "2.11.0rc1", "2.12.0rc1"), "8.5"),
    **dict.fromkeys(("2.9.0.post2", "2.9.0.post4", "2.9.1", "2.10.0", "2.10.0.post2"), "9.0"),
    **dict.fromkeys(("2.9.0.post6", "2.9.0.post8", "2.10.0.post4", "2.10.0.post6"), "9.1"),
    **dict.fromkeys(("2.11.0", "2.11.0.post2", "2.12.0", "2.12.0.post2", "2.13.0rc1"), "9.1"),
    **dict.fromkeys(("2.9.0.post9", "2.10.0.post7", "2.11.0.post3", "2.12.0.post3", "2.13.0", "2.14.0"), "9.2"),
}
"""torch_npu -> the CANN release that it is made for, without the patch number: all releases on PyPI from 2.9.0 on.

Source: COMPATIBILITY.md, README.md and the release notes of TorchNPU 26.2.0 in gitcode.com/Ascend/pytorch.  These do
not list 2.9.0.post4, 2.9.1, 2.10.0rc1, 2.10.0.post2 and 2.13.0rc1: theirs is the CANN of the time when they came out,
which others have used them with.  The reference guide ran 2.9.0 on CANN 8.5.1.
"""


def field(path: Path, name: str) -> str | None:
    """Return the value of ``name=value`` in one of Ascend's version files."""
    try:
        text = path.read_text(errors="replace")
    except OSError:
        return None
    match = re.search(rf"^{name}\s*=\s*(\S+)", text, re.MULTILINE | re.IGNORECASE)
    return match[1] if match else None


def find_cann() -> str | None:
    """Return the path of CANN's set_env.sh: below the folders in the environment, or in the installer's defaults."""
    roots = [os.environ.get("ASCEND_TOOLKIT_HOME"), os.environ.get("ASCEND_HOME_PATH"), "/usr/local/Ascend", "~/Ascend"]
    patterns = ("set_env.sh", "ascend-toolkit/set_env.sh", "cann*/set_env.sh", "../../ascend-toolkit/set_env.sh")
    for root in filter(None, roots):
        folder = escape(os.path.expanduser(root))
        for pattern in patterns:
            found = sorted(glob(os.path.join(folder, pattern)))
            if found:
                return found[0]
    return None


def cann_is_loaded() -> bool:
    """Return whether set_env.sh was sourced in the shell that started this process."""
    return bool(os.environ.get("ASCEND_OPP_PATH"))


def cann_version(script: str | None = None) -> str | None:
    """Return the version of the CANN that is loaded, else of the one whose set_env.sh is ``script``."""
    homes = [os.environ.get("ASCEND_TOOLKIT_HOME"), os.environ.get("ASCEND_HOME_PATH")]
    if script:
        homes += [os.path.dirname(script), os.path.join(os.path.dirname(script), "latest")]
    for home in filter(None, homes):
        if found := field(Path(home) / f"{platform.machine()}-linux" / "ascend_toolkit_install.info", "version"):
            return found
    return None


def driver_version() -> str | None:
    """Return the version of the NPU driver."""
    return field(DRIVER, "package_version") or field(DRIVER, "version")


def firmware_fits(firmware: str) -> bool | None:
    """Return whether the driver lists this firmware as compatible; None if it lists nothing.

    The driver's version file has a line like ``compatible_version_fw=[7.0.0,7.7.99]``.
    """
    ranges = re.findall(r"\[([\d.]+),([\d.]+)\]", field(DRIVER, "compatible_version_fw") or "")
    number = _numbers(firmware)
    if not ranges or not number:
        return None
    return any(_numbers(low) <= number <= _numbers(high) for low, high in ranges)


def _numbers(version: str) -> list[int]:
    return [int(part) for part in re.findall(r"\d+", version)[:3]]


def is_here() -> bool:
    """Return whether this host has an NPU, or had one: a driver, a device or its tool."""
    return bool(shutil.which("npu-smi") or DRIVER.exists() or any(DEVICES.glob("davinci[0-9]*")))


class SmiError(Exception):
    """npu-smi cannot be run, hangs or fails; the message is one line."""


def npu_smi(*args: str) -> str:
    """Run ``npu-smi ARGS`` and return its output; abandon it after ``SMI_SECONDS``: it hangs on a dead card."""
    try:
        process = subprocess.Popen(
            ["npu-smi", *args],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    except OSError as error:
        raise SmiError(f"npu-smi: cannot be run: {error.strerror}") from error
    command = " ".join(["npu-smi", *args])
    try:
        output = _read_output(process)
    except (subprocess.TimeoutExpired, ValueError) as error:
        with suppress(OSError):
            os.killpg(process.pid, signal.SIGKILL)  # without waiting: a driver call that hangs cannot be killed
        problem = f"no answer within {SMI_SECONDS} s"
        if isinstance(error, ValueError):
            problem = f"{error}"
        raise SmiError(f"{command}: {problem}") from None
    if process.returncode:
        lines = [line.strip() for line in output.splitlines() if line.strip()] or ["no output"]
        raise SmiError(f"{command}: failed with exit code {process.returncode}: {lines[-1]}")
    return output


def _read_output(process: subprocess.Popen[bytes]) -> str:
    """Return what npu-smi prints until it ends.

    Raises TimeoutExpired after SMI_SECONDS, ValueError for more than MAX_OUTPUT bytes.
    """
    assert process.stdout is not None  # Popen was asked for a pipe
    end = time.monotonic() + SMI_SECONDS
    output = b""
    with process.stdout as pipe:
        while select.select([pipe], [], [], max(0.0, end - time.monotonic()))[0]:
            block = os.read(pipe.fileno(), 1 << 16)
            output += block
            if len(output) > MAX_OUTPUT:
                raise ValueError(f"prints more than {MAX_OUTPUT:,} bytes")
            if not block:
                break
    process.wait(max(0.0, end - time.monotonic()))
    return output.decode(errors="replace")


@dataclass(frozen=True)
class Npu:
    """A chip as ``npu-smi info`` lists it."""

    card: int
    chip: int
    name: str
    health: str
    """OK, Warning, Alarm, Critical, UNKNOWN."""
    used: int | None
    """MB in use of its memory (HBM, or DDR on chips without HBM), by all programs."""
    total: int | None
    """MB of its memory."""


def npus(table: str) -> list[Npu]:
    """Parse the table that ``npu-smi info`` prints, two rows for each chip; unknown rows are skipped.

    ::

        | 0     910B2               | OK            | 94.2        49                0    / 0             |
        | 0                         | 0000:C1:00.0  | 0           0    / 0          3418 / 65536         |
    """
    chips = []
    rows = iter(table.splitlines())
    for row in rows:
        first = re.match(r"\|\s*(\d+)\s*\|?\s+(\S+)\s*\|\s*([A-Za-z]+)\s*\|", row)
        if first:
            chips.append(_chip(first, next(rows, "")))
    return chips


def _chip(first: re.Match[str], second: str) -> Npu:
    """Combine the two rows of one chip; the last ``used / total`` with a total is its memory."""
    card, name, health = first.groups()
    index = re.match(r"\|\s*(\d+)", second)
    used, total = None, None
    for pair in re.findall(r"(\d+)\s*/\s*(\d+)", second):
        if int(pair[1]):
            used, total = map(int, pair)
    return Npu(int(card), int(index[1]) if index else 0, name, health, used, total)
