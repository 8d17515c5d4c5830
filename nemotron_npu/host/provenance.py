"""What a figure was measured with: versions, hardware, checkpoint and command, for reports."""

from __future__ import annotations

import hashlib
import platform
import re
import sys
from contextlib import suppress
from pathlib import Path

from . import ascend
from .packages import installed

PACKAGES = {"torch": "torch", "nemo": "nemo-toolkit", "numpy": "numpy", "soxr": "soxr"}


def environment(checkpoint: Path) -> dict:
    """Versions (None where something is not there), processor, the checkpoint's SHA-256 and the command."""
    found = {"python": platform.python_version(), "platform": platform.platform(), "processor": processor()}
    found |= {name: installed(package) for name, package in PACKAGES.items()}
    found["torch"] = sys.modules["torch"].__version__ if "torch" in sys.modules else found["torch"]  # with its +cpu
    found["torch_npu"] = getattr(sys.modules.get("torch_npu"), "__version__", None)
    found["cann"] = ascend.cann_version()
    found["npu_driver"] = ascend.driver_version()
    if "torch" in sys.modules:
        from ..dtypes import instructions

        found["instructions"] = instructions()
    found["threads"] = sys.modules["torch"].get_num_threads() if "torch" in sys.modules else None
    found["model_sha256"] = sha256(checkpoint)
    found["command"] = sys.argv
    return found


def sha256(path: Path) -> str:
    """Of a file, in hexadecimal digits."""
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while block := file.read(1 << 22):
            digest.update(block)
    return digest.hexdigest()


def processor() -> str:
    with suppress(OSError):
        match = re.search(r"^model name\s*:\s*(.+)", Path("/proc/cpuinfo").read_text(), re.MULTILINE)
        if match:
            return match[1]
    return platform.processor()
