"""``--doctor``: look at everything that a run needs, and say what is wrong and which command mends it.

Nothing that is printed is private, so that it can be pasted into a bug report: no names of user or host, no addresses,
no serial numbers, of environment variables hardly a value, paths from ``~`` on or their last part.

The checks run in a process of their own: what they look at may crash the one that loads it, or hang it for good.
"""

from __future__ import annotations

import json
import os
import re
import select
import signal
import sys
import textwrap
import traceback
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path

from ..cli.console import Console
from ..host.program import command
from . import ascend, host, model
from .host import OK, PROBLEM, SETUP, WARNING, Finding, Host, NotChecked, said

CHECKS = {  # later ones heed what earlier ones found
    "Python": host.python,
    "packages": host.packages,
    "torch": host.torch,
    "torch_npu": ascend.torch_npu,
    "device": model.device,
    "dtypes": model.dtypes,
    "CANN": ascend.cann,
    "driver": ascend.driver,
    "NPUs": ascend.npus,
    "triton": host.triton,
    "nv_one_logger": host.nv_one_logger,
    "NeMo": host.nemo,
    "sound": host.sound,
    "disk": host.disk,
    "checkpoint": model.checkpoint,
    "memory": model.memory,
    "engine": model.engine,
    "arithmetic": model.arithmetic,
    "forward pass": model.forward_pass,
}
SECONDS = 300  # that a check may take; an NPU compiles its operators when they first run
EXIT_CODE = {OK: 0, WARNING: 1, PROBLEM: 2}
COLOUR = {OK: "32", WARNING: "33", PROBLEM: "31"}
WIDTH, INDENT = 100, 23
PUBLIC = ("/usr/local/", "/dev/", "/proc/", "/sys/")


def doctor(args, console: Console, demo: Path, clip: Path) -> int:
    """Print what was found, each finding as soon as it is; return the exit code: 0 ok, 1 warnings, 2 problems.

    With ``--output_format json`` one object at the end: ``state``, the worst of all; ``summary`` in words; the numbers
    of ``problems`` and ``warnings``; ``findings``, each with ``name``, ``state``, ``found`` and ``mend``.
    """
    findings, as_text = [], args.output_format == ("txt",)
    coloured = sys.stdout.isatty() and not os.environ.get("NO_COLOR") and os.environ.get("TERM") != "dumb"
    for finding in examine(Host(args.device, args.model_path, args.engine, demo, clip), args.debug):
        findings.append(finding)
        if as_text:
            console.result(show(finding, coloured))
    count = {state: sum(finding.state == state for finding in findings) for state in EXIT_CODE}
    worst = max(count, key=lambda state: EXIT_CODE[state] if count[state] else 0)
    plural = [f"{n} {state}{'s' * (n > 1)}" for state in (PROBLEM, WARNING) if (n := count[state])]
    summary = ", ".join(plural) or "all is well"
    if as_text:
        console.result(summary)
    else:
        document = {"state": worst, "summary": summary, "problems": count[PROBLEM], "warnings": count[WARNING]}
        document["findings"] = [asdict(finding) for finding in findings]
        console.result(json.dumps(document, indent=1, ensure_ascii=False))
    return EXIT_CODE[worst]


def show(finding: Finding, coloured: bool = False) -> str:
    """A finding as lines of at most ``WIDTH`` columns; commands are not cut."""
    state, space = finding.state, " " * (9 - len(finding.state))
    if coloured:
        state = f"\033[{COLOUR[state]}m{state}\033[0m"
    lines = textwrap.wrap(finding.found, WIDTH - INDENT, break_on_hyphens=False) or [""]
    text = f"{state}{space}{finding.name:<{INDENT - 9}}" + ("\n" + " " * INDENT).join(lines)
    for number, line in enumerate(finding.mend.splitlines()):
        text += f"\n{' ' * 9}{'   ' if number else '-> '}{line}"
    return text


def private(text: str) -> str:
    """Without the home folder and the folders that files lie in, and without control characters."""
    home = os.path.expanduser("~").rstrip("/")
    text = re.sub(rf"{re.escape(home)}(?![^/\s'\",;:)])", "~", text) if home else text
    for folders in (r"(?<=['\"])/(?:[^'\"/]+/)+", r"(?<![\w.~/])/(?:[^\s:'\",()/]+/)+"):  # in quotes with spaces
        text = re.sub(folders, lambda match: match[0] if match[0].startswith(PUBLIC) else ".../", text)
    return "".join(c if c.isprintable() or c == "\n" else " " for c in text)


def examine(host: Host, debug: bool = False) -> Iterator[Finding]:
    """The findings of all checks, in their order.

    They come from a child process.  When a check ends that, or does not answer, this is its finding, and another child
    goes on behind it.
    """
    left, missed = list(CHECKS), {}
    while left:
        receiving, sending = os.pipe()
        child = os.fork()
        if not child:
            os.close(receiving)
            _work(host, left, sending, debug)
        os.close(sending)
        status = None
        try:
            for told in _received(receiving):
                name = left.pop(0)
                if "needs" in told:
                    missed[name] = missed.get(told["needs"], told["needs"])
                for fields in told["findings"]:
                    yield Finding(**fields)
            status = os.waitpid(child, 0)[1]
        except TimeoutError:
            pass
        finally:
            os.close(receiving)
            if status is None:
                os.kill(child, signal.SIGKILL)  # not waited for: see ascend.npu_smi
        if left:
            host.ended.add(name := left.pop(0))
            yield Finding(name, PROBLEM, _end(status), _more())
    for needed in dict.fromkeys(missed.values()):
        names = ", ".join(name for name in missed if missed[name] == needed)
        mend = f"see {needed}, above" if needed in CHECKS else SETUP
        yield Finding("not checked", WARNING, f"{names}: needs {needed}", mend)


def _received(pipe: int) -> Iterator[dict]:
    """What a child sends, until it ends.  Raises TimeoutError when it does not answer."""
    line = b""
    while True:
        if not select.select([pipe], [], [], SECONDS)[0]:
            raise TimeoutError
        piece = os.read(pipe, 1 << 16)
        if not piece:
            return
        *whole, line = (line + piece).split(b"\n")
        yield from map(json.loads, whole)


def _more() -> str:
    return f"{command()} --doctor --debug   (shows more)"


def _end(status: int | None) -> str:
    if status is None:
        return f"no answer within {SECONDS} s"
    if os.WIFSIGNALED(status):
        name = signal.Signals(os.WTERMSIG(status)).name
        return f"ended the process with {name}" + (": out of memory?" if name == "SIGKILL" else "")
    return f"ended the process with exit code {os.WEXITSTATUS(status)}"


def _work(host: Host, names: list[str], sending: int, debug: bool) -> None:
    """The child: run the checks, send a line for each, and end."""
    try:
        signal.set_wakeup_fd(-1)  # signals are the parent's to answer, which ends this process
        for number, answer in ((signal.SIGINT, signal.SIG_IGN), (signal.SIGTERM, signal.SIG_DFL)):
            signal.signal(number, answer)
        if not debug:  # libraries write where they like
            for stream in (1, 2):
                os.dup2(os.open(os.devnull, os.O_WRONLY), stream)
        if "torch" in sys.modules:  # by the tests' fake npu: none of its threads are in this process
            sys.modules["torch"].set_num_threads(1)
        for name in names:
            line = json.dumps(check(host, name)) + "\n"
            os.write(sending, line.encode())
    finally:
        os._exit(0)


def check(host: Host, name: str) -> dict:
    """Run one check: ``{"findings": [...]}``, and ``{"needs": ...}`` if it went no further for want of that."""
    findings, told = [], {}
    try:
        for finding in CHECKS[name](host):
            findings.append(finding)
    except NotChecked as needed:
        told["needs"] = str(needed)
    except ModuleNotFoundError as error:
        told["needs"] = error.name or "packages"
    except Exception as error:
        traceback.print_exc()
        found = f"could not be found out: {type(error).__name__}: {said(error)}"
        findings.append(Finding(name, WARNING, found, _more()))
    told["findings"] = [{key: private(value) for key, value in asdict(finding).items()} for finding in findings]
    return told
