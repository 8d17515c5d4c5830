"""--acceptance DIR: check, compare and measure a new machine with one command, and collect all of it in one folder.

Each step runs this program in a process of its own: the others go on when one fails, crashes or hangs, and the
switches of the device are set before its first operator.  This process loads no model.
"""

from __future__ import annotations

import json
import os
import subprocess
import time
from collections.abc import Iterable, Iterator
from contextlib import suppress
from dataclasses import asdict, dataclass
from datetime import datetime, timezone
from pathlib import Path
from textwrap import shorten
from typing import Any, BinaryIO

from .. import __version__
from ..benchmark.startup import child_process, command
from ..checkpoint.hub import find_checkpoint
from ..checkpoint.published import is_published
from ..device import TRAITS, DeviceTraits, choose_device, traits_of
from ..errors import SetupError, without_password
from ..formats import dump, encode
from ..host.files import write_file
from ..host.table import format_table
from .console import Console
from .exit_codes import OK, SOME_FAILED
from .options import Options
from .reports import make_report_folder

SUMMARY = "acceptance.json"
STEP_SECONDS = 2 * 3600
"""A step that takes longer hangs: in a driver, for example."""
RESULT_CHARACTERS = 100  # of an error in the table; the log has the whole message
DOCTOR_STATES = ("ok", "warnings", "problems")  # by exit code
YARDSTICK = (
    "for comparison: 2.20 % at 160 ms and 2.03 % at 1120 ms, normalized, on the first 200 utterances of LibriSpeech "
    "test-clean (published checkpoint in float32, measured by a third party)"
)


@dataclass(frozen=True)
class Step:
    """One run of the program.  Its name is that of its files in the folder."""

    name: str
    options: tuple[str, ...]


@dataclass(frozen=True)
class Outcome:
    """How a step ended."""

    name: str
    command: list[str]
    exit_code: int | None
    """None: it did not end within STEP_SECONDS."""
    seconds: float
    result: str
    """One line."""

    @property
    def passed(self) -> bool:
        """Whether the step shows nothing wrong; the doctor may warn."""
        return self.exit_code == OK or (self.name == "doctor" and self.exit_code == SOME_FAILED)


def accept(folder: str, options: Options, console: Console) -> int:
    """Run all steps, write their tables, figures and messages to ``folder``, and print one table; return the exit code.

    The exit code is 0, or 1 if a step found something wrong.  An interruption keeps what is complete.
    """
    make_report_folder(folder, "--acceptance")
    began = datetime.now(timezone.utc)
    planned = list(steps(options, Path(folder)))
    outcomes: list[Outcome] = []
    try:
        for number, step in enumerate(planned, 1):
            console.notify(f"{number} of {len(planned)}: {step.name} ... (messages: {Path(folder, step.name)}.log)")
            outcomes.append(_run(step, options, Path(folder)))
    finally:
        document = {
            "nemotron_npu": __version__,
            "began": began.isoformat(timespec="seconds"),
            "device": options.device.device,
            "steps": [asdict(outcome) for outcome in outcomes],
        }
        write_file(Path(folder, SUMMARY), encode(dump(document, indent=1) + "\n"))
        rows = [(outcome.name, outcome.result, f"{outcome.seconds:,.0f} s") for outcome in outcomes]
        console.result(format_table(rows, left=2, title=f"Acceptance of {options.device.device or 'this machine'}"))
        console.notify(f"folder: {folder} (it names your files; read it before you send it)")
    if options.input.audio and _is_published(options.model_path):
        console.result(YARDSTICK)
    return OK if all(outcome.passed for outcome in outcomes) else SOME_FAILED


def _is_published(model_path: str | None) -> bool:
    """Return whether the model is the published one; the steps have downloaded it if it was on the hub."""
    with suppress(SetupError):
        return model_path is not None and is_published(find_checkpoint(model_path))
    return False


def steps(options: Options, folder: Path) -> Iterator[Step]:
    """Yield the steps that suit the device: a CPU has neither HF32 nor graphs nor fused operators."""
    traits = _traits(options.device.device)
    yield Step("doctor", ("--doctor",))
    compare = ("--precision_compare", "--report")
    yield Step("precision", (*compare, str(folder / "precision")))
    if traits.configure:
        yield Step("precision_hf32", (*compare, str(folder / "precision_hf32"), "--allow_hf32"))
    measure = ("--benchmark", "--report")
    yield Step("benchmark", (*measure, str(folder / "benchmark"), "--engine", "native"))
    if traits.graph:
        name = "benchmark_graph"
        yield Step(name, (*measure, str(folder / name), "--engine", "native", "--graph", "on"))
    if traits.has_fused:
        yield Step("precision_fused", (*compare, str(folder / "precision_fused"), "--npu_fused"))
        name = "benchmark_fused"
        yield Step(name, (*measure, str(folder / name), "--engine", "native", "--npu_fused"))
    yield Step("benchmark_nemo", (*measure, str(folder / "benchmark_nemo"), "--engine", "nemo"))
    if options.input.audio:
        yield Step("wer", (*options.input.audio, "--chunk_ms", "all"))


def _traits(name: str | None) -> DeviceTraits:
    if name is None:
        return traits_of(choose_device(None)[0])
    return TRAITS[name.partition(":")[0]]  # unusable or not: the steps report it


def _run(step: Step, options: Options, folder: Path) -> Outcome:
    """Run one step; stdout goes to NAME.txt, stderr to NAME.log."""
    words = [*command(), *step.options]
    if options.device.device:
        words += ["--device", options.device.device]
    if options.model_path:
        words += ["--model_path", options.model_path]
    environ = dict(os.environ)
    if "--graph" in step.options:  # a setting that is advised without graphs excludes them
        for name in _traits(options.device.device).no_graph_with:
            environ.pop(name, None)
    began = time.monotonic()
    exit_code: int | None = None
    with _new(folder / f"{step.name}.txt") as table, _new(folder / f"{step.name}.log") as log:
        try:
            with child_process(words, table, log, environ) as child:
                exit_code = child.wait(STEP_SECONDS)
        except subprocess.TimeoutExpired:
            pass
    result = _result(step, exit_code, folder)
    shown = [without_password(word) for word in words]
    return Outcome(step.name, shown, exit_code, round(time.monotonic() - began, 1), result)


def _new(path: Path) -> BinaryIO:
    """Open a new file to write; an existing one of that name is replaced.  Raises SetupError."""
    try:
        path.unlink(missing_ok=True)
        return open(path, "xb")  # never through a link
    except OSError as error:
        raise SetupError(f"{path}", f"cannot be written: {error.strerror}") from error


def _result(step: Step, exit_code: int | None, folder: Path) -> str:
    """Return a line with the most important figures, or with what went wrong."""
    if exit_code is None:
        return f"no end within {STEP_SECONDS:,} s"
    if step.name == "doctor" and 0 <= exit_code < len(DOCTOR_STATES):
        return DOCTOR_STATES[exit_code]
    if step.name.startswith("precision") and (figures := _figures(folder / step.name / "precision.json")):
        return _precision(figures)
    if exit_code != OK:
        lines = (folder / f"{step.name}.log").read_text(errors="replace").splitlines()
        return shorten(f"exit code {exit_code}: {lines[-1] if lines else 'no message'}", RESULT_CHARACTERS)
    if step.name.startswith("benchmark") and (figures := _figures(folder / step.name / "benchmark.json")):
        return _benchmark(figures["benchmark"]["candidates"])
    return f"see {step.name}.txt"


def _figures(path: Path) -> dict[str, Any] | None:
    return json.loads(path.read_text()) if path.exists() else None


def _precision(figures: dict[str, Any]) -> str:
    parts = [figures["verdict"]]
    if figures["sine"]:
        parts.append(f"sine {figures['sine']['encoder']['relative_error_percent']:.4g} %")
    stages = figures["walks"].get("recording", {}).get("stages", [])
    parts += [
        f"subsampling alone {row['alone']['relative_error_percent']:.2g} %"
        for row in stages
        if row["stage"] == "subsampling" and row["alone"]
    ]
    return ", ".join(parts)


def _benchmark(candidates: Iterable[dict[str, Any]]) -> str:
    forward = [f"{row['dtype']} {row['forward']['mean']:.1f}" for row in candidates if row["forward"]]
    return f"forward: {', '.join(forward)} ms"
