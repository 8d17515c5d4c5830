"""Look up the installed packages, compare them with the requirements, and name the commands that install the rest.

Nothing but ``packaging``, or pip's own copy of it, is imported: setup_env.sh runs this before anything is installed.
"""

from __future__ import annotations

import gc
import importlib.util
import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import import_module
from importlib.metadata import PackageNotFoundError, requires, version
from pathlib import Path
from typing import TYPE_CHECKING

from .program import CLONE, PACKAGE

if TYPE_CHECKING:
    from packaging.requirements import Requirement

NAME = "nemotron-npu"
FILES = {"": "native", "nemo": "nemo", "npu": "npu", "ray": "ray"}
"""Extra of the package -> name of its requirements file; "" is the package without extras."""


@contextmanager
def importing() -> Iterator[None]:
    """Import large packages in this block: to look for garbage meanwhile takes a tenth of torch's time, and finds none.

    For programs: what they have imported is never looked through again.
    """
    gc.disable()
    try:
        yield
    finally:
        gc.freeze()
        gc.enable()


def bundled(name: str) -> Path:
    """Return ``demo``, ``patches`` or ``nv_one_logger_mock``: next to the package in a clone, else inside it."""
    return (CLONE or PACKAGE) / name


def installed(package: str) -> str | None:
    """Return the version of an installed package, or None."""
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def can_import(module: str) -> bool:
    """Return whether a top-level module can be found, without importing it; a folder without code does not count."""
    try:
        spec = importlib.util.find_spec(module)
    except (ImportError, ValueError):
        return False
    return spec is not None and spec.origin is not None


def offer_mock() -> None:
    """Add the telemetry mock to ``sys.path`` if NVIDIA's package is not installed; call it before importing NeMo."""
    folder = str(bundled("nv_one_logger_mock"))
    if not can_import("nv_one_logger") and folder not in sys.path:
        sys.path.append(folder)


def install_command(extra: str = "") -> str:
    """Return the command that installs the requirements of the package, or of one of its extras."""
    if CLONE is not None and extra in ("", "nemo", "npu"):
        return "source setup_env.sh"
    if CLONE is not None:
        return f"pip install -r requirements-{FILES[extra]}.txt"
    if extra:
        return f"pip install '{NAME}[{extra}]'"
    return f"pip install {NAME}"


def needed(extra: str = "") -> list[Requirement]:
    """Return the requirements of the package, or those that an extra adds."""
    if CLONE is not None:
        return requirements(CLONE / f"requirements-{FILES[extra]}.txt")
    found = parse(requires(NAME) or [])
    if not extra:
        return [r for r in found if _applies(r, "")]
    return [r for r in found if _applies(r, extra) and not _applies(r, "")]


def _applies(requirement: Requirement, extra: str) -> bool:
    return requirement.marker is None or requirement.marker.evaluate({"extra": extra})


def requirements(path: Path | str) -> list[Requirement]:
    """Return the requirements in a requirements file and in those that it names (``-r``)."""
    found = []
    for line in Path(path).read_text(encoding="utf-8").splitlines():
        line = re.sub(r"(^|\s)#.*", "", line).strip()
        option, _, other = line.partition(" ")
        if option == "-r":
            found += requirements(Path(path).parent / other.strip())
        elif line:
            found += parse([line])
    return found


def parse(lines: list[str]) -> list[Requirement]:
    """Parse requirements."""
    try:
        module = import_module("packaging.requirements")
    except ImportError:
        module = import_module("pip._vendor.packaging.requirements")
    return [module.Requirement(line) for line in lines]


def fits(requirement: Requirement) -> bool:
    """Return whether a version that the requirement allows is installed."""
    found = installed(requirement.name)
    return found is not None and requirement.specifier.contains(found, prereleases=True)
