"""``--precision_compare``, ``--benchmark``, ``--wer_report`` and ``--report`` on the command line: run, show, write."""

from __future__ import annotations

import os
import shutil
import sys
from contextlib import nullcontext
from pathlib import Path

from ..audio import SINE, read_audio
from ..errors import SetupError, first_line
from ..host import signals
from .console import Console
from .results import Results, show_progress, show_table, shows_text


def evaluate_results(args, console: Console, path: Path, facts: dict, results: Results) -> None:
    """Print the error rates of all that is done and has a reference text; with a report write all figures."""
    from ..evaluation.report import alignment_report, summary_table, use_color
    from ..evaluation.wer import evaluate

    done = [(results.recordings[place], *results.done[place]) for place in sorted(results.done)]
    scored = [(r.name, r.reference, text, duration) for r, text, duration in done if r.reference is not None]
    if not scored:
        return
    evaluation = evaluate(scored)
    show_table(args, console, summary_table(evaluation))
    if args.wer_report:
        color = use_color(sys.stdout if shows_text(args) else sys.stderr)
        width = shutil.get_terminal_size((100, 24)).columns
        show_table(args, console, "\n" + alignment_report(evaluation, width, color=color))
    if args.report:
        write_report(args, path, "evaluation.json", {**facts, "evaluation": evaluation.as_dict()})


def compare_chunks(args, console: Console, recognizer, results: Results) -> None:
    """Transcribe at each chunk size that the model offers and print the errors of each; interrupted, those so far."""
    from ..checkpoint.load import attention_contexts
    from ..evaluation.report import chunk_table
    from ..evaluation.wer import evaluate
    from ..formats import dump

    places = [place for place in results.todo if results.recordings[place].reference is not None]
    if len(places) < len(results.todo):
        console.say(f"left out, without a reference text: {len(results.todo) - len(places)} of {len(results.todo)}")
    rows = []
    try:
        for chunk_ms in sorted(attention_contexts(recognizer.config)):
            console.say(f"transcribing at {chunk_ms} ms ...")
            scored, seconds = _scored(args, console, recognizer.at_chunk(chunk_ms), results, places)
            places = [place for place in places if place not in results.broken]  # what failed once is not tried again
            if not scored:
                return
            evaluation = evaluate(scored)
            rows.append((chunk_ms, evaluation, seconds))
            if not shows_text(args):
                overall = {
                    "files": len(scored),
                    "duration": evaluation.overall.duration,
                    **evaluation.overall.as_dict(),
                }
                console.result(dump({"chunk_ms": chunk_ms, "seconds": seconds, **overall}))
    finally:
        if rows:
            show_table(args, console, chunk_table(rows))


def _scored(args, console: Console, recognizer, results: Results, places: list[int]) -> tuple[list, float]:
    """What ``evaluation.evaluate`` takes of the recordings at ``places``, and the seconds that they took."""
    scored, recordings = [], [results.recordings[place] for place in places]
    slots = args.batch_size or recognizer.batch_slots
    whole = signals.held if recognizer.engine == "native" else nullcontext  # NeMo's batches take too long
    with show_progress(args, console, recordings) as progress, whole():
        for index, transcript in recognizer.results(progress.watched(), slots, signals.check):
            progress.finished()
            if isinstance(transcript, Exception):
                results.fail(places[index], transcript)
            else:
                recording = recordings[index]
                scored.append((recording.name, recording.reference, transcript.text, transcript.duration))
    return scored, progress.seconds


def load_reference(args, path: Path, chunk_ms, console: Console):
    """Stock NeMo on the CPU; before the candidate, since loading it takes twice its memory for a moment."""
    import torch

    from ..device import trim_memory
    from ..engine import ModelOptions
    from ..recognizer import load_recognizer

    console.say("loading the CPU reference: NeMo ...")
    reference = load_recognizer(path, torch.device("cpu"), options=ModelOptions("nemo", chunk_ms))
    trim_memory()
    return reference


def begin_precision(args, recognizer, reference, bounds, console: Console):
    """The comparison to which inputs are added; with AUDIO it begins with the table of the write-up's sine.

    AUDIO is streamed at every chunk length; without it one has to do, since the bundled clip is only a first look.
    """
    from ..audio import sine
    from ..precision.compare import Precision, to_table

    chunk_ms = args.chunk_ms or (None if args.audio else recognizer.chunk_ms)
    precision = Precision(recognizer, reference, recognizer.config, bounds, chunk_ms)
    if args.audio:
        show_table(args, console, to_table(precision.add_signal(sine()), SINE, str(recognizer.device)))
    return precision


def compare(args, precision, recording, transcript, console: Console):
    """The comparison of one input; None, and a line on stderr, if it cannot be made."""
    try:
        waveform = read_audio(recording)
        if recording.path == SINE:
            return precision.add_signal(waveform)
        name = recording.name if args.audio else Path(recording.path).name
        console.say(f"comparing {name} ...")
        comparison = precision.add(name, waveform, transcript, recording.reference)
        if not comparison.passed:
            console.say(f"{recording.name}: FAILED, first at {comparison.failures[0]}")
        return comparison
    except Exception as error:
        reason = f"cannot be compared: {type(error).__name__}: {error}"
        console.error(f"{recording.name}: {reason}", error)
        precision.miss(reason, recording.name)
        return None


def end_precision(args, path: Path, precision, facts: dict, results: Results, console: Console) -> bool:
    """Show what all inputs together say, and write the report; whether it is PASSED."""
    from ..precision.compare import stage_table

    left = [place for place in results.todo if place not in results.done and place not in results.broken]
    if left:
        precision.miss(f"interrupted: {len(left)} of {len(results.todo)} not compared")
    if precision.recordings:
        show_table(args, console, stage_table(precision, facts))
    if args.report:
        from ..dtypes import instructions
        from ..host.provenance import environment
        from ..precision.report import write_report

        page = write_report(precision, facts, environment(path, instructions()), Path(args.report))
        console.say(f"report: {page}")
    return precision.passed


def run_benchmark(args, console: Console, path: Path, device, facts: dict, recordings: list) -> None:
    """Measure with the sound of ``recordings``, print the table, and write figures and plot where there is a report."""
    import numpy as np

    from ..benchmark.plot import plot_steps
    from ..benchmark.run import BenchmarkOptions, benchmark
    from ..benchmark.table import benchmark_table
    from ..device import named_device
    from ..dtypes import left_out, offered_dtypes
    from ..engine import ModelOptions

    speech = np.concatenate([read_audio(recording) for recording in recordings])
    candidates = [(engine, dtype) for engine, own in args.benchmark.items() for dtype in own or offered_dtypes(device)]
    model = ModelOptions(
        chunk_ms=args.chunk_ms,
        decoder_device=named_device(args.decoder_device),
        graph=args.graph == "on",
        block_ms=args.block_ms,
    )
    options = BenchmarkOptions(tuple(candidates), model, args.batch_size)
    result = benchmark(path, device, speech, options, console.say)
    if None in args.benchmark.values():  # all dtypes are asked for
        result.left_out = left_out(device)
    show_table(args, console, benchmark_table(result, path.name))
    if args.report:
        if result.candidates[0].steps:  # whole recordings have none
            plot_steps(result, path.name, Path(args.report) / "benchmark.png")
        write_report(args, path, "benchmark.json", {**facts, "benchmark": result.as_dict()})


def make_report_folder(name: str | None) -> None:
    """Make it before the work, so that a wrong name costs no time."""
    if name is None:
        return
    try:
        os.makedirs(name, exist_ok=True)
    except OSError as error:
        raise SetupError(f"--report {name}: not a folder that can be made: {first_line(error)}") from error
    if not os.access(name, os.W_OK | os.X_OK):
        raise SetupError(f"--report {name}: this folder cannot be written to")


def write_report(args, path: Path, name: str, figures: dict) -> None:
    from ..dtypes import instructions
    from ..formats import dump, encode
    from ..host.files import write_file
    from ..host.provenance import environment

    text = dump({**figures, "environment": environment(path, instructions())}, indent=1)
    write_file(Path(args.report, name), encode(text + "\n"))
