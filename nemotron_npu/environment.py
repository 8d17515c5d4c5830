"""What a figure was measured with: versions, hardware, checkpoint and command, for reports."""

from __future__ import annotations

import hashlib
import os
import platform
import re
import sys
from contextlib import suppress
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

PACKAGES = {"torch": "torch", "nemo": "nemo-toolkit", "numpy": "numpy", "soxr": "soxr"}
DRIVER = Path("/usr/local/Ascend/driver/version.info")


def environment(checkpoint: Path) -> dict:
    """Versions (None where something is not there), processor, the checkpoint's SHA-256 and the command."""
    found = {"python": platform.python_version(), "platform": platform.platform(), "processor": _processor()}
    for name, package in PACKAGES.items():
        try:
            found[name] = version(package)
        except PackageNotFoundError:
            found[name] = None
    found["torch"] = sys.modules["torch"].__version__ if "torch" in sys.modules else found["torch"]  # with its +cpu
    found["torch_npu"] = getattr(sys.modules.get("torch_npu"), "__version__", None)
    home = os.environ.get("ASCEND_TOOLKIT_HOME") or os.environ.get("ASCEND_HOME_PATH")
    toolkit = home and Path(home) / f"{platform.machine()}-linux" / "ascend_toolkit_install.info"
    found["cann"] = _field(toolkit, "version") if toolkit else None
    found["npu_driver"] = _field(DRIVER, "version")
    found["threads"] = sys.modules["torch"].get_num_threads() if "torch" in sys.modules else None
    with open(checkpoint, "rb") as file:
        found["model_sha256"] = _sha256(file)
    found["command"] = sys.argv
    return found


def _sha256(file) -> str:
    digest = hashlib.sha256()
    while block := file.read(1 << 22):
        digest.update(block)
    return digest.hexdigest()


def _field(path: Path, name: str) -> str | None:
    """The value of ``name=value`` in one of Ascend's version files."""
    with suppress(OSError):
        match = re.search(rf"^{name}\s*=\s*(\S+)", path.read_text(errors="replace"), re.MULTILINE | re.IGNORECASE)
        return match and match[1]
    return None


def _processor() -> str:
    with suppress(OSError):
        match = re.search(r"^model name\s*:\s*(.+)", Path("/proc/cpuinfo").read_text(), re.MULTILINE)
        if match:
            return match[1]
    return platform.processor()
