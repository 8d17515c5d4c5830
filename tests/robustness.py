"""The tables of tests/data/messages.md: what the command line prints for every broken or hostile input.

    python tests/robustness.py                 # makes each case, runs it, writes the tables
    python tests/robustness.py checkpoints     # one of them

The tests run the same cases by the same functions and compare each with its row.
"""

from __future__ import annotations

import argparse
import ctypes
import importlib
import os
import re
import sys
import tempfile
import time
from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path

from support import ROOT

DOCUMENT = ROOT / "tests" / "data" / "messages.md"
SECTIONS = {  # marker in the document -> module whose CASES its table has
    "checkpoints": "hostile_checkpoints",
    "audio": "hostile_audio",
}


@dataclass(frozen=True)
class Case:
    """One row: an input, and what is expected of the command line."""

    name: str
    """What the input is; different for each case of a table."""
    make: Callable[[Path], list]
    """Makes the files in this empty folder and returns the arguments; ``--device cpu --quiet`` are added."""
    code: int
    """Exit code."""
    says: str = ""
    """A regular expression that is found in the message."""
    during: Callable[[Path], AbstractContextManager] = nullcontext
    """What happens around the run, given the folder."""
    beside: str = "(?!)"
    """A regular expression for the lines of the message that the table leaves out: those of good files beside it."""


@dataclass(frozen=True)
class Observed:
    """What a run said: stderr, or stdout if that is empty; without the folder's name, which differs."""

    code: int
    stdout: str
    stderr: str
    seconds: float

    @property
    def said(self) -> str:
        return self.stderr or self.stdout


def run_case(case: Case, folder: Path, *options: str) -> Observed:
    """Make ``case`` in the empty ``folder`` and run the command line on it in this process."""
    import inference

    arguments = [os.fspath(argument) for argument in (*case.make(folder), "--device", "cpu", "--quiet", *options)]
    began = time.perf_counter()
    with case.during(folder), _caught() as said:
        try:
            code = inference.main(arguments)
        except SystemExit as stop:  # argparse
            code = stop.code
    seconds = time.perf_counter() - began
    return Observed(code, *(text.strip().replace(f"{folder}/", "") for text in said), seconds)


@contextmanager
def _caught():
    """Catch what is written to stdout and stderr, by libraries in C too: a list of both, filled at the end."""
    said: list[str] = []
    saved = sys.stdout, sys.stderr, os.dup(1), os.dup(2)
    with tempfile.TemporaryFile() as out, tempfile.TemporaryFile() as err:
        for number, file in ((1, out), (2, err)):
            os.dup2(file.fileno(), number)
        sys.stdout, sys.stderr = (os.fdopen(number, "w", encoding="utf-8", closefd=False) for number in (1, 2))
        try:
            yield said
        finally:
            ctypes.CDLL(None).fflush(None)
            sys.stdout.close()
            sys.stderr.close()
            sys.stdout, sys.stderr = saved[:2]
            for number, old in ((1, saved[2]), (2, saved[3])):
                os.dup2(old, number)
                os.close(old)
            for file in (out, err):
                file.seek(0)
                said.append(file.read().decode("utf-8", "replace"))


def row(case: Case, observed: Observed) -> str:
    """A row of the table: the case, the message, the exit code."""
    lines = [line for line in observed.said.splitlines() if not re.match(case.beside, line)]
    if len(lines) > 3:
        lines = [*lines[:2], f"… ({len(lines)} lines)"]
    said = re.sub(r"(.)\1{20,}", r"\1\1\1…", " / ".join(lines)).replace("|", "\\|")
    quoted = f"`` {said} ``" if "`" in said else f"`{said}`" if said else ""
    return f"| {case.name} | {quoted} | {observed.code} |"


def table(rows: Iterable[str]) -> str:
    return "\n".join(["| | message | exit code |", "|---|---|---|", *rows])


def documented(section: str) -> list[str]:
    """The rows of a table as the document has them."""
    text = re.search(rf"<!-- {section} -->\n(.*?)\n?<!-- end -->", DOCUMENT.read_text(encoding="utf-8"), re.DOTALL)[1]
    return [line for line in text.splitlines()[2:] if line.startswith("|")]


def write(section: str, text: str) -> None:
    """Put a table between its markers."""
    pattern = re.compile(rf"(?<=<!-- {section} -->\n).*?(?=<!-- end -->)", re.DOTALL)
    document, count = pattern.subn(lambda _: f"{text}\n", DOCUMENT.read_text(encoding="utf-8"), count=1)
    assert count == 1, f"{DOCUMENT}: no marker <!-- {section} -->"
    DOCUMENT.write_text(document, encoding="utf-8")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("sections", nargs="*", default=list(SECTIONS), metavar="SECTION", help=", ".join(SECTIONS))
    args = parser.parse_args()
    sys.path.insert(0, str(ROOT))
    os.environ["TORCH_DEVICE_BACKEND_AUTOLOAD"] = "0"
    wrong = 0
    for section in args.sections:
        rows = []
        for case in importlib.import_module(SECTIONS[section]).CASES:
            with tempfile.TemporaryDirectory() as folder:
                observed = run_case(case, Path(folder))
            rows.append(row(case, observed))
            print(f"{observed.seconds:5.1f} s  {rows[-1]}")
            if observed.code != case.code or not re.search(case.says, observed.said):
                wrong += 1
                print(f"         expected exit code {case.code} and {case.says!r}")
        write(section, table(rows))
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
