"""Record what produced a figure: versions, hardware, checkpoint and command, for reports."""

from __future__ import annotations

import hashlib
import os
import platform
import re
import sys
from contextlib import suppress
from pathlib import Path
from typing import Any

from .. import __version__
from ..errors import without_password
from . import ascend
from .packages import installed

PACKAGES = {"torch": "torch", "nemo": "nemo-toolkit", "numpy": "numpy", "soxr": "soxr"}
SETTINGS = ("TASK_QUEUE_ENABLE", "CPU_AFFINITY_CONF", "PYTORCH_NPU_ALLOC_CONF", "ASCEND_RT_VISIBLE_DEVICES")
"""Environment variables that change what an NPU gives: named where they are set."""
BLOCK_BYTES = 1 << 22  # read and hashed in one step


def environment(checkpoint: Path, instructions: str | None = None) -> dict[str, Any]:
    """Return the versions, the processor, the checkpoint's SHA-256 and the command.

    ``instructions``: the CPU's instruction sets as ``dtypes.instructions`` names them; None leaves the field out.
    The version of a package that is missing is None.
    """
    found: dict[str, Any] = {
        "nemotron_npu": __version__,
        "python": platform.python_version(),
        "platform": platform.platform(),
        "processor": processor(),
    }
    found |= {name: installed(package) for name, package in PACKAGES.items()}
    torch = sys.modules.get("torch")
    if torch:
        found["torch"] = torch.__version__  # with its build, "+cpu"
    found["torch_npu"] = getattr(sys.modules.get("torch_npu"), "__version__", None)
    found["cann"] = ascend.cann_version()
    found["npu_driver"] = ascend.driver_version()
    if instructions is not None:
        found["instructions"] = instructions
    found |= {name: os.environ[name] for name in SETTINGS if name in os.environ}
    found["threads"] = torch.get_num_threads() if torch else None
    found["model_sha256"] = sha256(checkpoint)
    found["command"] = [without_password(argument) for argument in sys.argv]
    return found


def sha256(path: Path) -> str:
    """Return the SHA-256 of a file, or of the files in a folder by the order of their names, in hexadecimal digits."""
    digest = hashlib.sha256()
    for part in files_of(path):
        with open(part, "rb") as file:
            while block := file.read(BLOCK_BYTES):
                digest.update(block)
    return digest.hexdigest()


def files_of(path: Path) -> list[Path]:
    """Return the files of a checkpoint: itself, or those in its folder, by their names."""
    return sorted(part for part in path.iterdir() if part.is_file()) if path.is_dir() else [path]


def processor() -> str:
    """Return the name of the CPU, empty if the system does not report one."""
    with suppress(OSError):
        match = re.search(r"^model name\s*:\s*(.+)", Path("/proc/cpuinfo").read_text(), re.MULTILINE)
        if match:
            return match[1]
    return platform.processor()
