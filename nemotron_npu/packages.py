"""Which packages this Python has, and whether they fit a requirements file.

Nothing is imported but ``packaging``, or pip's own copy of it: setup_env.sh runs this before anything is installed.
"""

from __future__ import annotations

from importlib.metadata import PackageNotFoundError, version
from pathlib import Path


def installed(package: str) -> str | None:
    """The version of a package, or None."""
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def requirements(path: Path | str) -> list:
    """The ``packaging.requirements.Requirement`` objects of a requirements file and of those that it names (``-r``)."""
    try:
        from packaging.requirements import Requirement
    except ImportError:
        from pip._vendor.packaging.requirements import Requirement

    lines = [line.partition("#")[0].strip() for line in Path(path).read_text(encoding="utf-8").splitlines()]
    found = []
    for line in filter(None, lines):
        option, _, other = line.partition(" ")
        found += requirements(Path(path).parent / other.strip()) if option == "-r" else [Requirement(line)]
    return found


def fits(requirement) -> bool:
    """Whether a version that the requirement allows is installed."""
    found = installed(requirement.name)
    return found is not None and requirement.specifier.contains(found, prereleases=True)
