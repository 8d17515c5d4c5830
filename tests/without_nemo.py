"""Run the program where only what ``requirements-native.txt`` brings can be imported or looked up.

    python tests/without_nemo.py '[["a.wav"], ["--engine", "nemo"]]'

The argument is a JSON list of command lines; each is run in this process, and ``exit N`` printed after it.
"""

from __future__ import annotations

import importlib.metadata
import json
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from nemotron_npu.host.packages import needed


def closure(names: list[str]) -> set[str]:
    """These distributions and all that they require here."""
    found, waiting = set(), list(names)
    while waiting:
        name = canonicalize_name(waiting.pop())
        if name in found:
            continue
        found.add(name)
        for line in importlib.metadata.requires(name) or []:
            requirement = Requirement(line)
            if requirement.marker is None or requirement.marker.evaluate({"extra": ""}):
                waiting.append(requirement.name)
    return found


ALLOWED = closure([requirement.name for requirement in needed()]) | {"pip", "packaging"}
MODULES = importlib.metadata.packages_distributions()
BLOCKED = {module for module, owners in MODULES.items() if not {canonicalize_name(o) for o in owners} & ALLOWED}


class Refusal:
    """A finder that finds none of the modules that are blocked, and lets no other find them."""

    @staticmethod
    def find_spec(name: str, path=None, target=None):
        if name.partition(".")[0] in BLOCKED:
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)


def distribution(name: str, real=importlib.metadata.Distribution.from_name):
    if canonicalize_name(name) not in ALLOWED:
        raise importlib.metadata.PackageNotFoundError(name)
    return real(name)


if __name__ == "__main__":
    loaded = sorted({name.partition(".")[0] for name in sys.modules} & BLOCKED - {"packaging"})
    assert not loaded, loaded
    sys.meta_path.insert(0, Refusal)
    importlib.metadata.Distribution.from_name = distribution
    import inference

    for arguments in json.loads(sys.argv[1]):
        try:
            code = inference.main(arguments)
        except SystemExit as stop:
            code = stop.code
        for stream in (sys.stdout, sys.stderr):
            print("exit", code, file=stream, flush=True)
