#!/usr/bin/env python3
"""Transcribe speech with a cache-aware FastConformer-RNNT checkpoint (.nemo) on an Ascend NPU, a GPU or the CPU."""

from __future__ import annotations

import argparse
import os
import signal
import sys
from contextlib import closing, contextmanager
from pathlib import Path

HERE = Path(__file__).resolve().parent
DEMO_MODEL = HERE / "demo" / "demo.nemo"
DEMO_CLIP = HERE / "demo" / "digits.wav"

SINE = "1 s sine of 440 Hz"  # the write-up's input

CATCH_UP_SECONDS = 5  # of sound, in which a stream may make up for the time that loading took

OK, SOME_FAILED, UNUSABLE, INTERRUPTED = 0, 1, 2, 130

EXAMPLES = """\
examples:
  python inference.py                                          the bundled model and clip
  python inference.py talk.mp3 call.wav                        files, with the bundled model (spoken digits only)
  python inference.py --model_path M.nemo talk.mp3             files, with a checkpoint of your own
  arecord -f S16_LE -r 16000 | python inference.py -           a microphone, live
  python inference.py --stream --chunk_ms 80 talk.mp3          a file, as if it were live
  python inference.py --model_path M.nemo                      the write-up's check on a 1 s sine
  python inference.py --model_path M.nemo --precision_compare  the device against the CPU, in figures

exit code: 0 ok, 1 an input failed or the comparison did not pass, 2 wrong usage or environment, 130 interrupted
"""


def parse_args(args: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="inference.py", description=__doc__, epilog=EXAMPLES, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "audio",
        nargs="*",
        metavar="AUDIO",
        help="sound files of any kind libsndfile reads: wav, flac, ogg, mp3; any rate and channels; "
        "- is live sound from stdin, a wav stream or raw 16-bit little-endian mono PCM",
    )
    model = parser.add_argument_group("model")
    model.add_argument(
        "--model_path",
        metavar="M",
        help="a .nemo file or a Hugging Face id such as nvidia/nemotron-speech-streaming-en-0.6b "
        "(default: the bundled demo model, which knows the ten digits)",
    )
    model.add_argument(
        "--device", type=_device, metavar="D", help="npu:N, cuda:N or cpu (default: npu:0 if it is usable, else cpu)"
    )
    model.add_argument(
        "--chunk_ms", type=_positive, metavar="MS", help="chunk length: 80, 160, 560 or 1120 (default: the model's)"
    )
    model.add_argument(
        "--engine",
        choices=["native", "nemo"],
        default="native",
        help="native: this project's own; nemo: stock NeMo, slow to load, the reference (default: native)",
    )
    model.add_argument("--batch_size", type=_positive, default=1, metavar="N", help="files at a time (default: 1)")
    model.add_argument(
        "--dtype",
        choices=["float32", "bfloat16", "float16", "int8"],
        default="float32",
        help="of the encoder's matrix products: int8 on a CPU only, float16 on devices only (default: float32)",
    )
    model.add_argument(
        "--decoder_device",
        type=_device,
        metavar="D",
        help="where the search for the tokens runs (default: cpu: it is many small operators, each waited for)",
    )
    model.add_argument("--threads", type=_positive, metavar="N", help="CPU threads (default: one for each core)")
    live = parser.add_argument_group("live")
    live.add_argument(
        "--stream", action="store_true", help="feed files chunk by chunk and show their words as they are recognised"
    )
    live.add_argument(
        "--sample_rate",
        type=_sample_rate,
        metavar="HZ",
        help="of raw PCM on stdin (default: 16000; a wav stream tells its own)",
    )
    measuring = parser.add_argument_group("measuring")
    measuring.add_argument(
        "--precision_compare",
        action="store_true",
        help="compare the device with NeMo on the CPU, stage by stage, on the sine and on AUDIO or the bundled clip; "
        "exit code 1 if it fails",
    )
    measuring.add_argument(
        "--bounds",
        metavar="NAME=PERCENT,...",
        help="what --precision_compare allows, in place of the dtype's own: mel, encoder, alone, joint, tokens, words",
    )
    measuring.add_argument(
        "--benchmark", action="store_true", help="time the forward pass of the sine and the whole transcription"
    )
    measuring.add_argument(
        "--report",
        metavar="DIR",
        help="write every figure there: precision.json and precision.html, benchmark.json (made if missing)",
    )
    output = parser.add_argument_group("output")
    output.add_argument(
        "--output_format", choices=["text", "json"], default="text", help="json: one document a file, each on a line"
    )
    output.add_argument("--quiet", action="store_true", help="nothing on stderr but errors")
    output.add_argument("--debug", action="store_true", help="show NeMo's log and full tracebacks")
    options = parser.parse_args(args)
    if "-" in options.audio and len(options.audio) > 1:
        parser.error("-: stdin is read alone, without files beside it")
    if (options.stream or options.audio == ["-"]) and (options.precision_compare or options.benchmark):
        parser.error("--precision_compare and --benchmark take files, not streams")
    if options.stream and not options.audio and options.model_path:
        parser.error("--stream needs AUDIO")
    if options.stream and options.batch_size > 1:
        parser.error("--stream takes one file at a time: leave --batch_size out")
    if options.sample_rate and options.audio != ["-"]:
        parser.error("--sample_rate is for raw PCM on stdin: files tell their own")
    if options.report and not (options.precision_compare or options.benchmark):
        parser.error("--report needs --precision_compare or --benchmark: there are no figures to write without them")
    if options.bounds and not options.precision_compare:
        parser.error("--bounds needs --precision_compare")
    return options


def _positive(text: str) -> int:
    if not text.isascii() or not text.isdigit() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number of 1 or more")
    return int(text)


def _sample_rate(text: str) -> int:
    rate = _positive(text)
    if not 4000 <= rate <= 384000:
        raise argparse.ArgumentTypeError(f"{rate} Hz is no sample rate of sound: 4000 to 384000")
    return rate


def _device(text: str) -> str:
    from nemotron_npu.device import DEVICE

    if not DEVICE.fullmatch(text):
        raise argparse.ArgumentTypeError(f"{text!r} is no device: use npu:N, cuda:N or cpu")
    return text


class Console:
    """What a person reads while it runs, on stderr.  Results are printed to stdout."""

    def __init__(self, quiet: bool, debug: bool):
        self.quiet, self.debug = quiet, debug

    def say(self, message: str) -> None:
        if not self.quiet:
            print(message, file=sys.stderr, flush=True)

    def error(self, message: str, cause: Exception | None = None) -> None:
        """One line; with --debug the traceback of ``cause`` before it."""
        if self.debug and cause:
            import traceback

            traceback.print_exception(cause)
        line = " ".join(message.splitlines())
        print(f"inference.py: {line}", file=sys.stderr, flush=True)


def run(args: argparse.Namespace, console: Console) -> int:
    """Do what ``args`` asks for; return the exit code.  Cheap checks come first, imports that take seconds last."""
    from nemotron_npu.bounds import BOUNDS
    from nemotron_npu.checkpoint import choose_context, find_checkpoint, is_hub_id, read_config

    bounds = BOUNDS[args.dtype].changed(args.bounds)
    _make_report_folder(args.report)
    if not args.debug:
        _silence_libraries(args.quiet)
    if args.model_path and is_hub_id(args.model_path):
        console.say(f"looking for {args.model_path} on Hugging Face ...")
    path = find_checkpoint(args.model_path or str(DEMO_MODEL))
    choose_context(read_config(path), args.chunk_ms)  # a wrong --chunk_ms need not wait for torch
    live = args.audio == ["-"]
    inputs, failures = ([], 0) if live else _inputs(args, console)
    if live:
        from nemotron_npu.audio import LiveInput

        source = LiveInput(sys.stdin.fileno(), args.sample_rate)  # from now on: nothing is lost while the model loads
    elif not inputs:
        return SOME_FAILED

    from nemotron_npu.device import choose_device, device_name

    if args.threads:
        import torch

        torch.set_num_threads(args.threads)
    device, reason = choose_device(args.device)
    console.say(f"device: {device}" + (f" ({reason})" if reason else ""))
    from nemotron_npu.recognizer import load_recognizer

    reference = _load_reference(args, path, console) if args.precision_compare else None
    console.say(f"loading {path.name} ...")
    recognizer = load_recognizer(
        path, device, args.chunk_ms, args.engine, args.dtype, _decoder_device(args), announce=console.say
    )
    if live or args.stream:
        recognizer.stream()  # a checkpoint that cannot is told before any sound is taken
    facts = {
        "model": str(path),
        "parameters": recognizer.parameters,
        "engine": recognizer.engine,
        "device": str(device),
        "device_name": device_name(device),
        "dtype": args.dtype,
        "chunk_ms": recognizer.chunk_ms,
    }
    if live:
        return _listen(args, console, recognizer, source, facts)
    if args.stream:
        failures += _stream_files(args, console, recognizer, inputs, facts)
        return SOME_FAILED if failures else OK
    precision = _begin_precision(args, path, recognizer, reference, bounds, console) if reference else None
    done = []
    try:
        for (name, source), transcript in _transcribe(recognizer, inputs, args.batch_size, console):
            if transcript is None:
                failures += 1
                continue
            done.append(source)
            document = {"audio": name, **facts}
            if not args.audio and (args.model_path or args.output_format == "json"):  # where they are shown
                document |= _shapes(recognizer, _waveform(source))
            comparison = None
            if precision:
                comparison = _compare(args, precision, name, source, transcript, console)
                failures += comparison is None
            _print_result(args, document, transcript, comparison)
    finally:
        if precision:
            failures += not _end_precision(args, path, precision, facts, console)
    if args.benchmark and done:
        figures = {**facts, "benchmark": _benchmark(args, console, recognizer, [_waveform(source) for source in done])}
        if args.report:
            from nemotron_npu.environment import environment
            from nemotron_npu.writers import dump

            text = dump({**figures, "environment": environment(path)}, indent=1)
            Path(args.report, "benchmark.json").write_text(text + "\n", encoding="utf-8")
    return SOME_FAILED if failures else OK


def _decoder_device(args):
    from nemotron_npu.device import choose_device

    return choose_device(args.decoder_device)[0] if args.decoder_device else None


def _inputs(args: argparse.Namespace, console: Console) -> tuple[list, int]:
    """(name, path or samples) of every input that looks readable, and how many do not."""
    if not args.audio:
        clip = (DEMO_CLIP.name, str(DEMO_CLIP))
        if args.model_path or args.precision_compare:
            from nemotron_npu.audio import sine

            return [(SINE, sine()), *([clip] if args.precision_compare else [])], 0
        return [clip], 0
    from nemotron_npu.audio import check_audio
    from nemotron_npu.errors import InputError

    inputs, failures = [], 0
    for name in args.audio:
        try:
            check_audio(name)
            inputs.append((name, name))
        except InputError as error:
            console.error(str(error))
            failures += 1
    return inputs, failures


def _waveform(source):
    """The samples of an input: itself, or the decoded file."""
    from nemotron_npu.audio import read_audio

    return read_audio(source) if isinstance(source, str) else source


def _transcribe(recognizer, inputs, slots: int, console: Console):
    """Yield ((name, source), transcript) in the order of ``inputs``; None for what failed, named on stderr."""
    held, position = {}, 0

    def release():
        nonlocal position
        while position in held:
            result = held.pop(position)
            name, source = inputs[position]
            position += 1
            if isinstance(result, Exception):
                _say_failed(console, name, result)
                result = None
            yield (name, source), result

    try:
        with closing(recognizer.results([source for _, source in inputs], slots)) as results:
            for index, result in results:
                held[index] = result
                yield from release()
    except KeyboardInterrupt:
        for index in sorted(held):  # what is done is not lost for what was to come before it
            position = index
            yield from release()
        raise


def _say_failed(console: Console, name: str, error: Exception) -> None:
    """One line for a file that gave no transcript; an InputError names it itself."""
    from nemotron_npu.errors import InputError

    if isinstance(error, InputError):
        console.error(str(error))
    else:
        console.error(f"{name}: cannot be transcribed: {type(error).__name__}: {error}", error)


def _listen(args, console: Console, recognizer, source, facts: dict) -> int:
    """Recognise stdin as it comes, until it ends or Ctrl-C, and say when the recogniser falls behind real time."""
    from nemotron_npu.audio import SAMPLE_RATE
    from nemotron_npu.errors import InputError

    new_line = "\n" if sys.stdout.isatty() else ""  # the growing text has not ended its line

    def blocks():
        fed, worst = 0.0, 1.0  # seconds of sound taken; of delay that are worth a line
        waited = source.delay(0)  # while the model was loaded: only worth a line if it is not made up for soon
        for samples in source:
            yield samples
            fed += len(samples) / SAMPLE_RATE
            delay = source.delay(fed)
            if delay > worst + (waited if fed < CATCH_UP_SECONDS else 0):
                console.say(f"{new_line}{delay:.1f} s behind real time (nothing is lost)")
                worst = 2 * delay
            elif delay < 0.5 and worst > 1:
                console.say(f"{new_line}caught up with real time")
                worst = 1.0

    with _first_interrupt(source.stop) as interrupted:
        try:
            _show_stream(args, recognizer, "stdin", blocks(), facts)
        except InputError:
            if not interrupted():
                raise
    return INTERRUPTED if interrupted() else OK


def _stream_files(args, console: Console, recognizer, inputs, facts: dict) -> int:
    """Recognise files one after the other as if they were live, as fast as it goes; return how many failed."""
    from nemotron_npu.audio import read_blocks

    failures, stopped = 0, False

    def stop():
        nonlocal stopped
        stopped = True

    def blocks(path):
        for block in read_blocks(path):
            for first in range(0, len(block), recognizer.chunk_samples):
                if stopped:
                    return
                yield block[first : first + recognizer.chunk_samples]

    with _first_interrupt(stop) as interrupted:
        for name, path in inputs:
            try:
                _show_stream(args, recognizer, name, blocks(path), facts)
            except Exception as error:
                _say_failed(console, name, error)
                failures += 1
            if interrupted():
                raise KeyboardInterrupt
    return failures


def _show_stream(args, recognizer, name: str, blocks, facts: dict) -> None:
    """Recognise one stream.  On a terminal its words appear as they are recognised, else the result at the end."""
    from nemotron_npu.writers import to_text

    growing = args.output_format == "text" and sys.stdout.isatty()
    prefix = f"{name}: " if len(args.audio) > 1 else ""
    shown = ""

    def grow(text: str) -> None:  # a word that is shown is final, so the text only ever gets longer
        nonlocal shown
        if text != shown:
            print(("" if shown else prefix) + text[len(shown) :], end="", flush=True)
            shown = text

    try:
        with recognizer.stream() as stream:
            for samples in blocks:
                stream.feed(samples)
                if growing:
                    grow(" ".join(stream.text.split()))
            transcript = stream.finish()
    except BaseException:
        if shown:
            print(flush=True)  # what is said about it begins a line of its own
        raise
    if growing:
        grow(to_text(transcript))
        print("" if shown else prefix, flush=True)
    else:
        _print_result(args, {"audio": name, **facts}, transcript, None)


@contextmanager
def _first_interrupt(stop):
    """Ctrl-C calls ``stop`` the first time, so that the block at hand is finished; the second time it interrupts.

    Yields a function that tells whether it came.
    """
    came = False

    def handle(*_):
        nonlocal came
        came = True
        signal.signal(signal.SIGINT, signal.default_int_handler)
        stop()

    before = signal.signal(signal.SIGINT, handle)
    try:
        yield lambda: came
    finally:
        signal.signal(signal.SIGINT, before)


def _shapes(recognizer, waveform) -> dict:
    features, lengths = recognizer.preprocess([waveform])
    encoded, _ = recognizer.encode(features, lengths)
    return {"preprocessed_shape": list(features.shape), "encoder_output_shape": list(encoded.shape)}


def _load_reference(args, path: Path, console: Console):
    """Stock NeMo on the CPU; before the candidate, since loading it takes twice its memory for a moment."""
    import torch

    from nemotron_npu.device import trim_memory
    from nemotron_npu.recognizer import load_recognizer

    console.say("loading the CPU reference: NeMo ...")
    reference = load_recognizer(path, torch.device("cpu"), args.chunk_ms, "nemo")
    trim_memory()
    return reference


def _begin_precision(args, path: Path, recognizer, reference, bounds, console: Console):
    """The comparison to which inputs are added; with AUDIO it begins with the table of the write-up's sine.

    AUDIO is streamed at every chunk length; without it one has to do, since the bundled clip is only a first look.
    """
    from nemotron_npu.audio import sine
    from nemotron_npu.checkpoint import read_config
    from nemotron_npu.precision import Precision, to_table

    chunk_ms = args.chunk_ms or (None if args.audio else recognizer.chunk_ms)
    precision = Precision(recognizer, reference, read_config(path), bounds, chunk_ms)
    if args.audio:
        _print_table(args, to_table(precision.add_signal(sine()), SINE, str(recognizer.device)), console)
    return precision


def _compare(args, precision, name: str, source, transcript, console: Console):
    """The comparison of one input; None, and a line on stderr, if it cannot be made."""
    try:
        waveform = _waveform(source)
        if name == SINE and not args.audio:
            return precision.add_signal(waveform)
        console.say(f"comparing {name} ...")
        recording = precision.add(name, waveform, transcript)
        if not recording.passed:
            console.say(f"{name}: FAILED, first at {recording.failures[0]}")
        return recording
    except Exception as error:
        console.error(f"{name}: cannot be compared: {type(error).__name__}: {error}", error)
        return None


def _end_precision(args, path: Path, precision, facts: dict, console: Console) -> bool:
    """Show what all inputs together say, and write the report; whether it is PASSED."""
    from nemotron_npu.precision import stage_table

    if precision.recordings:
        _print_table(args, stage_table(precision, facts), console)
    if args.report:
        from nemotron_npu.environment import environment
        from nemotron_npu.precision_page import write_report

        page = write_report(precision, facts, environment(path), Path(args.report))
        console.say(f"report: {page}")
    return precision.passed


def _print_table(args, table: str, console: Console) -> None:
    if args.output_format == "json":  # there stdout is for one document a file
        console.say(table)
    else:
        print(table, flush=True)


def _print_result(args, document: dict, transcript, comparison) -> None:
    """One file's result on stdout."""
    from nemotron_npu.writers import to_json, to_text

    if args.output_format == "json":
        extra = {"precision_compare": comparison.as_dict()} if comparison else {}
        print(to_json(transcript, **document, **extra), flush=True)
        return
    if not args.audio and document["audio"] != SINE and comparison:
        return  # the bundled clip beside the sine: its table comes at the end
    if args.model_path and not args.audio:  # as the write-up prints it
        print(f"Parameters: {document['parameters']:,}")
        print(f"Preprocessed shape: {document['preprocessed_shape']}")
        print(f"Encoder output shape: {document['encoder_output_shape']}")
        print(f"Transcription: {to_text(transcript)}", flush=True)
    else:
        several = len(args.audio) > 1
        print((f"{document['audio']}: " if several else "") + to_text(transcript), flush=True)
    if comparison and not args.audio:
        from nemotron_npu.precision import to_table

        print(to_table(comparison, SINE, document["device"]), flush=True)


def _benchmark(args, console: Console, recognizer, waveforms) -> dict:
    from dataclasses import asdict

    from nemotron_npu.benchmark import benchmark_forward, benchmark_transcribe, count_operators, to_table

    console.say("timing ...")
    forward = benchmark_forward(recognizer)
    operators = count_operators(recognizer)
    throughput = benchmark_transcribe(recognizer, waveforms, args.batch_size)
    table = to_table(forward, operators, throughput, str(recognizer.device))
    _print_table(args, table, console)
    return {"forward": asdict(forward), "operators": asdict(operators), "transcribe": asdict(throughput)}


def _make_report_folder(name: str | None) -> None:
    """Make it before the work, so that a wrong name costs no time."""
    from nemotron_npu.errors import SetupError, first_line

    if name is None:
        return
    try:
        os.makedirs(name, exist_ok=True)
    except OSError as error:
        raise SetupError(f"--report {name}: not a folder that can be made: {first_line(error)}") from error
    if not os.access(name, os.W_OK | os.X_OK):
        raise SetupError(f"--report {name}: this folder cannot be written to")


def _silence_libraries(quiet: bool) -> None:
    """Keep NeMo, torch and the rest from writing to the user's terminal; errors reach the user as exceptions."""
    import logging
    import warnings

    logging.disable(logging.CRITICAL)
    warnings.simplefilter("ignore")
    if quiet:
        os.environ["HF_HUB_DISABLE_PROGRESS_BARS"] = "1"


def main(argv: list[str] | None = None) -> int:
    for stream in (sys.stdout, sys.stderr):
        stream.reconfigure(errors="backslashreplace")  # any file name can be printed
    args = parse_args(argv)
    from nemotron_npu.errors import InputError, SetupError, first_line

    console = Console(args.quiet, args.debug)
    try:
        return run(args, console)
    except KeyboardInterrupt:
        console.error("interrupted")
        return INTERRUPTED
    except BrokenPipeError:  # `| head`: the reader has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return OK
    except InputError as error:  # of a stream: files are caught one by one
        console.error(str(error), error)
        return SOME_FAILED
    except SetupError as error:
        console.error(str(error), error)
        return UNUSABLE
    except ModuleNotFoundError as error:
        console.error(f"{error}: source setup_env.sh first", error)
        return UNUSABLE
    except Exception as error:  # none may escape: torch_npu adds noise of its own to uncaught ones
        where = "" if args.debug else " (--debug shows where)"
        console.error(f"{type(error).__name__}: {first_line(error)}{where}", error)
        return SOME_FAILED


if __name__ == "__main__":
    sys.exit(main())
