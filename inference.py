#!/usr/bin/env python3
# PYTHON_ARGCOMPLETE_OK
"""Transcribe speech with a cache-aware FastConformer-RNNT checkpoint (.nemo) on an Ascend NPU, a GPU or the CPU."""

from __future__ import annotations

import argparse
import os
import sys
import time
from contextlib import closing, nullcontext
from pathlib import Path

HERE = Path(__file__).resolve().parent
DEMO_MODEL = HERE / "demo" / "demo.nemo"
DEMO_CLIP = HERE / "demo" / "digits.wav"

OK, SOME_FAILED, UNUSABLE, INTERRUPTED = 0, 1, 2, 130

EXAMPLES = """\
examples:
  python inference.py                                          the bundled model and clip
  python inference.py talk.mp3                                 prints the text
  python inference.py talk.mp3 --output_format srt > talk.srt  subtitles
  python inference.py calls/ --output_dir out                  a folder, in every format
  python inference.py calls/ --output_dir out --resume         the same, where it was interrupted
  python inference.py test.json --output_dir out --output_format manifest
                                                               a NeMo manifest, and pred_text added to it
  arecord -f S16_LE -r 16000 | python inference.py -           a microphone, live
  python inference.py --stream --chunk_ms 80 talk.mp3          a file, as if it were live
  python inference.py --model_path M.nemo talk.mp3             a checkpoint of your own
  python inference.py --model_path M.nemo                      the write-up's check on a 1 s sine
  python inference.py --model_path M.nemo --precision_compare  the device against the CPU, in figures

exit code: 0 ok, 1 an input failed or the comparison did not pass, 2 wrong usage or environment, 130 interrupted
"""


def parse_args(args: list[str] | None = None) -> argparse.Namespace:
    from nemotron_npu.confidence import METHODS

    parser = argparse.ArgumentParser(
        prog="inference.py",
        usage="%(prog)s [AUDIO ...] [options]",
        description=__doc__,
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "audio",
        nargs="*",
        metavar="AUDIO",
        help="sound files (wav, flac, ogg, mp3 ..., any rate and channels), folders of them, patterns in quotes "
        "('calls/**/*.wav'), NeMo manifests (.json, .jsonl), lists of paths (.txt); "
        "- is live sound from stdin, a wav stream or raw 16-bit little-endian mono PCM",
    )
    output = parser.add_argument_group("output")
    output.add_argument(
        "--output_dir", metavar="DIR", help="write the results there, each as soon as it is done (default: to stdout)"
    )
    output.add_argument(
        "--output_format",
        type=_formats,
        metavar="F[,F]",
        help="txt, json, srt, vtt, tsv, ctm: a file a recording; jsonl, manifest (a NeMo manifest with pred_text): "
        "a line a recording; all (default: txt, with --output_dir all; to stdout one of them)",
    ).completer = lambda **_: [*_formats("all"), "all"]
    output.add_argument(
        "--resume", action="store_true", help="leave out what is done in --output_dir, also after a crash"
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
        help="native: this project's own; nemo: stock NeMo, slow to load, the reference "
        "(default: native; --benchmark: both)",
    )
    model.add_argument(
        "--batch_size", type=_positive, metavar="N", help="files at a time (default: what suits model and device)"
    )
    model.add_argument(
        "--block_ms",
        type=_block,
        metavar="MS",
        help="sound of each file that is encoded at a time, at most; rounded down to 1, 2, 4, 8 ... chunks "
        "(default: what suits model and device)",
    )
    model.add_argument(
        "--graph",
        choices=["on", "off", "auto"],
        default="auto",
        help="record the encoder's steady step on an npu or cuda device and replay it as one launch; "
        "auto is off until that has been run on real hardware (default: auto)",
    )
    model.add_argument(
        "--dtype",
        choices=["float32", "bfloat16", "float16", "int8"],
        help="of the encoder's matrix products: int8 on a CPU only, float16 on devices only "
        "(default: float32; --benchmark: all that the device has)",
    )
    model.add_argument(
        "--decoder_device",
        type=_device,
        metavar="D",
        help="where the search for the tokens runs (default: cpu: it is many small operators, each waited for)",
    )
    model.add_argument("--threads", type=_threads, metavar="N", help="CPU threads (default: one for each core)")
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
        help="compare the device with NeMo on the CPU, stage by stage, on the sine and on AUDIO or the bundled clip; "
        "exit code 1 if it fails",
    )
    measuring.add_argument(
        "--bounds",
        metavar="NAME=PERCENT,...",
        help="what --precision_compare allows, in place of the dtype's own: mel, encoder, alone, joint, tokens, words",
    )
    measuring.add_argument(
        "--benchmark",
        action="store_true",
        help="start, steps, recordings, memory and operators, engines and dtypes side by side; takes minutes",
    )
    measuring.add_argument(
        "--wer_report",
        action="store_true",
        help="the files with the most errors, reference and transcript side by side; for inputs with a reference text",
    )
    measuring.add_argument(
        "--report",
        metavar="DIR",
        help="a folder for every figure of --precision_compare, --benchmark and --wer_report, and plots",
    )
    messages = parser.add_argument_group("messages")
    messages.add_argument("--quiet", action="store_true", help="nothing on stderr but errors")
    messages.add_argument("--debug", action="store_true", help="show NeMo's log and full tracebacks")
    if "_ARGCOMPLETE" in os.environ:  # a shell asks for completions, through argcomplete
        import argcomplete

        argcomplete.autocomplete(parser)
    options = parser.parse_args(args)
    if "-" in options.audio and len(options.audio) > 1:
        parser.error("-: stdin is read alone, without files beside it")
    if (options.stream or options.audio == ["-"]) and (options.precision_compare or options.benchmark):
        parser.error("--precision_compare and --benchmark take files, not streams")
    if options.stream and not options.audio and options.model_path:
        parser.error("--stream needs AUDIO")
    if options.stream and (options.batch_size or options.block_ms):
        parser.error("--stream takes one file at a time, chunk by chunk: leave --batch_size and --block_ms out")
    if options.sample_rate and options.audio != ["-"]:
        parser.error("--sample_rate is for raw PCM on stdin: files tell their own")
    if options.resume and options.audio == ["-"]:
        parser.error("--resume is for files: what was said on stdin is gone")
    if options.resume and not options.output_dir:
        parser.error("--resume needs --output_dir: the folder that has what is done")
    if options.resume and (options.precision_compare or options.benchmark):
        parser.error("--precision_compare and --benchmark measure all that is named: leave --resume out")
    options.output_format = options.output_format or _formats("all" if options.output_dir else "txt")
    if len(options.output_format) > 1 and not options.output_dir:
        parser.error("--output_format: stdout takes one format, several need --output_dir")
    if options.chunk_ms == "all":
        for other in ("stream", "precision_compare", "benchmark", "output_dir", "wer_report"):
            if getattr(options, other):
                parser.error(f"--chunk_ms all makes a table of its own: leave --{other} out")
        if options.output_format[0] not in ("txt", "json", "jsonl"):
            parser.error("--chunk_ms all makes a table, or in json a line for each chunk size, and nothing else")
    if options.boost_alpha != 1 and not options.boost_words:
        parser.error("--boost_alpha weighs --boost_words: name their file")
    if options.report and not (options.precision_compare or options.benchmark or options.wer_report):
        parser.error("--report needs --precision_compare, --benchmark or --wer_report: without them it has no figures")
    if options.boost_words and options.precision_compare:
        parser.error("--precision_compare compares the model alone: leave --boost_words out")
    if options.bounds and not options.precision_compare:
        parser.error("--bounds needs --precision_compare")
    if options.benchmark:
        options.benchmark = _candidates(options)
    options.engine, options.dtype = options.engine or "native", options.dtype or "float32"
    return options


def _candidates(options: argparse.Namespace) -> dict:
    """Engines and dtypes that --benchmark measures; without a dtype all that the device has."""
    dtypes = [options.dtype] if options.dtype else None
    both = {"nemo": ["float32"], "native": dtypes}
    return {options.engine: both[options.engine]} if options.engine else both


def _formats(text: str) -> tuple[str, ...]:
    from nemotron_npu.writers import COLLECTED, FORMATS

    known = (*FORMATS, *COLLECTED)
    names = ["txt" if name.strip() == "text" else name.strip() for name in text.split(",")]
    for name in names:
        if name not in (*known, "all"):
            raise argparse.ArgumentTypeError(f"{name!r} is none of {', '.join(known)} and all")
    return tuple(name for name in known if name in names or "all" in names)


def _positive(text: str) -> int:
    if not text.isascii() or not text.isdigit() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number of 1 or more")
    return int(text)


def _threads(text: str) -> int:
    if (count := _positive(text)) > 1024:  # beyond what a machine can start, OpenMP ends the process
        raise argparse.ArgumentTypeError(f"{count} are more threads than the 1024 that can be asked for")
    return count


def _block(text: str) -> int:
    if (block := _positive(text)) > 600_000:  # memory grows with the square of it
        raise argparse.ArgumentTypeError(f"{block} ms are more than ten minutes, 600000, the longest block")
    return block


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


def run(args: argparse.Namespace, console) -> int:
    """Do what ``args`` asks for; return the exit code.  Cheap checks come first, imports that take seconds last."""
    from nemotron_npu.boosting import digest
    from nemotron_npu.bounds import BOUNDS
    from nemotron_npu.checkpoint import attention_contexts, choose_context, find_checkpoint, is_hub_id, read_config
    from nemotron_npu.errors import SetupError
    from nemotron_npu.measuring import make_report_folder
    from nemotron_npu.results import Results

    if args.engine == "nemo" and (args.stream or args.audio == ["-"]):
        raise SetupError("live streams need the native engine (--engine native)")
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
    if not args.output_dir and kind in ("srt", "vtt", "tsv") and len(recordings) > 1:
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
        code = _recognise(args, console, path, settings, phrases, bounds, results)
    return code or (SOME_FAILED if results.failed else OK)


def _recordings(args: argparse.Namespace, console) -> tuple[list, int]:
    """What is to be recognised, and how many inputs stand for nothing."""
    from nemotron_npu.errors import InputError
    from nemotron_npu.sources import Recording, find_recordings

    if args.audio == ["-"]:
        return [Recording("stdin", "stdin")], 0
    if not args.audio:
        clip = Recording(str(DEMO_CLIP), DEMO_CLIP.stem)
        if not args.model_path and not args.precision_compare:
            return [clip], 0
        from nemotron_npu.audio import SINE, sine

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
    from nemotron_npu.outputs import OutputFolder

    return OutputFolder(args.output_dir, args.output_format, settings, args.resume)


def _recognise(args, console, path: Path, settings: dict, phrases: list, bounds, results) -> int:
    """Recognise what is still to be done; return the exit code, but for what ``results`` counts as failed."""
    from nemotron_npu.live import listen, stream_files
    from nemotron_npu.measuring import (
        begin_precision,
        compare_chunks,
        end_precision,
        evaluate_results,
        load_reference,
        run_benchmark,
    )
    from nemotron_npu.results import progress_of
    from nemotron_npu.sources import Recording

    live = args.audio == ["-"]
    if live:
        from nemotron_npu.audio import LiveInput

        source = LiveInput(sys.stdin.fileno(), args.sample_rate)  # from now on: nothing is lost while the model loads
    else:
        results.check()
    if not results.todo:
        if results.folder:
            console.say(results.summary(0))
        evaluate_results(args, console, path, settings, results)  # what an earlier run has done
        return OK

    from nemotron_npu.device import choose_device, device_name

    if args.threads:
        import torch

        torch.set_num_threads(args.threads)
    device, reason = choose_device(args.device)
    console.say(f"device: {device}" + (f" ({reason})" if reason else ""))
    from nemotron_npu.recognizer import load_recognizer

    chunk_ms = settings["chunk_ms"]
    reference = load_reference(args, path, chunk_ms, console) if args.precision_compare else None
    console.say(f"loading {path.name} ...")
    began = time.perf_counter()
    recognizer = load_recognizer(
        path,
        device,
        chunk_ms,
        args.engine,
        args.dtype,
        _decoder_device(args),
        record=args.graph == "on",
        block_ms=args.block_ms,
        announce=console.say,
    )
    _set_search(args, console, recognizer, phrases)
    if args.chunk_ms == "all":
        compare_chunks(args, console, recognizer, results)
        return OK
    if live or args.stream:
        recognizer.stream()  # a checkpoint that cannot is told before any sound is taken
    facts = {
        "model": str(path),
        "parameters": recognizer.parameters,
        "engine": recognizer.engine,
        "device": str(device),
        "device_name": device_name(device),
        **{name: settings[name] for name in ("dtype", "chunk_ms", "confidence", "boost_words")},
        "timings": {"load": round(time.perf_counter() - began, 3)},
    }
    if live:
        return INTERRUPTED if listen(args, console, recognizer, source, facts, results) else OK
    precision = begin_precision(args, path, recognizer, reference, bounds, console) if reference else None
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


def _recognise_files(args, console, recognizer, precision, facts: dict, results, progress) -> None:
    """Recognise files, and add each to the comparison if there is one."""
    from nemotron_npu.errors import InputError
    from nemotron_npu.measuring import compare, waveform_of
    from nemotron_npu.results import timings

    with closing(recognizer.results(progress.watched(), args.batch_size or recognizer.slots)) as transcripts:
        ordered = transcripts if results.folder else _in_order(transcripts)  # a folder takes them as they come
        last = time.perf_counter()
        for index, transcript in ordered:
            progress.finished()
            place = results.todo[index]
            recording = results.recordings[place]
            if isinstance(transcript, Exception):
                results.fail(place, transcript)
                if precision and not isinstance(transcript, InputError):  # the candidate's fault
                    precision.miss(f"cannot be transcribed: {type(transcript).__name__}: {transcript}", recording.name)
                continue
            seconds, last = time.perf_counter() - last, time.perf_counter()
            document = {**facts, "timings": timings(facts, transcript, seconds)}
            if not args.audio and (args.model_path or args.output_format != ("txt",)):  # where they are shown
                document |= _shapes(recognizer, waveform_of(recording))
            comparison = None
            if precision:
                comparison = compare(args, precision, recording, transcript, console)
                last = time.perf_counter()
            try:
                results.add(place, transcript, document, comparison)
            except InputError as error:
                results.fail(place, error)


def _decoder_device(args):
    from nemotron_npu.device import choose_device

    return choose_device(args.decoder_device)[0] if args.decoder_device else None


def _phrases(name: str | None) -> list:
    from nemotron_npu.boosting import read_phrases

    return read_phrases(name) if name else []


def _set_search(args, console, recognizer, phrases: list) -> None:
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
    if quiet:
        os.environ["HF_HUB_DISABLE_PROGRESS_BARS"] = "1"


def main(argv: list[str] | None = None) -> int:
    for stream in (sys.stdout, sys.stderr):
        stream.reconfigure(errors="backslashreplace")  # any file name can be printed
    args = parse_args(argv)
    from nemotron_npu.console import Console
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
