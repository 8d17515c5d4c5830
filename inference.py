#!/usr/bin/env python3
"""Transcribe speech with a cache-aware FastConformer-RNNT checkpoint (.nemo) on an Ascend NPU, a GPU or the CPU."""

from __future__ import annotations

import argparse
import os
import shutil
import signal
import sys
from contextlib import closing, contextmanager
from pathlib import Path

HERE = Path(__file__).resolve().parent
DEMO_MODEL = HERE / "demo" / "demo.nemo"
DEMO_CLIP = HERE / "demo" / "digits.wav"

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
    from nemotron_npu.confidence import METHODS

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
        "--chunk_ms",
        type=_chunk,
        metavar="MS",
        help="chunk length: 80, 160, 560 or 1120 (default: the model's); all: a table of the errors at each of them",
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
    model.add_argument(
        "--boost_words",
        metavar="FILE",
        help="phrases to prefer, one on each line; behind a tab a score of its own (default: 1)",
    )
    model.add_argument(
        "--boost_alpha",
        type=_weight,
        default=1.0,
        metavar="A",
        help="weight of --boost_words against the model (default: 1)",
    )
    model.add_argument(
        "--confidence",
        choices=METHODS,
        help="how tokens and words are rated: by the probability of the best token, or by an entropy as in NeMo "
        "(default: max_prob; from --engine nemo nothing)",
    )
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
        help="compare the device with the CPU, on AUDIO or the sine; exit code 1 if it fails",
    )
    measuring.add_argument(
        "--benchmark", action="store_true", help="time the forward pass of the sine and the whole transcription"
    )
    measuring.add_argument(
        "--wer_report",
        action="store_true",
        help="the files with the most errors, reference and transcript side by side; for inputs with a reference text",
    )
    measuring.add_argument("--report", metavar="FILE.json", help="every figure of the above")
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
    if options.chunk_ms == "all" and (options.stream or options.precision_compare or options.benchmark):
        parser.error("--chunk_ms all makes a table of its own: leave --stream, --precision_compare, --benchmark out")
    if options.boost_alpha != 1 and not options.boost_words:
        parser.error("--boost_alpha weighs --boost_words: name their file")
    if options.report and not (options.precision_compare or options.benchmark or options.wer_report):
        parser.error("--report needs --precision_compare, --benchmark or --wer_report: without them it has no figures")
    return options


def _positive(text: str) -> int:
    if not text.isascii() or not text.isdigit() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number of 1 or more")
    return int(text)


def _chunk(text: str) -> int | str:
    return text if text == "all" else _positive(text)


def _weight(text: str) -> float:
    try:
        weight = float(text)
    except ValueError:
        weight = -1.0
    if not 0 < weight < float("inf"):
        raise argparse.ArgumentTypeError(f"{text!r} is not a number above 0")
    return weight


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
    from nemotron_npu.checkpoint import attention_contexts, choose_context, find_checkpoint, is_hub_id, read_config
    from nemotron_npu.errors import SetupError

    _check_report(args.report)
    if not args.debug:
        _silence_libraries(args.quiet)
    if args.model_path and is_hub_id(args.model_path):
        console.say(f"looking for {args.model_path} on Hugging Face ...")
    path = find_checkpoint(args.model_path or str(DEMO_MODEL))
    config, chunk_ms = read_config(path), None if args.chunk_ms == "all" else args.chunk_ms
    choose_context(config, chunk_ms)  # a wrong --chunk_ms need not wait for torch
    if args.chunk_ms == "all" and not attention_contexts(config):
        raise SetupError("--chunk_ms all: this checkpoint does not attend in chunks")
    phrases = _phrases(args.boost_words)
    live = args.audio == ["-"]
    inputs, failures = ([], 0) if live else _inputs(args, console)
    if live:
        from nemotron_npu.audio import LiveInput

        source = LiveInput(sys.stdin.fileno(), args.sample_rate)  # from now on: nothing is lost while the model loads
    elif not inputs:
        return SOME_FAILED
    if (args.wer_report or args.chunk_ms == "all") and all(_reference(source) is None for _, source in inputs):
        option = "--wer_report" if args.wer_report else "--chunk_ms all"
        raise SetupError(f"{option}: no input has a reference text: name a NeMo manifest whose entries have text")

    from nemotron_npu.device import choose_device, device_name

    if args.threads:
        import torch

        torch.set_num_threads(args.threads)
    device, reason = choose_device(args.device)
    console.say(f"device: {device}" + (f" ({reason})" if reason else ""))
    from nemotron_npu.recognizer import load_recognizer

    console.say(f"loading {path.name} ...")
    recognizer = load_recognizer(
        path, device, chunk_ms, args.engine, args.dtype, _decoder_device(args), announce=console.say
    )
    _set_search(args, console, recognizer, phrases)
    if args.chunk_ms == "all":
        return _compare_chunks(args, console, recognizer, inputs, failures)
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
    reference = None
    if args.precision_compare:
        import torch

        console.say("loading the CPU reference: NeMo ...")
        reference = load_recognizer(path, torch.device("cpu"), args.chunk_ms, "nemo")
    from nemotron_npu.evaluation import score

    done, comparisons, scores = [], [], []
    for (name, source), transcript in _transcribe(recognizer, inputs, args.batch_size, console):
        if transcript is None:
            failures += 1
            continue
        done.append(source)
        document = {"audio": name, **facts}
        if (reference_text := _reference(source)) is not None:
            scores.append(score(name, reference_text, transcript.text, transcript.duration))
            document |= {"reference": reference_text, "errors": scores[-1].as_dict()}
        if not args.audio and (args.model_path or args.output_format == "json"):  # where they are shown
            document |= _shapes(recognizer, _waveform(source))
        comparison = None
        if reference:
            comparison = _compare(recognizer, reference, name, source, console)
            failures += comparison is None or not comparison.passed
        if comparison:
            comparisons.append({"audio": name, **comparison.as_dict()})
        _print_result(args, document, transcript, comparison)
    figures = {**facts, "precision_compare": comparisons} if reference else dict(facts)
    if args.benchmark and done:
        figures["benchmark"] = _benchmark(args, console, recognizer, [_waveform(source) for source in done])
    if scores:
        figures["evaluation"] = _evaluate(args, console, scores)
    if args.report:
        _write_report(args.report, figures)
    return SOME_FAILED if failures else OK


def _decoder_device(args):
    from nemotron_npu.device import choose_device

    return choose_device(args.decoder_device)[0] if args.decoder_device else None


def _phrases(name: str | None) -> list:
    from nemotron_npu.boosting import read_phrases

    return read_phrases(name) if name else []


def _set_search(args, console: Console, recognizer, phrases: list) -> None:
    """Apply --confidence and --boost_words; phrases that the model cannot spell are named."""
    from nemotron_npu.errors import SetupError

    if args.confidence:
        recognizer.measure_confidence(args.confidence)
    if not phrases:
        return
    unknown = recognizer.boost(phrases, args.boost_alpha)
    where = f"--boost_words {args.boost_words}"
    if len(unknown) == len(phrases):
        raise SetupError(f"{where}: no phrase can be spelled with this model's pieces: is upper or lower case wrong?")
    for phrase in unknown:
        console.say(f"{where}, line {phrase.line}: left out: this model cannot spell {phrase.text!r}")


def _inputs(args: argparse.Namespace, console: Console) -> tuple[list, int]:
    """(name, path or samples) of every input that looks readable, and how many do not."""
    if not args.audio:
        if args.model_path or args.precision_compare:
            from nemotron_npu.audio import sine

            return [("1 s sine of 440 Hz", sine())], 0
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


def _reference(source) -> str | None:
    """What is said in an input, where its manifest tells."""
    text = (getattr(source, "fields", None) or {}).get("text")
    return text if isinstance(text, str) else None


def _evaluate(args, console: Console, scores: list) -> dict:
    """Print the word error rates of some files; return all figures."""
    from nemotron_npu.evaluation import summarize, to_report, to_table, use_color

    evaluation = summarize(scores)
    _show_table(args, console, to_table(evaluation))
    if args.wer_report:
        color = use_color(sys.stderr if args.output_format == "json" else sys.stdout)
        width = shutil.get_terminal_size((100, 24)).columns
        _show_table(args, console, "\n" + to_report(evaluation, width, color))
    return evaluation.as_dict()


def _show_table(args, console: Console, table: str) -> None:
    if args.output_format == "json":  # there stdout is for one document a file
        console.say(table)
    else:
        print(table, flush=True)


def _compare_chunks(args, console: Console, recognizer, inputs, failures: int) -> int:
    """Transcribe at each chunk size that the model offers and print the errors of each; return the exit code."""
    import time

    from nemotron_npu.checkpoint import attention_contexts
    from nemotron_npu.evaluation import evaluate, to_chunk_table
    from nemotron_npu.writers import dump

    inputs = [(name, source) for name, source in inputs if _reference(source) is not None]
    rows = []
    for chunk_ms in sorted(attention_contexts(recognizer.config)):
        console.say(f"transcribing at {chunk_ms} ms ...")
        began, done, results = time.perf_counter(), [], []
        for entry, transcript in _transcribe(recognizer.at_chunk(chunk_ms), inputs, args.batch_size, console):
            if transcript is not None:
                done.append(entry)
                results.append((entry[0], _reference(entry[1]), transcript.text, transcript.duration))
        seconds = time.perf_counter() - began
        failures += len(inputs) - len(done)
        inputs = done  # what failed once is not tried again
        if not inputs:
            return SOME_FAILED
        evaluation = evaluate(results)
        rows.append((chunk_ms, evaluation, seconds))
        if args.output_format == "json":
            overall = {"files": len(done), "duration": evaluation.overall.duration, **evaluation.overall.as_dict()}
            print(dump({"chunk_ms": chunk_ms, "seconds": seconds, **overall}), flush=True)
    _show_table(args, console, to_chunk_table(rows))
    return SOME_FAILED if failures else OK


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


def _compare(recognizer, reference, name: str, source, console: Console):
    """The comparison of one file; None, and a line on stderr, if it cannot be made."""
    from nemotron_npu.precision import compare

    try:
        return compare(recognizer, reference, _waveform(source))
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

    from nemotron_npu.benchmark import benchmark_forward, benchmark_transcribe, count_operators, to_table

    console.say("timing ...")
    forward = benchmark_forward(recognizer)
    operators = count_operators(recognizer)
    throughput = benchmark_transcribe(recognizer, waveforms, args.batch_size)
    _show_table(args, console, to_table(forward, operators, throughput, str(recognizer.device)))
    return {"forward": asdict(forward), "operators": asdict(operators), "transcribe": asdict(throughput)}


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
