"""The command line: its options, and what does not go together."""

from __future__ import annotations

import argparse
import os

from .. import __version__
from ..device import DEVICE, DEVICE_NAMES
from ..dtypes import ON_CPU, ON_DEVICES
from ..formats import COLLECTED, FILES, FORMATS
from ..host import program

DESCRIPTION = (
    "Transcribe speech with a cache-aware FastConformer-RNNT checkpoint (.nemo) on an Ascend NPU, a GPU or the CPU."
)
EXAMPLES = """\
examples:
  python inference.py                                          the bundled model and clip
  python inference.py talk.mp3                                 prints the text
  python inference.py talk.mp3 --output_format srt > talk.srt  subtitles
  python inference.py calls/ --output_dir out                  a folder, in every format
  python inference.py calls/ --output_dir out --resume         the same, where it was interrupted
  python inference.py calls/ --output_dir out --num_workers 8  on eight NPUs
  python inference.py test.json --output_format manifest       a NeMo manifest, and pred_text added to it
  arecord -f S16_LE -r 16000 | python inference.py -           a microphone, live
  python inference.py --stream --chunk_ms 80 talk.mp3          a file, as if it were live
  python inference.py --model_path M.nemo talk.mp3             a checkpoint of your own
  python inference.py --model_path M.nemo                      the write-up's check on a 1 s sine
  python inference.py --model_path M.nemo --precision_compare  the device against the CPU, in figures
  python inference.py --doctor --device npu:0                  what is wrong here, and what mends it

exit code: 0 ok, 1 an input failed or the comparison did not pass, 2 wrong usage or environment,
           130, 143, 129 interrupted by SIGINT, SIGTERM, SIGHUP
"""


def parse_args(args: list[str] | None = None) -> argparse.Namespace:
    """The options of one run; what cannot be meant ends the program with usage, a line and exit code 2."""
    parser = argparse.ArgumentParser(
        prog=program.name,
        usage="%(prog)s [AUDIO ...] [options]",
        description=DESCRIPTION,
        epilog=EXAMPLES.replace(f"python {program.SCRIPT}", program.command()),
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
    _add_output(parser)
    _add_model(parser)
    _add_workers(parser)
    _add_live(parser)
    _add_measuring(parser)
    _add_messages(parser)
    if "_ARGCOMPLETE" in os.environ:  # a shell asks for completions, through argcomplete
        import argcomplete

        argcomplete.autocomplete(parser)
    options = parser.parse_args(args)
    if options.doctor:
        _check_doctor(parser, options)
    options.output_format = options.output_format or _formats("all" if options.output_dir else "txt")
    _check(parser, options)
    if options.benchmark:
        options.benchmark = _candidates(options)
    options.engine, options.dtype = options.engine or "native", options.dtype or "float32"
    return options


def _add_output(parser: argparse.ArgumentParser) -> None:
    output = parser.add_argument_group("output")
    output.add_argument(
        "--output_dir", metavar="DIR", help="write the results there, each as soon as it is done (default: to stdout)"
    )
    output.add_argument(
        "--output_format",
        type=_formats,
        metavar="F[,F]",
        help=f"{', '.join(FILES)}: a file a recording; {', '.join(COLLECTED)} (a NeMo manifest with pred_text): "
        "a line a recording; all (default: txt, with --output_dir all; to stdout one of them)",
    ).completer = lambda **_: [*_formats("all"), "all"]
    output.add_argument(
        "--resume", action="store_true", help="leave out what is done in --output_dir, also after a crash"
    )


def _add_model(parser: argparse.ArgumentParser) -> None:
    from ..confidence import METHODS

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
        help=f"of the encoder's matrix products: on a CPU {_needs()}; on an npu or cuda device "
        f"{', '.join(ON_DEVICES)} (default: float32; --benchmark: all that the device has)",
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


def _needs() -> str:
    return ", ".join(f"{dtype} ({needs})" for dtype, needs in ON_CPU.items())


def _add_workers(parser: argparse.ArgumentParser) -> None:
    workers = parser.add_argument_group("many devices")
    workers.add_argument(
        "--num_workers",
        type=_workers,
        metavar="N",
        help="recognise in so many processes, each with an NPU, a GPU or a CPU thread (--threads) of its own; 2 and "
        "more need Ray (default: in this one; with --ray_address as many as the cluster has devices)",
    )
    workers.add_argument(
        "--ray_address",
        metavar="A",
        help="of the Ray cluster whose devices are used, HOST:PORT; auto: the one that this host belongs to "
        "(default: this host alone)",
    )


def _add_live(parser: argparse.ArgumentParser) -> None:
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


def _add_measuring(parser: argparse.ArgumentParser) -> None:
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


def _add_messages(parser: argparse.ArgumentParser) -> None:
    messages = parser.add_argument_group("messages")
    messages.add_argument("--quiet", action="store_true", help="nothing on stderr but errors")
    messages.add_argument(
        "--doctor",
        action="store_true",
        help="look at the environment, the device and the checkpoint, say what is wrong and which command mends it; "
        "nothing in it is private, paste it into a bug report; exit code 0 all is well, 1 warnings, 2 problems",
    )
    messages.add_argument("--debug", action="store_true", help="show NeMo's log and full tracebacks")
    messages.add_argument("--version", action="version", version=f"nemotron-npu {__version__}")


def _check(parser: argparse.ArgumentParser, options: argparse.Namespace) -> None:
    """Refuse what does not go together."""
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
    if len(options.output_format) > 1 and not options.output_dir:
        parser.error("--output_format: stdout takes one format, several need --output_dir")
    if options.chunk_ms == "all":
        for other in ("stream", "precision_compare", "benchmark", "output_dir", "wer_report"):
            if getattr(options, other):
                parser.error(f"--chunk_ms all makes a table of its own: leave --{other} out")
        if not FORMATS[options.output_format[0]].tables:
            parser.error("--chunk_ms all makes a table, or in json a line for each chunk size, and nothing else")
    if options.boost_alpha != 1 and not options.boost_words:
        parser.error("--boost_alpha weighs --boost_words: name their file")
    if options.report and not (options.precision_compare or options.benchmark or options.wer_report):
        parser.error("--report needs --precision_compare, --benchmark or --wer_report: without them it has no figures")
    if options.boost_words and options.precision_compare:
        parser.error("--precision_compare compares the model alone: leave --boost_words out")
    if options.num_workers or options.ray_address:
        _check_workers(parser, options)
    if options.bounds and not options.precision_compare:
        parser.error("--bounds needs --precision_compare")


def _check_doctor(parser: argparse.ArgumentParser, options: argparse.Namespace) -> None:
    """--doctor takes the few options that say what it is to look at."""
    taken = ("doctor", "device", "model_path", "engine", "output_format", "quiet", "debug")
    for action in parser._actions:
        if action.dest not in (*taken, "help", "version") and getattr(options, action.dest) not in (action.default, []):
            name = action.option_strings[0] if action.option_strings else action.metavar
            parser.error(f"--doctor looks at the environment: leave {name} out")
    if options.output_format not in (None, ("txt",), ("json",)):
        parser.error("--doctor prints txt or json")


def _check_workers(parser: argparse.ArgumentParser, options: argparse.Namespace) -> None:
    """Refuse what workers do not do."""
    option = "--num_workers" if options.num_workers else "--ray_address"
    if not options.audio:
        parser.error(f"{option} needs AUDIO: there is nothing to share out")
    if options.stream or options.audio == ["-"]:
        parser.error(f"{option} is for files: a stream is one recogniser's")
    for other in ("precision_compare", "benchmark"):
        if getattr(options, other):
            parser.error(f"--{other} measures one device: leave {option} out")
    if options.chunk_ms == "all":
        parser.error(f"--chunk_ms all loads the weights once: leave {option} out")
    if options.device and ":" in options.device and (options.ray_address or options.num_workers > 1):
        kind = options.device.partition(":")[0]
        parser.error(f"--device {options.device} is one device: with workers take {kind}, each gets its own")


def _candidates(options: argparse.Namespace) -> dict:
    """Engines and dtypes that --benchmark measures; without a dtype all that the device has."""
    dtypes = [options.dtype] if options.dtype else None
    both = {"nemo": ["float32"], "native": dtypes}
    return {options.engine: both[options.engine]} if options.engine else both


def _formats(text: str) -> tuple[str, ...]:
    names = ["txt" if name.strip() == "text" else name.strip() for name in text.split(",")]
    for name in names:
        if name not in (*FORMATS, "all"):
            raise argparse.ArgumentTypeError(f"{name!r} is none of {', '.join(FORMATS)} and all")
    return tuple(name for name in FORMATS if name in names or "all" in names)


def _positive(text: str) -> int:
    if not text.isascii() or not text.isdigit() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number of 1 or more")
    return int(text)


def _threads(text: str) -> int:
    if (count := _positive(text)) > 1024:  # beyond what a machine can start, OpenMP ends the process
        raise argparse.ArgumentTypeError(f"{count} are more threads than the 1024 that can be asked for")
    return count


def _workers(text: str) -> int:
    if (count := _positive(text)) > 10_000:
        raise argparse.ArgumentTypeError(f"{count} are more workers than the 10000 that can be asked for")
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
    if not DEVICE.fullmatch(text):
        raise argparse.ArgumentTypeError(f"{text!r} is no device: use {DEVICE_NAMES}")
    return text
