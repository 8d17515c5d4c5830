"""The program: what ``inference.py``, ``nemotron-npu`` and ``python -m nemotron_npu`` run."""

from __future__ import annotations

import argparse
import io
import os
import sys
import time
from contextlib import closing, nullcontext
from functools import cache
from pathlib import Path

from ..engine import ModelOptions
from ..errors import InputError, ModelError, SetupError, first_line
from ..host import program, signals
from ..host.packages import bundled, can_import, install_command
from .console import Console
from .options import parse_args

DEMO_MODEL = bundled("demo") / "demo.nemo"
DEMO_CLIP = bundled("demo") / "digits.wav"

OK, SOME_FAILED, UNUSABLE = 0, 1, 2  # and 130, 143, 129 of signals


def run(args: argparse.Namespace, console) -> int:
    """Do what ``args`` asks for; return the exit code.  Cheap checks come first, imports that take seconds last."""
    from ..boosting import digest
    from ..checkpoint.load import attention_contexts, choose_context, find_checkpoint, is_hub_id, read_config
    from ..formats import FORMATS
    from ..precision.tolerances import BOUNDS
    from .measuring import make_report_folder
    from .results import Results

    if args.engine == "nemo" and (args.stream or args.audio == ["-"]):
        raise SetupError("live streams need the native engine (--engine native)")
    if _many(args):
        from ..cluster.connection import check_ray

        check_ray()
    _check_packages(args)
    bounds = BOUNDS[args.dtype].changed(args.bounds)
    make_report_folder(args.report)
    if not args.debug:
        _silence_libraries(args.quiet)
    if args.model_path and is_hub_id(args.model_path):
        console.say(f"looking for {args.model_path} on Hugging Face ...")
    path = find_checkpoint(args.model_path or str(DEMO_MODEL))
    config, chunk_ms = read_config(path), None if args.chunk_ms == "all" else args.chunk_ms
    chunk_ms, _ = choose_context(config, chunk_ms)  # a wrong --chunk_ms need not wait for torch
    if args.chunk_ms == "all" and not attention_contexts(config):
        raise SetupError("--chunk_ms all: this checkpoint does not attend in chunks")
    phrases = _phrases(args.boost_words)
    recordings, failed = _recordings(args, console)
    kind = args.output_format[0]
    if not args.output_dir and len(recordings) > 1 and not FORMATS[kind].concatenates:
        raise SetupError(f"--output_format {kind}: stdout takes it of one recording, several need --output_dir")
    if recordings and (args.wer_report or args.chunk_ms == "all") and all(r.reference is None for r in recordings):
        option = "--wer_report" if args.wer_report else "--chunk_ms all"
        raise SetupError(f"{option}: no input has a reference text: name a NeMo manifest whose entries have text")
    confidence = args.confidence or ("max_prob" if args.engine == "native" else None)
    boost_words = digest(phrases, args.boost_alpha)
    settings = {"model": str(path), "chunk_ms": chunk_ms, "dtype": args.dtype}
    settings |= {"confidence": confidence, "boost_words": boost_words}
    with _output_folder(args, settings) as folder:
        results = Results(args, console, recordings, failed, folder)
        try:
            code = _recognise(args, console, path, settings, phrases, bounds, results)
        except KeyboardInterrupt as stop:
            stop.args = results.missing()
            raise
    return code or (SOME_FAILED if results.failed else OK)


def _check_packages(args: argparse.Namespace) -> None:
    """Raise SetupError that names the command which installs what only some options need."""
    wants = None
    if args.engine == "nemo":
        wants = "--engine nemo"
    elif args.precision_compare:
        wants = "--precision_compare"
    elif args.benchmark and "nemo" in args.benchmark:
        wants = "--benchmark without --engine native"
    if wants and not can_import("nemo"):
        raise SetupError(f"{wants} needs NeMo, which is not installed: {install_command('nemo')}")
    if args.report and (args.precision_compare or args.benchmark) and not can_import("matplotlib"):
        raise SetupError("--report draws with matplotlib, which is not installed: pip install matplotlib")


def _recordings(args: argparse.Namespace, console) -> tuple[list, int]:
    """What is to be recognised, and how many inputs stand for nothing."""
    from ..sources import Recording, find_recordings

    if args.audio == ["-"]:
        return [Recording("stdin", "stdin")], 0
    if not args.audio:
        clip = Recording(str(DEMO_CLIP), DEMO_CLIP.stem)
        if not args.model_path and not args.precision_compare:
            return [clip], 0
        from ..audio import SINE, sine

        return [Recording(SINE, "sine", samples=sine()), *([clip] if args.precision_compare else [])], 0
    recordings, failed = [], 0
    for found in find_recordings(args.audio):
        if isinstance(found, InputError):
            console.error(str(found))
            failed += 1
        else:
            recordings.append(found)
    return recordings, failed


def _output_folder(args, settings: dict):
    if not args.output_dir:
        return nullcontext()
    from .output_folder import OutputFolder

    return OutputFolder(args.output_dir, args.output_format, settings, args.resume)


def _recognise(args, console, path: Path, settings: dict, phrases: list, bounds, results) -> int:
    """Recognise what is still to be done; return the exit code, but for what ``results`` counts as failed."""
    from ..sources import Recording
    from .live import listen, stream_files
    from .measuring import (
        begin_precision,
        compare_chunks,
        end_precision,
        evaluate_results,
        load_reference,
        run_benchmark,
    )
    from .results import progress_of

    live = args.audio == ["-"]
    if live:
        from ..live_input import LiveInput

        if sys.stdin is None:
            raise SetupError("-: stdin is closed: pipe sound into it")
        source = LiveInput(sys.stdin.fileno(), args.sample_rate)  # from now on: nothing is lost while the model loads
    else:
        results.check()
    if not results.todo:
        if results.folder:
            console.say(results.summary(0))
        evaluate_results(args, console, path, settings, results)  # what an earlier run has done
        return OK

    if _many(args):
        return _recognise_by_workers(args, console, path, settings, phrases, results)

    with signals.held():  # libraries in C++ do not survive an exception while they are imported
        import torch

        from ..device import choose_device, device_name, traits_of
        from ..dtypes import check_dtype
        from ..recognizer import load_recognizer

        device, reason = choose_device(args.device)
        if args.threads or (args.num_workers and traits_of(device).is_host):  # there a worker is a thread
            torch.set_num_threads(args.threads or 1)
    signals.check()
    check_dtype(args.dtype, device)
    console.say(f"device: {device}; {reason}" if reason else f"device: {device}")
    reference = load_reference(args, path, settings["chunk_ms"], console) if args.precision_compare else None
    console.say(f"loading {path.name} ...")
    began = time.perf_counter()
    recognizer = load_recognizer(path, device, options=_model_options(args, settings), announce=console.say)
    _set_search(args, console, recognizer, phrases)
    signals.check()
    if args.chunk_ms == "all":
        compare_chunks(args, console, recognizer, results)
        return OK
    if live or args.stream:
        recognizer.stream()  # a checkpoint that cannot is told before any sound is taken
    facts = _facts(path, recognizer, device_name(device), settings, time.perf_counter() - began)
    if live:
        listen(args, console, recognizer, source, facts, results)
        return OK
    precision = begin_precision(args, recognizer, reference, bounds, console) if reference else None
    passed = True
    with progress_of(args, console, results) as progress:
        if args.stream:
            stream_files(args, recognizer, facts, results, progress)
        else:
            try:
                _recognise_files(args, console, recognizer, precision, facts, results, progress)
            finally:
                if precision:
                    passed = end_precision(args, path, precision, facts, results, console)
    evaluate_results(args, console, path, facts, results)
    if args.benchmark and results.done:
        del recognizer, reference, precision  # their memory is needed
        done = [results.recordings[place] for place in results.todo if place in results.done]
        run_benchmark(args, console, path, device, facts, done if args.audio else [Recording(str(DEMO_CLIP), "clip")])
    return OK if passed else SOME_FAILED


def _many(args) -> bool:
    """Whether processes other than this one recognise."""
    return bool(args.ray_address) or (args.num_workers or 1) > 1


def _recognise_by_workers(args, console, path: Path, settings: dict, phrases: list, results) -> int:
    """Have workers recognise what is still to be done; return the exit code as ``_recognise`` does."""
    from ..cluster.driver import Workers
    from ..cluster.worker import Setup
    from .measuring import evaluate_results
    from .results import progress_of

    setup = Setup(
        path.absolute(),
        args.device or "",
        args.threads or 0,
        _model_options(args, settings),
        args.confidence,
        tuple(phrases),
        args.boost_alpha,
    )
    began = time.perf_counter()
    with Workers(setup, args.num_workers, args.ray_address, console.say) as workers:
        _tell_unknown(args, console, phrases, workers.info.unknown_phrases)
        facts = _facts(path, workers, workers.device_name, settings, time.perf_counter() - began)
        with progress_of(args, console, results) as progress:
            _recognise_files(args, console, workers, None, facts, results, progress)
    evaluate_results(args, console, path, facts, results)
    return OK


def _model_options(args, settings: dict) -> ModelOptions:
    return ModelOptions(
        args.engine, settings["chunk_ms"], args.dtype, args.decoder_device, args.graph == "on", args.block_ms
    )


def _facts(path: Path, recognizer, device_name: str, settings: dict, seconds: float) -> dict:
    """What every JSON document says of what recognised it."""
    return {
        "model": str(path),
        "parameters": recognizer.parameters,
        "engine": recognizer.engine,
        "device": str(recognizer.device),
        "device_name": device_name,
        **{name: settings[name] for name in ("dtype", "chunk_ms", "confidence", "boost_words")},
        "timings": {"load": round(seconds, 3)},
    }


def _recognise_files(args, console, recognizer, precision, facts: dict, results, progress) -> None:
    """Recognise files, and add each to the comparison if there is one."""
    from ..audio import read_audio
    from .measuring import compare
    from .results import timings

    slots = args.batch_size or recognizer.batch_slots
    # a block is waited for; NeMo's batches, comparisons and pieces of workers would take too long
    whole = signals.held if recognizer.engine == "native" and not precision and not _many(args) else nullcontext
    if args.num_workers and not _many(args):
        from ..cluster.jobs import results_by_job

        transcripts = results_by_job(recognizer, progress.watched(), slots, signals.check)
    else:
        transcripts = recognizer.results(progress.watched(), slots, signals.check)
    with whole(), closing(transcripts):
        ordered = transcripts if results.folder else _in_order(transcripts)  # a folder takes them as they come
        last = time.perf_counter()
        for index, transcript in ordered:
            progress.finished()
            place = results.todo[index]
            recording = results.recordings[place]
            if isinstance(transcript, Exception):
                results.fail(place, transcript)
                if precision and isinstance(transcript, ModelError):  # the candidate's fault: where?
                    compare(args, precision, recording, None, console)
                elif precision and not isinstance(transcript, InputError):
                    precision.miss(f"cannot be transcribed: {type(transcript).__name__}: {transcript}", recording.name)
                continue
            seconds, last = time.perf_counter() - last, time.perf_counter()
            document = {**facts, "timings": timings(facts, transcript, seconds)}
            if not args.audio and (args.model_path or args.output_format != ("txt",)):  # where they are shown
                document |= _shapes(recognizer, read_audio(recording))
            comparison = None
            if precision:
                comparison = compare(args, precision, recording, transcript, console)
                last = time.perf_counter()
            try:
                results.add(place, transcript, document, comparison)
            except InputError as error:
                results.fail(place, error)


def _phrases(name: str | None) -> list:
    from ..boosting import read_phrases

    return read_phrases(name) if name else []


def _set_search(args, console, recognizer, phrases: list) -> None:
    """Apply --confidence and --boost_words; phrases that the model cannot spell are named."""
    if args.confidence:
        recognizer.measure_confidence(args.confidence)
    if phrases:
        _tell_unknown(args, console, phrases, recognizer.boost(phrases, args.boost_alpha))


def _tell_unknown(args, console, phrases: list, unknown: list) -> None:
    """Name the phrases that the model cannot spell."""

    where = f"--boost_words {args.boost_words}"
    if phrases and len(unknown) == len(phrases):
        raise SetupError(f"{where}: no phrase can be spelled with this model's pieces: is upper or lower case wrong?")
    for phrase in unknown:
        console.say(f"{where}, line {phrase.line}: left out: this model cannot spell {phrase.text!r}")


def _in_order(results):
    """Yield (index, result) by index; what is ready is held back for what was to come before it."""
    held, position = {}, 0
    try:
        for index, result in results:
            held[index] = result
            while position in held:
                yield position, held.pop(position)
                position += 1
    except KeyboardInterrupt:
        yield from sorted(held.items())  # what is done is not lost
        raise


def _shapes(recognizer, waveform) -> dict:
    features, lengths = recognizer.preprocess([waveform])
    encoded, _ = recognizer.encode(features, lengths)
    return {"preprocessed_shape": list(features.shape), "encoder_output_shape": list(encoded.shape)}


def _silence_libraries(quiet: bool) -> None:
    """Keep NeMo, torch and the rest from writing to the user's terminal; errors reach the user as exceptions."""
    import logging
    import warnings

    logging.disable(logging.CRITICAL)
    warnings.simplefilter("ignore")
    _silence_c()
    if quiet:
        os.environ["HF_HUB_DISABLE_PROGRESS_BARS"] = "1"


@cache
def _silence_c() -> None:
    """Send what libraries in C print to /dev/null: libsndfile's decoders do, of mp3 on stderr, of SDS even on stdout.

    C's ``stdout`` and ``stderr`` are variables that may be set (The GNU C Library, 12.2, Standard Streams).  Python
    writes to the descriptors, which stay as they are, so that nothing else is lost in any thread.
    """
    import ctypes

    try:
        if not os.confstr("CS_GNU_LIBC_VERSION"):
            return
    except (OSError, ValueError):  # another C library, where they are constants
        return
    libc = ctypes.CDLL(None)
    libc.fopen.restype = ctypes.c_void_p
    for name in ("stdout", "stderr"):
        ctypes.c_void_p.in_dll(libc, name).value = libc.fopen(os.devnull.encode(), b"w")


def main(argv: list[str] | None = None, name: str = program.COMMAND) -> int:
    """Run the program under this name; return the exit code."""
    _replace_closed_streams()
    program.name = name
    with signals.answered():
        try:
            code = _main(argv)
        finally:
            _flush()
        return signals.exit_code() if signals.came() else code


def _replace_closed_streams() -> None:
    """Open /dev/null where stdin, stdout or stderr was closed at the start: else the next file would take its number.

    What is written to stderr is dropped.  Writing to stdout fails: a result that was lost without an error would be
    taken for one that was written.  ``sys.stdin`` stays None.
    """
    for number, mode in ((0, os.O_RDONLY), (1, os.O_RDONLY), (2, os.O_WRONLY)):
        try:
            os.fstat(number)
        except OSError:
            os.set_inheritable(os.open(os.devnull, mode), True)  # takes the lowest number that is free: this one
    for number, name in ((1, "stdout"), (2, "stderr")):
        if getattr(sys, name) is None:
            stream = io.TextIOWrapper(io.FileIO(number, "w", closefd=False), encoding="utf-8", write_through=True)
            setattr(sys, name, stream)
            setattr(sys, f"__{name}__", stream)


def _main(argv: list[str] | None) -> int:
    """Run, and report what went wrong; return the exit code, but for that of a signal."""
    for stream in (sys.stdout, sys.stderr):
        stream.reconfigure(errors="backslashreplace")  # any file name can be printed
    console = Console(quiet=False, debug=False)
    try:
        args = parse_args(argv)
        console = Console(args.quiet, args.debug)
        if args.doctor:
            from ..doctor.finding import Context
            from ..doctor.run import doctor

            context = Context(args.device, args.model_path, args.engine or "native", DEMO_MODEL, DEMO_CLIP)
            return doctor(context, console.result, as_json=args.output_format == ("json",), debug=args.debug)
        return run(args, console)
    except KeyboardInterrupt as stop:
        console.error(": ".join(["interrupted", *stop.args]))
        return signals.exit_code()
    except BrokenPipeError:  # `| head`: the reader has seen enough
        return OK
    except InputError as error:  # of a stream: files are caught one by one
        console.error(str(error), error)
        return SOME_FAILED
    except SetupError as error:
        console.error(str(error), error)
        return UNUSABLE
    except ModuleNotFoundError as error:
        console.error(f"{error}: {install_command()} first", error)
        return UNUSABLE
    except Exception as error:  # none may escape: torch_npu adds noise of its own to uncaught ones
        where = "" if console.debug else " (--debug shows where)"
        console.error(f"{type(error).__name__}: {first_line(error)}{where}", error)
        return SOME_FAILED


def _flush() -> None:
    """What stdout does not take any more is given up: Python would try again, and complain, when it ends."""
    try:
        sys.stdout.flush()
    except OSError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
