#!/usr/bin/env python3
"""Transcribe speech with a cache-aware FastConformer-RNNT checkpoint (.nemo) on an Ascend NPU, a GPU or the CPU."""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path

HERE = Path(__file__).resolve().parent
DEMO_MODEL = HERE / "demo" / "demo.nemo"
DEMO_CLIP = HERE / "demo" / "digits.wav"

OK, SOME_FAILED, UNUSABLE, INTERRUPTED = 0, 1, 2, 130

EXAMPLES = """\
examples:
  python inference.py                                          the bundled model and clip
  python inference.py talk.mp3 call.wav                        files, with the bundled model (spoken digits only)
  python inference.py --model_path M.nemo talk.mp3             files, with a checkpoint of your own
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
        help="sound files of any kind libsndfile reads: wav, flac, ogg, mp3; any rate and channels",
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
    model.add_argument("--batch_size", type=_positive, default=1, metavar="N", help="files at a time (default: 1)")
    measuring = parser.add_argument_group("measuring")
    measuring.add_argument(
        "--precision_compare",
        action="store_true",
        help="compare the device with the CPU, on AUDIO or the sine; exit code 1 if it fails",
    )
    measuring.add_argument(
        "--benchmark", action="store_true", help="time the forward pass of the sine and the whole transcription"
    )
    measuring.add_argument("--report", metavar="FILE.json", help="every figure of --precision_compare and --benchmark")
    output = parser.add_argument_group("output")
    output.add_argument(
        "--output_format", choices=["text", "json"], default="text", help="json: one document a file, each on a line"
    )
    output.add_argument("--quiet", action="store_true", help="nothing on stderr but errors")
    output.add_argument("--debug", action="store_true", help="show NeMo's log and full tracebacks")
    options = parser.parse_args(args)
    if options.report and not (options.precision_compare or options.benchmark):
        parser.error("--report needs --precision_compare or --benchmark: there are no figures to write without them")
    return options


def _positive(text: str) -> int:
    if not text.isascii() or not text.isdigit() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number of 1 or more")
    return int(text)


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
    from nemotron_npu.checkpoint import choose_context, find_checkpoint, is_hub_id, read_config

    _check_report(args.report)
    if not args.debug:
        _silence_libraries(args.quiet)
    if args.model_path and is_hub_id(args.model_path):
        console.say(f"looking for {args.model_path} on Hugging Face ...")
    path = find_checkpoint(args.model_path or str(DEMO_MODEL))
    choose_context(read_config(path), args.chunk_ms)  # a wrong --chunk_ms need not wait for NeMo
    inputs, failures = _inputs(args, console)
    if not inputs:
        return SOME_FAILED

    from nemotron_npu.device import choose_device, device_name

    device, reason = choose_device(args.device)
    console.say(f"device: {device}" + (f" ({reason})" if reason else ""))
    from nemotron_npu.recognizer import load_recognizer

    console.say(f"loading {path.name} ...")
    recognizer = load_recognizer(path, device, args.chunk_ms)
    reference = None
    if args.precision_compare:
        import torch

        console.say("loading the CPU reference ...")
        reference = load_recognizer(path, torch.device("cpu"), args.chunk_ms)
    facts = {
        "model": str(path),
        "parameters": recognizer.parameters,
        "engine": recognizer.engine,
        "device": str(device),
        "device_name": device_name(device),
        "chunk_ms": recognizer.chunk_ms,
    }
    waveforms, comparisons = [], []
    for first in range(0, len(inputs), args.batch_size):
        wanted = inputs[first : first + args.batch_size]
        batch = _read(wanted, console)
        failures += len(wanted) - len(batch)
        for name, waveform, transcript in _transcribe(recognizer, batch, console):
            if transcript is None:
                failures += 1
                continue
            document = {"audio": name, **facts}
            if not args.audio and (args.model_path or args.output_format == "json"):  # where they are shown
                document |= _shapes(recognizer, waveform)
            comparison = None
            if reference:
                comparison = _compare(recognizer, reference, name, waveform, console)
                failures += comparison is None or not comparison.passed
            if comparison:
                comparisons.append({"audio": name, **comparison.as_dict()})
            _print_result(args, document, transcript, comparison)
            if args.benchmark:
                waveforms.append(waveform)
    figures = {**facts, "precision_compare": comparisons} if reference else dict(facts)
    if waveforms:
        figures["benchmark"] = _benchmark(args, console, recognizer, waveforms)
    if args.report:
        _write_report(args.report, figures)
    return SOME_FAILED if failures else OK


def _inputs(args: argparse.Namespace, console: Console) -> tuple[list[tuple[str, str | None]], int]:
    """(name, path) of every input that looks readable, and how many do not.  The sine has no path."""
    if not args.audio:
        if args.model_path or args.precision_compare:
            return [("1 s sine of 440 Hz", None)], 0
        return [(DEMO_CLIP.name, str(DEMO_CLIP))], 0
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


def _read(inputs, console: Console) -> list:
    """(name, waveform) of those inputs that can be decoded; the others are named on stderr."""
    from nemotron_npu.audio import read_audio, sine
    from nemotron_npu.errors import InputError

    batch = []
    for name, path in inputs:
        try:
            batch.append((name, read_audio(path) if path else sine()))
        except InputError as error:
            console.error(str(error))
    return batch


def _transcribe(recognizer, batch, console: Console):
    """Yield (name, waveform, transcript) in order.

    A batch that fails is tried again file by file; what fails then is named on stderr and yields None.
    """
    if not batch:
        return
    try:
        transcripts = recognizer.transcribe([waveform for _, waveform in batch])
    except Exception as error:
        if len(batch) > 1:
            for item in batch:
                yield from _transcribe(recognizer, [item], console)
            return
        console.error(f"{batch[0][0]}: cannot be transcribed: {type(error).__name__}: {error}", error)
        transcripts = [None]
    for (name, waveform), transcript in zip(batch, transcripts, strict=True):
        yield name, waveform, transcript


def _shapes(recognizer, waveform) -> dict:
    features, lengths = recognizer.preprocess([waveform])
    encoded, _ = recognizer.encode(features, lengths)
    return {"preprocessed_shape": list(features.shape), "encoder_output_shape": list(encoded.shape)}


def _compare(recognizer, reference, name: str, waveform, console: Console):
    """The comparison of one file; None, and a line on stderr, if it cannot be made."""
    from nemotron_npu.precision import compare

    try:
        return compare(recognizer, reference, waveform)
    except Exception as error:
        console.error(f"{name}: cannot be compared: {type(error).__name__}: {error}", error)
        return None


def _print_result(args, document: dict, transcript, comparison) -> None:
    """One file's result on stdout."""
    from nemotron_npu.precision import to_table
    from nemotron_npu.writers import to_json, to_text

    if args.output_format == "json":
        extra = {"precision_compare": comparison.as_dict()} if comparison else {}
        print(to_json(transcript, **document, **extra), flush=True)
        return
    if args.model_path and not args.audio:  # as the write-up prints it
        print(f"Parameters: {document['parameters']:,}")
        print(f"Preprocessed shape: {document['preprocessed_shape']}")
        print(f"Encoder output shape: {document['encoder_output_shape']}")
        print(f"Transcription: {to_text(transcript)}", flush=True)
    else:
        several = len(args.audio) > 1
        print((f"{document['audio']}: " if several else "") + to_text(transcript), flush=True)
    if comparison:
        print(to_table(comparison, document["audio"], document["device"]), flush=True)


def _benchmark(args, console: Console, recognizer, waveforms) -> dict:
    from dataclasses import asdict

    from nemotron_npu.benchmark import benchmark_forward, benchmark_transcribe, to_table

    console.say("timing ...")
    forward = benchmark_forward(recognizer)
    throughput = benchmark_transcribe(recognizer, waveforms, args.batch_size)
    table = to_table(forward, throughput, str(recognizer.device))
    if args.output_format == "json":  # there stdout is for one document a file
        console.say(table)
    else:
        print(table, flush=True)
    return {"forward": asdict(forward), "transcribe": asdict(throughput)}


def _check_report(name: str | None) -> None:
    from nemotron_npu.errors import SetupError

    if name is not None and (os.path.isdir(name) or not os.access(os.path.dirname(name) or ".", os.W_OK)):
        raise SetupError(f"--report {name}: name a file in a folder that exists and can be written to")


def _write_report(name: str, figures: dict) -> None:
    import platform

    import torch

    from nemotron_npu.writers import dump

    environment = {"python": platform.python_version(), "torch": torch.__version__, "command": sys.argv}
    if "torch_npu" in sys.modules:
        environment["torch_npu"] = sys.modules["torch_npu"].__version__
    Path(name).write_text(dump({**figures, "environment": environment}, indent=2) + "\n")


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
    from nemotron_npu.errors import SetupError

    console = Console(args.quiet, args.debug)
    try:
        return run(args, console)
    except KeyboardInterrupt:
        console.error("interrupted")
        return INTERRUPTED
    except BrokenPipeError:  # `| head`: the reader has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return OK
    except SetupError as error:
        console.error(str(error), error)
        return UNUSABLE
    except ModuleNotFoundError as error:
        console.error(f"{error}: source setup_env.sh first", error)
        return UNUSABLE
    except Exception as error:  # none may escape: torch_npu adds noise of its own to uncaught ones
        console.error(f"{type(error).__name__}: {error}" + ("" if args.debug else " (--debug shows where)"), error)
        return SOME_FAILED


if __name__ == "__main__":
    sys.exit(main())
