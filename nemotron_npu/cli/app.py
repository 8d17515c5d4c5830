"""The program: what ``inference.py``, ``nemotron-npu`` and ``python -m nemotron_npu`` run."""

from __future__ import annotations

import codecs
import io
import json
import os
import sys

from ..errors import InputError, SetupError, first_line
from ..host import program, signals
from .command_line import parse_options
from .console import Console
from .exit_codes import OK, SOME_FAILED, UNUSABLE
from .options import Options

JSON_ESCAPES = "json-escapes"  # name of an error handler of codecs


def main(arguments: list[str] | None = None, name: str = program.COMMAND) -> int:
    """Run the program under this name; return the exit code."""
    _replace_closed_streams()
    program.name = name
    with signals.answered():
        try:
            code = _main(arguments)
        finally:
            _flush()
        return signals.exit_code() if signals.came() else code


def _main(arguments: list[str] | None) -> int:
    """Parse the options and run; report errors, and return the exit code."""
    codecs.register_error(JSON_ESCAPES, _escape)
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors=JSON_ESCAPES)  # a locale may lack letters, and a file name have bytes of none
    console = Console()
    try:
        options = parse_options(arguments)
        console = Console(quiet=options.messages.quiet, debug=options.messages.debug)
        return _run(options, console)
    except KeyboardInterrupt as stop:
        console.error(": ".join(["interrupted", *stop.args]))
        return signals.exit_code()
    except BrokenPipeError:  # the reader has closed the pipe: `| head`
        return OK
    except Exception as error:  # none may escape: torch_npu writes lines of its own after an uncaught one
        return _report(error, console)


def _escape(error: UnicodeError) -> tuple[str, int]:
    """Escape characters that the encoding lacks as JSON does: documents stay valid in every locale."""
    assert isinstance(error, UnicodeEncodeError)
    return json.dumps(error.object[error.start : error.end])[1:-1], error.end


def _run(options: Options, console: Console) -> int:
    """Run the command that the options ask for.  Imports come after parsing, so that --help is fast."""
    if options.doctor:
        from .check import check_environment

        return check_environment(options, console)
    from .run import run

    return run(options, console)


def _report(error: Exception, console: Console) -> int:
    """Write the line of an error that ends the run; return the exit code."""
    if isinstance(error, InputError):  # of a stream: those of files are reported one by one
        console.error(str(error), error)
        return SOME_FAILED
    if isinstance(error, SetupError):
        console.error(str(error), error)
        return UNUSABLE
    if isinstance(error, ModuleNotFoundError):
        from ..host.packages import install_command  # importlib.metadata takes 20 ms

        console.error(f"{error} ({install_command()})", error)
        return UNUSABLE
    hint = "" if console.debug else " (--debug shows the traceback)"
    console.error(f"{type(error).__name__}: {first_line(error)}{hint}", error)
    return SOME_FAILED


def _replace_closed_streams() -> None:
    """Open /dev/null where stdin, stdout or stderr was closed at the start: else the next file would take its number.

    Text for stderr is dropped.  Writing to stdout fails, so that no result is lost without an error.  ``sys.stdin``
    stays None.
    """
    for number, mode in ((0, os.O_RDONLY), (1, os.O_RDONLY), (2, os.O_WRONLY)):
        try:
            os.fstat(number)
        except OSError:
            descriptor = os.open(os.devnull, mode)  # takes the lowest free number: this one
            inheritable = True
            os.set_inheritable(descriptor, inheritable)
    for number, name in ((1, "stdout"), (2, "stderr")):
        if getattr(sys, name) is None:
            stream = io.TextIOWrapper(io.FileIO(number, "w", closefd=False), encoding="utf-8", write_through=True)
            setattr(sys, name, stream)
            setattr(sys, f"__{name}__", stream)


def _flush() -> None:
    """Flush stdout; drop the rest after an error: Python would retry, and print an error, when the process ends."""
    try:
        sys.stdout.flush()
    except OSError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
