"""The data of ``--doctor``: findings, the context that the checks share, and what the report leaves out.

Users paste the report into bug reports: it has no names, no addresses and no folders.

Standard library and ``host/`` only: the process that imports this must survive an environment where nothing works.
"""

from __future__ import annotations

import os
import platform
import pwd
import re
from contextlib import suppress
from dataclasses import dataclass, field
from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING

from ..errors import first_line
from ..host import ascend
from ..host.packages import install_command

if TYPE_CHECKING:
    from ..recognizer import Recognizer

OK, WARNING, PROBLEM = "ok", "warning", "problem"  # PROBLEM: the request cannot run
SKIPPED = "not checked"  # its findings name the check or package that is needed
GB = 1e9
SETUP = install_command()
PUBLIC = "(?!usr/local/|dev/|proc/|sys/)"
QUOTED_FOLDERS = re.compile(rf"(?<=['\"])/{PUBLIC}(?:[^'\"/]+/)+")  # may contain spaces
FOLDERS = re.compile(rf"(?<![\w.~/])/{PUBLIC}(?:[^\s:'\",()/]+/)+")
IP_ADDRESS = re.compile(r"(?<![\d.])\d{1,3}(\.\d{1,3}){3}(?![\d.])")
PUBLIC_NAMES = {"", "root", "localhost", "npu", "cuda", "cpu"}  # of users and hosts


@dataclass(frozen=True)
class Finding:
    """What a check has found, and the command that fixes it; ``run`` sets the name of the check."""

    state: str
    found: str
    fix: str = ""
    name: str = ""


@dataclass
class Context:
    """The request, as on the command line, and what the checks have learned so far."""

    device: str | None = None
    model_path: str | None = None  # None: the bundled model
    engine: str = "native"
    demo: Path = Path("demo.nemo")  # the bundled model
    clip: Path = Path("digits.wav")  # the bundled recording
    usable: set[str] = field(default_factory=set)  # checks that have run and found no problem
    reference: Recognizer | None = None  # the native engine on the CPU, once it is loaded

    @property
    def path(self) -> str:
        """Path or Hugging Face id of the checkpoint."""
        return self.model_path or str(self.demo)

    @property
    def asks_npu(self) -> bool:
        """Whether the request names an NPU."""
        return (self.device or "").startswith("npu")

    @property
    def nemo_state(self) -> str:
        """State of a finding about a missing part that only NeMo needs."""
        return PROBLEM if self.engine == "nemo" else WARNING

    def without_npu_part(self, found: str, fix: str) -> Finding:
        """Return a finding about a missing part that only an NPU needs."""
        if self.asks_npu:
            return Finding(WARNING if "device" in self.usable else PROBLEM, found, fix)
        if not ascend.is_here():
            return Finding(OK, f"{found} (no NPU on this host)")
        if self.device:
            return Finding(OK, f"{found} (no NPU was requested)")
        return Finding(WARNING, found, fix)


def try_import(name: str) -> ModuleType | Exception:
    """Return the module, or what its import raised: a missing C library, a half-removed package."""
    try:
        return import_module(name)
    except Exception as error:
        return error


def private(text: str) -> str:
    """Return the text without the home folder, the folders of files and control characters."""
    home = os.path.expanduser("~").rstrip("/")
    if home:
        text = re.sub(rf"{re.escape(home)}(?![^/\s'\",;:)])", "~", text)
    for folders in (QUOTED_FOLDERS, FOLDERS):
        text = folders.sub(".../", text)
    return "".join(c if c.isprintable() or c == "\n" else " " for c in text)


def anonymous(text: str) -> str:
    """Return the text without the names of user and host, and without IP addresses."""
    names = {os.environ.get(name, "") for name in ("USER", "LOGNAME", "SUDO_USER")}
    names.add(platform.node())
    with suppress(KeyError):
        names.add(pwd.getpwuid(os.getuid()).pw_name)
    for name in names - PUBLIC_NAMES:
        text = re.sub(rf"(?<!\w){re.escape(name)}(?!\w)", "...", text)
    return IP_ADDRESS.sub("...", text)


def error_text(error: Exception) -> str:
    """Return the first line of an error's message, without names and addresses."""
    return anonymous(first_line(error).rstrip("."))
