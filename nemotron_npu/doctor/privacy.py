"""Keep names, addresses and folders out of the report of ``--doctor``, which users paste into bug reports."""

from __future__ import annotations

import os
import platform
import pwd
import re
from contextlib import suppress

from ..errors import first_line

PUBLIC_FOLDERS = ("/usr/local/", "/dev/", "/proc/", "/sys/")
QUOTED_FOLDERS = re.compile(r"(?<=['\"])/(?:[^'\"/]+/)+")  # may contain spaces
FOLDERS = re.compile(r"(?<![\w.~/])/(?:[^\s:'\",()/]+/)+")
IP_ADDRESS = re.compile(r"(?<![\d.])\d{1,3}(\.\d{1,3}){3}(?![\d.])")
PUBLIC_NAMES = {"", "root", "localhost", "npu", "cuda", "cpu"}  # of users and hosts


def private(text: str) -> str:
    """Return the text without the home folder, the folders of files and control characters."""
    home = os.path.expanduser("~").rstrip("/")
    if home:
        text = re.sub(rf"{re.escape(home)}(?![^/\s'\",;:)])", "~", text)
    for folders in (QUOTED_FOLDERS, FOLDERS):
        text = folders.sub(_shorten, text)
    return "".join(c if c.isprintable() or c == "\n" else " " for c in text)


def _shorten(match: re.Match[str]) -> str:
    if match[0].startswith(PUBLIC_FOLDERS):
        return match[0]
    return ".../"


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
