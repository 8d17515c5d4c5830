"""``--doctor``: check everything that a run needs, and report each problem with the command that fixes it.

A check is a function of the ``Context`` that returns its findings; ``CHECKS`` lists all of them and what each needs.
They run in a child process, since a library may crash or hang the process that imports it.
"""

from __future__ import annotations

import json
import multiprocessing
import os
import signal
import sys
import textwrap
import traceback
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from importlib import import_module
from multiprocessing.connection import Connection

from ..host.program import command
from ..host.table import COLUMNS
from . import environment, npu
from .finding import OK, PROBLEM, SETUP, SKIPPED, WARNING, Context, Finding, error_text, private

TIMEOUT_SECONDS = 300  # for one check; an NPU compiles each operator at its first call
EXIT_CODES = {OK: 0, WARNING: 1, PROBLEM: 2}
COLORS = {OK: "32", WARNING: "33", PROBLEM: "31"}
INDENT, STATE_WIDTH = 23, 9


@dataclass(frozen=True)
class Check:
    """A check, and the names of those that must have found no problem before it can run."""

    run: Callable[[Context], list[Finding]]
    needs: tuple[str, ...] = ()


def late(module: str, name: str) -> Callable[[Context], list[Finding]]:
    """Return a check whose module is imported when it runs, in the child: that may fail, hang or crash."""
    return lambda context: getattr(import_module(f".{module}", __package__), name)(context)


CHECKS = {
    "Python": Check(environment.python),
    "packages": Check(environment.packages),
    "torch": Check(environment.torch),
    "torch_npu": Check(npu.torch_npu, needs=("torch",)),
    "device": Check(late("device", "device"), needs=("torch", "torch_npu")),
    "dtypes": Check(late("device", "dtypes"), needs=("device",)),
    "float32": Check(late("device", "float32"), needs=("device",)),
    "arithmetic": Check(late("device", "arithmetic"), needs=("device",)),
    "CANN": Check(npu.cann),
    "driver": Check(npu.driver),
    "NPUs": Check(npu.npus),
    "triton": Check(environment.triton),
    "nv_one_logger": Check(environment.nv_one_logger),
    "NeMo": Check(environment.nemo),
    "audio": Check(environment.audio),
    "disk": Check(environment.disk),
    "checkpoint": Check(late("checkpoint", "checkpoint")),
    "memory": Check(late("device", "memory"), needs=("torch", "checkpoint")),
    "engine": Check(late("model", "engine"), needs=("torch", "audio", "checkpoint")),
    "forward pass": Check(late("model", "forward_pass"), needs=("device", "engine")),
}


def doctor(context: Context, write: Callable[[str], None], *, as_json: bool, debug: bool) -> int:
    """Run all checks and pass the report to ``write``; return the exit code: 0 ok, 1 warnings, 2 problems.

    As text each finding is written as soon as it is known.  JSON is one object at the end.
    """
    findings = []
    colored = sys.stdout.isatty() and not os.environ.get("NO_COLOR") and os.environ.get("TERM") != "dumb"
    for finding in examine(context, debug=debug):
        findings.append(finding)
        if not as_json:
            write(show(finding, colored=colored))
    states = [finding.state for finding in findings]
    worst = max(states, key=EXIT_CODES.__getitem__, default=OK)
    counts = {state: states.count(state) for state in (PROBLEM, WARNING)}
    parts = [f"{n} {state}" if n == 1 else f"{n} {state}s" for state, n in counts.items() if n]
    summary = ", ".join(parts) or "all is well"
    document = {
        "state": worst,
        "summary": summary,
        "problems": counts[PROBLEM],
        "warnings": counts[WARNING],
        "findings": [{"name": f.name, "state": f.state, "found": f.found, "fix": f.fix} for f in findings],
    }
    write(json.dumps(document, indent=1, ensure_ascii=False) if as_json else summary)
    return EXIT_CODES[worst]


def show(finding: Finding, *, colored: bool = False) -> str:
    """Return a finding as lines of at most ``COLUMNS`` columns; commands and long words are not broken."""
    head = finding.state.ljust(STATE_WIDTH) + finding.name.ljust(INDENT - STATE_WIDTH)
    wrapper = textwrap.TextWrapper(COLUMNS, head, " " * INDENT, break_long_words=False, break_on_hyphens=False)
    text = wrapper.fill(finding.found)
    if finding.fix:
        text += f"\n{'->':>{STATE_WIDTH + 2}} " + finding.fix.replace("\n", "\n" + " " * (STATE_WIDTH + 3))
    if colored:
        return f"\033[{COLORS[finding.state]}m{finding.state}\033[0m" + text.removeprefix(finding.state)
    return text


def examine(context: Context, *, debug: bool = False) -> Iterator[Finding]:
    """Run all checks in order; yield each finding as soon as it is known."""
    left = list(CHECKS)
    unmet: dict[str, str] = {}
    while left:
        for findings in _run_in_child(context, list(left), debug=debug):
            name = left.pop(0)
            for finding in findings:
                if finding.state == SKIPPED:
                    unmet[name] = unmet.get(finding.found, finding.found)
                else:
                    yield finding
    for need in dict.fromkeys(unmet.values()):
        names = ", ".join(name for name in unmet if unmet[name] == need)
        yield Finding(WARNING, f"{names}: needs {need}", f"see {need}, above" if need in CHECKS else SETUP, SKIPPED)


def _run_in_child(context: Context, names: list[str], *, debug: bool) -> Iterator[list[Finding]]:
    """Run checks in a child process; yield the findings of each, up to the check that ends the process or hangs."""
    receiving, sending = multiprocessing.Pipe(duplex=False)
    child = os.fork()  # Python waits at its end for a multiprocessing.Process, even for one that hangs in a driver
    if not child:
        _work(context, names, sending, debug=debug)
    sending.close()
    try:
        for name in names:
            if not receiving.poll(TIMEOUT_SECONDS):
                yield [_stopped(name, f"no answer within {TIMEOUT_SECONDS} s")]
                return
            findings, context.usable = receiving.recv()
            yield findings
    except (EOFError, OSError):  # closed between messages, or within one
        yield [_stopped(name, f"ended the process with {_exit(child)}")]
    finally:
        receiving.close()
        os.kill(child, signal.SIGKILL)  # without waiting: a driver call that hangs cannot be killed


def _exit(child: int) -> str:
    end = os.waitid(os.P_PID, child, os.WEXITED | os.WNOWAIT)  # still a process, for the kill that follows
    assert end
    if end.si_code == os.CLD_EXITED:
        return f"exit code {end.si_status}"
    return signal.Signals(end.si_status).name.replace("SIGKILL", "SIGKILL: out of memory?")


def _work(context: Context, names: list[str], sending: Connection, *, debug: bool) -> None:
    """Run checks in the child, send the findings of each, and end the process."""
    try:
        signal.set_wakeup_fd(-1)
        signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent handles it and ends this process
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        if not debug:  # libraries write to both
            for stream in (1, 2):
                os.dup2(os.open(os.devnull, os.O_WRONLY), stream)
        for name in names:
            sending.send((run_check(context, name), context.usable))
    finally:
        os._exit(0)


def run_check(context: Context, name: str) -> list[Finding]:
    """Run one check in this process; return its findings without anything private."""
    for need in CHECKS[name].needs:
        if need not in context.usable:
            return [Finding(SKIPPED, need)]
    try:
        findings = CHECKS[name].run(context)
    except ModuleNotFoundError as error:
        findings = [Finding(SKIPPED, error.name or "packages")]
    except Exception as error:
        traceback.print_exc()
        stopped = _stopped(name, f"the check failed: {type(error).__name__}: {error_text(error)}")
        findings = [replace(stopped, state=WARNING)]
    if all(finding.state in (OK, WARNING) for finding in findings):
        context.usable.add(name)
    return [replace(f, name=name, found=private(f.found), fix=private(f.fix)) for f in findings]


def _stopped(name: str, found: str) -> Finding:
    return Finding(PROBLEM, found, f"{command()} --doctor --debug   (shows more)", name)
