#!/usr/bin/env python3
# PYTHON_ARGCOMPLETE_OK
"""Transcribe speech with a cache-aware FastConformer-RNNT checkpoint (.nemo) on an Ascend NPU, a GPU or the CPU."""

from __future__ import annotations

import argparse
import os
import shutil
import signal
import sys
import time
from contextlib import closing, contextmanager, nullcontext
from pathlib import Path

HERE = Path(__file__).resolve().parent
DEMO_MODEL = HERE / "demo" / "demo.nemo"
DEMO_CLIP = HERE / "demo" / "digits.wav"

EARLY_CHECKS = 1000  # recordings whose headers are looked at before the model is loaded
SINE = "1 s sine of 440 Hz"  # the write-up's input

CATCH_UP_SECONDS = 5  # of sound, in which a stream may make up for the time that loading took

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
        type=_positive,
        metavar="MS",
        help="sound of each file that is encoded at a time, rounded to chunks (default: what suits model and device)",
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
    options.output_format = options.output_format or _formats("all" if options.output_dir else "txt")
    if len(options.output_format) > 1 and not options.output_dir:
        parser.error("--output_format: stdout takes one format, several need --output_dir")
    if options.chunk_ms == "all":
        for other in ("stream", "precision_compare", "benchmark", "output_dir"):
            if getattr(options, other):
                parser.error(f"--chunk_ms all makes a table of its own: leave --{other} out")
    if options.boost_alpha != 1 and not options.boost_words:
        parser.error("--boost_alpha weighs --boost_words: name their file")
    if options.report and not (options.precision_compare or options.benchmark or options.wer_report):
        parser.error("--report needs --precision_compare, --benchmark or --wer_report: without them it has no figures")
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
        self.aside = nullcontext
        """Makes way for what is written meanwhile: a progress bar's."""

    def say(self, message: str) -> None:
        if not self.quiet:
            with self.aside():
                print(message, file=sys.stderr, flush=True)

    def error(self, message: str, cause: Exception | None = None) -> None:
        """One line; with --debug the traceback of ``cause`` before it."""
        with self.aside():
            if self.debug and cause:
                import traceback

                traceback.print_exception(cause)
            line = " ".join(message.splitlines())
            print(f"inference.py: {line}", file=sys.stderr, flush=True)

    def result(self, text: str, end: str = "\n") -> None:
        with self.aside():
            print(text, end=end, flush=True)


class Results:
    """Where results go, to stdout or into a folder, and the count of them."""

    def __init__(self, args: argparse.Namespace, console: Console, recordings: list, failed: int, folder=None):
        self.args, self.console, self.recordings, self.folder = args, console, recordings, folder
        self.failed = failed
        """How many inputs have failed."""
        self.broken: set[int] = set()
        """Places of those that have."""
        self.total = len(recordings) + failed
        self.todo = folder.begin(recordings) if folder else list(range(len(recordings)))
        """Places among ``recordings`` of those that are still to be recognised."""
        self.skipped = len(recordings) - len(self.todo)
        self.done: dict[int, tuple[str, float]] = folder.done if folder else {}
        """Text and duration (s) by place, of an earlier run too."""
        if folder and folder.began_anew:
            console.say(
                f"{args.output_dir}: begun anew, the record of the last run is kept as results.jsonl~ "
                "(--resume goes on with it instead)"
            )

    def check(self) -> None:
        """Look at the first headers: what cannot be read need not wait for the model."""
        from nemotron_npu.errors import InputError

        for place in self.todo[:EARLY_CHECKS]:
            try:
                self.recordings[place].check()
            except InputError as error:
                self.fail(place, error)
        self.todo = [place for place in self.todo if place not in self.broken]
        if self.folder and self.args.batch_size != 1:  # where no order is kept: side by side are those of one length
            lengths = {place: self.recordings[place].seconds for place in self.todo}
            if None not in lengths.values():
                self.todo.sort(key=lengths.get, reverse=True)

    def fail(self, place: int, error: Exception) -> None:
        """One line for a recording that gave no transcript; an InputError names it itself."""
        from nemotron_npu.errors import InputError

        self.failed += 1
        self.broken.add(place)
        if isinstance(error, InputError):
            self.console.error(str(error))
        else:
            name = self.recordings[place].name
            self.console.error(f"{name}: cannot be transcribed: {type(error).__name__}: {error}", error)

    def add(self, place: int, transcript, facts: dict, comparison=None) -> None:
        """One result.  Raises InputError when it cannot be written, SetupError when nothing can."""
        from nemotron_npu.writers import to_document, to_text

        recording = self.recordings[place]
        facts = {**recording.facts_of_sound(), **facts}
        if comparison:
            facts["precision_compare"] = comparison.as_dict()
        if recording.reference is not None:
            from nemotron_npu.evaluation import score

            errors = score(recording.name, recording.reference, transcript.text, transcript.duration)
            facts |= {"reference": recording.reference, "errors": errors.as_dict()}
        document = to_document(transcript, **facts)
        if self.folder:
            self.folder.write(place, transcript, document)
        else:
            self.done[place] = to_text(transcript), transcript.duration
            beside = (
                comparison and not self.args.audio and recording.path != SINE
            )  # the clip: its table comes at the end
            if not (beside and _shows_text(self.args)):
                self._print(recording, transcript, document)
        if comparison and recording.path == SINE and _shows_text(self.args):
            from nemotron_npu.precision import to_table

            self.console.result(to_table(comparison, SINE, document["device"]))

    def _print(self, recording, transcript, document: dict) -> None:
        from nemotron_npu.writers import dump, render, to_manifest, to_text

        (kind,) = self.args.output_format
        text = to_text(transcript)
        if kind in ("json", "jsonl"):
            self.console.result(dump(document))
        elif kind == "manifest":
            self.console.result(to_manifest(recording.path, recording.fields, text, transcript.duration))
        elif kind != "txt":
            self.console.result(render(kind, transcript, document, recording.output), end="")
        elif self.args.model_path and not self.args.audio:  # as the write-up prints it
            self.console.result(
                f"Parameters: {document['parameters']:,}\n"
                f"Preprocessed shape: {document['preprocessed_shape']}\n"
                f"Encoder output shape: {document['encoder_output_shape']}\n"
                f"Transcription: {text}"
            )
        else:
            self.console.result((f"{recording.name}: " if self.total > 1 else "") + text)

    def summary(self, seconds: float) -> str:
        """``500 recordings: 480 done, 15 done before, 5 failed; 0.93 h of sound in 41.2 s (RTFx 81.3)``."""
        new = [self.done[place][1] for place in self.todo if place in self.done]
        left = len(self.todo) - len(new) - len(self.broken.intersection(self.todo))
        counts = [f"{len(new)} done"]
        if self.args.resume:
            counts.append(f"{self.skipped} done before")
        counts.append(f"{self.failed} failed")
        if left:
            counts.append(f"{left} left" + (": --resume goes on with them" if self.folder else ""))
        speed = f"; {sum(new) / 3600:.2f} h of sound in {seconds:.1f} s (RTFx {sum(new) / seconds:.1f})" if new else ""
        return f"{self.total} recording{'s' * (self.total > 1)}: {', '.join(counts)}{speed}"


def run(args: argparse.Namespace, console: Console) -> int:
    """Do what ``args`` asks for; return the exit code.  Cheap checks come first, imports that take seconds last."""
    from nemotron_npu.bounds import BOUNDS
    from nemotron_npu.checkpoint import attention_contexts, choose_context, find_checkpoint, is_hub_id, read_config
    from nemotron_npu.errors import SetupError

    bounds = BOUNDS[args.dtype].changed(args.bounds)
    _make_report_folder(args.report)
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
    if (args.wer_report or args.chunk_ms == "all") and all(r.reference is None for r in recordings):
        option = "--wer_report" if args.wer_report else "--chunk_ms all"
        raise SetupError(f"{option}: no input has a reference text: name a NeMo manifest whose entries have text")
    settings = {"model": str(path), "chunk_ms": chunk_ms, "dtype": args.dtype}
    with _output_folder(args, settings) as folder:
        results = Results(args, console, recordings, failed, folder)
        code = _recognise(args, console, path, chunk_ms, phrases, bounds, results)
    return code or (SOME_FAILED if results.failed else OK)


def _recordings(args: argparse.Namespace, console: Console) -> tuple[list, int]:
    """What is to be recognised, and how many inputs stand for nothing."""
    from nemotron_npu.errors import InputError
    from nemotron_npu.sources import Recording, find_recordings

    if args.audio == ["-"]:
        return [Recording("stdin", "stdin")], 0
    if not args.audio:
        clip = Recording(str(DEMO_CLIP), DEMO_CLIP.stem)
        if not args.model_path and not args.precision_compare:
            return [clip], 0
        from nemotron_npu.audio import sine

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


def _recognise(
    args: argparse.Namespace, console: Console, path: Path, chunk_ms, phrases, bounds, results: Results
) -> int:
    """Recognise what is still to be done; return the exit code, but for what ``results`` counts as failed."""
    live = args.audio == ["-"]
    if live:
        from nemotron_npu.audio import LiveInput

        source = LiveInput(sys.stdin.fileno(), args.sample_rate)  # from now on: nothing is lost while the model loads
    else:
        results.check()
    if not results.todo:
        if results.folder:
            console.say(results.summary(0))
        return OK

    from nemotron_npu.device import choose_device, device_name

    if args.threads:
        import torch

        torch.set_num_threads(args.threads)
    device, reason = choose_device(args.device)
    console.say(f"device: {device}" + (f" ({reason})" if reason else ""))
    from nemotron_npu.recognizer import load_recognizer

    reference = _load_reference(args, path, chunk_ms, console) if args.precision_compare else None
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
        return _compare_chunks(args, console, recognizer, results)
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
        "timings": {"load": round(time.perf_counter() - began, 3)},
    }
    if live:
        return _listen(args, console, recognizer, source, facts, results)
    precision = _begin_precision(args, path, recognizer, reference, bounds, console) if reference else None
    with _progress(args, console, results) as progress:
        if args.stream:
            _stream_files(args, recognizer, facts, results, progress)
        else:
            try:
                _recognise_files(args, console, recognizer, precision, facts, results, progress)
            finally:
                if precision:
                    results.failed += not _end_precision(args, path, precision, facts, console)
    _evaluate(args, console, path, facts, results)
    if args.benchmark and results.done:
        del recognizer, reference, precision  # their memory is needed
        _benchmark(args, console, path, device, facts, results)
    return OK


def _recognise_files(args, console: Console, recognizer, precision, facts: dict, results: Results, progress) -> None:
    """Recognise files, and add each to the comparison if there is one."""
    from nemotron_npu.errors import InputError

    with closing(recognizer.results(progress.watched(), args.batch_size or recognizer.slots)) as transcripts:
        ordered = transcripts if results.folder else _in_order(transcripts)  # a folder takes them as they come
        last = time.perf_counter()
        for index, transcript in ordered:
            progress.finished()
            place = results.todo[index]
            recording = results.recordings[place]
            if isinstance(transcript, Exception):
                results.fail(place, transcript)
                continue
            seconds, last = time.perf_counter() - last, time.perf_counter()
            document = {**facts, "timings": _timings(facts, transcript, seconds)}
            if not args.audio and (args.model_path or args.output_format != ("txt",)):  # where they are shown
                document |= _shapes(recognizer, _waveform(recording))
            comparison = None
            if precision:
                comparison = _compare(args, precision, recording, transcript, console)
                results.failed += comparison is None
                last = time.perf_counter()
            try:
                results.add(place, transcript, document, comparison)
            except InputError as error:
                results.fail(place, error)


def _timings(facts: dict, transcript, seconds: float) -> dict:
    """Seconds of loading the model, and of this recording since the one before it."""
    return {**facts["timings"], "seconds": round(seconds, 4), "rtfx": round(transcript.duration / max(seconds, 1e-6), 2)}


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


def _waveform(recording):
    """The samples of a recording, decoded."""
    from nemotron_npu.audio import read_audio

    return read_audio(recording)


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


def _evaluate(args, console: Console, path: Path, facts: dict, results: Results) -> None:
    """Print the error rates of all that is done and has a reference text; with a report write all figures."""
    from nemotron_npu.evaluation import evaluate, to_report, to_table, use_color

    done = [(results.recordings[place], *results.done[place]) for place in sorted(results.done)]
    scored = [(r.name, r.reference, text, duration) for r, text, duration in done if r.reference is not None]
    if not scored:
        return
    evaluation = evaluate(scored)
    _show_table(args, console, to_table(evaluation))
    if args.wer_report:
        color = use_color(sys.stdout if _shows_text(args) else sys.stderr)
        width = shutil.get_terminal_size((100, 24)).columns
        _show_table(args, console, "\n" + to_report(evaluation, width, color))
    if args.report:
        _write_report(args, path, "evaluation.json", {**facts, "evaluation": evaluation.as_dict()})


def _shows_text(args) -> bool:
    """Whether stdout is for people to read, not for documents alone."""
    return bool(args.output_dir) or args.output_format == ("txt",)


def _show_table(args, console: Console, table: str) -> None:
    if _shows_text(args):
        console.result(table)
    else:
        console.say(table)


def _compare_chunks(args, console: Console, recognizer, results: Results) -> int:
    """Transcribe at each chunk size that the model offers and print the errors of each; return the exit code."""
    from nemotron_npu.checkpoint import attention_contexts
    from nemotron_npu.evaluation import evaluate, to_chunk_table
    from nemotron_npu.writers import dump

    places = [place for place in results.todo if results.recordings[place].reference is not None]
    rows = []
    for chunk_ms in sorted(attention_contexts(recognizer.config)):
        console.say(f"transcribing at {chunk_ms} ms ...")
        began, scored = time.perf_counter(), []
        recordings = [results.recordings[place] for place in places]
        for index, transcript in recognizer.at_chunk(chunk_ms).results(recordings, args.batch_size or recognizer.slots):
            if isinstance(transcript, Exception):
                results.fail(places[index], transcript)
            else:
                recording = recordings[index]
                scored.append((recording.name, recording.reference, transcript.text, transcript.duration))
        seconds = time.perf_counter() - began
        places = [place for place in places if place not in results.broken]  # what failed once is not tried again
        if not scored:
            return SOME_FAILED
        evaluation = evaluate(scored)
        rows.append((chunk_ms, evaluation, seconds))
        if not _shows_text(args):
            overall = {"files": len(scored), "duration": evaluation.overall.duration, **evaluation.overall.as_dict()}
            console.result(dump({"chunk_ms": chunk_ms, "seconds": seconds, **overall}))
    _show_table(args, console, to_chunk_table(rows))
    return OK


@contextmanager
def _progress(args, console: Console, results: Results):
    """The progress of what is to be done; at the end, however it comes, what became of it."""
    from nemotron_npu.progress import Progress

    quiet = args.quiet or (args.stream and sys.stdout.isatty())  # there the words grow
    progress = Progress([results.recordings[place] for place in results.todo], console.say, quiet)
    console.aside = progress.aside
    try:
        yield progress
    finally:
        console.aside = nullcontext
        progress.close()
        if results.total > 1 or results.folder:
            console.say(results.summary(progress.seconds))


def _listen(args, console: Console, recognizer, source, facts: dict, results: Results) -> int:
    """Recognise stdin as it comes, until it ends or Ctrl-C, and say when the recogniser falls behind real time."""
    from nemotron_npu.audio import SAMPLE_RATE
    from nemotron_npu.errors import InputError

    new_line = "\n" if sys.stdout.isatty() else ""  # the growing text has not ended its line

    def blocks():
        fed, worst = 0.0, 1.0  # seconds of sound taken; of delay that are worth a line
        waited = source.delay(0)  # while the model was loaded: only worth a line if it is not made up for soon
        for samples in source:
            results.recordings[0].facts = source.format.facts()
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
            _show_stream(args, recognizer, blocks(), facts, results, 0)
        except InputError:
            if not interrupted():
                raise
    return INTERRUPTED if interrupted() else OK


def _stream_files(args, recognizer, facts: dict, results: Results, progress) -> None:
    """Recognise files one after the other as if they were live, as fast as it goes."""
    from nemotron_npu.errors import SetupError

    stopped = False

    def stop():
        nonlocal stopped
        stopped = True

    def blocks(watched):
        for block in watched.blocks():
            for first in range(0, len(block), recognizer.chunk_samples):
                if stopped and results.folder:
                    raise KeyboardInterrupt  # half a recording is not done: --resume begins it again
                if stopped:
                    return
                yield block[first : first + recognizer.chunk_samples]

    with _first_interrupt(stop) as interrupted:
        for place, watched in zip(results.todo, progress.watched(), strict=True):
            try:
                _show_stream(args, recognizer, blocks(watched), facts, results, place)
            except SetupError:
                raise
            except Exception as error:
                results.fail(place, error)
            progress.finished()
            if interrupted():
                raise KeyboardInterrupt


def _show_stream(args, recognizer, blocks, facts: dict, results: Results, place: int) -> None:
    """Recognise one stream.  On a terminal its words appear as they are recognised, else the result at the end."""
    from nemotron_npu.writers import to_text

    growing = sys.stdout.isatty() and (results.folder or args.output_format == ("txt",))
    prefix = f"{results.recordings[place].name}: " if results.total > 1 else ""
    shown = ""

    def grow(text: str) -> None:  # a word that is shown is final, so the text only ever gets longer
        nonlocal shown
        if text != shown:
            print(("" if shown else prefix) + text[len(shown) :], end="", flush=True)
            shown = text

    began = time.perf_counter()
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
    if results.folder or not growing:
        results.add(place, transcript, {**facts, "timings": _timings(facts, transcript, time.perf_counter() - began)})


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


def _load_reference(args, path: Path, chunk_ms, console: Console):
    """Stock NeMo on the CPU; before the candidate, since loading it takes twice its memory for a moment."""
    import torch

    from nemotron_npu.device import trim_memory
    from nemotron_npu.recognizer import load_recognizer

    console.say("loading the CPU reference: NeMo ...")
    reference = load_recognizer(path, torch.device("cpu"), chunk_ms, "nemo")
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
        _show_table(args, console, to_table(precision.add_signal(sine()), SINE, str(recognizer.device)))
    return precision


def _compare(args, precision, recording, transcript, console: Console):
    """The comparison of one input; None, and a line on stderr, if it cannot be made."""
    try:
        waveform = _waveform(recording)
        if recording.path == SINE:
            return precision.add_signal(waveform)
        name = recording.name if args.audio else DEMO_CLIP.name
        console.say(f"comparing {name} ...")
        comparison = precision.add(name, waveform, transcript, recording.reference)
        if not comparison.passed:
            console.say(f"{recording.name}: FAILED, first at {comparison.failures[0]}")
        return comparison
    except Exception as error:
        console.error(f"{recording.name}: cannot be compared: {type(error).__name__}: {error}", error)
        return None


def _end_precision(args, path: Path, precision, facts: dict, console: Console) -> bool:
    """Show what all inputs together say, and write the report; whether it is PASSED."""
    from nemotron_npu.precision import stage_table

    if precision.recordings:
        _show_table(args, console, stage_table(precision, facts))
    if args.report:
        from nemotron_npu.environment import environment
        from nemotron_npu.precision_page import write_report

        page = write_report(precision, facts, environment(path), Path(args.report))
        console.say(f"report: {page}")
    return precision.passed


def _benchmark(args, console: Console, path: Path, device, facts: dict, results: Results) -> None:
    """Measure, print the table, and write the figures and the plot where there is a report."""
    import numpy as np

    from nemotron_npu.audio import read_audio
    from nemotron_npu.benchmark import as_dict, benchmark, plot, to_table
    from nemotron_npu.linear import offered_dtypes

    if args.audio:
        done = [results.recordings[place] for place in results.todo if place in results.done]
        speech = np.concatenate([_waveform(recording) for recording in done])
    else:
        speech = read_audio(str(DEMO_CLIP))  # the sine has no words
    candidates = [(engine, dtype) for engine, own in args.benchmark.items() for dtype in own or offered_dtypes(device)]
    result = benchmark(path, device, candidates, speech, args.graph == "on", console.say)
    table = to_table(result, path.name)
    _show_table(args, console, table)
    if args.report:
        plot(result, path.name, Path(args.report) / "benchmark.png")
        _write_report(args, path, "benchmark.json", {**facts, "benchmark": as_dict(result)})


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


def _write_report(args, path: Path, name: str, figures: dict) -> None:
    from nemotron_npu.environment import environment
    from nemotron_npu.writers import dump

    text = dump({**figures, "environment": environment(path)}, indent=1)
    Path(args.report, name).write_text(text + "\n", encoding="utf-8")


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
