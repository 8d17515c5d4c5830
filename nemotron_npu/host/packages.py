"""Which packages this Python has, whether they fit what is required, and how to install what is missing.

Nothing is imported but ``packaging``, or pip's own copy of it: setup_env.sh runs this before anything is installed.
"""

from __future__ import annotations

import importlib.util
import re
import sys
from importlib.metadata import PackageNotFoundError, requires, version
from pathlib import Path

from .program import CLONE, PACKAGE

NAME = "nemotron-npu"
FILES = {"": "native", "nemo": "nemo", "npu": "npu", "ray": "ray"}
"""Extra of the package -> the requirements file that it is made of; "" is the package without extras."""


def bundled(name: str) -> Path:
    """The folder ``demo``, ``patches`` or ``nv_one_logger_mock``: next to the package in a clone, in it in a wheel."""
    return (CLONE or PACKAGE) / name


def installed(package: str) -> str | None:
    """The version of a package, or None."""
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def can_import(module: str) -> bool:
    """Whether a top-level module is there; it is not imported.  A folder of that name without code is none."""
    try:
        spec = importlib.util.find_spec(module)
    except (ImportError, ValueError):
        return False
    return spec is not None and spec.origin is not None


def offer_mock() -> None:
    """Let NeMo, which is about to be imported, find the telemetry mock where NVIDIA's package is not installed."""
    folder = str(bundled("nv_one_logger_mock"))
    if not can_import("nv_one_logger") and folder not in sys.path:
        sys.path.append(folder)


def install_command(extra: str = "") -> str:
    """The command that installs what the package, or one of its extras, needs."""
    if CLONE is None:
        return f"pip install '{NAME}[{extra}]'" if extra else f"pip install {NAME}"
    return "source setup_env.sh" if extra in ("", "nemo", "npu") else f"pip install -r requirements-{FILES[extra]}.txt"


def needed(extra: str = "") -> list:
    """The ``packaging.requirements.Requirement`` objects of the package, or those that an extra adds."""
    if CLONE is not None:
        return requirements(CLONE / f"requirements-{FILES[extra]}.txt")
    found = parse(requires(NAME) or [])
    in_base = [r.marker is None or r.marker.evaluate({"extra": ""}) for r in found]
    if not extra:
        return [r for r, base in zip(found, in_base, strict=True) if base]
    return [r for r, base in zip(found, in_base, strict=True) if not base and r.marker.evaluate({"extra": extra})]


def requirements(path: Path | str) -> list:
    """The ``packaging.requirements.Requirement`` objects of a requirements file and of those that it names (``-r``)."""
    found = []
    for line in Path(path).read_text(encoding="utf-8").splitlines():
        line = re.sub(r"(^|\s)#.*", "", line).strip()
        option, _, other = line.partition(" ")
        if option == "-r":
            found += requirements(Path(path).parent / other.strip())
        elif line:
            found += parse([line])
    return found


def parse(lines: list[str]) -> list:
    """Requirements as objects."""
    try:
        from packaging.requirements import Requirement
    except ImportError:
        from pip._vendor.packaging.requirements import Requirement

    return [Requirement(line) for line in lines]


def fits(requirement) -> bool:
    """Whether a version that the requirement allows is installed."""
    found = installed(requirement.name)
    return found is not None and requirement.specifier.contains(found, prereleases=True)
